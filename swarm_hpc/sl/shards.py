"""A round's merge shared by all who checked in: each merges one shard of the blob, and gets the others' from them.

Every node sends and receives less than two models, however many take part (Rabenseifner's all-reduce, with blobs for
messages and the ledger for their order). The result is the leader's, bit by bit: where it does not come about, the
leader merges alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate
from typing import Any, Final

import numpy as np
from blake3 import blake3

from swarm_hpc.errors import BlobError, MergeError, NotShared, TransportError
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.joined import Joined, Numbers
from swarm_hpc.kernels.plan import Layout, Shard, shards
from swarm_hpc.kernels.rooms import apart
from swarm_hpc.records import Merge, Round, RoundState, Statement
from swarm_hpc.sl.exchange import Exchange
from swarm_hpc.sl.gathering import so_far
from swarm_hpc.sl.laps import Laps, Phase
from swarm_hpc.sl.member import Member
from swarm_hpc.sl.merge import effective_weight, in_order
from swarm_hpc.sn.client import RoundView, SnClient
from swarm_hpc.transport.blobs import hash_bytes

log = logging.getLogger(__name__)

_PIECES: Final = 0
"""Step: the blobs are the shards of the node's own parameters, one for each peer."""
_SHARD: Final = 1
"""Step: the blob is the merged shard."""
_FIRST_NUMBERS: Final = 2
"""The first step whose blob holds what a method adds up over all shards."""
_MAX_TRANSFERS: Final = 4
"""Blobs on their way at a time, each way."""
_LOOK_AGAIN_S: Final = 2.0
"""The longest wait for a statement without a look at who is away."""


def digest(round_: Round) -> str:
    """BLAKE3 of what is merged in the round: statements about other check-ins are not meant."""
    merged = sorted((c.node, c.blob, c.weight, c.num_nodes) for c in round_.check_ins)
    return blake3(json.dumps([round_.contract, round_.number, merged]).encode()).hexdigest()


class ShardedMerge:
    """One node's part in merging rounds so. Keeps its memory, of about one model, for the next round."""

    def __init__(
        self, sn: SnClient, member: Member, exchange: Exchange, layout: Layout, merge: Merge, laps: Laps
    ) -> None:
        self.sn = sn
        self.member = member
        self.exchange = exchange
        self.layout = layout
        self.method = merge
        self.laps = laps
        self._room = bytearray()

    async def merge(
        self, round_: Round, data: memoryview, out: memoryview, *, within_s: float, tell: Callable[[str], None]
    ) -> str:
        """Merge a claimed round with all who checked in, from the own blob `data`; the hash of what is then in `out`.

        `tell` hears what is waited for. NotShared, which it also is after `within_s`, or an error of a transfer or of
        the merge: `out` is of no use, and the leader has to merge alone.
        """
        work = _Work(self, round_, tell)
        try:
            async with asyncio.timeout(within_s):
                try:
                    return await work.run(data, out)
                except (BlobError, TransportError, MergeError):
                    await work.give_up()
                    raise
        except TimeoutError as exc:
            raise NotShared(f"not done within {within_s:.0f} s: {work.waiting_for}") from exc

    def room(self, sizes: Sequence[int]) -> list[memoryview]:
        """Buffers of these sizes, placed as `rooms.room` says: the same memory the next time."""
        starts = list(accumulate(map(apart, sizes), initial=0))
        if len(self._room) < starts[-1]:
            self._room = bytearray(starts[-1])
        room = memoryview(self._room)
        return [room[start : start + size] for start, size in zip(starts, sizes, strict=False)]


class _Work:
    """One round of it."""

    def __init__(self, node: ShardedMerge, round_: Round, tell: Callable[[str], None]) -> None:
        self.waiting_for = "nothing yet"
        self._node = node
        self._round = round_
        self._tell = tell
        self._of = digest(round_)
        self._check_ins = in_order(round_.check_ins)
        self._peers = [check_in.node for check_in in self._check_ins]
        self._place = self._peers.index(node.member.name)
        self._cuts = shards(node.layout, len(self._peers), cpu.grain(node.method))
        self._unstated = {_PIECES, _SHARD, _FIRST_NUMBERS}
        self._loop = asyncio.get_running_loop()
        self._asked: Future[list[Numbers]] | None = None
        self._stopped = False

    async def run(self, data: memoryview, out: memoryview) -> str:
        """Hand the pieces out, merge, hand the shard out, collect the others'; the hash of the whole."""
        own, layout, laps = self._cuts[self._place], self._node.layout, self._node.laps
        await self._hand_out(_PIECES, [data[cut.start : cut.stop] for cut in self._cuts], to_me=self._place)
        room = self._node.room([own.size_bytes] * (len(self._peers) - 1))
        pieces = [*room[: self._place], data[own.start : own.stop], *room[self._place :]]
        with laps.lap(Phase.FETCH):
            await self._collect(_PIECES, "pieces", self._place, dict(zip(self._peers, pieces, strict=True)))
        with laps.lap(Phase.MERGE):
            await self._merge(own, pieces, out[own.start : own.stop])
        await self._hand_out(_SHARD, [out[own.start : own.stop]])
        parts = [out[cut.start : cut.stop] for cut in self._cuts]
        with laps.lap(Phase.FETCH):
            await self._collect(_SHARD, "merged shards", 0, dict(zip(self._peers, parts, strict=True)))
        out[: len(layout.header)] = layout.header
        with laps.lap(Phase.HASH):
            return await asyncio.to_thread(hash_bytes, out)

    async def give_up(self) -> None:
        """Tell the others not to wait for what this node has not stated yet."""
        for step in sorted(self._unstated):
            await self._state(step, ("",) * len(self._peers))

    # --- to the others, and from them ---

    async def _hand_out(self, step: int, blobs: Sequence[memoryview], *, to_me: int = -1) -> None:
        """Offer the blobs, except for the one that this node alone needs, and state them."""
        node = self._node
        with node.laps.lap(Phase.HASH):
            hashes = await asyncio.to_thread(lambda: tuple(map(hash_bytes, blobs)))
        wanted = {
            blob: data for place, (blob, data) in enumerate(zip(hashes, blobs, strict=True)) if data and place != to_me
        }
        with node.laps.lap(Phase.OFFER):
            offer = partial(node.exchange.offer, contract=self._round.contract, passing=True)
            await _all(offer(blob, data) for blob, data in wanted.items())
        await self._state(step, hashes)
        self._unstated.discard(step)

    async def _state(self, step: int, blobs: tuple[str, ...]) -> None:
        node, name, number = self._node, self._round.contract, self._round.number
        statement = Statement(of=self._of, step=step, blobs=blobs)
        with node.laps.lap(Phase.LEDGER):
            await node.member.call(lambda i: node.sn.share(name, number, node.member.name, i, statement))

    async def _collect(self, step: int, what: str, place: int, buffers: Mapping[str, memoryview]) -> None:
        """Fill each peer's buffer with its blob `place` of the step, as soon as the peer has stated it."""
        limit = asyncio.Semaphore(_MAX_TRANSFERS)
        here = {self._node.member.name}
        missing = set(self._peers) - here

        async def fetch(peer: str, blob: str) -> None:
            async with limit:
                if buffers[peer]:
                    await self._node.exchange.fetch(blob, [peer], buffers[peer])
            here.add(peer)
            self._say(what, here)

        async with _together() as fetches:
            while missing:
                self._say(what, here)
                stated = await self._stated(step, place, len(self._peers) - len(missing) + 1)
                # each begins with the one after itself: not all with the same one
                for peer in (*self._peers[self._place + 1 :], *self._peers[: self._place]):
                    if peer in missing and peer in stated:
                        missing.remove(peer)
                        fetches.create_task(fetch(peer, stated[peer]))

    async def _stated(self, step: int, place: int, at_least: int) -> dict[str, str]:
        """What the peers have stated, when there is more of it, or after a while. NotShared: it will not be all."""
        node = self._node
        shared = await node.sn.shared(
            self._round.contract,
            self._round.number,
            self._of,
            step,
            place=place,
            count=at_least,
            wait_s=_LOOK_AGAIN_S,
        )
        self._check(shared.view, shared.blobs)
        return shared.blobs

    def _check(self, view: RoundView, stated: Mapping[str, str]) -> None:
        missing = [peer for peer in self._peers if peer not in stated]
        if gave_up := [peer for peer, blob in stated.items() if not blob]:
            raise NotShared(f"{', '.join(gave_up)} gave up")
        if view.round.state is RoundState.OPEN or digest(view.round) != self._of:
            raise NotShared("other check-ins are to be merged")
        if missing and view.round.state is RoundState.PUBLISHED:
            raise NotShared(f"{view.round.leader} has merged alone")
        active = {participant.node for participant in view.contract.participants if participant.active}
        if lost := [peer for peer in missing if peer not in active]:
            raise NotShared(f"{', '.join(lost)} went away")

    def _say(self, what: str, here: Set[str]) -> None:
        self.waiting_for = so_far(what, self._peers, here)
        self._tell(self.waiting_for)

    # --- the merge ---

    async def _merge(self, own: Shard, pieces: Sequence[memoryview], out: memoryview) -> None:
        """Merge the own shard in a thread, which this waits for in any case: it uses memory that is used again."""
        weights = [effective_weight(check_in) for check_in in self._check_ins]

        def work() -> None:
            cpu.merge_shard(
                self._node.layout,
                self._node.method,
                own,
                pieces,
                weights,
                out,
                threads=cpu.usable_threads(),
                joined=lambda measured: Joined(measured, self._exchanged),
            )

        # a thread of its own: it waits for others, of whom some may be in this process
        pool = ThreadPoolExecutor(1, thread_name_prefix="shard")
        merging = self._loop.run_in_executor(pool, work)
        try:
            await asyncio.shield(merging)
        except asyncio.CancelledError:
            self._stopped = True
            if self._asked is not None:
                self._asked.cancel()
            await asyncio.wait({merging})
            raise
        finally:
            pool.shutdown(wait=False)

    def _exchanged(self, numbers: Numbers) -> Sequence[Numbers]:
        """From the merging thread: the numbers of all peers."""
        self._asked = asyncio.run_coroutine_threadsafe(self._exchange(numbers), self._loop)
        if self._stopped:
            self._asked.cancel()
        return self._asked.result()

    async def _exchange(self, numbers: Numbers) -> list[Numbers]:
        step = max(self._unstated)
        self._unstated.add(step + 1)
        found = {peer: np.empty_like(numbers) for peer in self._peers}
        found[self._node.member.name][...] = numbers
        await self._hand_out(step, [numbers.data.cast("B")])
        buffers = {peer: one.data.cast("B") for peer, one in found.items()}
        await self._collect(step, "peers' sums", 0, buffers)
        return list(found.values())


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that are all over at the end; the first error ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do them side by side, some at a time."""
    limit = asyncio.Semaphore(_MAX_TRANSFERS)

    async def limited(work: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await work

    async with _together() as group:
        for work in works:
            group.create_task(limited(work))
