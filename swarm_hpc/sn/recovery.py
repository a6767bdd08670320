"""The way out of a halt that does not end: the operators agree on a new epoch (epochs.py), and others follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from swarm_hpc.errors import ConfigError, LedgerError, SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import RecoveryStatus, SiteRecord
from swarm_hpc.sn import epochs
from swarm_hpc.sn.blocks import TAIL, export, save_tail
from swarm_hpc.sn.client import SnClient, peer_client
from swarm_hpc.sn.comet import CometHome
from swarm_hpc.sn.consensus import Consensus
from swarm_hpc.sn.epochs import Epoch
from swarm_hpc.sn.geth import Engine
from swarm_hpc.sn.links import Links
from swarm_hpc.sn.signing import leave_mark

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
_CONNECT_S: Final = 2.0


class Recovery:
    """One site's part in it. `restart` is set when the SN has to start again, in a new epoch."""

    def __init__(
        self, folder: Path, consensus: Consensus, links: Links, identity: Identity, restart: asyncio.Event
    ) -> None:
        self._folder, self._consensus, self._links, self._identity = folder, consensus, links, identity
        self._restart = restart
        self._site = identity.name.site
        self._ours: Epoch | None = None
        self._entering = asyncio.Lock()

    async def approve(self, without: Sequence[str]) -> RecoveryStatus:
        """This site's operator agrees to go on without those sites. May be repeated, to ask how far it is.

        ConfigError while the ledger goes on, or one of them is connected, or the others have other blocks.
        """
        # Nothing is locked while others are asked: their operators may do the same now, and those SNs ask this one.
        proposal = await asyncio.to_thread(self._propose, without)
        if self._ours is None or self._ours.id() != proposal.id():
            self._ours = proposal.signed_by(self._site, self._consensus.keys)
            log.warning("this site's operator agrees to go on without %s", ", ".join(proposal.without))
        for answer in await asyncio.gather(*map(self._exchange, self._addresses(self._ours))):
            if answer is not None and answer.id() == self._ours.id():
                self._ours = self._ours.with_approvals(answer.approvals)
        if not self._ours.missing():
            # First the others, while they still wait for it; who is not reached follows by itself.
            await asyncio.gather(*map(self._exchange, self._addresses(self._ours)))
            await self._enter((*self._consensus.epochs, self._ours))
        return self._status(self._ours)

    async def hear(self, theirs: Epoch) -> Epoch | None:
        """Another site's proposal with the approvals so far; ours, if our operator has agreed to the same."""
        if self._ours is None or self._ours.id() != theirs.id():
            return None
        self._ours = self._ours.with_approvals(theirs.approvals)
        if not self._ours.missing():
            await self._enter((*self._consensus.epochs, self._ours))
        return self._ours

    async def follow(self) -> NoReturn:
        """Look whether other members have gone on in a later epoch, as long as some are out of reach."""
        while True:
            await asyncio.sleep(LOOK_S)
            for address in self._links.unreached():
                try:
                    await self._follow(address)
                except SwarmError as exc:
                    log.debug("%s was not asked for its epoch: %s", address, exc)
                except OSError as exc:
                    log.warning("the epoch of %s could not be written, trying again: %s", address, exc)

    async def _follow(self, address: str) -> None:
        async with self._client(address) as member:
            text, found = await member.network()
        if text != self._consensus.network.text():
            raise LedgerError(f"{address} belongs to another network")
        theirs = tuple(map(epochs.parse, found))
        known = self._consensus.epochs
        if len(theirs) <= len(known):
            return
        epochs.check_chain(self._consensus.network, theirs)
        if [one.id() for one in theirs[: len(known)]] != [one.id() for one in known]:
            raise LedgerError(f"{address} has gone another way in epoch {len(known) + 1}: ask its operator")
        check_known(theirs[len(known) :], self._consensus.sites, self._consensus.standing().powers)
        log.warning("the other sites have gone on in epoch %d, without %s", theirs[-1].number, theirs[-1].without)
        await self._enter(theirs)

    def _propose(self, without: Sequence[str]) -> Epoch:
        consensus = self._consensus
        if not consensus.halted():
            raise ConfigError("the ledger goes on: there is nothing to recover from")
        missing = consensus.missing()
        if there := sorted(set(without) - set(missing)):
            raise ConfigError(f"without: {', '.join(there)} is connected, or has no voting power; missing: {missing}")
        if forgotten := sorted(set(missing) - set(without)):
            raise ConfigError(f"without: {', '.join(forgotten)} is missing, too: name all that are to be left behind")
        if any(height != consensus.height for height in consensus.peer_heights()):
            raise ConfigError("not all remaining sites have the newest block yet: wait some seconds and try again")
        head = Engine(consensus.geth).head()
        return epochs.propose(
            consensus.network,
            consensus.epochs,
            consensus.sites,
            consensus.standing(),
            head,
            consensus.height,
            without,
        )

    async def _exchange(self, address: str) -> Epoch | None:
        assert self._ours is not None
        try:
            async with self._client(address) as member:
                found = await member.approvals(self._ours)
        except SwarmError as exc:
            log.info("%s was not asked to agree: %s", address, exc)
            return None
        return epochs.parse(found) if found is not None else None

    async def _enter(self, found: Sequence[Epoch]) -> None:
        """Make the epochs ours, once; the SN starts again in the newest one."""
        async with self._entering:
            if not self._restart.is_set():
                await asyncio.to_thread(self._write, found)
                self._restart.set()

    def _write(self, found: Sequence[Epoch]) -> None:
        newest = found[-1]
        head = int(Engine(self._consensus.geth).head()["number"], 16)
        last = min(head, newest.block)
        save_tail(self._folder, newest.number, export(self._consensus.geth, max(1, last - TAIL + 1), last))
        home = CometHome(self._folder / f"comet-{newest.number}", self._consensus.keys, self._consensus.run_dir)
        home.prepare_data()
        leave_mark(self._folder, home)
        epochs.save(self._folder / epochs.FILE, found)

    def _addresses(self, epoch: Epoch) -> list[str]:
        found = (self._links.address_of(site) for site in epoch.validators if site != self._site)
        return [address for address in found if address is not None]

    def _client(self, address: str) -> SnClient:
        return peer_client(self._identity, address, _CONNECT_S)

    def _status(self, epoch: Epoch) -> RecoveryStatus:
        missing = epoch.missing()
        return RecoveryStatus(
            epoch=epoch.id(),
            number=epoch.number,
            without=epoch.without,
            approved=tuple(site for site in epoch.validators if site not in missing),
            missing=tuple(missing),
        )


def check_known(found: Sequence[Epoch], sites: Sequence[SiteRecord], powers: Mapping[str, int]) -> None:
    """LedgerError where the sites that agreed are not those that this site's own ledger knows, or too few of them."""
    keys = {site.name: site.consensus_key for site in sites if site.active}
    powered = {name for name, key in keys.items() if key in powers}
    for epoch in found:
        if strange := sorted(name for name, key in epoch.validators.items() if keys.get(name, key) != key):
            raise LedgerError(f"epoch {epoch.number}: {', '.join(strange)} has another key here")
        if 2 * len(powered & epoch.validators.keys()) < len(powered):
            raise LedgerError(f"epoch {epoch.number}: fewer than half of the sites that are known here agreed to it")
