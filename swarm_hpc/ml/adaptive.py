"""How long to train until the next merge, judged by how well the merged models did so far. Pure: numbers in and out.

Every site that judges by the same validation data sees the same merged models, so all come to the same interval.
Sites with different validation data may differ; the one with the shorter interval then waits for the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

TOLERANCE: Final = 0.01
"""Losses that differ by less than this share count as equal."""
PATIENCE: Final = 2
"""So many merges in a row without a better loss mean that merging this often does not help."""
REACH: Final = 4
"""The interval stays between sync_frequency / REACH and sync_frequency * REACH."""


def next_interval(interval: int, sync_frequency: int, losses: Sequence[float]) -> int:
    """Batches until the next merge, from those until the last one and the losses of all merged models, oldest first.

    Not finite, or worse than the model before by more than TOLERANCE: half the interval, for the sites drift apart.
    PATIENCE times in a row not better than the model before by more than TOLERANCE: half as long again, for merging
    this often does not pay. Otherwise, and after the first merge, it stays. It never leaves
    sync_frequency / REACH .. sync_frequency * REACH.
    """
    shortest, longest = max(1, sync_frequency // REACH), sync_frequency * REACH
    gains = [_gain(before, after) for before, after in pairwise(losses)]
    if losses and (not math.isfinite(losses[-1]) or (gains and gains[-1] < -TOLERANCE)):
        interval //= 2
    elif len(gains) >= PATIENCE and all(gain <= TOLERANCE for gain in gains[-PATIENCE:]):
        interval += max(1, interval // 2)
    return min(max(interval, shortest), longest)


def _gain(before: float, after: float) -> float:
    """How much smaller the loss has become, as a share; infinite from one that was not finite."""
    if not math.isfinite(before):
        return math.inf
    if before == after:
        return 0.0
    return (before - after) / abs(before) if before else math.copysign(math.inf, before - after)
