"""Whether a program that runs still answers: one that hangs does not end, and the other sites take it for present."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from swarm_hpc.errors import LedgerError, SwarmError

EVERY_S: Final = 5.0
MISSES: Final = 4
"""So many questions in a row without an answer: it hangs, and is not only busy."""


class Pulse:
    """Asks one program now and then. `end` ends it for good where it hangs."""

    def __init__(
        self,
        name: str,
        ask: Callable[[], object],
        end: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._ask, self._end, self._clock = name, ask, end, clock
        self._next_at, self._missed = clock() + EVERY_S, 0

    def check(self) -> None:
        """Ask, if it is time to. LedgerError when the program hangs; it was ended then."""
        if self._clock() < self._next_at:
            return
        try:
            self._ask()
            self._missed = 0
        except SwarmError:
            self._missed += 1
        self._next_at = self._clock() + EVERY_S
        if self._missed >= MISSES:
            self._end()
            raise LedgerError(f"{self._name} hangs: it left {MISSES} questions in a row without an answer")
