"""Keeps CometBFT connected to the other sites: looks who is missing, and lets it dial them through the tunnels.

CometBFT's own redialling pauses longer and longer, up to hours; this tries every few seconds, for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from swarm_hpc.durable import write
from swarm_hpc.errors import LedgerError, SwarmError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn.consensus import Consensus
from swarm_hpc.transport.tunnel import Tunnels

log = logging.getLogger(__name__)

PEERS_FILE: Final = "peers.json"
"""In the ledger's folder."""
LOOK_S: Final = 1.0
_REDIAL_S: Final = 4.0
"""CometBFT waits up to 3 s before it dials: a second order meanwhile would only fail."""
_GRACE_S: Final = 8.0
"""So long a site waits for the one with the lower ID to connect to it, before it does so itself: two that dial each
other at the same moment may each refuse the other's connection."""


class Links:
    """The connections of one site's CometBFT. Run `keep` as a task."""

    def __init__(self, consensus: Consensus, tunnels: Tunnels, own_site: str, addresses: Peers) -> None:
        self._addresses, self._saved = addresses, addresses.load()
        self._consensus, self._tunnels, self._own_site = consensus, tunnels, own_site
        self._own_id = consensus.keys.p2p_id()
        self._known: dict[str, SiteRecord] = {}
        self._seen_at: dict[str, float] = {}
        self._missing_since: dict[str, float] = {}
        self._dialled_at: dict[str, float] = {}

    def introduce(self, sites: Sequence[SiteRecord]) -> None:
        """Sites as another member knows them, for a ledger that does not know them yet."""
        self._known = {site.name: site for site in sites if site.active}
        self._consensus.befriend([site.p2p_id for site in sites if site.active])

    def address_of(self, site: str) -> str | None:
        """Where that site's SN is; None if it is no member."""
        record = self._peers().get(site)
        return record.endpoint if record is not None else None

    def is_member(self, site: str) -> bool:
        """Whether connections from that site are taken."""
        return site in self._peers()

    def unreached(self) -> list[str]:
        """Addresses of the member sites that there is no connection to."""
        return [site.endpoint for name, site in self._peers().items() if name in self._missing_since]

    def last_seen_s(self) -> Mapping[str, float]:
        """Site -> seconds since there was a connection; 0 for those connected."""
        now = time.monotonic()
        return {site: 0.0 if site not in self._missing_since else now - at for site, at in self._seen_at.items()}

    def silent_s(self) -> Mapping[str, float]:
        """Sites without a connection -> for how many seconds, counted from this SN's start at the earliest."""
        now = time.monotonic()
        return {site: now - since for site, since in self._missing_since.items()}

    async def keep(self) -> NoReturn:
        """Look and dial, again and again."""
        while True:
            try:
                await self._look()
            except (SwarmError, OSError) as exc:
                log.debug("the connections could not be looked at: %s", exc)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        connected = await asyncio.to_thread(self._consensus.connected)
        self._consensus.note_connected(connected)
        peers = self._peers()
        self._cut_removed(peers)
        endpoints = {name: site.endpoint for name, site in peers.items()}
        if endpoints != self._saved:
            await self._save(endpoints)
        wanted = []
        now = time.monotonic()
        for name, site in peers.items():
            if site.p2p_id in connected:
                self._seen_at[name] = now
                if self._missing_since.pop(name, None) is not None:
                    log.info("connected to %s", name)
            else:
                since = self._missing_since.setdefault(name, now)
                if self._is_due(site, since, now):
                    self._dialled_at[name] = now
                    wanted.append(f"{site.p2p_id}@127.0.0.1:{await self._tunnels.local_port(name)}")
        if wanted:
            await asyncio.to_thread(self._consensus.comet.dial, wanted)

    async def _save(self, endpoints: dict[str, str]) -> None:
        self._saved = endpoints
        try:
            await asyncio.to_thread(self._addresses.save, endpoints)
        except OSError as exc:
            path = self._addresses.path
            log.warning("%s: the other sites' addresses could not be written: %s", path, exc.strerror or exc)

    def _is_due(self, site: SiteRecord, missing_since: float, now: float) -> bool:
        ours_to_dial = self._own_id < site.p2p_id or now - missing_since > _GRACE_S
        return ours_to_dial and now - self._dialled_at.get(site.name, -_REDIAL_S) >= _REDIAL_S

    def _cut_removed(self, peers: Collection[str]) -> None:
        for name in self._tunnels.connections():
            if name not in peers:
                log.info("%s is no member any more: its connections end", name)
                self._tunnels.cut(name)

    def _peers(self) -> dict[str, SiteRecord]:
        """The other member sites, by the newest block and, until our site is in it, as we were told."""
        ledger = {site.name: site for site in self._consensus.sites}
        own = ledger.get(self._own_site)
        if own is not None and own.active and self._known:
            self._known = {}
            self._consensus.befriend(())  # from now on the ledger says who may connect
        if own is not None and own.announced and not own.active:
            return {}  # voted out
        found = self._known | {name: site for name, site in ledger.items() if site.active or name not in self._known}
        return {
            name: site
            for name, site in found.items()
            if site.active and site.p2p_id and site.endpoint and name != self._own_site
        }


@dataclass(frozen=True, slots=True)
class Peers:
    """The other sites' addresses in a file, for the next start."""

    path: Path

    def load(self) -> dict[str, str]:
        """Site -> address; empty where nothing is known."""
        try:
            values = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise LedgerError(f"{self.path}: cannot be read ({exc}); delete it") from exc
        return {str(site): str(address) for site, address in values.items()}

    def save(self, addresses: Mapping[str, str]) -> None:
        """Write them."""
        write(self.path, json.dumps(dict(addresses)).encode())
