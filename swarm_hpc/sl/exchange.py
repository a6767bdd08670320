"""How parameters travel between SL nodes: by way of the sites' SNs (gateway), or straight from SL to SL (direct)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from swarm_hpc.config import ConnectionConfig, TransferConfig, TransferMode
from swarm_hpc.errors import BlobCorrupt, BlobError, BlobNotFound, ConfigError, DiskFull, SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.kernels.plan import ReadableBuffer
from swarm_hpc.records import Kind, Merge, MergePlan, NodeName, Round, TrainingContract
from swarm_hpc.sl.server import Readers, serving
from swarm_hpc.sn.client import SnClient
from swarm_hpc.transport import blobs
from swarm_hpc.transport.blobs import BlobStore, Sink
from swarm_hpc.transport.client import expect_kind

log = logging.getLogger(__name__)

_PEER_CONNECT_TIMEOUT_S: Final = 5.0
"""direct: a peer that does not answer is asked again later, or another one is."""
_HALF_WRITTEN: Final = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{32}")
_LEFTOVER_S: Final = 86400.0


class Exchange(Protocol):
    """Where a node's parameters go to, and the others' come from."""

    endpoint: str
    """host:port of this node's file server; empty where it has none."""

    results_stay: bool
    """What was published is kept where nobody's leaving can lose it: who cannot have it now waits, and has it later."""

    async def enter(self, contract: TrainingContract) -> None:
        """Take up a contract."""

    async def offer(self, blob: str, data: memoryview, contract: str, *, passing: bool = False) -> None:
        """Make a blob of the contract available to the peers. One in `passing` is of use in this round alone."""

    async def fetch(self, blob: str, holders: Iterable[str], *buffers: memoryview) -> memoryview:
        """Get a blob, verified, from any of the nodes `holders`, into the buffer that has its size, which is returned.

        BlobNotFound, NotReachable, TimedOut: not now; a buffer may then hold half of it. BlobCorrupt: whoever has it
        has other bytes, or it has another size.
        """

    async def stream(self, blob: str, holders: Iterable[str], sink: Sink) -> None:
        """As `fetch`, piece by piece into a sink, which may let it wait. BlobCorrupt as soon as one holder has other
        bytes: there is no way back to those before them."""

    def holds(self, blob: str) -> bool:
        """Whether a blob that this node has offered is still where the peers fetch it from, as far as it can tell."""

    async def pass_on(self, round_: Round, merged: memoryview) -> None:
        """`merged` is the blob of an earlier round, from which the newest result is seen: keep it for peers, too."""

    async def settle(self, round_: Round, merged: memoryview) -> None:
        """A round is over and `merged` is its blob: keep what peers may still ask for, delete what is old."""


class GatewayExchange:
    """Blobs go to this site's SN, and come from it: SNs fetch from each other, and delete what is old."""

    endpoint = ""

    results_stay = True

    def __init__(self, sn: SnClient, shared_dir: Path | None) -> None:
        self._sn = sn
        self._shared_dir = shared_dir
        self._sharded = False

    async def enter(self, contract: TrainingContract) -> None:
        """Take up a contract."""
        self._sharded = contract.spec.merge.plan is MergePlan.SHARDED

    async def offer(self, blob: str, data: memoryview, contract: str, *, passing: bool = False) -> None:
        """Upload to the SN, or leave the file in the shared folder for it."""
        if self._shared_dir is None:
            await self._sn.upload(blob, data, contract)
            return
        file, given_up = self._shared_dir / blob, threading.Event()

        def write() -> None:
            _write(file, data)
            if given_up.is_set():
                file.unlink(missing_ok=True)

        try:
            await asyncio.to_thread(write)
            await self._sn.adopt(blob, contract)
        except BaseException:
            # nobody else removes it: the next blob has another name
            given_up.set()
            with suppress(OSError):
                file.unlink()
            raise

    async def fetch(self, blob: str, holders: Iterable[str], *buffers: memoryview) -> memoryview:
        """Download from the SN, whoever the holders are."""
        return _in_memory(await self._sn.download(blob, buffers=buffers))

    async def stream(self, blob: str, holders: Iterable[str], sink: Sink) -> None:
        """Download from the SN, whoever the holders are."""
        await self._sn.download(blob, into=sink)

    def holds(self, blob: str) -> bool:
        """The SN has it: it keeps what current rounds need."""
        return True

    async def pass_on(self, round_: Round, merged: memoryview) -> None:
        """The SN has it: it came from there."""

    async def settle(self, round_: Round, merged: memoryview) -> None:
        """The SN keeps and deletes; but of a round that was merged in shards it has no whole model yet."""
        if self._sharded:
            await self.offer(round_.merged, merged, round_.contract)


class DirectExchange:
    """Blobs lie in this node's own store, which its file server shows to the peers."""

    results_stay = False

    def __init__(
        self, identity: Identity, sn: SnClient, store: BlobStore, readers: Readers, connection: ConnectionConfig
    ) -> None:
        self.endpoint = ""
        self.keep_rounds = 0
        """Blobs of older rounds are deleted; 0 keeps all."""
        self._identity = identity
        self._sn = sn
        self._store = store
        self._readers = readers
        self._connection = replace(
            connection, connect_timeout_s=min(connection.connect_timeout_s, _PEER_CONNECT_TIMEOUT_S)
        )
        self._rounds: deque[set[str]] = deque([set()])
        self._merge = Merge()
        self._chain: set[str] = set()
        """Results that the newest one is made up of, as far as they are here."""
        self._chain_start = 0
        """The round of the first one."""

    async def enter(self, contract: TrainingContract) -> None:
        """Show what an earlier process left for this contract's latest rounds, and delete the rest."""
        name = contract.spec.name
        self._merge = contract.spec.merge
        chain = contract.newest_chain
        self._readers.sites = _sites(contract)
        self._readers.ask_sites = lambda: self._ask_sites(name)
        self._readers.blobs.clear()
        oldest = min(max(1, contract.round - self.keep_rounds), chain.start) if self.keep_rounds else 1
        rounds = await self._sn.rounds(name, oldest, contract.round)
        self._chain_start = chain.start
        self._chain = {round_.merged for round_ in rounds if round_.number in chain and round_.merged}
        known = {round_.merged for round_ in rounds} | {c.blob for round_ in rounds for c in round_.check_ins}
        left = set(await asyncio.to_thread(self._store.blobs))
        self._rounds = deque([left & known])
        self._readers.blobs |= left & known
        if self.keep_rounds:
            await asyncio.to_thread(self._delete, left - known)

    async def offer(self, blob: str, data: memoryview, contract: str, *, passing: bool = False) -> None:
        """Put it in the store."""
        await self._keep(blob, data, durable=not passing)

    async def fetch(self, blob: str, holders: Iterable[str], *buffers: memoryview) -> memoryview:
        """From the own store, else from one holder after the other."""
        reasons, corrupt = [], True
        if self._store.has(blob):
            try:
                return await asyncio.to_thread(_read, self._store.path(blob), blob, buffers)
            except BlobError as exc:
                reasons.append(f"{exc}; deleted")
                await asyncio.to_thread(self._store.delete, blob)
        for node in await self._present_first(holders):
            try:
                return _in_memory(await self._download(blob, node, buffers=buffers))
            except SwarmError as exc:
                reasons.append(f"{node} ({exc})")
                corrupt &= isinstance(exc, BlobCorrupt)
        if reasons and corrupt:
            raise BlobCorrupt("; ".join(reasons))
        raise _nowhere(blob, reasons)

    async def stream(self, blob: str, holders: Iterable[str], sink: Sink) -> None:
        """From one holder after the other, each going on where the one before it stopped."""
        reasons = []
        for node in await self._present_first(holders):
            try:
                await self._download(blob, node, into=sink)
                return
            except BlobCorrupt:
                raise
            except SwarmError as exc:
                reasons.append(f"{node} ({exc})")
        raise _nowhere(blob, reasons)

    def holds(self, blob: str) -> bool:
        """Whether it is in the store: a process that starts on another machine may find an empty one."""
        return self._store.has(blob)

    async def pass_on(self, round_: Round, merged: memoryview) -> None:
        """Put it in the store, where it stays as long as newer results are seen from it."""
        await self._keep(round_.merged, merged)
        start = self._merge.chain(round_.number).start
        if start > self._chain_start:
            # the older ones go as all blobs do
            self._rounds[-1] |= self._chain.difference(*self._rounds)
            self._chain, self._chain_start = set(), start
        if start == self._chain_start:
            self._chain.add(round_.merged)

    async def settle(self, round_: Round, merged: memoryview) -> None:
        """Keep the merged blob for peers that come late, and drop the oldest round."""
        await self.pass_on(round_, merged)
        self._rounds.append(set())
        if not self.keep_rounds or len(self._rounds) <= self.keep_rounds + 1:
            return
        dropped = self._rounds.popleft().difference(self._chain, *self._rounds)
        self._readers.blobs -= dropped
        await asyncio.to_thread(self._delete, dropped)

    async def _keep(self, blob: str, data: memoryview, *, durable: bool = True) -> None:
        await asyncio.to_thread(self._store.put, data, blob=blob, durable=durable)
        self._rounds[-1].add(blob)
        self._readers.blobs.add(blob)

    async def _ask_sites(self, contract: str) -> frozenset[str]:
        return _sites(await self._sn.contract(contract))

    def _delete(self, dropped: Iterable[str]) -> None:
        for blob in dropped:
            self._store.delete(blob)

    async def _present_first(self, holders: Iterable[str]) -> list[str]:
        """Those that are away last, as it takes a while until one has not answered."""
        nodes = list(holders)
        if len(nodes) < 2:
            return nodes
        try:
            present = {status.node.name for status in await self._sn.nodes() if status.node.active}
        except SwarmError:
            return nodes
        return sorted(nodes, key=lambda node: node not in present)

    async def _endpoint_of(self, node: str) -> str:
        for status in await self._sn.nodes():
            if status.node.name == node:
                return status.node.endpoint
        return ""

    async def _download(
        self, blob: str, node: str, *, buffers: Sequence[memoryview] = (), into: Sink | None = None
    ) -> memoryview | None:
        endpoint = await self._endpoint_of(node)
        if not endpoint:
            raise BlobNotFound("it serves no files: is its transfer.mode direct?")
        return await blobs.download(
            self._identity,
            endpoint,
            blob,
            expect=expect_kind(Kind.SL, site=NodeName.parse(node).site),
            connection=self._connection,
            into=into,
            buffers=buffers,
        )


def _nowhere(blob: str, reasons: Sequence[str]) -> BlobNotFound:
    return BlobNotFound(f"blob {blob} is nowhere to be had: {'; '.join(reasons) or 'nobody should have it'}")


@asynccontextmanager
async def open_exchange(
    identity: Identity, sn: SnClient, transfer: TransferConfig, connection: ConnectionConfig, state_dir: Path
) -> AsyncIterator[Exchange]:
    """The exchange that the configuration asks for, with its file server while the context lasts."""
    if transfer.mode is TransferMode.GATEWAY:
        shared = Path(transfer.shared_dir) if transfer.shared_dir else None
        if shared is not None:
            await asyncio.to_thread(_remove_leftovers, shared)
        yield GatewayExchange(sn, shared)
        return
    store = BlobStore(state_dir / "blobs", min_free_bytes=transfer.min_free_mib << 20)
    readers = Readers()
    exchange = DirectExchange(identity, sn, store, readers, connection)
    exchange.keep_rounds = transfer.keep_rounds
    async with serving(identity, transfer, store, readers) as exchange.endpoint:
        log.info("serving parameters on %s", exchange.endpoint)
        yield exchange


def _sites(contract: TrainingContract) -> frozenset[str]:
    return frozenset(NodeName.parse(participant.node).site for participant in contract.participants)


def _remove_leftovers(shared: Path) -> None:
    """What SLs that were killed had half written: nobody writes one file for so long."""
    oldest = time.time() - _LEFTOVER_S
    for path in shared.glob(".*"):
        with suppress(OSError):  # another SL removes it, or it is another user's
            if _HALF_WRITTEN.fullmatch(path.name) and path.stat().st_mtime < oldest:
                path.unlink()


def _write(target: Path, data: ReadableBuffer) -> None:
    """Beside, then renamed: whoever sees the name sees the whole file."""
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(target)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"transfer.shared_dir: no room for {len(data)} bytes in {target.parent}") from exc
        raise ConfigError(f"transfer.shared_dir: cannot write to {target.parent}: {exc.strerror}") from exc


def _in_memory(downloaded: memoryview | None) -> memoryview:
    assert downloaded is not None, "it was to go neither into a file nor into a sink"
    return downloaded


def _read(source: Path, blob: str, buffers: Sequence[memoryview]) -> memoryview:
    size_bytes = 0
    try:
        with source.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno()).st_size
            buffer = next((each for each in buffers if len(each) == found), buffers[0])
            while count := file.readinto(buffer[size_bytes:]):
                size_bytes += count
    except OSError as exc:
        raise BlobCorrupt(f"{source} cannot be read: {exc.strerror}") from exc
    if size_bytes != len(buffer) or blobs.hash_bytes(buffer) != blob:
        raise BlobCorrupt(f"{source} is damaged")
    return buffer
