"""The blobs of a round's check-ins: fetched side by side, each once, and what is to be done about those nobody has.

The memory for them is kept for the next round: it costs as much to get it from the kernel, page by page, as to merge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Final

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, NotReachable, TimedOut
from swarm_hpc.kernels.plan import ReadableBuffer
from swarm_hpc.kernels.rooms import Rooms
from swarm_hpc.records import CheckIn, TrainingContract
from swarm_hpc.sl.exchange import Exchange

NOT_NOW: Final = (BlobNotFound, NotReachable, TimedOut)
"""Errors of a fetch that may go well later, or elsewhere."""
_MAX_FETCHES: Final = 4
"""Blobs that are fetched at a time."""


class Gathering:
    """Collects blobs; within `for_a_round` it keeps what it has, so that trying again fetches only what was missing."""

    def __init__(self, exchange: Exchange, *sizes_bytes: int) -> None:
        """Each blob has one of these sizes."""
        self.blobs: dict[str, ReadableBuffer] = {}
        self.missing: dict[str, Exception] = {}
        """Blobs that could not be had in the latest try, and why: each an error of NOT_NOW."""
        self._exchange = exchange
        self._used: list[memoryview] = []
        self._rooms = {size_bytes: Rooms(size_bytes) for size_bytes in sizes_bytes}

    @contextmanager
    def for_a_round(self) -> Iterator[None]:
        """All blobs are forgotten at the end, and their memory is for the next round's."""
        try:
            yield
            # not after an error: a merge that was given up may be reading them still, in its thread
            self._give_back(self._used)
        finally:
            self.blobs, self.missing, self._used = {}, {}, []

    def room(self, size_bytes: int) -> memoryview:
        """Memory for a blob of one of the sizes, until the end of the round."""
        data = self._rooms[size_bytes].take()
        self._used.append(data)
        return data

    @contextmanager
    def for_a_merge(self) -> Iterator[Callable[[int], memoryview]]:
        """`room` for memory that is free again at the end: a merge may be tried more than once in a round."""
        before = len(self._used)
        yield self.room
        self._give_back(self._used[before:])
        del self._used[before:]

    async def fetch(self, check_ins: Sequence[CheckIn], tell: Callable[[str], None] | None = None) -> None:
        """Get the blobs of the check-ins as far as they can be had now; the rest is `missing`.

        `tell` hears whose are here, and whose are not. BlobCorrupt: one of them has other bytes than its hash names, or
        another size; names the node.
        """
        self.missing = {}
        limit = asyncio.Semaphore(_MAX_FETCHES)
        nodes = sorted(check_in.node for check_in in check_ins)

        def say() -> None:
            if tell is not None:
                tell(so_far("peers' parameters", nodes, {c.node for c in check_ins if c.blob in self.blobs}))

        async def fetch(blob: str, holders: list[str]) -> None:
            async with limit:
                rooms = {size_bytes: spare.take() for size_bytes, spare in self._rooms.items()}
                try:
                    data = await self._exchange.fetch(blob, holders, *rooms.values())
                except NOT_NOW as exc:
                    self.missing[blob] = exc
                except BlobCorrupt as exc:
                    raise BlobCorrupt(f"{', '.join(holders)}: {exc}") from exc
                else:
                    self.blobs[blob] = data
                    self._used.append(rooms.pop(len(data)))
                    say()
                self._give_back(rooms.values())

        say()
        holders = holders_of(check_ins)
        wanted = [fetch(blob, holders[blob]) for blob in holders if blob not in self.blobs]
        # all of them to their end: no fetch is left behind by the error of another
        for result in await asyncio.gather(*wanted, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _give_back(self, rooms: Iterable[memoryview]) -> None:
        for data in rooms:
            self._rooms[len(data)].give_back([data])


def lost(check_ins: Sequence[CheckIn], missing: Mapping[str, Exception], contract: TrainingContract) -> list[str]:
    """Nodes that are away and whose blob nobody has: no use in waiting for them, their leases are over.

    Only BlobNotFound counts among what is `missing`: after another error the blob may well be there.
    """
    away = {participant.node for participant in contract.participants if not participant.active}
    nodes: list[str] = []
    for blob, holders in holders_of(check_ins).items():
        if isinstance(missing.get(blob), BlobNotFound) and away.issuperset(holders):
            nodes += holders
    return nodes


def so_far(what: str, peers: Sequence[str], here: Set[str]) -> str:
    """How far one is in getting something from each peer, in words."""
    text = f"{len(here)} of {len(peers)} {what} are here"
    missing = [peer for peer in peers if peer not in here]
    return f"{text}, missing: {', '.join(missing)}" if missing else text


def holders_of(check_ins: Sequence[CheckIn]) -> dict[str, list[str]]:
    """Per blob the nodes that checked in with it."""
    holders: dict[str, list[str]] = {}
    for check_in in check_ins:
        holders.setdefault(check_in.blob, []).append(check_in.node)
    return holders
