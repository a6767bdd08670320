"""Merging on a GPU with Triton: `reference.py` says what each method means. The only file that imports triton.

One launch per merge: the kernel takes the peers' addresses from a table, loads every value once, and accumulates in
float32 (float64 for float64), never in tf32. Same input, same bits, on every GPU: no atomics, and sums whose order is
written here. What is done element by element has the bits of `cpu.py` (no fused multiply-add); mixtures of whole models
need not: distances are summed in another order. So what the ledger records is merged by `cpu.py`, at every site.

K peers; `rows` is one flat contiguous CUDA tensor per peer, all of one length and floating dtype and on one device, and
so is `out`, which overlaps none. Nothing is waited for, except that a mixture reads K x K numbers.
With TRITON_INTERPRET=1 in the environment the kernels run on the CPU, slowly, for tests.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
# ruff: noqa: N803, RUF005 (a kernel's constants are in capitals; Triton cannot unpack a tuple into another)
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import torch
from torch import Tensor

from swarm_hpc.errors import ConfigError, MergeError
from swarm_hpc.kernels.mixture import mixture
from swarm_hpc.kernels.plain import Measure, comparators, middle_network
from swarm_hpc.kernels.robust import trim_bounds
from swarm_hpc.kernels.weights import bounds, quanta, shares
from swarm_hpc.kernels.weiszfeld import Matrix, centred
from swarm_hpc.records import Merge, MergeMethod

try:
    import triton
    import triton.language as tl
except ImportError as exc:
    raise ConfigError("merging on a GPU needs triton, which comes with torch for CUDA: pip install triton") from exc

Rows = Sequence[Tensor]

NETWORK_PEERS: Final = 16
"""Up to so many peers a median sorts in registers; beyond, it counts the weight before each value."""
MAX_PEERS: Final = 64
DTYPES: Final = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
ALIGNMENT: Final = 16
"""Rows that start on a multiple of it are loaded 16 bytes at a time."""


def mean(rows: Rows, weights: Sequence[float], out: Tensor) -> None:
    """`reference.mean`, with the bits of `cpu.mean`."""
    rows, parts = _present(rows, weights, out)
    block = 1024
    _mean[(triton.cdiv(len(out), block),)](
        _table(rows, reals=parts), out, len(out), len(rows),
        DTYPES[out.dtype], DTYPES[_wide(out)], _aligned(rows, out), block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def coord_median(rows: Rows, weights: Sequence[float], out: Tensor) -> None:
    """`reference.coord_median`, with the bits of `cpu.coord_median`."""
    rows, parts = _present(rows, weights, out)
    counts = quanta(parts)
    lower, upper = bounds(counts)
    equal = len(set(counts)) == 1
    pairs = middle_network(len(rows)) if equal else comparators(len(rows))
    many = len(rows) > NETWORK_PEERS
    block = 256 if many else 512 if len(rows) > 8 else 1024
    _median[(triton.cdiv(len(out), block),)](
        _table(rows, [*counts, lower, upper]), out, len(out), len(rows), () if many else pairs,
        DTYPES[out.dtype], DTYPES[_wide(out)], _aligned(rows, out), equal, many, block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def trimmed_mean(rows: Rows, weights: Sequence[float], out: Tensor, *, trim: float) -> None:
    """`reference.trimmed_mean`, with the bits of `cpu.trimmed_mean`. MergeError beyond 16 peers of weight."""
    rows, parts = _present(rows, weights, out)
    if len(rows) > NETWORK_PEERS:
        raise MergeError(f"{len(rows)} peers; a GPU finds the trimmed mean of at most {NETWORK_PEERS}: use kernels.cpu")
    counts = quanta(parts)
    low, high = trim_bounds(counts, trim)
    block = 512 if len(rows) > 8 else 1024
    _trimmed[(triton.cdiv(len(out), block),)](
        _table(rows, [*counts, low, high], [1 / (high - low)]), out, len(out), len(rows), comparators(len(rows)),
        DTYPES[out.dtype], DTYPES[_wide(out)], _aligned(rows, out), len(set(counts)) == 1, block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def geometric_median(rows: Rows, weights: Sequence[float], out: Tensor) -> None:
    """`reference.geometric_median`: one pass for the distances of each two peers, then one weighted mean."""
    _mixed(Merge(method=MergeMethod.GEOMEDIAN), rows, weights, out)


def krum(rows: Rows, weights: Sequence[float], out: Tensor, *, num_byzantine: int) -> None:
    """`reference.krum`: one pass for the distances, then a copy."""
    _mixed(Merge(method=MergeMethod.KRUM, num_byzantine=num_byzantine), rows, weights, out)


def multi_krum(rows: Rows, weights: Sequence[float], out: Tensor, *, num_byzantine: int, num_selected: int = 0) -> None:
    """`reference.multi_krum`: one pass for the distances, then one weighted mean."""
    merge = Merge(method=MergeMethod.MULTIKRUM, num_byzantine=num_byzantine, num_selected=num_selected)
    _mixed(merge, rows, weights, out)


def centred_clipping(rows: Rows, weights: Sequence[float], out: Tensor, *, radius: float, iterations: int) -> None:
    """`reference.centred_clipping`: one pass for the distances, then one weighted mean."""
    _mixed(Merge(method=MergeMethod.CENTREDCLIP, clip_radius=radius, clip_iterations=iterations), rows, weights, out)


class OnGpu:
    """`mixture.Measured` of models on a GPU."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def sums(self, peers: Sequence[int], measure: Measure, centre: int = 0) -> Matrix:
        """`Measured.sums`; GRAM from squared distances that are added up in float32, and in float64 after 2^14."""
        rows = [self._rows[peer] for peer in peers]
        if measure is Measure.PRODUCTS:
            return _products(rows, centre)
        if measure is Measure.SQUARES:
            return _squares(rows, torch.float64)
        return centred(_squares(rows, _wide(rows[0])), centre)

    def bounded(self, peers: Sequence[int], limit: float) -> list[bool]:
        """`Measured.bounded`"""
        ends = [self._rows[peer].aminmax() for peer in peers]
        # of NaN, both are NaN
        return [float(end.max) <= limit and float(end.min) >= -limit for end in ends]


def _mixed(merge: Merge, rows: Rows, weights: Sequence[float], out: Tensor) -> None:
    _check(rows, out)
    # nothing is apart in an empty model
    parts = mixture(merge, weights, OnGpu(rows)) if len(out) else weights
    mean(rows, parts, out)


def _products(rows: Rows, centre: int) -> Matrix:
    """<x_j - x_c, x_k - x_c> of each two peers in float64, for the rare models in which one peer is far from all."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    step = 1 << 18
    for start in range(0, len(rows[0]), step):
        wide = torch.stack([row[start : start + step].double() for row in rows])
        wide -= wide[centre].clone()
        total += wide @ wide.T
    found: Matrix = total.tolist()
    return found


def _squares(rows: Rows, wide: torch.dtype) -> Matrix:
    """Squared distances. All pairs of up to 16 peers in one launch; of more peers, each two groups of 8 in one."""
    num_peers = len(rows)
    squares = [[0.0] * num_peers for _ in range(num_peers)]
    for peers in _groups(num_peers):
        found = _squares_in_registers([rows[peer] for peer in peers], wide)
        for (first, second), square in zip(combinations(peers, 2), found, strict=True):
            squares[first][second] = squares[second][first] = square
    return squares


def _groups(num_peers: int) -> list[tuple[int, ...]]:
    if num_peers <= NETWORK_PEERS:
        return [tuple(range(num_peers))]
    half = NETWORK_PEERS // 2
    eights = [tuple(range(start, min(start + half, num_peers))) for start in range(0, num_peers, half)]
    return [first + second for first, second in combinations(eights, 2)]


def _squares_in_registers(rows: Rows, wide: torch.dtype) -> list[float]:
    """Of each two peers, in order."""
    num_peers, size, device = len(rows), len(rows[0]), rows[0].device
    num_pairs = num_peers * (num_peers - 1) // 2
    if not num_pairs:
        return []
    # a pair's sum takes a register per element: few pairs, more elements at once
    block = 512 if num_peers <= 4 else 256 if num_peers <= 8 else 64
    tiles = min((1 << 14) // block, triton.next_power_of_2(max(triton.cdiv(size, block), 1)))
    programs = max(triton.cdiv(size, block * tiles), 1)
    partial = torch.empty(programs, num_pairs, dtype=torch.float64, device=device)
    _pairs[(programs,)](
        _table(rows), partial, size, num_peers, DTYPES[rows[0].dtype], DTYPES[wide], _aligned(rows), block, tiles,
        num_warps=min(block // 32, 4), enable_fp_fusion=False,
    )  # fmt: skip
    found: list[float] = partial.sum(0).tolist()
    return found


def _present(rows: Rows, weights: Sequence[float], out: Tensor) -> tuple[Rows, list[float]]:
    """The peers that have a say, and their shares."""
    _check(rows, out)
    parts = shares(weights, len(rows))
    return [row for row, part in zip(rows, parts, strict=True) if part > 0], [part for part in parts if part > 0]


def _check(rows: Rows, out: Tensor) -> None:
    if not (out.is_cuda or triton.knobs.runtime.interpret):
        raise ConfigError(
            f"merging on a GPU needs tensors on a CUDA device; these are on {out.device}: use kernels.cpu"
        )
    if out.is_cuda and out.device.index != torch.cuda.current_device():
        raise ConfigError(f"the tensors are on {out.device}, which is not the current device: torch.cuda.set_device")
    if len(rows) > MAX_PEERS:
        raise MergeError(f"{len(rows)} peers; the GPU merges at most {MAX_PEERS}: use kernels.cpu")
    if out.dtype not in DTYPES:
        raise MergeError(f"{out.dtype} cannot be merged; only {', '.join(map(str, DTYPES))} can")
    for number, row in enumerate((*rows, out)):
        if row.shape != (len(out),) or row.dtype != out.dtype or row.device != out.device or not row.is_contiguous():
            raise MergeError(
                f"row {number} of {len(rows)} + 1 is {row.dtype} {list(row.shape)} on {row.device}; each must be flat, "
                f"contiguous, and like the result: {out.dtype} {list(out.shape)} on {out.device}"
            )


def _wide(row: Tensor) -> torch.dtype:
    return torch.float64 if row.dtype == torch.float64 else torch.float32


def _table(rows: Rows, integers: Sequence[int] = (), reals: Sequence[float] = ()) -> Tensor:
    """The peers' addresses, and what else a kernel needs that changes from merge to merge: copied to the GPU once."""
    bits = torch.tensor(reals, dtype=torch.float64).view(torch.int64).tolist()
    addresses = [row.data_ptr() for row in rows]
    return torch.tensor([*addresses, *integers, *bits], dtype=torch.int64).to(rows[0].device)


def _aligned(rows: Rows, *others: Tensor) -> bool:
    return all(row.data_ptr() % ALIGNMENT == 0 for row in (*rows, *others))


# kernels: in capitals, what they are compiled anew for


@triton.jit
def _load(table, peer, start, lanes, size, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr):
    pointers = tl.load(table + peer).to(tl.pointer_type(DTYPE)) + (start + lanes)
    if ALIGNED:
        pointers = tl.multiple_of(pointers, 16)
    if MASKED:
        return tl.load(pointers, mask=start + lanes < size, other=0.0)
    return tl.load(pointers)


@triton.jit
def _integer(table, index):
    """A weight, or a sum of weights: below 2^31."""
    return tl.load(table + index).to(tl.int32)


@triton.jit
def _real(table, index, WIDE: tl.constexpr):
    return tl.load(table + index).to(tl.float64, bitcast=True).to(WIDE)


@triton.jit
def _store(out, start, lanes, size, values, ALIGNED: tl.constexpr, MASKED: tl.constexpr):
    """Every NaN is stored as one: its sign and payload differ between processors."""
    pointers = out + (start + lanes)
    if ALIGNED:
        pointers = tl.multiple_of(pointers, 16)
    narrow = values.to(out.dtype.element_ty)
    if out.dtype.element_ty == tl.bfloat16:
        # by its bits: Triton's interpreter has no constants in bfloat16
        bits = tl.where(values != values, 0x7FC0, narrow.to(tl.uint16, bitcast=True))
        narrow = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        narrow = tl.where(values != values, float("nan"), narrow)
    if MASKED:
        tl.store(pointers, narrow, mask=start + lanes < size)
    else:
        tl.store(pointers, narrow)


@triton.jit
def _mean(
    table, out, size, K: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    # only the last block is masked: a mask that may end anywhere forbids wide loads
    if start + BLOCK <= size:
        _mean_block(table, out, start, size, K, DTYPE, WIDE, ALIGNED, BLOCK, False)
    else:
        _mean_block(table, out, start, size, K, DTYPE, WIDE, ALIGNED, BLOCK, True)


@triton.jit
def _mean_block(
    table, out, start, size, K: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    total = _load(table, 0, start, lanes, size, DTYPE, ALIGNED, MASKED).to(WIDE) * _real(table, K, WIDE)
    for peer in tl.static_range(1, K):
        values = _load(table, peer, start, lanes, size, DTYPE, ALIGNED, MASKED).to(WIDE)
        total += values * _real(table, K + peer, WIDE)
    _store(out, start, lanes, size, total, ALIGNED, MASKED)


@triton.jit
def _median(
    table, out, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, EQUAL: tl.constexpr, MANY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= size:
        _median_block(table, out, start, size, K, NETWORK, DTYPE, WIDE, ALIGNED,
                      EQUAL, MANY, BLOCK, False)  # fmt: skip
    else:
        _median_block(table, out, start, size, K, NETWORK, DTYPE, WIDE, ALIGNED,
                      EQUAL, MANY, BLOCK, True)  # fmt: skip


@triton.jit
def _median_block(
    table, out, start, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, EQUAL: tl.constexpr, MANY: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    if MANY:
        lower, upper = _counted(table, start, lanes, size, K, DTYPE, WIDE, ALIGNED,
                                BLOCK, MASKED)  # fmt: skip
    elif EQUAL:
        ordered = _sorted(table, start, lanes, size, K, NETWORK, DTYPE, WIDE, ALIGNED, MASKED)
        lower, upper = ordered[(K - 1) // 2], ordered[K // 2]
    else:
        ordered, weights = _sorted_with_weights(table, start, lanes, size, K, NETWORK, DTYPE, WIDE, ALIGNED,
                                                BLOCK, MASKED)  # fmt: skip
        lower_bound, upper_bound = _integer(table, 2 * K), _integer(table, 2 * K + 1)
        before = weights[0]
        lower, upper = ordered[0], ordered[0]
        for place in tl.static_range(1, K):
            lower = tl.where(before < lower_bound, ordered[place], lower)
            upper = tl.where(before < upper_bound, ordered[place], upper)
            before += weights[place]
    # of two equal values half and half may lose a bit
    middle = tl.where(lower == upper, lower, lower * 0.5 + upper * 0.5)
    # + 0: the smaller of two zeros may have either sign
    _store(out, start, lanes, size, middle + 0.0, ALIGNED, MASKED)


@triton.jit
def _trimmed(
    table, out, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, EQUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= size:
        _trimmed_block(table, out, start, size, K, NETWORK, DTYPE, WIDE, ALIGNED, EQUAL,
                       BLOCK, False)  # fmt: skip
    else:
        _trimmed_block(table, out, start, size, K, NETWORK, DTYPE, WIDE, ALIGNED, EQUAL,
                       BLOCK, True)  # fmt: skip


@triton.jit
def _trimmed_block(
    table, out, start, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, EQUAL: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    low, high = _integer(table, 2 * K), _integer(table, 2 * K + 1)
    unit = _real(table, 2 * K + 2, WIDE)
    total = tl.zeros((BLOCK,), WIDE)
    if EQUAL:
        ordered = _sorted(table, start, lanes, size, K, NETWORK, DTYPE, WIDE, ALIGNED, MASKED)
        count = _integer(table, K)
        for place in tl.static_range(K):
            counted = tl.maximum(tl.minimum((place + 1) * count, high) - tl.maximum(place * count, low), 0)
            # not a product where nothing counts: 0 times infinity is NaN
            total += tl.where(counted > 0, ordered[place] * (counted.to(WIDE) * unit), 0.0)
    else:
        ordered, weights = _sorted_with_weights(table, start, lanes, size, K, NETWORK, DTYPE, WIDE, ALIGNED,
                                                BLOCK, MASKED)  # fmt: skip
        before = tl.zeros((BLOCK,), tl.int32)
        for place in tl.static_range(K):
            after = before + weights[place]
            counted = tl.maximum(tl.minimum(after, high) - tl.maximum(before, low), 0)
            total += tl.where(counted > 0, ordered[place] * (counted.to(WIDE) * unit), 0.0)
            before = after
    _store(out, start, lanes, size, total + 0.0, ALIGNED, MASKED)


@triton.jit
def _sorted(
    table, start, lanes, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    ordered = _rows(table, start, lanes, size, K, DTYPE, WIDE, ALIGNED, MASKED)
    for index in tl.static_range(len(NETWORK)):
        ordered = _exchange(ordered, NETWORK[index][0], NETWORK[index][1])
    return ordered


@triton.jit
def _sorted_with_weights(
    table, start, lanes, size, K: tl.constexpr, NETWORK: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    ordered = _rows(table, start, lanes, size, K, DTYPE, WIDE, ALIGNED, MASKED)
    weights = ()
    for peer in tl.static_range(K):
        weights = weights + (_integer(table, K + peer) + tl.zeros((BLOCK,), tl.int32),)
    for index in tl.static_range(len(NETWORK)):
        ordered, weights = _exchange_both(ordered, weights, NETWORK[index][0], NETWORK[index][1])
    return ordered, weights


@triton.jit
def _rows(
    table, start, lanes, size, K: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """All peers' values, in registers; NaN as infinity."""
    rows = ()
    for peer in tl.static_range(K):
        rows = rows + (_ordered(_load(table, peer, start, lanes, size, DTYPE, ALIGNED, MASKED).to(WIDE)),)
    return rows


@triton.jit
def _ordered(values):
    return tl.where(values != values, float("inf"), values)


@triton.jit
def _exchange(ordered, LOW: tl.constexpr, HIGH: tl.constexpr):
    low = tl.minimum(ordered[LOW], ordered[HIGH])
    high = tl.maximum(ordered[LOW], ordered[HIGH])
    return ordered[:LOW] + (low,) + ordered[LOW + 1 : HIGH] + (high,) + ordered[HIGH + 1 :]


@triton.jit
def _exchange_both(ordered, weights, LOW: tl.constexpr, HIGH: tl.constexpr):
    swap = ordered[HIGH] < ordered[LOW]
    low = tl.where(swap, weights[HIGH], weights[LOW])
    high = tl.where(swap, weights[LOW], weights[HIGH])
    moved = weights[:LOW] + (low,) + weights[LOW + 1 : HIGH] + (high,) + weights[HIGH + 1 :]
    return _exchange(ordered, LOW, HIGH), moved


@triton.jit
def _counted(
    table, start, lanes, size, K: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Lower and upper median of more peers than registers hold: rows are loaded again, from the cache."""
    lower_bound, upper_bound = _integer(table, 2 * K), _integer(table, 2 * K + 1)
    lower = tl.full((BLOCK,), float("-inf"), WIDE)
    upper = tl.full((BLOCK,), float("-inf"), WIDE)
    for peer in range(K):
        values = _ordered(_load(table, peer, start, lanes, size, DTYPE, ALIGNED, MASKED).to(WIDE))
        before = tl.zeros((BLOCK,), tl.int32)
        for other in range(K):
            others = _ordered(_load(table, other, start, lanes, size, DTYPE, ALIGNED, MASKED).to(WIDE))
            # of equal values the first peer's comes first
            first = (others < values) | ((others == values) & (other < peer))
            before += tl.where(first, _integer(table, K + other), 0)
        lower = tl.where((before < lower_bound) & (values > lower), values, lower)
        upper = tl.where((before < upper_bound) & (values > upper), values, upper)
    return lower, upper


@triton.jit
def _pairs(
    table, partial, size, K: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One row of `partial` per program: the squared distance of each two peers in its tiles."""
    lanes = tl.arange(0, BLOCK)
    sums = ()
    for _ in tl.static_range(K * (K - 1) // 2):
        sums = sums + (tl.zeros((BLOCK,), WIDE),)
    first = tl.program_id(0).to(tl.int64) * (BLOCK * TILES)
    for tile in range(TILES):
        start = first + tile * BLOCK
        rows = ()
        for peer in tl.static_range(K):
            rows = rows + (_load(table, peer, start, lanes, size, DTYPE, ALIGNED, True).to(WIDE),)
        sums = _farther(sums, rows, K)
    target = partial + tl.program_id(0).to(tl.int64) * (K * (K - 1) // 2)
    for pair in tl.static_range(K * (K - 1) // 2):
        tl.store(target + pair, tl.sum(sums[pair].to(tl.float64), 0))


@triton.jit
def _farther(sums, rows, K: tl.constexpr):
    grown = ()
    for first in tl.static_range(K):
        for second in tl.static_range(first + 1, K):
            difference = rows[first] - rows[second]
            grown = grown + (sums[len(grown)] + difference * difference,)
    return grown
