"""How a program's session gets into a training contract: as a node of its own, or as one rank of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from swarm_hpc.config import SlConfig
from swarm_hpc.errors import ProgramFailed, SwarmError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.records import ContractSpec, FinishMode, Progress
from swarm_hpc.sl.contract import enter
from swarm_hpc.sl.exchange import Exchange
from swarm_hpc.sl.frames import Finished, Synced, SyncRequest
from swarm_hpc.sl.job import Job
from swarm_hpc.sl.member import Member
from swarm_hpc.sl.rank_training import FollowingTraining, SpeakingTraining
from swarm_hpc.sl.ranks import Outcome, Want, Wish, check_openings, failure, header_text
from swarm_hpc.sl.training import Part, Training
from swarm_hpc.sn.client import SnClient

_REASON_S: Final = 5.0
"""How long a program that has gone may take to end: its exit code and last words say more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a session asks for; `config` has the program's own settings in it."""

    config: SlConfig
    spec: ContractSpec
    arena: Arena
    used_cpu_s: Callable[[], float]
    """CPU time of the program so far."""
    goes_on: bool = False
    """See `frames.OpenRequest`."""


class Trains(Protocol):
    """A program's training, once it is in."""

    @property
    def reason(self) -> str:
        """What the program waits for, as a sentence."""

    async def sync(self, request: SyncRequest) -> Synced:
        """As `Training.sync`."""

    async def finish(self, mode: FinishMode) -> Finished:
        """As `Training.finish`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What came of it. `resume`: the arena holds the contract's newest parameters."""

    training: Trains
    round: int
    created_at: int
    """Of the contract: one that was reset has another."""
    resume: bool


class Entrance(Protocol):
    """A node's way in, for one session after the other."""

    async def enter(self, wanted: Wanted) -> Entered:
        """Take part in a training contract. Errors as in `contract.enter`."""

    def attend(self, report: Callable[[], Progress] | None) -> None:
        """A session has begun, and that says how far its program is; None: it is over."""

    async def abandon(self) -> None:
        """The program went away before its training was finished: nobody must wait for it."""

    async def withdraw(self) -> None:
        """The node leaves, and its program may still be saving: no round is to wait for it."""


class Single:
    """This process is the node."""

    def __init__(self, sn: SnClient, member: Member, exchange: Exchange) -> None:
        self._sn = sn
        self._member = member
        self._exchange = exchange

    async def enter(self, wanted: Wanted) -> Entered:
        """See `Entrance`."""
        training, resume = await self.join(wanted)
        contract = training.contract
        return Entered(training=training, round=contract.round, created_at=contract.created_at, resume=resume)

    async def join(self, wanted: Wanted) -> tuple[Training, bool]:
        """The training, and whether the arena holds its newest parameters."""
        contract = await enter(self._sn, self._member, wanted.spec, wanted.arena.layout, goes_on=wanted.goes_on)
        config = wanted.config
        part = Part(
            arena=wanted.arena,
            weight=config.node_weight,
            rules=config.round,
            job=config.job,
            used_cpu_s=wanted.used_cpu_s,
        )
        training = Training(self._sn, self._member, self._exchange, contract, part)
        self._member.rejoin = training.rejoin
        return training, await training.resume()

    def attend(self, report: Callable[[], Progress] | None) -> None:
        """See `Entrance`."""
        self._member.report = report or Progress
        if report is None:
            self._member.rejoin = None

    async def abandon(self) -> None:
        """See `Entrance`."""
        await self._member.stand_back()

    async def withdraw(self) -> None:
        """See `Entrance`."""
        self._member.rejoin = None
        await self._member.stand_back()


class Speaking:
    """Rank 0 of a job: the node on the ledger."""

    def __init__(self, job: Job, single: Single) -> None:
        self._job = job
        self._single = single

    async def enter(self, wanted: Wanted) -> Entered:
        """Enter once all ranks want to, and want the same."""
        self._job.hold(wanted.arena)
        try:
            wishes = await self._job.gather(opening(wanted))
            check_openings(wishes, wanted.arena.layout)
            training, resume = await self._job.unless_broken(self._single.join(wanted))
        except SwarmError as exc:
            if self._job.broken is None:
                await self._job.conclude(Outcome(error=failure(exc)))
            raise
        number, created_at = training.contract.round, training.contract.created_at
        await self._job.conclude(Outcome(opened_round=number, created_at=created_at, share=resume))
        speaking = SpeakingTraining(self._job, training, wanted.arena, wanted.spec, wanted.config.node_weight)
        return Entered(training=speaking, round=number, created_at=created_at, resume=resume)

    def attend(self, report: Callable[[], Progress] | None) -> None:
        """See `Entrance`."""
        self._single.attend(report)

    async def abandon(self) -> None:
        """See `Entrance`."""
        await self._single.abandon()
        await fail(self._job)

    async def withdraw(self) -> None:
        """See `Entrance`."""
        await self._single.withdraw()


class Following:
    """Another rank: it takes part through rank 0, and is not on the ledger."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def enter(self, wanted: Wanted) -> Entered:
        """Have rank 0 enter, and take what it gives."""
        self._job.hold(wanted.arena)
        outcome = await self._job.ask(opening(wanted))
        assert outcome.opened_round is not None
        training = FollowingTraining(self._job, wanted.arena, wanted.config.node_weight, wanted.used_cpu_s)
        return Entered(
            training=training, round=outcome.opened_round, created_at=outcome.created_at, resume=outcome.share
        )

    def attend(self, report: Callable[[], Progress] | None) -> None:
        """Nobody is told: rank 0's program stands for all."""

    async def abandon(self) -> None:
        """See `Entrance`."""
        await fail(self._job)

    async def withdraw(self) -> None:
        """Rank 0 does."""


def opening(wanted: Wanted) -> Wish:
    """The wish of a rank whose program wants to train."""
    return Wish(
        want=Want.OPEN, weight=wanted.config.node_weight, spec=wanted.spec, layout=header_text(wanted.arena.layout)
    )


async def fail(job: Job) -> None:
    """Tell the job, unless a better reason comes first: how the program has ended."""
    await asyncio.sleep(_REASON_S)
    await job.fail(ProgramFailed("the ML program closed its session before its training was finished"))
