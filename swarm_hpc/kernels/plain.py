"""The arithmetic of a merge in numpy, for where native.c could not be compiled: the same numbers to the last bit.

That holds on every machine, so that any site can check a merge by its hash: only elementwise operations and sums whose
order is written here, no BLAS, no library reduction. Works in chunks that stay in the cache.

K peers of positive weight; `rows` is one flat array per peer, all of one length and floating dtype, and so is `out`,
which overlaps none. Elementwise functions may be called for any slices of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from swarm_hpc.kernels.arena import Array

Rows = Sequence[Array]
Pairs = tuple[tuple[int, int], ...]

CHUNK: Final = 1 << 15
"""Elements worked on at a time: a few such rows fit a core's cache."""
BLOCK: Final = 1 << 18
"""Elements whose products are added up by themselves. The bits of a geometric median depend on it."""
TILE: Final = 512
"""Elements whose products are added up lane by lane, in the rows' own precision (at least float32); likewise."""
_BELOW_FLOAT32: Final = (1 << 29) - 1
"""The bits of a float64 that a float32 does not have."""
_MIDDLE_OF_FLOAT32: Final = 1 << 28


class Measure(StrEnum):
    """What is added up over the elements, for each two peers."""

    GRAM = "gram"
    """Products of differences from one peer, within a tile in float32 (each rounded once, with its sum) or float64."""
    SQUARES = "squares"
    """Squares of differences, in float64."""
    PRODUCTS = "products"
    """Products of differences from one peer, in float64."""


@dataclass(frozen=True, slots=True)
class Order:
    """How much each peer counts in a median or trimmed mean, and where in the sorted values the result is."""

    counts: Sequence[int]
    """`weights.quanta`"""
    lower: int
    upper: int
    """Median: `weights.bounds`. Trimmed mean: `robust.trim_bounds`, between which a cumulated count has a say."""
    unit: float = 0.0
    """Trimmed mean: 1 / (upper - lower)"""


class Backend(Protocol):
    """Where the arithmetic runs: `Plain`, or `native.Native`."""

    name: str

    def mean(self, rows: Rows, parts: Sequence[float], out: Array) -> None:
        """`reference.mean`, with products and sums in float32 (float64 for float64); parts have the sum 1."""

    def median(self, rows: Rows, order: Order, out: Array) -> None:
        """`reference.coord_median`"""

    def trimmed_mean(self, rows: Rows, order: Order, out: Array) -> None:
        """`reference.trimmed_mean`"""

    def sums(self, rows: Rows, measure: Measure, centre: int) -> npt.NDArray[np.float64]:
        """[ceil(P / BLOCK), K, K]: above and on the diagonal (SQUARES: above), each block's sums.

        Those with the centre are 0, whatever its values are: its differences from itself are none.
        """

    def bounded(self, rows: Rows, limit: float) -> list[bool]:
        """For each peer, whether no value is NaN or beyond the limit."""


class Plain:
    """The backend in numpy."""

    name = "numpy"

    @np.errstate(all="ignore")
    def mean(self, rows: Rows, parts: Sequence[float], out: Array) -> None:
        """`Backend.mean`"""
        wide = wide_dtype(out)
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
    def median(self, rows: Rows, order: Order, out: Array) -> None:
        """Equal weights take a sorting network, others count the weight before each value."""
        wide = wide_dtype(out)
        scratch = np.empty((len(rows) + 3, CHUNK), wide)
        mask = np.empty(CHUNK, np.bool_)
        before = np.empty((len(rows) + 2, CHUNK), f"i{wide.itemsize}")
        for chunk, columns in _columns(rows, scratch, mask):
            size = chunk.stop - chunk.start
            if len(set(order.counts)) == 1:
                lower, upper = _middle(columns[: len(rows) + 1])
            else:
                lower, upper = _weighted_middle(columns, order, before[:, :size], mask[:size])
            if lower is not upper:
                both = np.equal(lower, upper)
                np.multiply(upper, 0.5, out=upper)
                np.add(np.multiply(lower, 0.5), upper, out=upper)
                # halves of a denormal number need not add up to it
                lower = np.where(both, lower, upper)
            # min and max may give either zero where both are there: + 0 makes -0 into 0
            np.add(lower, 0.0, out=lower)
            _replace_nan(lower, np.nan, mask)
            out[chunk] = lower

    @np.errstate(all="ignore")
    def trimmed_mean(self, rows: Rows, order: Order, out: Array) -> None:
        """`Backend.trimmed_mean`"""
        wide = wide_dtype(out)
        scratch = np.empty((len(rows), CHUNK), wide)
        mask = np.empty(CHUNK, np.bool_)
        for chunk, columns in _columns(rows, scratch, mask):
            size = chunk.stop - chunk.start
            counts = [np.full(size, count, np.int64) for count in order.counts]
            for low, high in comparators(len(rows)):
                swap = np.less(columns[high], columns[low])
                columns[low], columns[high] = _exchanged(swap, columns[low], columns[high])
                counts[low], counts[high] = _exchanged(swap, counts[low], counts[high])
            before = np.zeros(size, np.int64)
            total = np.zeros(size, wide)
            for values, count in zip(columns, counts, strict=True):
                start = np.maximum(before, order.lower)
                before += count
                kept = np.minimum(before, order.upper) - start
                term = values * (kept.astype(wide) * wide.type(order.unit))
                np.add(total, np.where(kept > 0, term, wide.type(0)), out=total)
            np.add(total, 0.0, out=total)
            _replace_nan(total, np.nan, mask)
            out[chunk] = total

    @np.errstate(all="ignore")
    def sums(self, rows: Rows, measure: Measure, centre: int) -> npt.NDArray[np.float64]:
        """`Backend.sums`"""
        wide = wide_dtype(rows[0]) if measure is Measure.GRAM else np.dtype(np.float64)
        size, num_peers = len(rows[0]), len(rows)
        table = np.zeros((-(-size // BLOCK), num_peers, num_peers))
        columns = np.empty((num_peers, min(size, BLOCK) + TILE), wide)
        for number, sums in enumerate(table):
            used = min(size - number * BLOCK, BLOCK)
            filled = -(-used // TILE) * TILE
            for row, column in zip(rows, columns, strict=True):
                column[:used] = row[number * BLOCK : number * BLOCK + used]
                column[used:filled] = 0
            block = columns[:, :filled]
            if measure is not Measure.SQUARES:
                block -= block[centre].copy()
            for first in range(num_peers):
                for second in range(first, num_peers):
                    if measure is Measure.SQUARES:
                        difference = block[first] - block[second]
                        sums[first, second] = _inner(difference, difference)
                    elif centre not in (first, second):
                        sums[first, second] = _inner(block[first], block[second])
        return table

    @np.errstate(all="ignore")
    def bounded(self, rows: Rows, limit: float) -> list[bool]:
        """`Backend.bounded`"""

        def within(values: Array) -> bool:
            # of NaN, both are NaN
            return float(np.max(values)) <= limit and float(np.min(values)) >= -limit

        return [all(within(row[chunk]) for chunk in _chunks(len(row))) for row in rows]


@cache
def comparators(size: int) -> Pairs:
    """Pairs (low, high), in order, that sort `size` values: Batcher's merge exchange (Knuth 5.2.2 M)."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(size - 1, 0).bit_length() >> 1
    width = top
    while width:
        merge_width, offset, distance = top, 0, width
        while True:
            pairs += [(low, low + distance) for low in range(size - distance) if low & width == offset]
            if merge_width == width:
                break
            offset, distance, merge_width = width, merge_width - width, merge_width >> 1
        width >>= 1
    return tuple(pairs)


@cache
def middle_network(size: int) -> Pairs:
    """Those of the comparators that bring the middle one or two to their place."""
    wanted = {(size - 1) // 2, size // 2}
    needed = []
    for pair in reversed(comparators(size)):
        if wanted & set(pair):
            wanted |= set(pair)
            needed.append(pair)
    return tuple(reversed(needed))


def _exchanged(swap: npt.NDArray[np.bool_], low: Array, high: Array) -> tuple[Array, Array]:
    return np.where(swap, high, low), np.where(swap, low, high)


def wide_dtype(out: Array) -> np.dtype[Any]:
    """What the values are multiplied and added up in."""
    return np.dtype(np.float64 if out.dtype == np.float64 else np.float32)


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def _columns(rows: Rows, scratch: Array, mask: npt.NDArray[np.bool_]) -> Iterator[tuple[slice, list[Array]]]:
    """Chunk after chunk: the scratch's rows, of which the first K hold the peers' values, NaN as infinity."""
    for chunk in _chunks(len(rows[0])):
        columns = [column[: chunk.stop - chunk.start] for column in scratch]
        for row, column in zip(rows, columns, strict=False):
            column[...] = row[chunk]
            _replace_nan(column, np.inf, mask)
        yield chunk, columns


def _replace_nan(values: Array, value: float, mask: npt.NDArray[np.bool_]) -> None:
    """Every NaN gets one value; also NaN itself, whose sign and payload differ between processors."""
    found = np.isnan(values, out=mask[: len(values)])
    if found.any():
        values[found] = value


def _middle(columns: list[Array]) -> tuple[Array, Array]:
    """The middle one or two of all columns but the last, which is spare; all of them are overwritten."""
    *columns, spare = columns
    size = len(columns)
    for low, high in middle_network(size):
        np.minimum(columns[low], columns[high], out=spare)
        np.maximum(columns[low], columns[high], out=columns[high])
        columns[low], spare = spare, columns[low]
    return columns[(size - 1) // 2], columns[size // 2]


def _weighted_middle(
    columns: list[Array], order: Order, before: Array, mask: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Lower and upper weighted median of all columns but the last three; the last two are returned.

    `before`: scratch, one row of integers, as wide as the values, per peer and two more; a peer's row counts the weight
    of what sorts before it.
    """
    *columns, picked, lower, upper = columns
    *before_each, ahead, term = before
    counts = order.counts
    sign_bit = 8 * term.itemsize - 1
    for peer, row in enumerate(before_each):
        row.fill(sum(counts[:peer]))
    for first in range(len(columns)):
        for second in range(first + 1, len(columns)):
            # of equal values the first peer's comes first
            np.copyto(ahead, np.less(columns[second], columns[first], out=mask))
            before_each[first] += np.multiply(ahead, counts[second], out=term)
            before_each[second] -= np.multiply(ahead, counts[first], out=term)
    for bound, middle in zip((order.lower, order.upper), (lower, upper), strict=True):
        middle.fill(-np.inf)
        for column, row in zip(columns, before_each, strict=True):
            # All bits set, which is a NaN, where the row reaches the bound; fmax passes over NaN. numpy's masked
            # operations branch at each element, and take 20 ns for what is random.
            np.subtract(bound - 1, row, out=ahead)
            np.right_shift(ahead, sign_bit, out=ahead)
            np.bitwise_or(column.view(ahead.dtype), ahead, out=picked.view(ahead.dtype))
            np.fmax(middle, picked, out=middle)
    return lower, upper


def _inner(left: Array, right: Array) -> float:
    """The sum of products as native.c finds it: lanes of 64 bytes within a tile, eight in float64, then by halves."""
    lanes = 64 // left.itemsize
    left, right = (values.reshape(-1, TILE // lanes, lanes) for values in (left, right))
    tiles = np.zeros((len(left), lanes), left.dtype)
    for step in range(TILE // lanes):
        if left.dtype == np.float32:
            tiles = _fused(left[:, step], right[:, step], tiles)
        else:
            np.add(tiles, left[:, step] * right[:, step], out=tiles)
    eight = np.add.accumulate(tiles.astype(np.float64).reshape(-1, 8), axis=0)[-1]
    while len(eight) > 1:
        half = len(eight) // 2
        eight = eight[:half] + eight[half:]
    return float(eight[0])


def _fused(left: Array, right: Array, total: Array) -> Array:
    """left * right + total in float32, rounded once: IEEE 754's fusedMultiplyAdd, which numpy does not have.

    In float64 the product is exact, and the sum as good as exact but where it was rounded to the middle between two
    float32: there its last bit is made odd unless nothing was lost (Boldo and Melquiond, Emulation of a FMA and
    correctly rounded sums: proved algorithms using rounding to odd, 2008).
    """
    product = left.astype(np.float64) * right
    wide = product + total
    bits = wide.view(np.int64)
    doubtful = (bits & _BELOW_FLOAT32) == _MIDDLE_OF_FLOAT32
    doubtful |= np.abs(wide) < np.finfo(np.float32).smallest_normal
    if doubtful.any():
        added = wide - product
        lost = (product - (wide - added)) + (total - added)
        # of what is infinite or NaN, it is NaN
        doubtful &= ((lost < 0) | (lost > 0)) & (bits & 1 == 0)
        bits += np.where((lost > 0) == (wide > 0), 1, -1) * doubtful
    return wide.astype(np.float32)
