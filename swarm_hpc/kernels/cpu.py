"""Merging on the CPU: `reference.py` says what each method means. Without torch; in C where native.c is compiled.

The result is the same bits on every machine, with any backend and any number of threads, so that any site can check a
merge by its hash. The only memory of a model's size is the caller's.

K peers; `rows` is one flat array per peer, all of one length and floating dtype, and so is `out`, which overlaps none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.arena import DTYPES, Array
from swarm_hpc.kernels.mixture import METHODS as MIXTURES
from swarm_hpc.kernels.mixture import Measured, mixture
from swarm_hpc.kernels.native import Native, sets
from swarm_hpc.kernels.plain import BLOCK, Backend, Measure, Order, Plain, Rows
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, Rule, Segment, Shard, clipped, segments, values
from swarm_hpc.kernels.robust import trim_bounds
from swarm_hpc.kernels.weights import bounds, quanta, shares
from swarm_hpc.kernels.weiszfeld import Matrix
from swarm_hpc.records import Merge, MergeMethod

LINE: Final = 64
"""Elements: no fewer bytes than a cache line."""
LARGEST: Final = 2.0**1000
"""Of greater numbers, sums may be infinite or not, by the order of their terms."""


@cache
def backends() -> tuple[Backend, ...]:
    """All that run here, the best one last: it is the one that is used where none is asked for."""
    return (Plain(), *(Native(instructions) for instructions in sets()))


def usable_threads() -> int:
    """How many processors Slurm, or whoever started this process, lets it use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(asked)) if asked.isdecimal() and int(asked) else allowed


def merge(
    layout: Layout,
    merge: Merge,
    blobs: Sequence[ReadableBuffer],
    weights: Sequence[float],
    out: memoryview,
    *,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """Merge whole blobs of one layout (the caller has compared the headers) into `out`: header, then values.

    Floating tensors by `merge`, integers by max, booleans from the first peer; peers of weight 0 count nowhere. For
    the same bits everywhere, give the peers in sorted order. MergeError on wrong counts, sizes or weights.
    """
    for number, buffer in enumerate((*blobs, out)):
        if memoryview(buffer).nbytes != layout.size_bytes:
            raise MergeError(f"buffer {number} of {len(blobs)} + 1 is not a blob of {layout.size_bytes} bytes")
    whole = values(layout)
    out[: whole.start] = layout.header
    pieces = [memoryview(blob).cast("B")[whole.start :] for blob in blobs]
    merge_shard(layout, merge, whole, pieces, weights, out[whole.start :], threads=threads, backend=backend)


def merge_shard(
    layout: Layout,
    merge: Merge,
    shard: Shard,
    pieces: Sequence[ReadableBuffer],
    weights: Sequence[float],
    out: memoryview,
    *,
    threads: int = 1,
    backend: Backend | None = None,
    joined: Callable[[Pieces], Measured] | None = None,
) -> None:
    """Merge one shard of the peers' blobs (`pieces`: its bytes, from each peer) into `out`: what `merge` puts there.

    For a shard of `plan.shards` with grain `grain(merge)`. By a method of `mixture.METHODS` the peers are compared over
    the whole model: `joined` makes of this shard's pieces what compares those of all shards.
    """
    for number, buffer in enumerate((*pieces, out)):
        if memoryview(buffer).nbytes != shard.size_bytes:
            raise MergeError(f"buffer {number} of {len(pieces)} + 1 is not a shard of {shard.size_bytes} bytes")
    kept = [(piece, part) for piece, part in zip(pieces, shares(weights, len(pieces)), strict=True) if part > 0]
    parts = [part for _, part in kept]
    parted = segments(layout)
    plan = [
        (segment.rule, [_values(piece, segment, shard) for piece, _ in kept], _values(out, segment, shard))
        for segment in (clipped(segment, shard) for segment in parted)
        if segment is not None
    ]
    floating = [(rows, merged) for rule, rows, merged in plan if rule is Rule.MERGE]
    if merge.method in MIXTURES and any(segment.rule is Rule.MERGE for segment in parted):
        # one set of weights for the whole model
        own = Pieces([rows for rows, _ in floating], threads=threads, backend=backend)
        parts = mixture(merge, parts, own if joined is None else joined(own))
    for rows, merged in floating:
        merge_values(merge, rows, parts, merged, threads=threads, backend=backend)
    for rule, rows, merged in plan:
        if rule is Rule.MAX:
            _largest(rows, merged)
        elif rule is Rule.FIRST:
            # any byte but 0 is True: what a peer sends need not be 0 or 1
            np.not_equal(rows[0].view(np.uint8), 0, out=merged)


def grain(merge: Merge) -> int:
    """Elements between the places where a shard may begin, so that its bits are those of the whole model's merge."""
    return BLOCK if merge.method in MIXTURES else LINE


def merge_values(
    merge: Merge,
    rows: Rows,
    weights: Sequence[float],
    out: Array,
    *,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """Element by element; of a method of `mixture.METHODS`, the weights must be the mixture. For any slice of rows."""
    if merge.method is MergeMethod.COORDMEDIAN:
        coord_median(rows, weights, out, threads=threads, backend=backend)
    elif merge.method is MergeMethod.TRIMMEDMEAN:
        trimmed_mean(rows, weights, out, trim=merge.trim, threads=threads, backend=backend)
    else:
        mean(rows, weights, out, threads=threads, backend=backend)


def mean(rows: Rows, weights: Sequence[float], out: Array, *, threads: int = 1, backend: Backend | None = None) -> None:
    """`reference.mean`, accumulated in float32 (float64 for float64)."""
    rows, parts = _present(rows, weights)
    run = (backend or backends()[-1]).mean
    _in_slices(len(out), threads, lambda part: run([row[part] for row in rows], parts, out[part]))


def coord_median(
    rows: Rows, weights: Sequence[float], out: Array, *, threads: int = 1, backend: Backend | None = None
) -> None:
    """`reference.coord_median`"""
    rows, parts = _present(rows, weights)
    counts = quanta(parts)
    order = Order(counts, *bounds(counts))
    run = (backend or backends()[-1]).median
    _in_slices(len(out), threads, lambda part: run([row[part] for row in rows], order, out[part]))


def trimmed_mean(
    rows: Rows,
    weights: Sequence[float],
    out: Array,
    *,
    trim: float,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """`reference.trimmed_mean`, accumulated in float32 (float64 for float64)."""
    rows, parts = _present(rows, weights)
    counts = quanta(parts)
    low, high = trim_bounds(counts, trim)
    order = Order(counts, low, high, 1 / (high - low))
    run = (backend or backends()[-1]).trimmed_mean
    _in_slices(len(out), threads, lambda part: run([row[part] for row in rows], order, out[part]))


def geometric_median(
    rows: Rows, weights: Sequence[float], out: Array, *, threads: int = 1, backend: Backend | None = None
) -> None:
    """`reference.geometric_median`: one pass for the inner products of each two peers, then one weighted mean."""
    _mixed(Merge(method=MergeMethod.GEOMEDIAN), rows, weights, out, threads, backend)


def krum(
    rows: Rows,
    weights: Sequence[float],
    out: Array,
    *,
    num_byzantine: int,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """`reference.krum`: one pass for the distances, then a copy."""
    merge = Merge(method=MergeMethod.KRUM, num_byzantine=num_byzantine)
    _mixed(merge, rows, weights, out, threads, backend)


def multi_krum(
    rows: Rows,
    weights: Sequence[float],
    out: Array,
    *,
    num_byzantine: int,
    num_selected: int = 0,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """`reference.multi_krum`: one pass for the distances, then one weighted mean."""
    merge = Merge(method=MergeMethod.MULTIKRUM, num_byzantine=num_byzantine, num_selected=num_selected)
    _mixed(merge, rows, weights, out, threads, backend)


def centred_clipping(
    rows: Rows,
    weights: Sequence[float],
    out: Array,
    *,
    radius: float,
    iterations: int,
    threads: int = 1,
    backend: Backend | None = None,
) -> None:
    """`reference.centred_clipping`: one pass for the distances, then one weighted mean."""
    merge = Merge(method=MergeMethod.CENTREDCLIP, clip_radius=radius, clip_iterations=iterations)
    _mixed(merge, rows, weights, out, threads, backend)


class Pieces:
    """`mixture.Measured` of models in memory, or of a shard of them: for each part of the model, its rows."""

    def __init__(self, pieces: Sequence[Rows], *, threads: int = 1, backend: Backend | None = None) -> None:
        self._pieces = pieces
        self._threads = threads
        self._backend = backend or backends()[-1]

    def sums(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> Matrix:
        """`Measured.sums`"""
        size, columns = len(peers), self.columns(peers, measure, centre)
        # below the diagonal there is nothing
        return matrix([exact_sum(one) if at // size <= at % size else 0.0 for at, one in enumerate(columns)], size)

    def columns(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> list[list[float]]:
        """The numbers that `sums` adds up, for the first peer with each, then the second with each, ..."""
        tables: list[npt.NDArray[np.float64]] = [np.zeros((1, len(peers), len(peers)))]
        for rows in self._pieces:
            chosen = [rows[peer] for peer in peers]
            _in_slices(len(chosen[0]), self._threads, partial(self._add, tables, chosen, measure, centre))
        columns: list[list[float]] = np.concatenate(tables).reshape(-1, len(peers) ** 2).T.tolist()
        return columns

    def bounded(self, peers: Sequence[int], limit: float) -> list[bool]:
        """`Measured.bounded`"""
        found = [self._backend.bounded([rows[peer] for peer in peers], limit) for rows in self._pieces if len(rows[0])]
        return [all(flags) for flags in zip(*found, strict=True)] or [True] * len(peers)

    def _add(
        self, tables: list[npt.NDArray[np.float64]], rows: Rows, measure: Measure, centre: int, part: slice
    ) -> None:
        tables.append(self._backend.sums([row[part] for row in rows], measure, centre))


def _mixed(
    merge: Merge, rows: Rows, weights: Sequence[float], out: Array, threads: int, backend: Backend | None
) -> None:
    measured = Pieces([rows], threads=threads, backend=backend)
    mean(rows, mixture(merge, weights, measured), out, threads=threads, backend=backend)


def _in_slices(size: int, threads: int, work: Callable[[slice], None]) -> None:
    """`work` for slices that cover all elements, begin at multiples of BLOCK, and run at once in as many threads."""
    if size == 0:
        return
    blocks = -(-size // BLOCK)
    workers = min(threads, blocks)
    cuts = [blocks * number // workers * BLOCK for number in range(workers)] + [size]
    if workers == 1:
        work(slice(0, size))
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="merge") as pool:
        for done in [pool.submit(work, slice(*cut)) for cut in pairwise(cuts)]:
            done.result()


def exact_sum(numbers: Sequence[float]) -> float:
    """The sum, rounded once, whatever the order. NaN where a number is not finite, or so large that a sum may not be.

    At most 2^23 numbers.
    """
    # NaN is greater than nothing, but then the sum is NaN, too
    fits = max(numbers, default=0.0) <= LARGEST and min(numbers, default=0.0) >= -LARGEST
    return math.fsum(numbers) if fits else math.nan


def exact_parts(numbers: Sequence[float]) -> list[float]:
    """Few numbers whose sum is exactly that of `numbers`: so that sums of parts are added up as if they were one.

    By math.fsum of what the parts so far have left (an expansion, as in Shewchuk, Adaptive Precision Floating-Point
    Arithmetic, 1997). One NaN where `exact_sum` is.
    """
    parts: list[float] = []
    while rest := exact_sum([*numbers, *(-part for part in parts)]):
        parts.append(rest)
        if math.isnan(rest):
            break
    return parts


def matrix(flat: Sequence[float], size: int) -> Matrix:
    """Of size * size numbers, row by row: the upper triangle and its mirror image."""
    return [[flat[min(a, b) * size + max(a, b)] for b in range(size)] for a in range(size)]


def _values(piece: ReadableBuffer, segment: Segment, shard: Shard) -> Array:
    dtype = DTYPES[segment.dtype]
    return np.frombuffer(piece, dtype, (segment.stop - segment.start) // dtype.itemsize, segment.start - shard.start)


def _present(rows: Rows, weights: Sequence[float]) -> tuple[Rows, list[float]]:
    """The peers that have a say, and their shares."""
    parts = shares(weights, len(rows))
    return [row for row, part in zip(rows, parts, strict=True) if part > 0], [part for part in parts if part > 0]


def _largest(rows: Rows, out: Array) -> None:
    np.copyto(out, rows[0])
    for row in rows[1:]:
        np.maximum(out, row, out=out)
