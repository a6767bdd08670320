"""What the peers' weights mean, for every backend alike: shares of one, and the whole numbers a median counts with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from swarm_hpc.errors import MergeError

QUANTA: Final = 1 << 30
"""The sum of all weights, in the units to which a weighted median rounds them (`reference.coord_median`)."""


def shares(weights: Sequence[float], num_peers: int) -> list[float]:
    """The weights as parts of 1. MergeError unless each of at least one peer has one, none negative, one positive."""
    if num_peers < 1 or len(weights) != num_peers:
        raise MergeError(f"{num_peers} peers, but {len(weights)} weights; at least one of each is needed")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise MergeError(f"weights {list(weights)}: each must be finite and at least 0, one of them more")
    # by the largest first: the sum of finite weights need not be finite
    scaled = [weight / max(weights) for weight in weights]
    total = math.fsum(scaled)
    return [weight / total for weight in scaled]


def quanta(parts: Sequence[float]) -> list[int]:
    """Shares in whole multiples of 1/2^30, so that sums of them are exact."""
    return [round(part * QUANTA) for part in parts]


def median(values: Sequence[float], counts: Sequence[int]) -> float:
    """Weighted median of numbers, with weights from `quanta`: `reference.coord_median` of one coordinate."""
    ordered = sorted(zip(values, counts, strict=True))
    lower, upper = bounds(counts)
    low = high = ordered[0][0]
    before = 0
    for value, count in ordered:
        low = value if before < lower else low
        high = value if before < upper else high
        before += count
    return low / 2 + high / 2


def bounds(counts: Sequence[int]) -> tuple[int, int]:
    """(a, b): the lower median is the largest value with less than `a` counted before it, the upper one less than `b`.

    Both are half of the sum, give or take half a unit for the rounding of each weight.
    """
    total, slack = sum(counts), len(counts)
    # 2 * before < total - slack, and 2 * before <= total + slack, in whole numbers
    return -((slack - total) // 2), (total + slack) // 2 + 1
