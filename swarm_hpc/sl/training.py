"""A program's training within one contract: what a sync does, and the end, until the contract has its final model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from swarm_hpc.config import JobConfig, RoundConfig
from swarm_hpc.errors import TimedOut, TrainingOver
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.records import CheckIn, ContractState, FinishMode, Resources, TrainingContract
from swarm_hpc.sl.contract import join
from swarm_hpc.sl.exchange import Exchange
from swarm_hpc.sl.frames import Finished, Synced, SyncRequest
from swarm_hpc.sl.gathering import NOT_NOW
from swarm_hpc.sl.member import Member
from swarm_hpc.sl.participant import Contribution, Participant
from swarm_hpc.sl.round import LOOK_AGAIN_S, why_standing
from swarm_hpc.sn.client import SnClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What this node brings to the contract."""

    arena: Arena
    """The program's parameters, and the merged ones after each round."""
    weight: int
    rules: RoundConfig
    job: JobConfig
    used_cpu_s: Callable[[], float]
    """CPU time of the program so far."""


class Training:
    """The node's training in a contract that it has joined. One request at a time."""

    def __init__(
        self, sn: SnClient, member: Member, exchange: Exchange, contract: TrainingContract, part: Part
    ) -> None:
        self.contract = contract
        """As it was when last heard of."""
        self.weight = part.weight
        """What the next check-in says: its weight, and how many nodes of the site are merged into it."""
        self.num_nodes = 1
        self.others_cpu_s = 0.0
        """CPU time so far of the programs whose parameters are merged into this node's."""
        self._sn = sn
        self._member = member
        self._part = part
        self._participant = Participant(sn, member, exchange, part.arena, contract)
        self._exchange = exchange
        self._next = contract.round
        """The round that the program's parameters are for: they grew from the result of the one before."""
        self._last = SyncRequest()
        self._finished: FinishMode | None = None
        self._counted_cpu_s = part.used_cpu_s()
        self._counted_at = time.monotonic()

    @property
    def reason(self) -> str:
        """What the program waits for, as a sentence."""
        return self._sn.halted or self._participant.reason

    async def resume(self) -> bool:
        """Load the contract's newest merged parameters into the arena, if there are any and they can be had."""
        await self._exchange.enter(self.contract)
        try:
            return await self._participant.take_newest(self.contract) is not None
        except NOT_NOW as exc:
            log.warning("%s: starting from the program's own parameters: %s", self._name, exc)
            return False

    async def rejoin(self) -> None:
        """Take part again after the ledger had this node as away."""
        try:
            self.contract = await join(self._sn, self._member, self.contract.spec)
            if self._finished is not None:
                await self._tell_finished(self._finished)
        except TrainingOver:
            log.info("%s was completed while this node was away", self._name)

    async def sync(self, request: SyncRequest) -> Synced:
        """Merge what is in the arena with the peers' parameters.

        A node that missed rounds takes the newest result instead, and its own parameters count for nothing.
        """
        self._last = request
        self.contract = await self._sn.contract(self._name)
        if self.contract.round > self._next:
            return await self._catch_up()
        if self.contract.state is ContractState.COMPLETED:
            return await self._training_over()
        self._part.arena.check_header()
        self._participant.laps.take()
        mine = await self._contribute(self._next, self._part.arena.buffer, self._used())
        outcome = await self._participant.take_part(self._next, mine, max_wait_s=self._part.rules.max_wait_s)
        self.contract = outcome.contract
        if not outcome.merged:
            return await self._training_over()
        self._next = outcome.round + 1
        if not self._present:
            # taken for lost meanwhile, or withdrawn: what comes next is to be waited for again
            await self.rejoin()
        return Synced(
            round=outcome.round,
            num_peers=outcome.num_peers,
            training_over=self.contract.state is ContractState.COMPLETED,
            late=outcome.late,
            seconds=self._participant.laps.take(),
        )

    async def finish(self, mode: FinishMode) -> Finished:
        """Sync once more unless `inactive`, stand by until the contract is completed, and load the final model."""
        snapshot = bytes(self._part.arena.buffer) if mode is FinishMode.SNAPSHOT else None
        if mode is not FinishMode.INACTIVE:
            await self.sync(self._last)
        self._finished = mode
        try:
            await self._tell_finished(mode)
        except TrainingOver:
            self.contract = await self._sn.contract(self._name)
        if mode is FinishMode.INACTIVE:
            await self._until_completed()
        else:
            await self._stand_by(memoryview(snapshot) if snapshot is not None else self._part.arena.buffer)
        newest = await self._participant.take_newest(self.contract)
        return Finished(round=newest.number, merged=newest.merged) if newest else Finished(round=0, merged="")

    @property
    def _name(self) -> str:
        return self.contract.spec.name

    @property
    def _present(self) -> bool:
        return any(each.node == self._member.name and each.active for each in self.contract.participants)

    async def _catch_up(self) -> Synced:
        missed, self._next = self._next, self.contract.round
        newest = None
        try:
            newest = await self._participant.take_newest(self.contract)
        except NOT_NOW as exc:
            log.warning("%s round %d: going on with the own parameters: %s", self._name, missed, exc)
        return Synced(
            round=self._next - 1,
            num_peers=len(newest.check_ins) if newest else 0,
            training_over=self.contract.state is ContractState.COMPLETED,
            late=True,
        )

    async def _training_over(self) -> Synced:
        newest = await self._participant.take_newest(self.contract)
        return Synced(
            round=newest.number if newest else 0,
            num_peers=len(newest.check_ins) if newest else 0,
            training_over=True,
            late=True,
        )

    async def _contribute(self, number: int, model: memoryview, resources: Resources) -> Contribution:
        check_in = CheckIn(
            node=self._member.name,
            blob="",
            weight=self.weight,
            num_nodes=self.num_nodes,
            loss=self._last.loss,
            metric=self._last.metric,
            epoch=self._last.epoch or 0,
            resources=resources,
        )
        return await self._participant.contribution(number, model, check_in)

    def _used(self) -> Resources:
        """What the program has used since this was last asked; of GPUs, the time that the job held them."""
        used_cpu_s, now = self._part.used_cpu_s() + self.others_cpu_s, time.monotonic()
        cpu_s, self._counted_cpu_s = max(0.0, used_cpu_s - self._counted_cpu_s), used_cpu_s
        gpu_s, self._counted_at = self._part.job.num_gpus * (now - self._counted_at), now
        return replace(self._run_by, cpu_s=round(cpu_s, 3), gpu_s=round(gpu_s, 3))

    @property
    def _run_by(self) -> Resources:
        return Resources(job=self._part.job.id, image=self._part.job.image)

    async def _tell_finished(self, mode: FinishMode) -> None:
        self.contract = await self._member.call(lambda i: self._sn.finish(self._name, self._member.name, i, mode))

    async def _stand_by(self, data: memoryview) -> None:
        """Take part with `data` in the rounds that others open: the arena means the newest result each time."""
        while self.contract.state is ContractState.TRAINING:
            self.contract = (
                await self._participant.take_part(
                    self.contract.round,
                    await self._contribute(self.contract.round, data, self._run_by),
                    max_wait_s=self._part.rules.max_wait_s,
                    standing=True,
                )
            ).contract

    async def _until_completed(self) -> None:
        """Wait for the others; TimedOut when no round comes to an end for `max_wait_s`."""
        cursor, number, since = 0, self.contract.round, time.monotonic()
        halted = ""
        while self.contract.state is ContractState.TRAINING:
            self._participant.reason = halted or why_standing(self.contract)
            view = await self._sn.round(self._name, self.contract.round, after=cursor, wait_s=LOOK_AGAIN_S)
            cursor, self.contract, halted = view.cursor, view.contract, view.halted
            if self.contract.round != number:
                number, since = self.contract.round, time.monotonic()
            if time.monotonic() - since > self._part.rules.max_wait_s:
                raise TimedOut(f"{self.reason}; nothing new for {self._part.rules.max_wait_s:.0f} s (round.max_wait_s)")
