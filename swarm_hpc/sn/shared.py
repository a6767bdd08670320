"""`ledger=geth` in an SN, from start to stop: found, join or resume the network, run the consensus, keep connected."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import ConfigError, NotAuthorized, NotMember, SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import ConsensusStatus, NodeName, SeenVotes, SiteApplication, SiteRecord
from swarm_hpc.sn import epochs, joining
from swarm_hpc.sn.blocks import PAGE, export
from swarm_hpc.sn.client import peer_client
from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.consensus import Consensus, Programs
from swarm_hpc.sn.epochs import Epoch
from swarm_hpc.sn.geth import Payload
from swarm_hpc.sn.geth_provider import GethProvider
from swarm_hpc.sn.ledger import KEY, Founder, Ledger, load_account
from swarm_hpc.sn.links import PEERS_FILE, Links, Peers
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.presence import Presence
from swarm_hpc.sn.recovery import Recovery
from swarm_hpc.sn.signing import SigningGuard
from swarm_hpc.sn.standing import consensus_status
from swarm_hpc.transport.server import Reception
from swarm_hpc.transport.tunnel import Tunnels

log = logging.getLogger(__name__)

NETWORK_FILE: Final = "network.json"
KEYS: Final = "keys"
_SYNC_LOOK_S: Final = 0.2
_CONNECT_S: Final = 2.0
_ALONE_S: Final = 10.0
_FETCH_S: Final = 120.0
_UP_S: Final = 15.0
"""A start of the programs takes some seconds; a client of ours waits 30 s for its answer."""


class SharedLedger:
    """One site's part in a network. Use `open`; `tunnels` are to be served before."""

    def __init__(
        self, config: LedgerConfig, folder: Path, identity: Identity, restart: asyncio.Event | None = None
    ) -> None:
        """`restart` is set when the SN has to start again: its network has gone on in a new epoch."""
        self._restart = restart or asyncio.Event()
        self._recovery: Recovery | None = None
        self.config, self.folder, self._identity = config, folder, identity
        self._site = identity.name.site
        self._consensus: Consensus | None = None
        self._links: Links | None = None
        self._live: LiveLedger | None = None
        self.tunnels = Tunnels(
            identity, address_of=self._address_of, admit=self._admit_tunnel, target=self._p2p_address
        )

    @property
    def network(self) -> Network:
        """The network, once it is known."""
        assert self._consensus is not None
        return self._consensus.network

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The recoveries of the network so far."""
        assert self._consensus is not None
        return self._consensus.epochs

    @property
    def recovery(self) -> Recovery:
        """This site's part in the next one."""
        assert self._recovery is not None
        return self._recovery

    def is_member(self, site: str) -> bool:
        """Whether that other site is a member."""
        return self._links is not None and self._links.is_member(site)

    async def blocks(self, first: int) -> list[Payload]:
        """A page of final Ethereum blocks from that number on."""
        assert self._consensus is not None
        return await asyncio.to_thread(export, self._consensus.geth, max(1, first), max(1, first) + PAGE - 1)

    @asynccontextmanager
    async def open(self, address: str, reception: Reception, *, sentinel: bool) -> AsyncIterator[Ledger]:
        """The ledger, with this site in step with the others; everything runs until the block ends.

        ConfigError where there is no network to found, join or resume; NotMember where this site was voted out.
        """
        keys = await asyncio.to_thread(ConsensusKeys.load, self.folder / KEYS)
        account = await asyncio.to_thread(load_account, self.folder / KEYS / KEY)
        asks = SiteApplication(
            site=self._site,
            account=account.address,
            endpoint=address,
            consensus_key=keys.consensus_key(),
            p2p_id=keys.p2p_id(),
        )
        is_first = not (self.folder / NETWORK_FILE).exists()
        network, sites = await self._find_network(asks, reception, sentinel)
        programs = Programs(geth=Path(self.config.geth), cometbft=Path(self.config.cometbft))
        loop = asyncio.get_running_loop()
        consensus = await asyncio.to_thread(
            Consensus,
            self.folder,
            network,
            keys,
            programs,
            self.config,
            committed=partial(_call_in, loop, self._wake),
            epochs=await asyncio.to_thread(epochs.load, self.folder / epochs.FILE, network),
            fetch_blocks=partial(_fetch_in, loop, self._fetch_blocks),
        )
        peers = Peers(self.folder / PEERS_FILE)
        self._consensus, self._links = consensus, Links(consensus, self.tunnels, self._site, peers)
        self._links.introduce(sites)
        self._recovery = Recovery(self.folder, consensus, self._links, self._identity, self._restart)
        members = [site.endpoint for site in sites if site.active and site.name != self._site]
        self._addresses = list(dict.fromkeys([*self.config.join, *members, *peers.load().values()]))
        keeping: list[asyncio.Task[None]] = []
        try:
            own = next((site for site in sites if site.name == self._site), None)
            is_new = is_first and (network.founder == self._site or (own is not None and not own.announced))
            guard = SigningGuard(self.folder, consensus.home, self._identity, asks.consensus_key)
            await guard.secure(self._addresses, is_new=is_new, told=partial(_say, reception))
            reception.status = "starting: its ledger's programs come up"
            await asyncio.to_thread(consensus.start)
            keeping = [asyncio.create_task(self._links.keep()), asyncio.create_task(self._recovery.follow())]
            await self._catch_up(reception, asks)
            founder = Founder(
                site=self._site,
                endpoint=address,
                ca_fingerprint=self._identity.bundle.fingerprint(self._site),
                consensus_key=asks.consensus_key,
                p2p_id=asks.p2p_id,
            )
            found = founder if network.founder == self._site else None
            ledger = await asyncio.to_thread(
                Ledger, GethProvider(consensus), account, kind="geth", found=found, registry=network.registry
            )
            yield ledger
        finally:
            for task in keeping:
                task.cancel()
            if keeping:
                await asyncio.wait(keeping)
            await asyncio.to_thread(consensus.stop)

    @asynccontextmanager
    async def keep(self, live: LiveLedger, membership: Membership, address: str) -> AsyncIterator[None]:
        """As long as the block lasts, `live` hears of all blocks, and this site announces itself where it has to."""
        assert self._consensus is not None
        assert self._links is not None
        self._live = live
        live.listen(membership.hear)
        presence = Presence(self._consensus, live, self._links, membership, site=self._site, endpoint=address)
        tasks = [asyncio.create_task(live.follow()), asyncio.create_task(presence.keep())]
        live.wake()
        try:
            yield
        finally:
            self._live = None
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def status(self) -> ConsensusStatus:
        """How the consensus does, as this site sees it."""
        assert self._consensus is not None
        assert self._links is not None
        return await asyncio.to_thread(consensus_status, self._consensus, self._links, self.folder, self.config)

    async def fault(self) -> str:
        """Why the ledger's programs do not run here; empty where they do, or are up again within _UP_S."""
        assert self._consensus is not None
        await asyncio.to_thread(self._consensus.await_running, _UP_S)
        return self._consensus.fault()

    async def seen_votes(self, key: str) -> SeenVotes:
        """What was seen here of the votes made with that key."""
        assert self._consensus is not None
        return await asyncio.to_thread(self._consensus.seen_votes, self._site, key)

    def invitation(self, address: str) -> str:
        """The settings that a joining site gives its SN, as one line."""
        return f"ledger=geth ledger.join=[{address}] ledger.network={self.network.id()}"

    async def _find_network(
        self, asks: SiteApplication, reception: Reception, sentinel: bool
    ) -> tuple[Network, Sequence[SiteRecord]]:
        file = self.folder / NETWORK_FILE
        network = await asyncio.to_thread(Network.load, file)
        if network is not None:
            network.check(self.config.network, self.config.chain_id)
            return network, ()
        if sentinel:
            network = Network.found(self.config, self._site, asks.account, asks.consensus_key)
            await asyncio.to_thread(network.save, file)
            log.info("founding network %s", network.id())
            return network, ()
        if not self.config.join:
            raise ConfigError(
                f"{self.folder}: holds no network yet: sentinel=true founds one, ledger.join=[HOST:PORT] joins one"
            )
        reception.status = "starting: looking for a member of its network"
        network, found = await joining.fetch_network(self.config, self._identity)
        sites = await joining.be_admitted(self.config, self._identity, asks, partial(_say, reception))
        # Only now: an SN that is stopped before asks again.
        if found:
            await asyncio.to_thread(epochs.save, self.folder / epochs.FILE, found)
        await asyncio.to_thread(network.save, file)
        log.info("admitted to network %s", network.id())
        return network, sites

    async def _catch_up(self, reception: Reception, asks: SiteApplication) -> None:
        """Wait until this site is a member by the newest blocks: its nodes must not be told of an older state.

        Where no other site can be reached for _ALONE_S, by the newest blocks that are here.
        """
        assert self._consensus is not None
        since = time.monotonic()
        while True:
            sites = self._consensus.sites
            own = next((site for site in sites if site.name == self._site), None)
            if self.network.founder == self._site and not any(site.active and site is not own for site in sites):
                return  # its SN makes the first blocks itself
            if own is not None:
                alone = not await asyncio.to_thread(self._is_connected)
                behind = alone or await asyncio.to_thread(self._consensus.is_catching_up)
                if own.active and own.account == asks.account and own.consensus_key == asks.consensus_key:
                    if not behind or (alone and time.monotonic() - since > _ALONE_S):
                        return
                # A site that was voted out hears of no block any more: whether it still is so, a member knows.
                elif not behind or (not own.active and await self._is_voted_out()):
                    raise NotMember(self._why_no_member(own.active))
            reception.status = f"starting: catching up with the network, block {self._consensus.height}"
            await asyncio.sleep(_SYNC_LOOK_S)

    def _is_connected(self) -> bool:
        assert self._consensus is not None
        try:
            return bool(self._consensus.connected())
        except SwarmError:  # CometBFT is not up
            return False

    async def _is_voted_out(self) -> bool:
        for address in self._addresses:
            try:
                async with peer_client(self._identity, address, _CONNECT_S) as member:
                    sites = (await member.sites()).sites
            except SwarmError as exc:
                log.info("%s does not say who is a member: %s", address, exc)
                continue
            return any(site.name == self._site and not site.active for site in sites)
        return False

    def _why_no_member(self, active: bool) -> str:
        if not active:
            return f"site {self._site} was voted out of network {self.network.id()[:12]}"
        return (
            f"the network knows site {self._site} by other keys than those in {self.folder / KEYS}: restore them, or "
            f"delete {self.folder} and join again"
        )

    async def _fetch_blocks(self, first: int) -> Sequence[Payload]:
        """Blocks from the first member that has them."""
        for address in self._addresses:
            try:
                async with peer_client(self._identity, address, _CONNECT_S) as member:
                    if page := await member.blocks(first):
                        return page
            except SwarmError as exc:
                log.info("%s gives no blocks: %s", address, exc)
        return ()

    def _wake(self) -> None:
        if self._live is not None:
            self._live.wake()

    def _address_of(self, site: str) -> str | None:
        return self._links.address_of(site) if self._links is not None else None

    def _admit_tunnel(self, name: NodeName) -> None:
        if self._links is None or not self._links.is_member(name.site):
            raise NotAuthorized(f"{name}: site {name.site} is no member of this network")

    def _p2p_address(self) -> tuple[str, int] | None:
        if self._consensus is None or not self._consensus.p2p_port:
            return None
        return "127.0.0.1", self._consensus.p2p_port


def _call_in(loop: asyncio.AbstractEventLoop, act: Callable[[], None], _height: int) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
        loop.call_soon_threadsafe(act)


def _fetch_in(
    loop: asyncio.AbstractEventLoop, fetch: Callable[[int], Coroutine[Any, Any, Sequence[Payload]]], first: int
) -> Sequence[Payload]:
    return asyncio.run_coroutine_threadsafe(fetch(first), loop).result(_FETCH_S)


def _say(reception: Reception, text: str) -> None:
    reception.status = f"starting: {text}"
