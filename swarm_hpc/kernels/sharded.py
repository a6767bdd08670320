"""Merging models that lie in the memory of an MPI job's ranks, one per rank: the result is in place in all of them.

What a merge means is `reference.py`'s, the arithmetic `cpu.py`'s. Each rank works on its shard of a block at a time, so
no rank ever holds another's model, and every rank gets each element from the one that computed it: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.arena import DTYPES, Array
from swarm_hpc.kernels.mixture import METHODS as MIXTURES
from swarm_hpc.kernels.mixture import mixture
from swarm_hpc.kernels.mpi import Ranks
from swarm_hpc.kernels.plain import Measure, Plain, wide_dtype
from swarm_hpc.kernels.plan import Layout, Rule, Segment, segments
from swarm_hpc.kernels.weights import shares
from swarm_hpc.kernels.weiszfeld import Matrix
from swarm_hpc.records import Merge, MergeMethod

BLOCK_BYTES: Final = 16 << 20
"""Bytes of a model that are under way at a time. All ranks must have the same."""


class ShardedMerge:
    """Merges models of one layout, again and again, with buffers of a few blocks that it keeps."""

    def __init__(self, ranks: Ranks, layout: Layout, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._ranks = ranks
        self._layout = layout
        self._block_bytes = block_bytes
        # 64: an element more per rank, and a whole number of elements of any dtype
        room = min(block_bytes, layout.size_bytes) // 64 * 64 + 64 * ranks.size
        self._rows = np.empty(room, np.uint8)
        self._shard = np.empty(room // ranks.size // 64 * 64 + 64, np.uint8)
        # sums of half floats are in float32, twice as wide
        halves = any(segment.dtype in ("F16", "BF16") for segment in segments(layout))
        self._terms = np.empty(2 * room if halves else 0, np.uint8)
        self._sum = np.empty(2 * len(self._shard) if halves else 0, np.uint8)

    def merge(self, merge: Merge, weights: Sequence[float], blob: memoryview) -> None:
        """Merge every rank's `blob` into itself, as `cpu.merge` does; `weights` has one per rank, the same everywhere.

        MergeError: nothing was touched, on any rank. RankLost: `blob` is no model any more.
        """
        if blob.nbytes != self._layout.size_bytes:
            raise MergeError(f"a buffer of {blob.nbytes} bytes is not a blob of {self._layout.size_bytes} bytes")
        parts = shares(weights, self._ranks.size)
        plan = [(segment.rule, _values(blob, segment)) for segment in segments(self._layout)]
        floating = [values for rule, values in plan if rule is Rule.MERGE]
        if merge.method in MIXTURES and floating:
            mixed = mixture(merge, parts, _Shards(lambda: self._shards(floating), self._ranks))
        else:
            mixed = parts
        for rule, values in plan:
            if rule is Rule.MAX:
                self._largest(values, parts)
            elif rule is Rule.FIRST:
                self._first(values, parts)
            elif merge.method in (MergeMethod.COORDMEDIAN, MergeMethod.TRIMMEDMEAN):
                self._by_element(merge, values, parts)
            else:
                self._mean(values, mixed)

    @np.errstate(all="ignore")
    def _mean(self, values: Array, parts: Sequence[float]) -> None:
        """`cpu.mean`, but the order in which the ranks' terms are added is the MPI library's."""
        part = parts[self._ranks.rank]
        wide = wide_dtype(values)
        for block, counts in self._blocks(values):
            own = counts[self._ranks.rank]
            if values.dtype == wide:
                terms, total = block, self._shard.view(wide)[:own]
            else:
                terms, total = self._terms.view(wide)[: len(block)], self._sum.view(wide)[:own]
            if part > 0:
                np.multiply(block, wide.type(part), out=terms, dtype=wide)
            else:
                # whatever the values are, they must not count; x + -0 is x for every x
                terms.fill(-0.0)
            self._ranks.sum_shards(terms, counts, total)
            shard = self._shard.view(values.dtype)[:own]
            # of one row: gives every NaN one form, and rounds to a narrower dtype, which only numpy's does
            cpu.mean([total], [1.0], shard, backend=Plain())
            self._ranks.gather_shards(shard, counts, block)

    def _by_element(self, merge: Merge, values: Array, parts: Sequence[float]) -> None:
        for rows, block, counts in self._exchanged(values):
            shard = self._shard.view(values.dtype)[: len(rows[0])]
            cpu.merge_values(merge, rows, parts, shard)
            self._ranks.gather_shards(shard, counts, block)

    def _largest(self, values: Array, parts: Sequence[float]) -> None:
        if parts[self._ranks.rank] == 0:
            values.fill(np.iinfo(values.dtype).min)
        for block, _ in self._blocks(values):
            self._ranks.largest(block)

    def _first(self, values: Array, parts: Sequence[float]) -> None:
        """Any byte but 0 is True: what a program writes need not be 0 or 1."""
        np.not_equal(values.view(np.uint8), 0, out=values)
        self._ranks.broadcast(values, root=next(rank for rank, part in enumerate(parts) if part > 0))

    def _shards(self, floating: Sequence[Array]) -> Iterator[list[Array]]:
        """All that this rank measures, from each rank; overwritten by the next."""
        for values in floating:
            for rows, _, _ in self._exchanged(values):
                yield rows

    def _exchanged(self, values: Array) -> Iterator[tuple[list[Array], Array, list[int]]]:
        """Block after block: (this rank's shard of it from each rank, the block, elements per shard)."""
        for block, counts in self._blocks(values):
            own = counts[self._ranks.rank]
            flat = self._rows.view(values.dtype)[: own * self._ranks.size]
            self._ranks.exchange(block, counts, flat)
            yield [flat[own * rank : own * (rank + 1)] for rank in range(self._ranks.size)], block, counts

    def _blocks(self, values: Array) -> Iterator[tuple[Array, list[int]]]:
        """Each block, and how many elements of it are each rank's."""
        step = max(self._block_bytes // values.itemsize, 1)
        for start in range(0, len(values), step):
            block = values[start : start + step]
            cuts = [len(block) * rank // self._ranks.size for rank in range(self._ranks.size + 1)]
            yield block, [stop - start for start, stop in pairwise(cuts)]


class _Shards:
    """`mixture.Measured` of the ranks' models: each rank measures its shards, and a few numbers are added up."""

    def __init__(self, shards: Callable[[], Iterator[list[Array]]], ranks: Ranks) -> None:
        self._shards = shards
        self._ranks = ranks

    def sums(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> Matrix:
        """`Measured.sums`"""
        found = [cpu.Pieces([rows]).sums(peers, measure, centre) for rows in self._shards()]
        flat = self._summed([[value for row in matrix for value in row] for matrix in found], len(peers) ** 2)
        return [flat[start : start + len(peers)] for start in range(0, len(flat), len(peers))]

    def bounded(self, peers: Sequence[int], limit: float) -> list[bool]:
        """`Measured.bounded`"""
        found = [cpu.Pieces([rows]).bounded(peers, limit) for rows in self._shards()]
        bad = self._summed([[float(not good) for good in flags] for flags in found], len(peers))
        return [not count for count in bad]

    def _summed(self, found: Sequence[Sequence[float]], size: int) -> list[float]:
        """The sum over all shards of all ranks of each number: the same bits on all ranks."""
        own = [cpu.exact_sum([one[place] for one in found]) for place in range(size)]
        rows = self._ranks.gather_numbers(np.array(own, np.float64))
        return [cpu.exact_sum(column) for column in rows.T.tolist()]


def _values(blob: memoryview, segment: Segment) -> Array:
    return np.frombuffer(blob[segment.start : segment.stop], DTYPES[segment.dtype])
