"""What a round costs this node, phase by phase: a stopwatch that the parts of a session share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """Where a round's time goes. Phases do not overlap within a node."""

    HASH = "hash"
    OFFER = "offer"
    LEDGER = "ledger"
    WAIT = "wait"
    FETCH = "fetch"
    MERGE = "merge"
    LOAD = "load"


class Laps:
    """Seconds by phase since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def lap(self, phase: Phase) -> Iterator[None]:
        """Count the block's wall-clock time for the phase."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - since)

    def add(self, phase: Phase, seconds: float) -> None:
        """Count what was measured otherwise; negative: it was counted for another phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """The seconds so far, to the microsecond; counting starts anew."""
        seconds, self._seconds = self._seconds, {}
        return {phase: round(value, 6) for phase, value in seconds.items()}
