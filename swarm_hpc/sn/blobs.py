"""The blobs that an SN keeps for its training contracts: who may read and write them, and when they go.

The bytes are a transport.blobs.BlobStore; this file has the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from swarm_hpc.config import TransferConfig
from swarm_hpc.errors import BlobNotFound, NotAuthorized, NotFound, ProtocolError, SwarmError
from swarm_hpc.kernels.plan import MAX_HEADER_BYTES
from swarm_hpc.records import LABEL, Event, Kind, Merge, NodeName, Round, SiteRecord, TrainingContract
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.owners import Owners
from swarm_hpc.transport.blobs import BlobStore, add_blob_routes
from swarm_hpc.transport.server import Handler

log = logging.getLogger(__name__)

_WRITERS: Final = frozenset({Kind.SL, Kind.SWOP})
_READERS: Final = _WRITERS | {Kind.SN, Kind.SWCI}


@dataclass(frozen=True, slots=True)
class _Arrival:
    blob: str
    contract: str
    round: int


_arrival: ContextVar[_Arrival | None] = ContextVar("arrival", default=None)


class ContractBlobs:
    """Blobs by contract. Rights are decided from memory, which `_learn` keeps up to date with the ledger."""

    def __init__(self, live: LiveLedger, folder: Path, transfer: TransferConfig) -> None:
        """Use `open`."""
        self._live = live
        self._transfer = transfer
        self._store = BlobStore(folder, min_free_bytes=transfer.min_free_mib << 20)
        self._owners = Owners(folder.with_suffix(".db"))
        self.seek: Callable[[NodeName, str], Awaitable[None]] | None = None
        """Asked for a blob that is not here, or not for that peer, before it is refused: gateway.py fetches it."""
        self.network: tuple[SiteRecord, ...] = ()
        """All sites that were ever admitted, as the ledger has them now."""
        self.sites: dict[str, frozenset[str]] = {}
        """Per training contract the sites that take part in it."""
        self.layouts: dict[str, str] = {}
        """Per training contract the blob with its model layout."""
        self.merges: dict[str, Merge] = {}
        """Per training contract how it merges."""
        self._members: frozenset[str] = frozenset()
        self._removed: frozenset[str] = frozenset()
        self._taking: set[asyncio.Task[web.StreamResponse]] = set()
        self._arriving: Counter[str] = Counter()
        self._deleting = asyncio.Lock()
        self._to_sweep: asyncio.Queue[str] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def open(cls, live: LiveLedger, folder: Path, transfer: TransferConfig) -> AsyncIterator[ContractBlobs]:
        """The blobs in `folder`; their owners are kept in a file beside it. Sweeps old ones until the end."""
        blobs = await asyncio.to_thread(cls, live, folder, transfer)
        live.listen(blobs._learn)
        sweeper: asyncio.Task[None] | None = None
        try:
            await blobs._restart()
            if transfer.keep_rounds:
                sweeper = asyncio.create_task(blobs._sweep_published())
            yield blobs
        finally:
            if sweeper:
                sweeper.cancel()
                await asyncio.wait([sweeper])
            await blobs._end_taking()
            blobs._owners.close()

    def add_routes(self, app: web.Application) -> None:
        """Serve the blobs (docs/protocol.md 2.2)."""
        app.middlewares.append(self._note_arrival)
        shared_dir = Path(self._transfer.shared_dir) if self._transfer.shared_dir else None
        add_blob_routes(
            app,
            self._store,
            may_read=self.may_read,
            may_write=self.may_write,
            shared_dir=shared_dir,
            obtain=self._obtain,
        )

    @property
    def keep_rounds(self) -> int:
        """Blobs of older rounds are deleted; 0 keeps all."""
        return self._transfer.keep_rounds

    def has(self, blob: str, contract: str) -> bool:
        """Whether the blob is here, and as one of that contract."""
        return contract in self._owners.of(blob) and self._store.has(blob)

    async def take_in(
        self, blob: str, contract: str, number: int, bring: Callable[[BlobStore], Awaitable[None]]
    ) -> None:
        """Let `bring` put a blob into the store, and note that it belongs to that round of the contract."""
        async with self._deleting:
            self._arriving[blob] += 1
        try:
            await bring(self._store)
            await asyncio.to_thread(self._owners.add, blob, contract, number)
        finally:
            self._arriving -= Counter([blob])

    def may_read(self, peer: NodeName, blob: str) -> None:
        """Nodes of participating sites may, and SWCI for audit.

        All member sites may read a layout: who is refused can compare. Other sites' SNs count as their sites.
        """
        owners = self._owners.of(blob)
        if not owners:
            raise BlobNotFound(f"this SN has no blob {blob}")
        if peer.site in self._removed:
            raise NotAuthorized(f"{peer}: site {peer.site} was voted out of the network")
        if peer.kind not in _READERS:
            raise NotAuthorized(f"{peer}: nodes of kind {peer.kind} may not read blobs")
        if not self._readable(peer, blob, owners):
            names = ", ".join(sorted(owners))
            raise NotAuthorized(f"{peer}: blob {blob} belongs to {names}, which site {peer.site} has not joined")

    async def may_write(self, peer: NodeName, contract: str, blob: str) -> int | None:
        """SL and SWOP of sites in the contract may; those of other member sites its layout only, before they join."""
        if peer.kind not in _WRITERS:
            raise NotAuthorized(f"{peer}: nodes of kind {peer.kind} may not write blobs")
        if peer.site not in self._members:
            raise NotAuthorized(f"{peer}: site {peer.site} is no member of the network; register a node first")
        owners = self._owners.of(blob)
        # Who only knows the hash of another contract's blob must not become its owner, and so its reader.
        if owners - {contract} and not self._readable(peer, blob, owners):
            raise NotAuthorized(f"{peer}: blob {blob} belongs to another training contract")
        if not LABEL.fullmatch(contract):
            raise NotFound(f"no training contract can be called {contract[:80]!r}")
        found = await self._live.read(lambda ledger: ledger.contract(contract))
        is_layout = blob == found.spec.model
        if not is_layout and peer.site not in _sites(found):
            raise NotAuthorized(f"{peer}: site {peer.site} has not joined {contract}: join it before its blobs are put")
        async with self._deleting:
            self._arriving[blob] += 1
        _arrival.set(_Arrival(blob, contract, found.round))
        return MAX_HEADER_BYTES if is_layout else None

    async def _obtain(self, peer: NodeName, blob: str) -> None:
        if self.seek is None:
            return
        owners = self._owners.of(blob)
        if not (owners and self._store.has(blob) and self._readable(peer, blob, owners)):
            await self.seek(peer, blob)

    def _readable(self, peer: NodeName, blob: str, owners: frozenset[str]) -> bool:
        if peer.kind is Kind.SWCI or any(peer.site in self.sites.get(contract, ()) for contract in owners):
            return True
        # Of a contract that has it: any contract may call any hash its layout.
        return peer.site in self._members and any(self.layouts.get(contract) == blob for contract in owners)

    @web.middleware
    async def _note_arrival(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in ("GET", "HEAD"):
            return await handler(request)
        # A client that leaves cancels its request. What has arrived by then must not lose its owner.
        task = asyncio.create_task(self._take(request, handler))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        return await asyncio.shield(task)

    async def _take(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # The owner is recorded when the bytes are there and verified, before the sender hears so. A crash in between
        # leaves a blob without an owner, which `_restart` deletes; the sender repeats.
        _arrival.set(None)
        try:
            response = await handler(request)
            arrived = _arrival.get()
            if arrived and response.status in (200, 201):
                await asyncio.to_thread(self._owners.add, arrived.blob, arrived.contract, arrived.round)
            return response
        finally:
            if arrived := _arrival.get():
                self._arriving -= Counter([arrived.blob])

    async def _end_taking(self) -> None:
        """End what is still on its way when the SN stops."""
        taking = tuple(self._taking)
        for task in taking:
            task.cancel()
        await asyncio.gather(*taking, return_exceptions=True)

    async def _restart(self) -> None:
        def ask(ledger: Ledger) -> tuple[tuple[SiteRecord, ...], tuple[TrainingContract, ...]]:
            return ledger.sites(), ledger.contracts()

        sites, contracts = await self._live.read(ask)
        self._know(sites)
        for contract in contracts:
            self._remember(contract)
            if self._transfer.keep_rounds:
                self._to_sweep.put_nowait(contract.spec.name)
        names = {contract.spec.name for contract in contracts}
        for name in self._owners.contracts():
            # An archive is called NAME.1, NAME.2; where NAME is there, too, it is in use again.
            archives = (each for each in names if each.rpartition(".")[0] == name)
            if name not in names or not all(map(self._owners.has_renamed, archives)):
                await self._look_for_reset(name)
        await asyncio.to_thread(self._delete_orphans)

    async def _look_for_reset(self, name: str) -> None:
        """A reset while this SN was down: its blobs belong to the archive."""

        def ask(ledger: Ledger) -> list[str]:
            resets = (event for event in ledger.all_events(name) if event.name == "ContractReset")
            return [str(event.facts["archive"]) for event in resets]

        for archive in await self._live.read(ask):
            if not self._owners.has_renamed(archive):
                await asyncio.to_thread(self._owners.rename, name, archive)

    def _delete_orphans(self) -> None:
        for blob in self._store.blobs():
            if not self._owners.of(blob):
                self._store.delete(blob)

    async def _learn(self, events: Sequence[Event]) -> None:
        if any(event.name in ("SiteAdmitted", "SiteAnnounced", "SiteRemoved") for event in events):
            self._know(await self._live.read(lambda ledger: ledger.sites()))
        for event in events:
            match event.name:
                case "ContractCreated" | "Joined":
                    await self._look_at(event.contract)
                case "ContractReset":
                    await self._rename(event.contract, str(event.facts["archive"]))
                case "Published":
                    self._to_sweep.put_nowait(event.contract)

    async def _look_at(self, name: str) -> None:
        # A reset, which comes next, has taken its name away; or this version cannot read it.
        with contextlib.suppress(NotFound, ProtocolError):
            self._remember(await self._live.read(_contract(name)))

    async def _rename(self, contract: str, archive: str) -> None:
        self.layouts.pop(contract, None)
        self.sites.pop(contract, None)
        self.merges.pop(contract, None)
        await self._look_at(archive)
        await asyncio.to_thread(self._owners.rename, contract, archive)

    def _know(self, sites: Sequence[SiteRecord]) -> None:
        self.network = tuple(sites)
        self._members = frozenset(site.name for site in sites if site.active)
        self._removed = frozenset(site.name for site in sites if not site.active)

    def _remember(self, contract: TrainingContract) -> None:
        name = contract.spec.name
        self.layouts[name] = contract.spec.model
        self.sites[name] = _sites(contract)
        self.merges[name] = contract.spec.merge

    async def _sweep_published(self) -> None:
        while True:
            contract = await self._to_sweep.get()
            try:
                await self._sweep(contract)
            except (SwarmError, OSError):
                log.exception("old blobs of %s could not be deleted; the next round tries again", contract)

    async def _sweep(self, contract: str) -> None:
        def ask(ledger: Ledger) -> tuple[int, tuple[Round, ...]]:
            found = ledger.contract(contract)
            oldest = max(1, found.round - self._transfer.keep_rounds)
            first = min(oldest, found.newest_chain.start)
            return oldest, ledger.rounds(contract, first, found.round)

        oldest, rounds = await self._live.read(ask)
        needed = {self.layouts.get(contract, "")} | {round_.merged for round_ in rounds}
        needed.update(c.blob for round_ in rounds if round_.number >= oldest for c in round_.check_ins)
        # The lock: a blob that is sent again must not be found in the store and then deleted.
        async with self._deleting:
            old = self._owners.blobs(contract, oldest)
            old = tuple(blob for blob in old if blob not in needed and not self._arriving[blob])
            await asyncio.to_thread(self._forget, contract, old)

    def _forget(self, contract: str, blobs: Sequence[str]) -> None:
        for blob in blobs:
            if self._owners.remove(blob, contract):
                self._store.delete(blob)


def _sites(contract: TrainingContract) -> frozenset[str]:
    return frozenset(NodeName.parse(each.node).site for each in contract.participants)


def _contract(name: str) -> Callable[[Ledger], TrainingContract]:
    return lambda ledger: ledger.contract(name)
