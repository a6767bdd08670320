"""Merging on the CPU with numpy: `reference.py` says what each method means. Without torch, in one thread.

The result is the same bits on every machine, so that any site can check a merge by its hash: only elementwise
operations and sums whose order is written here, no BLAS, no library reduction. Works in chunks that stay in the cache;
the only memory of a model's size is the caller's.

K peers; `rows` is one flat array per peer, all of one length and floating dtype, and so is `out`, which overlaps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.arena import DTYPES, Array
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, Rule, Segment, segments
from swarm_hpc.kernels.weights import bounds, quanta, shares
from swarm_hpc.kernels.weiszfeld import Matrix, centred, medoid, weiszfeld
from swarm_hpc.records import MergeMethod

Rows = Sequence[Array]

CHUNK: Final = 1 << 15
"""Elements worked on at a time: a few such rows fit a core's cache. The bits of a geometric median depend on it."""
LIMIT: Final = 2.0**480
"""geometric_median: values beyond it count as not finite, so that sums of squares are."""
NO_SPREAD: Final = 2.0**-400
"""geometric_median: peers no farther apart are at one point; the squares of smaller distances need not be above 0."""
MAX_SQUARED_RATIO: Final = 2.0**44
"""Above this, (farthest peer / spread)^2, squared distances have lost too many digits to find inner products from."""


def merge(
    layout: Layout,
    method: MergeMethod,
    blobs: Sequence[ReadableBuffer],
    weights: Sequence[float],
    out: memoryview,
) -> None:
    """Merge whole blobs of one layout (the caller has compared the headers) into `out`: header, then values.

    Floating tensors by `method`, integers by max, booleans from the first peer; peers of weight 0 count nowhere. For
    the same bits everywhere, give the peers in sorted order. MergeError on wrong counts, sizes or weights.
    """
    for number, buffer in enumerate((*blobs, out)):
        if memoryview(buffer).nbytes != layout.size_bytes:
            raise MergeError(f"buffer {number} of {len(blobs)} + 1 is not a blob of {layout.size_bytes} bytes")
    kept = [(blob, part) for blob, part in zip(blobs, shares(weights, len(blobs)), strict=True) if part > 0]
    parts = [part for _, part in kept]
    plan = [
        (segment, [_values(blob, segment) for blob, _ in kept], _values(out, segment)) for segment in segments(layout)
    ]
    out[: len(layout.header)] = layout.header
    floating = [(rows, merged) for segment, rows, merged in plan if segment.rule is Rule.MERGE]
    if method is MergeMethod.GEOMEDIAN and floating:
        # one set of weights for the whole model
        parts = geometric_mixture([rows for rows, _ in floating], parts)
    for rows, merged in floating:
        if method is MergeMethod.COORDMEDIAN:
            coord_median(rows, parts, merged)
        else:
            mean(rows, parts, merged)
    for segment, rows, merged in plan:
        if segment.rule is Rule.MAX:
            _largest(rows, merged)
        elif segment.rule is Rule.FIRST:
            # any byte but 0 is True: what a peer sends need not be 0 or 1
            np.not_equal(rows[0].view(np.uint8), 0, out=merged)


@np.errstate(all="ignore")
def mean(rows: Rows, weights: Sequence[float], out: Array) -> None:
    """`reference.mean`, accumulated in float32 (float64 for float64)."""
    rows, parts = _present(rows, weights)
    wide = _wide(out)
    scratch = np.empty((2, CHUNK), wide)
    mask = np.empty(CHUNK, np.bool_)
    for chunk in _chunks(len(out)):
        target = out[chunk]
        total = target if out.dtype == wide else scratch[0, : len(target)]
        term = scratch[1, : len(target)]
        np.multiply(rows[0][chunk], wide.type(parts[0]), out=total, dtype=wide)
        for row, part in zip(rows[1:], parts[1:], strict=True):
            np.multiply(row[chunk], wide.type(part), out=term, dtype=wide)
            np.add(total, term, out=total)
        _replace_nan(total, np.nan, mask)
        if total is not target:
            target[...] = total


@np.errstate(all="ignore")
def coord_median(rows: Rows, weights: Sequence[float], out: Array) -> None:
    """`reference.coord_median`. Equal weights take a sorting network, others count the weight before each value."""
    rows, parts = _present(rows, weights)
    counts = quanta(parts)
    wide = _wide(out)
    scratch = np.empty((len(rows) + 3, CHUNK), wide)
    mask = np.empty(CHUNK, np.bool_)
    before = np.empty((len(rows) + 2, CHUNK), f"i{wide.itemsize}")
    for chunk in _chunks(len(out)):
        target = out[chunk]
        size = len(target)
        columns = [row[:size] for row in scratch]
        for row, column in zip(rows, columns, strict=False):
            column[...] = row[chunk]
            _replace_nan(column, np.inf, mask)
        if len(set(counts)) == 1:
            lower, upper = _middle(columns[: len(rows) + 1])
        else:
            lower, upper = _weighted_middle(columns, counts, before[:, :size], mask[:size])
        if lower is not upper:
            np.multiply(lower, 0.5, out=lower)
            np.multiply(upper, 0.5, out=upper)
            np.add(lower, upper, out=lower)
        # min and max may give either zero where both are there: + 0 makes -0 into 0
        np.add(lower, 0.0, out=lower)
        _replace_nan(lower, np.nan, mask)
        target[...] = lower


def geometric_median(rows: Rows, weights: Sequence[float], out: Array) -> None:
    """`reference.geometric_median`: one pass for the distances of each two peers, then one weighted mean."""
    mean(rows, geometric_mixture([rows], weights), out)


@np.errstate(all="ignore")
def geometric_mixture(
    pieces: Sequence[Rows],
    weights: Sequence[float],
    *,
    smoothing: float = 1e-6,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
) -> list[float]:
    """Per peer, the weight in the mean that is the geometric median; `pieces` are the rows of each part of the model.

    MergeError where no peer of positive weight is finite.
    """

    def rows_of(peers: Sequence[int]) -> Iterator[Rows]:
        return ([rows[peer] for peer in peers] for rows in pieces)

    return mixture(
        weights,
        lambda peers: squared_distances(rows_of(peers), len(peers)),
        lambda peers, centre: inner_products(rows_of(peers), len(peers), centre),
        smoothing=smoothing,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


def mixture(
    weights: Sequence[float],
    distances: Callable[[Sequence[int]], tuple[set[int], Matrix]],
    products: Callable[[Sequence[int], int], Matrix],
    *,
    smoothing: float = 1e-6,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
) -> list[float]:
    """`geometric_mixture` of models that lie anywhere: it asks for `squared_distances` and `inner_products`."""
    parts = shares(weights, len(weights))
    candidates = [peer for peer, part in enumerate(parts) if part > 0]
    finite, squares = distances(candidates)
    kept = sorted(finite)
    if not kept:
        raise MergeError("no peer's parameters are finite")
    usable = [candidates[index] for index in kept]
    squares = [[squares[min(a, b)][max(a, b)] for b in kept] for a in kept]
    pulls = shares([parts[peer] for peer in usable], len(usable))
    centre, spread = medoid(squares, pulls)
    if spread <= NO_SPREAD:
        found = [float(index == centre) for index in range(len(usable))]
    else:
        if max(squares[centre]) <= MAX_SQUARED_RATIO * spread**2:
            inner = centred(squares, centre)
        else:
            inner = products(usable, centre)
        found = weiszfeld(inner, pulls, spread, smoothing=smoothing, tolerance=tolerance, max_iterations=max_iterations)
    by_peer = dict(zip(usable, found, strict=True))
    return [by_peer.get(peer, 0.0) for peer in range(len(weights))]


@np.errstate(all="ignore")
def squared_distances(pieces: Iterable[Rows], num_peers: int) -> tuple[set[int], Matrix]:
    """(peers whose values are all finite, squared distances of each two of these: above the diagonal only).

    A piece may be overwritten once the next one is asked for. Those of several parts of a model add up.
    """
    squares = [[0.0] * num_peers for _ in range(num_peers)]
    finite = set(range(num_peers))
    product = np.empty(CHUNK)
    for columns in _wide_blocks(pieces, num_peers):
        finite -= {peer for peer in finite if not _bounded(columns[peer])}
        for first in finite:
            for second in finite:
                if first < second:
                    difference = np.subtract(columns[first], columns[second], out=product[: len(columns[first])])
                    squares[first][second] += _sum_of_products(difference, difference, difference)
    return finite, squares


@np.errstate(all="ignore")
def inner_products(pieces: Iterable[Rows], num_peers: int, centre: int) -> Matrix:
    """<x_j - x_c, x_k - x_c> of each two peers, every digit of it; pieces as in `squared_distances`."""
    products = [[0.0] * num_peers for _ in range(num_peers)]
    scratch = np.empty(CHUNK)
    for columns in _wide_blocks(pieces, num_peers):
        middle = columns[centre].copy()
        for column in columns:
            np.subtract(column, middle, out=column)
        for first in range(num_peers):
            for second in range(first, num_peers):
                products[first][second] += _sum_of_products(columns[first], columns[second], scratch[: len(middle)])
    return [[products[min(a, b)][max(a, b)] for b in range(num_peers)] for a in range(num_peers)]


def _values(blob: ReadableBuffer, segment: Segment) -> Array:
    dtype = DTYPES[segment.dtype]
    return np.frombuffer(blob, dtype, (segment.stop - segment.start) // dtype.itemsize, segment.start)


def _present(rows: Rows, weights: Sequence[float]) -> tuple[Rows, list[float]]:
    """The peers that have a say, and their shares."""
    parts = shares(weights, len(rows))
    return [row for row, part in zip(rows, parts, strict=True) if part > 0], [part for part in parts if part > 0]


def _wide(out: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if out.dtype == np.float64 else np.float32)


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def _replace_nan(values: Array, value: float, mask: npt.NDArray[np.bool_]) -> None:
    """Every NaN gets one value; also NaN itself, whose sign and payload differ between processors."""
    found = np.isnan(values, out=mask[: len(values)])
    if found.any():
        values[found] = value


def _largest(rows: Rows, out: Array) -> None:
    np.copyto(out, rows[0])
    for row in rows[1:]:
        np.maximum(out, row, out=out)


def _middle(columns: list[Array]) -> tuple[Array, Array]:
    """The middle one or two of all columns but the last, which is spare; all of them are overwritten."""
    *columns, spare = columns
    size = len(columns)
    for low, high in _network(size):
        np.minimum(columns[low], columns[high], out=spare)
        np.maximum(columns[low], columns[high], out=columns[high])
        columns[low], spare = spare, columns[low]
    return columns[(size - 1) // 2], columns[size // 2]


@cache
def _network(size: int) -> tuple[tuple[int, int], ...]:
    """The comparators that bring the middle of `size` values to its place: Batcher's merge exchange (Knuth 5.2.2 M)."""
    comparators = []
    top = 1 << max(size - 1, 0).bit_length() >> 1
    width = top
    while width:
        merge_width, offset, distance = top, 0, width
        while True:
            comparators += [(low, low + distance) for low in range(size - distance) if low & width == offset]
            if merge_width == width:
                break
            offset, distance, merge_width = width, merge_width - width, merge_width >> 1
        width >>= 1
    wanted = {(size - 1) // 2, size // 2}
    needed = []
    for pair in reversed(comparators):
        if wanted & set(pair):
            wanted |= set(pair)
            needed.append(pair)
    return tuple(reversed(needed))


def _weighted_middle(
    columns: list[Array], counts: Sequence[int], before: Array, mask: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Lower and upper weighted median of all columns but the last three; the last two are returned.

    `before`: scratch, one row of integers, as wide as the values, per peer and two more; a peer's row counts the weight
    of what sorts before it.
    """
    *columns, picked, lower, upper = columns
    *before_each, ahead, term = before
    sign_bit = 8 * term.itemsize - 1
    for peer, row in enumerate(before_each):
        row.fill(sum(counts[:peer]))
    for first in range(len(columns)):
        for second in range(first + 1, len(columns)):
            # of equal values the first peer's comes first
            np.copyto(ahead, np.less(columns[second], columns[first], out=mask))
            before_each[first] += np.multiply(ahead, counts[second], out=term)
            before_each[second] -= np.multiply(ahead, counts[first], out=term)
    for bound, middle in zip(bounds(counts), (lower, upper), strict=True):
        middle.fill(-np.inf)
        for column, row in zip(columns, before_each, strict=True):
            # All bits set, which is a NaN, where the row reaches the bound; fmax passes over NaN. numpy's masked
            # operations branch at each element, and take 20 ns for what is random.
            np.subtract(bound - 1, row, out=ahead)
            np.right_shift(ahead, sign_bit, out=ahead)
            np.bitwise_or(column.view(ahead.dtype), ahead, out=picked.view(ahead.dtype))
            np.fmax(middle, picked, out=middle)
    return lower, upper


def _wide_blocks(pieces: Iterable[Rows], num_peers: int) -> Iterator[list[Array]]:
    """Chunk after chunk of all pieces, each peer's in float64; overwritten by the next."""
    scratch = np.empty((num_peers, CHUNK))
    for rows in pieces:
        for chunk in _chunks(len(rows[0])):
            columns = [column[: chunk.stop - chunk.start] for column in scratch]
            for row, column in zip(rows, columns, strict=True):
                column[...] = row[chunk]
            yield columns


def _bounded(values: Array) -> bool:
    return bool(values.max() <= LIMIT and values.min() >= -LIMIT)


def _sum_of_products(left: Array, right: Array, scratch: Array) -> float:
    """The inner product, added up by halves: the same order on every machine. `scratch` may be an operand."""
    np.multiply(left, right, out=scratch)
    size = len(scratch)
    while size > 1:
        half = size // 2
        np.add(scratch[:half], scratch[size - half : size], out=scratch[:half])
        size -= half
    return float(scratch[0])
