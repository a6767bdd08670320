"""A program's training as one rank of a job: the ranks merge, rank 0 takes part in the round, all get its result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from swarm_hpc.errors import SwarmError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.records import ContractSpec, FinishMode
from swarm_hpc.sl.frames import Finished, Synced, SyncRequest
from swarm_hpc.sl.job import Job
from swarm_hpc.sl.ranks import Outcome, Want, Wish, check_modes, check_wishes, combined, failure, is_over, standing
from swarm_hpc.sl.training import Training


class SpeakingTraining:
    """Rank 0's. What goes wrong goes wrong for all ranks alike."""

    def __init__(self, job: Job, training: Training, arena: Arena, spec: ContractSpec, weight: int) -> None:
        self._job = job
        self._training = training
        self._arena = arena
        self._agreed = spec.merge
        self._weight = weight
        self._last = SyncRequest()
        job.reason = lambda: training.reason

    @property
    def reason(self) -> str:
        """What the program waits for, as a sentence."""
        return self._job.waits_for

    async def sync(self, request: SyncRequest) -> Synced:
        """Merge with the other ranks, then with the peers: `Training.sync`."""
        self._last = request
        mine = wish_of(Want.SYNC, self._arena, self._weight, request)
        async with self._shared_errors():
            wishes = await self._job.gather(mine)
            return await self._round(wishes, request)

    async def finish(self, mode: FinishMode) -> Finished:
        """Take part as the mode says until all ranks have finished, then finish for the site: `Training.finish`."""
        last = LastParameters(self._arena, mode)
        while True:
            last.put_back()
            mine = wish_of(Want.FINISH, self._arena, self._weight, self._last, mode=mode)
            async with self._shared_errors():
                wishes = await self._job.gather(mine)
                if is_over(wishes):
                    return await self._finish(wishes, mode)
                await self._round(wishes, self._last)

    async def _round(self, wishes: Sequence[Wish], request: SyncRequest) -> Synced:
        check_wishes(wishes)
        await self._merge(wishes)
        synced = await self._job.unless_broken(self._training.sync(combined(wishes, request)))
        await self._job.conclude(Outcome(synced=synced, share=True))
        return synced

    async def _finish(self, wishes: Sequence[Wish], mode: FinishMode) -> Finished:
        check_wishes(wishes)
        check_modes(wishes)
        if mode is not FinishMode.INACTIVE:
            await self._merge(wishes)
        finished = await self._job.unless_broken(self._training.finish(mode))
        await self._job.conclude(Outcome(finished=finished, share=finished.merged != ""))
        return finished

    @asynccontextmanager
    async def _shared_errors(self) -> AsyncIterator[None]:
        """An error is the outcome of all wishes."""
        try:
            yield
        except SwarmError as exc:
            if self._job.broken is None:
                await self._job.conclude(Outcome(error=failure(exc)))
            raise

    async def _merge(self, wishes: Sequence[Wish]) -> None:
        weights = [wish.weight for wish in wishes]
        await self._job.merge(self._agreed, weights)
        self._training.weight, self._training.num_nodes = standing(weights)
        self._training.others_cpu_s = sum(wish.used_cpu_s for wish in wishes[1:])


class FollowingTraining:
    """Another rank's: rank 0 does it all, and says what came of it."""

    def __init__(self, job: Job, arena: Arena, weight: int, used_cpu_s: Callable[[], float]) -> None:
        self._job = job
        self._arena = arena
        self._weight = weight
        self._used_cpu_s = used_cpu_s
        self._last = SyncRequest()

    @property
    def reason(self) -> str:
        """What the program waits for, as a sentence."""
        return self._job.waits_for

    async def sync(self, request: SyncRequest) -> Synced:
        """As rank 0's."""
        self._last = request
        outcome = await self._job.ask(self._wish(Want.SYNC))
        assert outcome.synced is not None
        return outcome.synced

    async def finish(self, mode: FinishMode) -> Finished:
        """As rank 0's."""
        last = LastParameters(self._arena, mode)
        while True:
            last.put_back()
            outcome = await self._job.ask(self._wish(Want.FINISH, mode))
            if outcome.finished is not None:
                return outcome.finished

    def _wish(self, want: Want, mode: FinishMode | None = None) -> Wish:
        return wish_of(want, self._arena, self._weight, self._last, mode=mode, used_cpu_s=self._used_cpu_s())


class LastParameters:
    """What a program that has finished still contributes while other ranks train: its last ones, or the newest."""

    def __init__(self, arena: Arena, mode: FinishMode) -> None:
        self._arena = arena
        self._kept = bytes(arena.buffer) if mode is FinishMode.SNAPSHOT else b""

    def put_back(self) -> None:
        """Have them in the arena."""
        if self._kept:
            self._arena.buffer[:] = self._kept


def wish_of(
    want: Want,
    arena: Arena,
    weight: int,
    request: SyncRequest,
    *,
    mode: FinishMode | None = None,
    used_cpu_s: float = 0.0,
) -> Wish:
    """A rank's wish; with the error, if what is in its arena cannot be merged."""
    error = None
    try:
        arena.check_header()
    except SwarmError as exc:
        error = failure(exc)
    return Wish(
        want=want,
        weight=0 if mode is FinishMode.INACTIVE else weight,
        loss=request.loss,
        metric=request.metric,
        used_cpu_s=used_cpu_s,
        mode=mode,
        error=error,
    )
