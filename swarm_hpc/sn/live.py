"""The ledger for many callers on one event loop: reads in threads, writes one at a time, and a wait for what is new.

It hears of what it writes itself; who shares the ledger with other SNs wakes it for theirs (`follow`, `wake`).

It keeps no copy of the ledger, only the cursor of each training contract's newest event: waiting costs no reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

from swarm_hpc.errors import SwarmError
from swarm_hpc.records import Event
from swarm_hpc.sn.ledger import Ledger

R = TypeVar("R")

log = logging.getLogger(__name__)

_THREADS: Final = 4
_AGAIN_S: Final = 1.0
_PAGE: Final = 1000
"""Events that are read at a time."""


class LiveLedger:
    """A Ledger that async code can ask, change and wait for. Who opened the ledger closes it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._base = self._cursor = ledger.cursor()
        self._newest: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listeners: dict[Callable[[Sequence[Event]], Awaitable[None]], int] = {}
        """Each with the cursor of the newest event that it has heard of."""
        self._stopped = False
        self._catching_up = asyncio.Lock()
        self._woken = asyncio.Event()
        # Threads of its own: blobs that keep those of asyncio.to_thread busy must not hold up the rounds.
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="ledger")

    @property
    def cursor(self) -> int:
        """The newest event's cursor. Take it before a read, and nothing can come between unnoticed."""
        return self._cursor

    def listen(self, listener: Callable[[Sequence[Event]], Awaitable[None]]) -> None:
        """Await `listener` with the new events of each write before anybody hears of them. It may read, not write.

        Where it fails, it hears of the same events again, and nobody who waits has heard of them.
        """
        self._listeners[listener] = self._cursor

    async def read(self, ask: Callable[[Ledger], R]) -> R:
        """What `ask` answers, called in a thread."""
        return await self._in_thread(partial(ask, self._ledger))

    async def write(self, act: Callable[[Ledger], R]) -> R:
        """What `act` answers, called in a thread while no other write runs; then wakes all who wait.

        A write that was started is finished, also when the caller is cancelled.
        """
        return await self.complete(self._write(act))

    async def complete(self, steps: Coroutine[Any, Any, R]) -> R:
        """What `steps` answers; they go on to their end also when the caller is cancelled, because its client left."""
        task = asyncio.create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.debug("%s", failure)  # asked for here: a client that left does not hear of it

    def has_news(self, contract: str | None, after: int) -> bool:
        """Whether an event beyond that cursor concerns the contract (None: any). Says yes in doubt, after a restart."""
        newest = self._cursor if contract is None else self._newest.get(contract, self._base)
        return newest > after

    async def wait(self, contract: str | None, after: int, timeout_s: float) -> bool:
        """Wait until the contract has news, at most `timeout_s`; whether it has. Returns at once when stopped."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._stopped or self.has_news(contract, after))
        except TimeoutError:
            return False
        return self.has_news(contract, after)

    def wake(self) -> None:
        """There may be new blocks. For the event loop's thread; has an effect while `follow` runs."""
        self._woken.set()

    async def follow(self) -> NoReturn:
        """Hear of what others write, each time it is woken. A failure is logged, and tried again: there may be no next
        block to wake it."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._catch_up()
            except SwarmError as exc:
                log.warning("news of the ledger could not be read: %s", exc)
                await asyncio.sleep(_AGAIN_S)
                self._woken.set()

    @property
    def stopped(self) -> bool:
        """Whether the SN is about to end: nobody should start to wait."""
        return self._stopped

    async def stop(self) -> None:
        """End all waits, and let writes that run come to their end. May be called again."""
        self._stopped = True
        async with self._changed:
            self._changed.notify_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """End the threads; the ledger is no longer used after this."""
        self._threads.shutdown()

    async def _in_thread(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _write(self, act: Callable[[Ledger], R]) -> R:
        async with self._writing:
            try:
                return await self._in_thread(partial(act, self._ledger))
            finally:
                # Also after a refusal: an act of several transactions may have done some of them.
                await self._catch_up()

    async def _catch_up(self) -> None:
        async with self._catching_up:
            while await self._take_news() == _PAGE:
                pass

    async def _take_news(self) -> int:
        """Hand out a page of events; how many there were."""
        events = await self._in_thread(partial(self._ledger.events, self._cursor, limit=_PAGE))
        if not events:
            return 0
        for listener, heard in tuple(self._listeners.items()):
            if unheard := [event for event in events if event.cursor > heard]:
                await listener(unheard)
                self._listeners[listener] = events[-1].cursor
        for event in events:
            if event.contract:
                self._newest[event.contract] = event.cursor
        self._cursor = events[-1].cursor
        async with self._changed:
            self._changed.notify_all()
        return len(events)
