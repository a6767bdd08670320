"""Merging while the peers' blobs arrive: chunk by chunk, each as soon as every peer's is there, and none kept longer.

For methods that take each element by itself. Whoever leads so needs memory for two chunks of each peer's blob instead
of the blob. A peer that is ahead of the slowest one has to wait: nobody reads what it sends, and TCP tells it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from swarm_hpc.errors import BlobCorrupt, NotReachable
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.mixture import METHODS as MIXTURES
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, Shard, values
from swarm_hpc.kernels.rooms import Rooms
from swarm_hpc.records import CheckIn, Merge, Wire
from swarm_hpc.sl.exchange import Exchange
from swarm_hpc.sl.gathering import NOT_NOW, holders_of
from swarm_hpc.sl.merge import CHUNK_BYTES, check_header, cut, effective_weight, in_order
from swarm_hpc.transport.blobs import BLOCK_BYTES, HashingSink, hasher

_SLOTS: Final = 2
"""Chunks of a peer in memory: one that is merged, one that arrives."""


def can_stream(merge: Merge) -> bool:
    """Whether the first elements can be merged without having seen the last ones."""
    return merge.method not in MIXTURES and merge.wire is Wire.EXACT


class Stream:
    """Merges rounds of one model so. Keeps its memory for the next round."""

    def __init__(self, exchange: Exchange, layout: Layout, merge: Merge, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.missing: dict[str, Exception] = {}
        """Blobs that could not be had in the latest try, and why: each an error of NOT_NOW."""
        self.merge_s = 0.0
        """How long the latest try computed; the rest of the time it waited for bytes."""
        self.layout = layout
        self.method = merge
        self._exchange = exchange
        first, *others = cut(layout, cpu.grain(merge), chunk_bytes) or (values(layout),)
        self.chunks = (Shard(0, first.stop), *others)
        """All of a blob, its header in the first one."""
        self.rooms = Rooms(max(chunk.size_bytes for chunk in self.chunks))
        """Memory for one chunk each."""

    async def merge(
        self,
        check_ins: Sequence[CheckIn],
        own: Mapping[str, ReadableBuffer],
        out: memoryview,
        tell: Callable[[str], None],
    ) -> str:
        """Fetch the check-ins' blobs, but for those in `own`, and merge them into `out`; the hash of the result.

        `tell` hears how far it is, and whom it waits for; from another thread. An error of NOT_NOW: a blob cannot be
        had now, see `missing`; the next try begins anew. BlobCorrupt, ModelMismatch: as `merge.merge_blobs`, as far as
        that can be told from a part of a blob. After an error `out` holds anything.
        """
        holders = holders_of(check_ins)
        work = _Work(self, check_ins, own, out, tell)
        doubtful = [blob for blob in work.windows if blob in self.missing]
        self.missing = {}
        merging = asyncio.create_task(asyncio.to_thread(work.run))
        fetches: dict[asyncio.Task[None], str] = {}

        def start(blobs: Iterable[str]) -> None:
            for blob in blobs:
                fetches[asyncio.create_task(self._exchange.stream(blob, holders[blob], work.windows[blob]))] = blob

        begun = asyncio.create_task(work.begun(doubtful))
        try:
            # not the same chunks of all the others again and again while one peer is away
            start(doubtful)
            await asyncio.wait({begun, merging, *fetches}, return_when=asyncio.FIRST_COMPLETED)
            if not any(task.done() and _failure(task) for task in fetches):
                start(work.windows.keys() - doubtful)
            await asyncio.wait({merging, *fetches}, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            work.stop()
            for task in (begun, *fetches):
                task.cancel()
            await asyncio.wait({merging, *fetches})
            self.merge_s = work.merge_s
            self.rooms.give_back(work.slots())
        return self._result(merging, fetches, holders)

    def _result(
        self, merging: asyncio.Task[str], fetches: Mapping[asyncio.Task[None], str], holders: Mapping[str, list[str]]
    ) -> str:
        """The hash, or the error that all have ended with."""
        for fetch, blob in fetches.items():
            exc = _failure(fetch)
            if isinstance(exc, NOT_NOW):
                self.missing[blob] = exc
            elif isinstance(exc, BlobCorrupt):
                raise BlobCorrupt(f"{', '.join(holders[blob])}: {exc}") from exc
            elif exc is not None:
                raise exc
        if (exc := _failure(merging)) is not None:
            raise exc
        for why in self.missing.values():
            raise why
        return merging.result()


class _Stopped(Exception):
    """The merge is given up: what a thread that waits for another one gets."""


def _failure(task: asyncio.Task[Any]) -> BaseException | None:
    """Why it has ended; None: well, or because it was told to."""
    exc = None if task.cancelled() else task.exception()
    return None if isinstance(exc, _Stopped) else exc


class _Work:
    """One merge: a window per blob that is fetched, which a thread fills, and `run` in a thread that empties them."""

    def __init__(
        self,
        stream: Stream,
        check_ins: Sequence[CheckIn],
        own: Mapping[str, ReadableBuffer],
        out: memoryview,
        tell: Callable[[str], None],
    ) -> None:
        self.stream = stream
        self.changed = threading.Condition()
        """Guards what threads wait for: `stopped`, `merged`, and how many chunks a window has."""
        self.stopped = False
        self.merged = 0
        """Chunks that are done."""
        self.merge_s = 0.0
        self._check_ins = in_order(check_ins)
        self._own = {blob: memoryview(data).cast("B") for blob, data in own.items()}
        self._out = out
        self._tell = tell
        self.loop = asyncio.get_running_loop()
        self.windows = {blob: _Window(self, blob) for blob in holders_of(check_ins) if blob not in own}

    def run(self) -> str:
        """Merge each chunk once it is there; the hash of the result."""
        digest = hasher()
        weights = [effective_weight(check_in) for check_in in self._check_ins]
        for number, chunk in enumerate(self.stream.chunks):
            self._await(number)
            since = time.monotonic()
            out = self._out[chunk.start : chunk.stop]
            self._merge(number, chunk, weights, out)
            digest.update(out)
            self.merge_s += time.monotonic() - since
            with self.changed:
                self.merged = number + 1
                self.changed.notify_all()
        # a blob whose last bytes are here may still turn out to be another one: the caller waits for its download
        return digest.hexdigest()

    async def begun(self, blobs: Iterable[str]) -> None:
        """Until bytes of each of these have come."""
        for blob in blobs:
            await self.windows[blob].begun.wait()

    def stop(self) -> None:
        """End `run` and whoever waits for it."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def slots(self) -> list[memoryview]:
        """The memory of all windows; to be used again once no thread runs any more."""
        return [slot for window in self.windows.values() for slot in window.slots]

    def _await(self, number: int) -> None:
        """Until every window has the chunk. _Stopped."""
        with self.changed:
            while missing := [blob for blob, window in self.windows.items() if window.num_chunks <= number]:
                if self.stopped:
                    raise _Stopped
                self._say(number, missing)
                self.changed.wait()

    def _say(self, number: int, missing: Sequence[str]) -> None:
        peers = [check_in.node for check_in in self._check_ins if check_in.blob in missing]
        done = 100 * number // len(self.stream.chunks)
        self._tell(f"{done} % of {len(self._check_ins)} peers' parameters are merged, missing: {', '.join(peers)}")

    def _merge(self, number: int, chunk: Shard, weights: Sequence[float], out: memoryview) -> None:
        layout, header = self.stream.layout, self.stream.layout.header if number == 0 else b""
        pieces = [self._piece(check_in.blob, number, chunk) for check_in in self._check_ins]
        if header:
            for check_in, piece in zip(self._check_ins, pieces, strict=True):
                if piece[: len(header)] != header:  # to parse a long one takes a while
                    check_header(layout, piece[: len(header)], check_in.node)
            out[: len(header)] = header
        cpu.merge_shard(
            layout,
            self.stream.method,
            Shard(chunk.start + len(header), chunk.stop),
            [piece[len(header) :] for piece in pieces],
            weights,
            out[len(header) :],
            threads=max(1, cpu.usable_threads() - 1),  # what arrives needs one, too
        )

    def _piece(self, blob: str, number: int, chunk: Shard) -> memoryview:
        if blob in self._own:
            return self._own[blob][chunk.start : chunk.stop]
        return self.windows[blob].chunk(number)


class _Window(HashingSink):
    """The part of a peer's blob that is in memory: its download waits while there is no room."""

    def __init__(self, work: _Work, blob: str) -> None:
        super().__init__(blob)
        self.num_chunks = 0
        """That have arrived."""
        self.slots: list[memoryview] = []
        self.begun = asyncio.Event()
        self._work = work

    def chunk(self, number: int) -> memoryview:
        """One that has arrived, until it is merged."""
        chunk = self._work.stream.chunks[number]
        return self.slots[number % _SLOTS][: chunk.size_bytes]

    def begin(self, size_bytes: int) -> None:
        expected = self._work.stream.layout.size_bytes
        if size_bytes != expected:
            raise BlobCorrupt(f"blob {self.blob} has {size_bytes} bytes, {expected} were expected")

    def room(self) -> memoryview:
        work, number = self._work, self.num_chunks
        with work.changed:
            work.changed.wait_for(lambda: work.stopped or number < work.merged + _SLOTS)
            if work.stopped:
                raise _Stopped
        if len(self.slots) <= number % _SLOTS:
            self.slots.append(work.stream.rooms.take())
        begin = self.have - work.stream.chunks[number].start
        self.latest = self.chunk(number)[begin : begin + BLOCK_BYTES]
        return self.latest

    def took(self, count: int) -> None:
        if not self.have:
            self._work.loop.call_soon_threadsafe(self.begun.set)
        super().took(count)
        if self.have == self._work.stream.chunks[self.num_chunks].stop:
            with self._work.changed:
                self.num_chunks += 1
                self._work.changed.notify_all()

    def restart(self) -> None:
        if self.have:
            raise NotReachable(f"blob {self.blob}: all of it comes where the rest was asked for")
