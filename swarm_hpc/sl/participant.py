"""A node's part in the rounds of one training contract: checks in, waits, leads when it wins, takes the result.

round.py decides each step; this file carries it out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from swarm_hpc.errors import (
    BlobCorrupt,
    BlobError,
    BlobNotFound,
    MergeError,
    ModelMismatch,
    NotReachable,
    RoundError,
    SwarmError,
    TimedOut,
    TransportError,
)
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.records import CheckIn, MergePlan, Round, RoundState, TrainingContract
from swarm_hpc.sl import round as rounds
from swarm_hpc.sl.exchange import Exchange
from swarm_hpc.sl.gathering import NOT_NOW, Gathering, lost
from swarm_hpc.sl.laps import Laps, Phase
from swarm_hpc.sl.member import Member
from swarm_hpc.sl.models import NOTHING, Models
from swarm_hpc.sl.shards import ShardedMerge, digest
from swarm_hpc.sl.streaming import Stream, can_stream
from swarm_hpc.sn.client import RoundView, SnClient
from swarm_hpc.transport.blobs import hash_bytes

log = logging.getLogger(__name__)

_PAUSE_S: Final = 1.0
"""After something that did not work and may work soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A node's parameters for a round, and the check-in that speaks of them."""

    check_in: CheckIn
    data: memoryview
    """The check-in's blob."""
    model: memoryview
    """What it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a round ended for this node."""

    contract: TrainingContract
    round: int
    num_peers: int = 0
    """Check-ins that were merged; 0 where the arena does not hold the round's result."""
    late: bool = False
    merged: str = ""


class Participant:
    """One node in one contract. Results arrive in the arena."""

    def __init__(
        self, sn: SnClient, member: Member, exchange: Exchange, arena: Arena, contract: TrainingContract
    ) -> None:
        self.reason = ""
        """What the node waits for, as a sentence."""
        self.laps = Laps()
        self._sn = sn
        self._member = member
        self._exchange = exchange
        self._arena = arena
        self._spec = contract.spec
        self._models = Models(arena.layout, contract.spec.merge)
        self._gathering = Gathering(exchange, *self._models.forms.sizes_bytes)
        self._stream = Stream(exchange, arena.layout, contract.spec.merge)
        self._missing: Mapping[str, Exception] = {}
        """Blobs without which the latest merge could not be made, and why they could not be had."""
        self._shards = ShardedMerge(sn, member, exchange, arena.layout, contract.spec.merge, self.laps)
        self._shared = ""
        """`shards.digest` of what was merged in shards last, or was to be."""
        self._merged = ""
        """`shards.digest` of what this node has merged last."""
        self._arrived = self._doubtful = NOTHING
        """The latest round, and the blob, that this node's parameters were merged in, or may have been."""
        self._asked = NOTHING
        """The latest round, and the blob, that the ledger was asked to take a check-in for: it may have done so."""

    async def take_part(
        self, number: int, mine: Contribution | None, *, max_wait_s: float, standing: bool = False
    ) -> Outcome:
        """Go through a round to its end; without a contribution, only wait for its result.

        Afterwards the arena holds the merged parameters. It is unchanged where the contract was completed before the
        round had a result (`num_peers` 0), or where nobody could give it (a warning). TimedOut after `max_wait_s`.
        ModelMismatch, BlobCorrupt: a peer's parameters cannot be merged; the error names it, and nothing was merged.
        """
        try:
            with self._gathering.for_a_round():
                return await self._go_through(number, mine, max_wait_s, standing)
        except SwarmError:
            if mine is not None and not self._models.exact:
                given = number, mine.check_in.blob
                # what was never handed in cannot count; an earlier one, of which there still is a doubt, may
                if given == self._asked and given != self._arrived:
                    await asyncio.to_thread(self._models.doubt, number, mine.model, mine.data)
                    self._doubtful = given
            raise

    async def _go_through(self, number: int, mine: Contribution | None, max_wait_s: float, standing: bool) -> Outcome:
        if mine is not None:
            self.reason = f"{self._spec.name} round {number}: handing over the parameters"
            with self.laps.lap(Phase.OFFER):
                await self._exchange.offer(mine.check_in.blob, mine.data, self._spec.name)
        deadline = time.monotonic() + max_wait_s
        view = await self._sn.round(self._spec.name, number)
        while True:
            if mine is not None and self._is_shared(view.round, mine):
                await self._share(view.round, mine)
                view = await self._sn.round(self._spec.name, number)
            match self._decide(view, mine, standing):
                case rounds.Take(merged, late):
                    num_peers = await self._take(view, mine, deadline)
                    return Outcome(contract=view.contract, round=number, num_peers=num_peers, late=late, merged=merged)
                case rounds.Over():
                    return Outcome(contract=view.contract, round=number)
                case rounds.Wait(reason, at_most_s):
                    self.reason, wait_s = view.halted or reason, at_most_s
                case action:
                    wait_s = await self._act(action, view, mine)
            if time.monotonic() >= deadline:
                raise TimedOut(f"{self.reason}; gave up after {max_wait_s:.0f} s (round.max_wait_s)")
            wait_s = max(0.0, min(wait_s, deadline - time.monotonic()))
            with self.laps.lap(Phase.WAIT):
                view = await self._sn.round(self._spec.name, number, after=view.cursor, wait_s=wait_s)

    async def take_newest(self, contract: TrainingContract) -> Round | None:
        """Load the newest merged parameters into the arena; their round, or None where no round has a result.

        An error of NOT_NOW: they cannot be had, and the arena is as it was.
        """
        newest = contract.round - 1
        if newest < 1:
            return None
        self.reason = f"{self._spec.name} round {newest}: fetching the merged parameters"
        view = await self._sn.round(self._spec.name, newest)
        await self._end_doubt()
        with self._gathering.for_a_round():
            anew = await self._load(view.round, mine=None)
        if anew:
            await self._settle(view.round)
        return view.round

    async def contribution(self, number: int, model: memoryview, check_in: CheckIn) -> Contribution:
        """A model for a round, in the form in which it travels; the check-in but for its blob's hash."""
        with self.laps.lap(Phase.HASH):
            data = await asyncio.to_thread(self._models.outgoing, number, model)
            blob = await asyncio.to_thread(hash_bytes, data)
        return Contribution(check_in=replace(check_in, blob=blob), data=data, model=model)

    def _decide(self, view: RoundView, mine: Contribution | None, standing: bool) -> rounds.Action:
        blob, me = mine.check_in.blob if mine is not None else None, self._member.name
        lost = any(
            check_in.node == me and check_in.blob != blob and not self._exchange.holds(check_in.blob)
            for check_in in view.round.check_ins
        )
        return rounds.decide(view.round, view.contract, me, blob, standing=standing, lost=lost)

    async def _act(self, action: rounds.Action, view: RoundView, mine: Contribution | None) -> float:
        """Check in, claim, lead or withdraw; how long to wait for news before the next look."""
        name, number = self._spec.name, view.round.number
        try:
            if isinstance(action, rounds.CheckIn):
                assert mine is not None
                check_in = mine.check_in
                self._asked = number, check_in.blob
                with self.laps.lap(Phase.LEDGER):
                    await self._member.call(lambda i: self._sn.check_in(name, number, i, check_in))
            elif isinstance(action, rounds.Claim):
                with self.laps.lap(Phase.LEDGER):
                    await self._member.call(lambda i: self._sn.claim(name, number, self._member.name, i))
            elif isinstance(action, rounds.Withdraw):
                log.warning("%s round %d: the parameters that this node checked in with are lost", name, number)
                await self._member.stand_back()
                return _PAUSE_S
            else:
                await self._lead(view.round, mine)
        except RoundError as exc:
            # others were faster; the next look says what that means for this node
            log.debug("%s round %d: %s", name, number, exc)
            return _PAUSE_S
        except NOT_NOW as exc:
            self.reason = f"{name} round {number}: {exc}"
            log.warning("%s; trying again", self.reason)
            await asyncio.sleep(_PAUSE_S)
        return 0.0

    def _is_shared(self, round_: Round, mine: Contribution) -> bool:
        """Whether this node has a shard of the round to merge. It is tried once for the same check-ins."""
        return (
            self._spec.merge.plan is MergePlan.SHARDED
            and round_.state is RoundState.CLAIMED
            and rounds.is_checked_in(round_, self._member.name, mine.check_in.blob)
            and len(round_.check_ins) > 1
            and digest(round_) != self._shared
        )

    async def _share(self, round_: Round, mine: Contribution) -> None:
        """Merge the round in shards. Its result is in the spare then, or the leader has to merge alone."""
        self._shared, self._models.result = digest(round_), NOTHING
        # the leader needs the other half where this comes to nothing
        within_s = max(round_.leader_due_in_s or 0, 0) / 2
        try:
            merged = await self._shards.merge(
                round_, mine.data, self._models.spare, within_s=within_s, tell=partial(self._tell, round_)
            )
            self._models.result, self._merged = (round_.number, merged), self._shared
        except (BlobError, TransportError, MergeError, RoundError) as exc:
            log.warning("%s round %d is not merged in shards: %s", round_.contract, round_.number, exc)

    def _tell(self, round_: Round, how_far: str) -> None:
        self.reason = f"{round_.contract} round {round_.number}: {how_far}"

    async def _lead(self, round_: Round, mine: Contribution | None) -> None:
        number, merged = self._models.result
        # a leader that was replaced before it was done may be asked again, and be too slow again and again
        if not merged or number != round_.number or digest(round_) != self._merged:
            try:
                merged = await self._merge(round_, mine)
                self._merged = digest(round_)
            except NOT_NOW:
                if await self._drop_lost(round_):
                    return
                raise
        with self.laps.lap(Phase.OFFER):
            await self._exchange.offer(merged, self._models.published(self._models.spare), round_.contract)
        with self.laps.lap(Phase.LEDGER):
            await self._member.call(
                lambda i: self._sn.publish(round_.contract, round_.number, self._member.name, i, merged)
            )

    async def _merge(self, round_: Round, mine: Contribution | None, *, bring: bool = True) -> str:
        """Get the peers' parameters and merge them into the spare; the hash.

        An error of NOT_NOW: some are `_missing`, or the result from which they are seen; unless `bring`, that is not
        looked for.
        """
        own = {mine.check_in.blob: mine.data} if mine is not None else {}
        self._models.result, self._missing, merged = NOTHING, {}, ""
        if can_stream(self._spec.merge):
            try:
                merged = await self._merge_as_they_arrive(round_, own)
            except BlobCorrupt as exc:
                log.warning("%s round %d: fetching all before merging: %s", round_.contract, round_.number, exc)
        merged = merged or await self._gather_and_merge(round_, own, bring)
        self._models.result = round_.number, merged
        return merged

    async def _merge_as_they_arrive(self, round_: Round, own: Mapping[str, memoryview]) -> str:
        try:
            with self.laps.lap(Phase.FETCH):
                return await self._stream.merge(round_.check_ins, own, self._models.spare, partial(self._tell, round_))
        finally:
            self._missing = self._stream.missing
            self.laps.add(Phase.MERGE, self._stream.merge_s)
            self.laps.add(Phase.FETCH, -self._stream.merge_s)

    async def _gather_and_merge(self, round_: Round, own: Mapping[str, memoryview], bring: bool) -> str:
        gathering = self._gathering
        gathering.blobs |= own
        with self.laps.lap(Phase.FETCH):
            await gathering.fetch(round_.check_ins, partial(self._tell, round_))
        self._missing = gathering.missing
        for exc in gathering.missing.values():
            raise exc
        if bring and self._models.needs_base(round_.number, gathering.blobs):
            await self._bring(range(self._models.needed(round_.number - 1).start, round_.number), round_)
        self._tell(round_, f"merging {len(round_.check_ins)} peers' parameters")
        with self.laps.lap(Phase.MERGE), gathering.for_a_merge() as room:
            return await asyncio.to_thread(self._models.merge, round_.number, round_.check_ins, gathering.blobs, room)

    async def _drop_lost(self, round_: Round) -> bool:
        """Go on without the nodes that are away with the only copy of their blob; whether there are any."""
        contract = await self._sn.contract(round_.contract)
        nodes = lost(round_.check_ins, self._missing, contract)
        for node in nodes:
            await self._drop(round_, node)
        return bool(nodes)

    async def _drop(self, round_: Round, node: str) -> None:
        log.warning("%s round %d: nobody has the parameters of %s: dropping it", round_.contract, round_.number, node)
        with self.laps.lap(Phase.LEDGER):
            await self._member.call(lambda i: self._sn.drop(round_.contract, round_.number, self._member.name, i, node))

    async def _take(self, view: RoundView, mine: Contribution | None, deadline: float) -> int:
        """Bring a published round's parameters into the arena; from how many peers, 0 where nobody has them."""
        self.reason = f"{self._spec.name} round {view.round.number}: fetching the merged parameters"
        if mine is not None and not rounds.is_checked_in(view.round, self._member.name, mine.check_in.blob):
            mine = None  # of no use here
        await self._end_doubt(mine)
        if mine is not None:
            await asyncio.to_thread(self._models.arrived, view.round.number, mine.model, mine.data)
            self._arrived = view.round.number, mine.check_in.blob
        try:
            anew = await self._load_in_time(view.round, mine, deadline)
        except NOT_NOW as exc:
            log.warning("%s round %d: going on with the own parameters: %s", self._spec.name, view.round.number, exc)
            return 0
        if anew:
            await self._settle(view.round)
        return len(view.round.check_ins)

    async def _end_doubt(self, merged: Contribution | None = None) -> None:
        """Find out whether what was handed in without hearing the end of it counts, and is no part of `merged`."""
        number, blob = self._doubtful
        if number:
            round_ = (await self._sn.round(self._spec.name, number)).round
            if round_.state is RoundState.PUBLISHED:
                same = merged is not None and merged.check_in.blob == blob
                self._models.decided(not same and rounds.is_checked_in(round_, self._member.name, blob))
                self._doubtful = NOTHING

    async def _load_in_time(self, round_: Round, mine: Contribution | None, deadline: float) -> bool:
        """As `_load`, again where the SN that has the result is only out of reach."""
        while True:
            try:
                return await self._load(round_, mine)
            except (NotReachable, TimedOut) as exc:
                if not self._exchange.results_stay or time.monotonic() > deadline:
                    raise
                self.reason = f"{self._spec.name} round {round_.number}: {exc}"
                log.warning("%s; trying again", self.reason)
            await asyncio.sleep(_PAUSE_S)

    async def _load(self, round_: Round, mine: Contribution | None) -> bool:
        """Fill the arena with the merged parameters; where they cannot be had, it is as it was.

        Whether it was done for the first time, as far as that is known.
        """
        anew = not self._models.has(round_.number)
        if anew:
            await self._fetch(round_, mine)
        with self.laps.lap(Phase.LOAD):
            await asyncio.to_thread(self._models.take, round_.number, self._arena.buffer)
        return anew

    async def _settle(self, round_: Round) -> None:
        await self._exchange.settle(round_, self._models.published(self._arena.buffer))

    async def _fetch(self, round_: Round, mine: Contribution | None) -> None:
        """Have the merged parameters of a round in the spare: as they were published, or by merging anew."""
        if self._models.result != (round_.number, round_.merged) and not await self._fetch_published(round_):
            await self._merge_anew(round_, mine)
        header = self._arena.layout.header
        if self._models.spare[: len(header)] != header:
            raise ModelMismatch(f"{round_.leader} published parameters of another model in round {round_.number}")

    async def _bring(self, numbers: range, seen: Round) -> None:
        """Keep the results of these rounds, from which a later one is `seen`, as far as they can be had."""
        for number in numbers:
            earlier = (await self._sn.round(self._spec.name, number)).round
            try:
                if not await self._fetch_published(earlier, seen):
                    await self._merge_anew(earlier, None, bring=False)
                await self._exchange.pass_on(earlier, self._models.published(self._models.spare))
                self._models.keep(number)
            except NOT_NOW as exc:
                log.warning("%s round %d: the merged parameters cannot be had: %s", self._spec.name, number, exc)

    async def _fetch_published(self, round_: Round, seen: Round | None = None) -> bool:
        """Fill the spare with what the leader, or another participant, has; whether anybody has it.

        Where it is seen from results that are not here, those are fetched first, unless this is done for a later round
        that is `seen` from it: who took part in that has it, too.
        """
        self._models.result = NOTHING
        try:
            found = await self._published(round_, seen)
            if seen is None and self._models.leads_nowhere(round_.number, found):
                await self._bring(self._models.needed(round_.number), round_)
                found = await self._published(round_, seen)  # where it was, others have been
            with self.laps.lap(Phase.FETCH):
                await asyncio.to_thread(self._models.open, round_.number, found)
        except BlobError as exc:
            log.warning("%s round %d: merging anew: %s", round_.contract, round_.number, exc)
            return False
        self._models.result = round_.number, round_.merged
        return True

    async def _published(self, round_: Round, seen: Round | None) -> memoryview:
        nodes = [n for r in (round_, seen) if r is not None for n in (r.leader, *(c.node for c in r.check_ins))]
        holders = [node for node in dict.fromkeys(nodes) if node != self._member.name]
        with self.laps.lap(Phase.FETCH):
            return await self._exchange.fetch(round_.merged, holders, *self._models.rooms)

    async def _merge_anew(self, round_: Round, mine: Contribution | None, *, bring: bool = True) -> None:
        """Fill the spare with what the round's leader had to publish."""
        merged = await self._merge(round_, mine, bring=bring)
        if merged != round_.merged:
            raise BlobNotFound(
                f"the parameters that {round_.leader} published are gone, and merging anew gives others ({merged})"
            )
