"""That a node is told to leave before its training is over, by a signal or for want of a seat.

SIGUSR2 comes ahead of a job's time limit, SIGTERM with scancel, preemption and requeue. Either way the node is away at
once, its program saves its state at the end of a batch, and both end. Slurm may send SIGTERM more than once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from swarm_hpc.errors import SwarmError

log = logging.getLogger(__name__)

REASONS: Final = {
    signal.SIGUSR2: "the job's time limit is near (SIGUSR2)",
    signal.SIGTERM: "the node is stopped (SIGTERM)",
}


class Departure:
    """Whether the node is to leave, and why."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.reason = ""
        self.warned = False
        """It was SIGUSR2: the job is to come back."""
        self.finished = False
        """The training has come to its end all the same: there is nothing to come back for."""
        self.error: SwarmError | None = None
        """What the node's life ends with once it has left, where it leaves because of an error."""
        self.attended = False
        """Somebody looks at `asked`; before that a signal ends the node at once."""
        self.stopped = False
        """A signal ended the node at once."""

    def ask(self, reason: str, *, warned: bool = False) -> None:
        """Tell the node to leave."""
        if not self.asked.is_set():
            log.info("leaving: %s", reason)
            self.reason, self.warned = reason, warned
            self.asked.set()

    def fail(self, error: SwarmError) -> None:
        """Tell the node to leave, and to end with that error. For want of what it could only go on with."""
        if not self.asked.is_set():
            self.error = error
        self.ask(str(error))

    @contextmanager
    def by_signals(self, life: asyncio.Future[Any]) -> Iterator[None]:
        """Take the signals; one that nobody attends to cancels `life`. For the main thread."""
        loop = asyncio.get_running_loop()

        def take(number: signal.Signals) -> None:
            self.ask(REASONS[number], warned=number is signal.SIGUSR2)
            if not self.attended:
                self.stopped = True
                life.cancel()

        for number in REASONS:
            loop.add_signal_handler(number, take, number)
        try:
            yield
        finally:
            for number in REASONS:
                loop.remove_signal_handler(number)
