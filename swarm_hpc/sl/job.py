"""This node's place among the ranks of its job: signs of life, wishes and outcomes, merges, and the end of all.

ranks.py has the messages and what they mean. MPI's calls run in one thread of their own; asyncio goes on meanwhile.
Only rank 0 talks to all others, and they to it alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from swarm_hpc.config import RanksConfig
from swarm_hpc.errors import MergeError, ProgramFailed, ProtocolError, RankLost, SwarmError, TimedOut
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.records import Merge
from swarm_hpc.sl.ranks import Beat, Broken, Bye, Go, Leaving, Message, Outcome, Wish, failure, pack, raised, unpack

if TYPE_CHECKING:
    from swarm_hpc.kernels.mpi import Ranks
    from swarm_hpc.kernels.sharded import ShardedMerge

T = TypeVar("T")

log = logging.getLogger(__name__)

_SOON_S: Final = 0.002
"""Between two looks for messages while a program waits; it is also the delay that they may have."""
_CALM_S: Final = 0.02
_BEATS_PER_TIMEOUT: Final = 6


class Job:
    """One rank. `open_job` makes it, and ends it."""

    def __init__(self, ranks: Ranks, thread: _MpiThread, timeout_s: float, max_wait_s: float) -> None:
        self.rank, self.size = ranks.rank, ranks.size
        self.broken: SwarmError | None = None
        """Why the job cannot go on."""
        self.reason: Callable[[], str] = str
        """What rank 0 tells the others that it waits for."""
        self.on_leaving: Callable[[Leaving], None] = _ignore
        """Called when another rank was told to leave."""
        self.patience_s: float | None = None
        """How long `leave` waits for the other ranks to end; None: as long as all are well."""
        self._ranks = ranks
        self._thread = thread
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._merger: ShardedMerge | None = None
        self._buffer = memoryview(b"")
        self._wishes: dict[int, Wish] = {}
        self._outcomes: list[Outcome] = []
        self._left: set[int] = set()
        self._lost: set[int] = set()
        self._waiting = 0
        self._news = asyncio.Event()
        self._said = ""
        self._heard = dict.fromkeys(range(ranks.size), asyncio.get_running_loop().time())
        self._others = [other for other in range(ranks.size) if other != ranks.rank] if ranks.rank == 0 else [0]

    @property
    def waits_for(self) -> str:
        """What this rank waits for, as a sentence."""
        if self.rank > 0:
            return self._said or "waiting for rank 0 of the job"
        missing = [str(rank) for rank in range(self.size) if rank not in self._wishes]
        return f"waiting for rank {', '.join(missing)} of the job" if missing else self.reason()

    def hold(self, arena: Arena) -> None:
        """From now on merges and results of rank 0 go into this arena."""
        from swarm_hpc.kernels.sharded import ShardedMerge  # needs MPI, which not every machine has

        self._merger, self._buffer = ShardedMerge(self._ranks, arena.layout), arena.buffer

    async def gather(self, mine: Wish) -> list[Wish]:
        """Rank 0: the wishes of all ranks, once all have one. TimedOut, or what has broken the job."""
        self._wishes[0] = mine
        await self._in_time(lambda: len(self._wishes) == self.size, self._max_wait_s)
        return [self._wishes[rank] for rank in range(self.size)]

    async def merge(self, merge: Merge, weights: list[int]) -> None:
        """Rank 0: all ranks merge what is in their arenas, in place. RankLost."""
        assert self._merger is not None, "hold comes first"
        merger, buffer = self._merger, self._buffer

        def work() -> None:
            self._tell(Go(merge=merge, weights=weights))
            merger.merge(merge, weights, buffer)

        await self._together(work)

    async def conclude(self, outcome: Outcome) -> None:
        """Rank 0: answer every wish, and give all ranks its parameters where the outcome says so. RankLost."""
        self._wishes.clear()
        buffer = self._buffer

        def work() -> None:
            self._tell(outcome)
            if outcome.share:
                self._ranks.broadcast(buffer)

        await self._together(work)

    async def ask(self, mine: Wish) -> Outcome:
        """Other ranks: tell rank 0 a wish, and wait for the outcome. Raises its error, or what broke the job."""
        self._outcomes.clear()
        await self._call(lambda: self._tell(mine))
        # rank 0 has one wait for its own program and one for the round
        await self._in_time(lambda: len(self._outcomes) > 0, 2 * self._max_wait_s)
        outcome = self._outcomes.pop()
        if outcome.error is not None:
            raise raised(outcome.error)
        return outcome

    async def unless_broken(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work, which ends early with what breaks the job."""
        task = asyncio.ensure_future(work)
        broken = asyncio.ensure_future(self._until(lambda: False))
        try:
            await asyncio.wait({task, broken}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                broken.result()
            return await task
        finally:
            for each in (task, broken):
                each.cancel()
            await asyncio.gather(task, broken, return_exceptions=True)

    async def fail(self, error: SwarmError) -> None:
        """The job cannot go on: tell all ranks why. The first error counts."""
        if self.broken is None:
            self._break(error)
            await self._spread(Broken(error=failure(error, f"rank {self.rank}")))

    async def tell_leaving(self, leaving: Leaving) -> None:
        """This rank was told to leave: tell the others, so that all do."""
        await self._spread(leaving)

    async def run(self) -> None:
        """Take messages and give signs of life, until cancelled, or MPI itself fails."""
        loop = asyncio.get_running_loop()
        beat_at = loop.time()
        try:
            while True:
                for rank, data in await self._call(self._ranks.receive):
                    self._heard[rank] = loop.time()
                    await self._take(rank, unpack(data))
                if loop.time() >= beat_at:
                    beat_at = loop.time() + self._timeout_s / _BEATS_PER_TIMEOUT
                    await self._call(lambda: self._tell(Beat(reason=self.waits_for if self.rank == 0 else "")))
                    await self._look_for_lost(loop.time())
                await asyncio.sleep(_SOON_S if self._waiting else _CALM_S)
        except SwarmError as exc:
            self._lost |= set(self._others) if isinstance(exc, RankLost) else set()
            await self.fail(exc)
        except Exception as exc:
            # whatever it is, who waits must hear of it
            log.exception("the exchange with the other ranks failed")
            await self.fail(ProtocolError(f"ranks: the exchange with the other ranks failed: {exc!r}"))

    async def leave(self) -> bool:
        """Wait until no rank has anything more to do; whether all are well enough for MPI's own end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience_s) as patience:
                self._left.add(self.rank)
                if self.rank > 0:
                    await self._spread(Bye())
                while not self._all_left():
                    if self.broken is not None and patience.when() is None:
                        # a program that trains on, and asks for nothing, has this long to find out
                        patience.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                    self._news.clear()
                    await self._news.wait()
                if self.rank == 0:
                    await self._spread(Bye())
                return not self._lost
        return False

    def _all_left(self) -> bool:
        awaited = set(range(self.size)) if self.rank == 0 else {0}
        return awaited <= self._left | self._lost

    async def _take(self, rank: int, message: Message) -> None:
        match message:
            case Wish():
                self._wishes[rank] = message
            case Go():
                assert self._merger is not None, "rank 0 lets nobody merge before all have opened"
                merger, buffer = self._merger, self._buffer
                with suppress(MergeError):  # rank 0 has the same, and says so
                    await self._together(lambda: merger.merge(message.merge, message.weights, buffer))
            case Outcome():
                if message.share:
                    buffer = self._buffer
                    await self._together(lambda: self._ranks.broadcast(buffer))
                self._outcomes.append(message)
            case Beat():
                self._said = message.reason
            case Broken() if self.broken is None:
                self._break(raised(message.error))
                if self.rank == 0:
                    await self._spread(message)
            case Leaving():
                self.on_leaving(message)
            case Bye():
                self._left.add(rank)
        self._news.set()

    async def _look_for_lost(self, now: float) -> None:
        for rank in set(self._others) - self._left - self._lost:
            if now - self._heard[rank] > self._timeout_s:
                self._lost.add(rank)
                await self.fail(RankLost(f"nothing heard from rank {rank} of {self.size} for {self._timeout_s:g} s"))
                self._news.set()

    def _break(self, error: SwarmError) -> None:
        log.error("the job's ranks cannot go on: %s", error)
        self.broken = error
        self._news.set()

    async def _in_time(self, condition: Callable[[], bool], max_wait_s: float) -> None:
        try:
            async with asyncio.timeout(max_wait_s):
                await self._until(condition)
        except TimeoutError as exc:
            raise TimedOut(f"{self.waits_for}; gave up after {max_wait_s:.0f} s (round.max_wait_s)") from exc

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait; raises what breaks the job."""
        self._waiting += 1
        try:
            while not condition():
                if self.broken is not None:
                    raise self.broken
                self._news.clear()
                await self._news.wait()
        finally:
            self._waiting -= 1

    async def _together(self, work: Callable[[], None]) -> None:
        """Something that all ranks do at the same time."""
        try:
            await self._call(work)
        except RankLost as exc:
            self._lost |= set(self._others)
            await self.fail(exc)
            raise
        finally:
            now = asyncio.get_running_loop().time()
            self._heard = dict.fromkeys(self._heard, now)

    async def _call(self, work: Callable[[], T]) -> T:
        return await self._thread.call(work)

    async def _spread(self, message: Message) -> None:
        """Tell whoever still listens: the job is at its end, one way or the other."""
        with suppress(RankLost):
            await self._call(lambda: self._tell(message))

    def _tell(self, message: Message) -> None:
        """In MPI's thread: from rank 0 to all others, from them to it."""
        data = pack(message)
        for rank in self._others:
            self._ranks.send(rank, data)


def _ignore(leaving: Leaving) -> None:
    """Nobody asks yet: this rank will hear of it by the end of the others."""


class _MpiThread:
    """The one thread that calls MPI. A daemon: a call that never returns must not keep the process."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="mpi", daemon=True).start()

    async def call(self, work: Callable[[], T]) -> T:
        """Run it there. Cancelled in the meantime, it still runs to its end, unless it has not begun."""
        future: Future[T] = Future()
        self._work.put((future, work))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """The thread ends after what it is doing."""
        self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as exc:  # noqa: BLE001 - the caller's
                future.set_exception(exc)


@asynccontextmanager
async def open_job(config: RanksConfig, *, max_wait_s: float) -> AsyncIterator[Job]:
    """This process's rank while the context lasts; at its end all ranks wait for each other.

    `max_wait_s`: how long a program waits for those of the other ranks before it gives up.

    RanksMismatch, RankLost. An error that ends the context is told to all ranks and their programs.
    """
    from swarm_hpc.kernels import mpi  # not every machine has an MPI library

    thread = _MpiThread()
    try:
        async with asyncio.timeout(config.timeout_s):
            ranks = await thread.call(lambda: mpi.Ranks.start(config.num_ranks, config.timeout_s))
    except TimeoutError as exc:
        raise RankLost(f"MPI did not start within {config.timeout_s:g} s (ranks.timeout_s): do all ranks run?") from exc
    except SwarmError:
        thread.stop()
        raise
    log.info("rank %d of %d", ranks.rank, ranks.size)
    job = Job(ranks, thread, config.timeout_s, max_wait_s)
    pump = asyncio.create_task(job.run())
    try:
        try:
            yield job
        except SwarmError as exc:
            await job.fail(exc)
            raise
        except BaseException:
            await job.fail(ProgramFailed("it was stopped"))
            raise
    finally:
        well = await job.leave()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        code = job.broken.exit_code if job.broken else RankLost.exit_code
        await _end(ranks, thread, config.timeout_s, well=well, code=code)


async def _end(ranks: Ranks, thread: _MpiThread, timeout_s: float, *, well: bool, code: int) -> None:
    if well:
        try:
            async with asyncio.timeout(timeout_s):
                await thread.call(ranks.close)
            thread.stop()
            return
        except (TimeoutError, RankLost):
            log.error("MPI did not come to its end within %g s (ranks.timeout_s)", timeout_s)
    log.error("ending all processes of the job: a rank is lost or does not end")
    # MPI's thread may be stuck for ever
    ranks.abort(code)
