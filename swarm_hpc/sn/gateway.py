"""Fetches the blobs that another site's SN holds and that nodes of our own sites need: when asked, and ahead of that.

holders.py knows who should have what, blobs.py keeps what arrives and says who may read it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import (
    BlobCorrupt,
    BlobError,
    BlobNotFound,
    LedgerError,
    NotAuthorized,
    NotReachable,
    SwarmError,
    TimedOut,
)
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import ContractState, Event, Kind, Merge, MergePlan, NodeName, Round, RoundState, SiteRecord
from swarm_hpc.sn.blobs import ContractBlobs
from swarm_hpc.sn.holders import Holders, Holding
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.transport.blobs import BlobStore, download
from swarm_hpc.transport.client import expect_kind

log = logging.getLogger(__name__)

_ASKERS: Final = frozenset({Kind.SL, Kind.SWOP, Kind.SWCI})
_MAX_FETCHES: Final = 8
"""Blobs that arrive at a time."""
_MAX_COPIES: Final = 3
"""So many SNs are asked that may have fetched a blob, beside those that were given it."""
_TURN_S: Final = 10.0
"""How long one SN may be silent while others could be asked, too."""
_PAUSE_S: Final = 1.0
"""Before all of them are asked again."""
_PRIMED_ROUNDS: Final = 100
"""How many rounds of a contract are read at the start, where keep_rounds says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """An SN that may have a blob; `home`: it was given it, so its word that there is none counts."""

    site: str
    address: str
    home: bool


class Gateway:
    """Asks nobody but the SN that should have a blob, and brings for nobody but our own sites' nodes."""

    def __init__(
        self, live: LiveLedger, blobs: ContractBlobs, identity: Identity, connection: ConnectionConfig, account: str
    ) -> None:
        """Use `open`."""
        self._live = live
        self._blobs = blobs
        self._identity = identity
        self._connection = connection
        self._account = account
        self._holders = Holders()
        self._seen = live.cursor
        self._slots = asyncio.Semaphore(_MAX_FETCHES)
        self._fetches: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._told: set[tuple[str, str]] = set()
        self._looking: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, live: LiveLedger, blobs: ContractBlobs, identity: Identity, connection: ConnectionConfig
    ) -> AsyncIterator[Gateway]:
        """Fetch for `blobs` until the end. `connection` bounds each fetch: transfer_timeout_s, and connect_timeout_s
        without a byte. Our own sites are the identity's, and all that speak through the ledger's account."""
        account = await live.read(lambda ledger: ledger.account)
        gateway = cls(live, blobs, identity, connection, account)
        live.listen(gateway._learn)
        try:
            await gateway._prime()
            blobs.seek = gateway.seek
            yield gateway
        finally:
            blobs.seek = None
            await gateway._close()

    async def seek(self, peer: NodeName, blob: str) -> None:
        """Bring the blob here, if a node of our own sites asks that may read it; else do nothing. All share one fetch.

        BlobNotFound: the SN that was given it says that it has none. NotReachable, TimedOut: it may have it.
        BlobCorrupt: it has other bytes. NotAuthorized: the peer's site takes no part in the blob's contract. DiskFull.
        """
        if peer.kind not in _ASKERS or not self._others() or not self._is_ours(peer.site):
            return
        holdings = await self._find(blob)
        readable = [holding for holding in holdings if self._may_ask(peer, holding)]
        if holdings and not readable:
            names = ", ".join(sorted(holding.contract for holding in holdings))
            raise NotAuthorized(f"{peer}: blob {blob} belongs to {names}, which site {peer.site} has not joined")
        for holding in sorted(readable, key=lambda holding: holding.round, reverse=True):
            if self._sources(holding):
                await self._wait_for(holding)
                return

    # --- what should be where ---

    def _others(self) -> list[SiteRecord]:
        return [site for site in self._blobs.network if not self._is_own(site)]

    def _is_own(self, site: SiteRecord) -> bool:
        return site.account == self._account or site.name == self._identity.name.site

    def _is_ours(self, name: str) -> bool:
        return any(site.name == name and site.active and self._is_own(site) for site in self._blobs.network)

    def _take_part(self, contract: str) -> bool:
        return any(self._is_ours(site) for site in self._blobs.sites.get(contract, ()))

    def _may_ask(self, peer: NodeName, holding: Holding) -> bool:
        is_layout = self._blobs.layouts.get(holding.contract) == holding.blob
        return is_layout or peer.site in self._blobs.sites.get(holding.contract, ())

    async def _find(self, blob: str) -> tuple[Holding, ...]:
        if not (found := self._known(blob)):
            # A round's view may be newer than the events that were handed out, and BlobNotFound costs a node its part.
            seen = self._seen
            try:
                events = await self._live.read(lambda ledger: ledger.events(seen))
            except LedgerError as exc:
                raise NotReachable(f"blob {blob}: the ledger cannot be asked where it is: {exc}") from exc
            for event in events:
                self._holders.learn(event)
            found = self._known(blob)
        return found

    def _known(self, blob: str) -> tuple[Holding, ...]:
        layouts = [name for name, layout in self._blobs.layouts.items() if layout == blob]
        return self._holders.of(blob) + tuple(self._layout(blob, name) for name in layouts)

    def _layout(self, blob: str, contract: str) -> Holding:
        # Who has joined has put it; before anybody has, only who created the contract, and the ledger does not say who.
        homes = sorted(self._blobs.sites.get(contract, ())) or [site.name for site in self._others() if site.active]
        return Holding(blob=blob, contract=contract, round=1, homes=tuple(homes[: 1 + _MAX_COPIES]))

    def _sources(self, holding: Holding) -> list[_Source]:
        """The SNs to ask, best first."""
        others = {site.name: site for site in self._others()}
        copies: Iterable[str] = holding.copies
        if holding.everywhere:
            copies = self._blobs.sites.get(holding.contract, frozenset()) | set(copies)
        spare = [name for name in copies if name in others and name not in holding.homes]
        homes = [name for name in holding.homes if name in others]
        chosen = random.sample(spare, min(_MAX_COPIES, len(spare)))  # not all of us the same
        return [
            _Source(site=name, address=others[name].endpoint, home=name in holding.homes) for name in homes + chosen
        ]

    # --- bringing it ---

    async def _wait_for(self, holding: Holding) -> None:
        try:
            async with asyncio.timeout(self._connection.transfer_timeout_s):
                await asyncio.shield(self._start(holding))
        except TimeoutError as exc:
            raise TimedOut(f"{_what(holding)} is still on its way from {', '.join(holding.homes)}") from exc

    def _start(self, holding: Holding) -> asyncio.Task[None]:
        """The one fetch of the blob for this contract. It goes on when who asked for it has left: they come back."""
        key = holding.blob, holding.contract
        if key not in self._fetches:
            self._fetches[key] = asyncio.create_task(self._fetch(holding))
            self._fetches[key].add_done_callback(partial(self._ended, holding))
        return self._fetches[key]

    def _ended(self, holding: Holding, task: asyncio.Task[None]) -> None:
        key = holding.blob, holding.contract
        del self._fetches[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._told.discard(key)
        elif not isinstance(error, SwarmError):
            log.error("%s could not be fetched", _what(holding), exc_info=error)
        elif key not in self._told:
            self._told.add(key)
            log.info("not fetched: %s", error)

    async def _fetch(self, holding: Holding) -> None:
        async with self._slots:
            await self._blobs.take_in(holding.blob, holding.contract, holding.round, partial(self._bring, holding))

    async def _bring(self, holding: Holding, store: BlobStore) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._connection.connect_timeout_s
        try:
            async with asyncio.timeout(self._connection.transfer_timeout_s):
                while (error := await self._ask_all(holding, store)) is not None:
                    if loop.time() >= until or not isinstance(error, NotReachable):
                        raise error
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError as exc:
            sites = ", ".join(holding.homes)
            limit_s = self._connection.transfer_timeout_s
            raise TimedOut(f"{_what(holding)} did not arrive from {sites} within {limit_s:g} s") from exc

    async def _ask_all(self, holding: Holding, store: BlobStore) -> SwarmError | None:
        """Ask one SN after the other until one has given the blob; why none has."""
        sources = self._sources(holding)
        patience_s = self._connection.connect_timeout_s
        if len(sources) > 1:
            patience_s = min(patience_s, _TURN_S)
        failures: list[tuple[_Source, SwarmError]] = []
        for source in sources:
            try:
                await self._ask(source, holding.blob, store, patience_s)
                return None
            except SwarmError as exc:
                if isinstance(exc, BlobError) and not isinstance(exc, BlobNotFound | BlobCorrupt):
                    raise  # our own disk
                failures.append((source, exc))
        return _verdict(holding, failures)

    async def _ask(self, source: _Source, blob: str, store: BlobStore, patience_s: float) -> None:
        await download(
            self._identity,
            source.address,
            blob,
            expect=expect_kind(Kind.SN, site=source.site),
            connection=replace(self._connection, connect_timeout_s=patience_s),
            into=store,
        )

    # --- following the ledger ---

    async def _prime(self) -> None:
        if not self._others():
            return
        depth = self._blobs.keep_rounds or _PRIMED_ROUNDS

        def ask(ledger: Ledger) -> list[tuple[bool, tuple[Round, ...]]]:
            found = []
            for contract in ledger.contracts():
                training = contract.state is ContractState.TRAINING
                first = contract.round - (depth if training else 1)
                first = min(first, contract.newest_chain.start)
                found.append((training, ledger.rounds(contract.spec.name, first, contract.round)))
            return found

        for training, rounds in await self._live.read(ask):
            for round_ in rounds:
                self._holders.learn_round(round_)
            if training:
                self._go_ahead(rounds[-2:])

    def _go_ahead(self, rounds: Iterable[Round]) -> None:
        """Fetch what is going to be asked for of the newest rounds."""
        for round_ in rounds:
            if round_.state is RoundState.PUBLISHED:
                self._fetch_ahead(round_.contract, [round_.merged])
            elif round_.state is RoundState.CLAIMED and self._is_ours(NodeName.parse(round_.leader).site):
                self._fetch_ahead(round_.contract, [check_in.blob for check_in in round_.check_ins])

    async def _learn(self, events: Sequence[Event]) -> None:
        self._seen = max(self._seen, events[-1].cursor)
        if not self._others():
            return
        for event in events:
            self._holders.learn(event)
            if event.name == "Claimed" and self._is_ours(NodeName.parse(str(event.facts["node"])).site):
                self._look(self._gather(event.contract, int(event.facts["round"])))
            elif event.name == "Published":
                self._fetch_ahead(event.contract, [str(event.facts["merged"])])
                if self._blobs.keep_rounds:
                    self._holders.forget(event.contract, self._oldest(event.contract, int(event.facts["round"])))

    def _oldest(self, contract: str, published: int) -> int:
        """The oldest round that is still of interest once that one is published."""
        merge = self._blobs.merges.get(contract, Merge())
        return min(published + 1 - self._blobs.keep_rounds, merge.chain(published).start)

    async def _gather(self, contract: str, number: int) -> None:
        """A node of ours leads: fetch what it is about to merge. The events also name check-ins that were replaced."""
        try:
            self._go_ahead([await self._live.read(lambda ledger: ledger.round(contract, number))])
        except SwarmError as exc:
            log.info("round %d of %s is not fetched ahead: %s", number, contract, exc)

    def _fetch_ahead(self, contract: str, blobs: Iterable[str]) -> None:
        merge = self._blobs.merges.get(contract, Merge())
        if not self._take_part(contract) or merge.plan is MergePlan.SHARDED:
            return  # of a round that is merged in shards, whole models are asked for only where something went wrong
        for blob in blobs:
            for holding in self._holders.of(blob):
                at_home = any(self._is_ours(site) for site in holding.homes)
                if holding.contract == contract and not at_home and not self._blobs.has(blob, contract):
                    self._start(holding)

    def _look(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _close(self) -> None:
        tasks = [*self._looking, *self._fetches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _verdict(holding: Holding, failures: Sequence[tuple[_Source, SwarmError]]) -> SwarmError:
    """BlobNotFound only where every SN that was given the blob says so: a leader drops a node for it."""
    said = "; ".join(f"the SN of {source.site} at {source.address}: {exc}" for source, exc in failures)
    text = f"{_what(holding)}: {said}"
    open_ = [exc for source, exc in failures if source.home and not isinstance(exc, BlobNotFound)]
    if not open_:
        return BlobNotFound(text)
    for cls in (BlobCorrupt, TimedOut):
        if all(isinstance(exc, cls) for exc in open_):
            return cls(text)
    return NotReachable(text)


def _what(holding: Holding) -> str:
    return f"blob {holding.blob[:16]} of {holding.contract} round {holding.round}"
