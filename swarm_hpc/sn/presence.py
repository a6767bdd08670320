"""Says on the ledger who is there: this site, when its address has changed or it has no voting power; and other sites
that are lost, so that rounds do not wait for their nodes and they lose their voting power."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Final, NoReturn

from swarm_hpc.errors import LedgerHalted, SwarmError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn.consensus import Consensus
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.links import Links
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
_AGAIN_S: Final = 10.0


class Presence:
    """One site's announcements and reports. Run `keep` as a task."""

    def __init__(
        self, consensus: Consensus, live: LiveLedger, links: Links, membership: Membership, *, site: str, endpoint: str
    ) -> None:
        self._consensus, self._live, self._links, self._membership = consensus, live, links, membership
        self._site, self._endpoint = site, endpoint
        self._announced_at = -_AGAIN_S
        self._reported: set[tuple[str, int]] = set()

    async def keep(self) -> NoReturn:
        """Look, and announce where there is a reason, again and again."""
        while True:
            try:
                await self._look()
            except LedgerHalted as exc:
                log.debug("not announced: %s", exc)
            except SwarmError as exc:
                log.warning("this site could not be announced: %s", exc)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        own = next((site for site in self._consensus.sites if site.name == self._site), None)
        if own is None or not own.active:
            return
        await self._report_lost()
        if time.monotonic() - self._announced_at < _AGAIN_S:
            return
        reason = self._reason(own)
        if reason and not await asyncio.to_thread(self._consensus.is_catching_up):
            log.info("announcing this site: %s", reason)
            self._announced_at = time.monotonic()
            await self._live.write(lambda ledger: ledger.announce(self._endpoint))

    async def _report_lost(self) -> None:
        for site in self._lost():
            if not site.lost:
                log.warning("site %s is not heard of any more", site.name)
                await self._live.write(partial(Ledger.report_lost, site=site.name))
            self._reported.add((site.name, site.announced))
        lost = [site.name for site in self._consensus.sites if site.active and site.lost]
        if lost and self._is_first_here(lost):
            for name in lost:
                await self._membership.mark_site_away(name)

    def _lost(self) -> list[SiteRecord]:
        """Sites that have been silent for a lease, as far as this one knows, and were not reported yet."""
        silent_s = self._links.silent_s()
        return [
            site
            for site in self._consensus.sites
            if site.active
            and silent_s.get(site.name, 0.0) > self._membership.lease_s
            and (site.name, site.announced) not in self._reported
        ]

    def _reason(self, own: SiteRecord) -> str:
        if own.lost:
            return "the others took it for lost"
        if own.endpoint != self._endpoint:
            return f"it is reached at {self._endpoint} now"
        standing = self._consensus.standing()
        if own.consensus_key not in standing.powers:
            return "it has no voting power"
        missing = self._consensus.missing()
        if missing and self._consensus.quiet_s() > self._patience_s() and self._is_first_here(missing):
            return f"{', '.join(missing)} is missing, and no block comes"
        return ""

    def _patience_s(self) -> float:
        """A site is jailed after some blocks in which its vote was missing; without blocks it would never be."""
        return max(2.0, self._consensus.network.rule().jail_after_s / 4)

    def _is_first_here(self, missing: list[str]) -> bool:
        """One site is enough: the first one that is there, in order of admission."""
        powers = self._consensus.standing().powers
        here = [s.name for s in self._consensus.sites if s.consensus_key in powers and s.name not in missing]
        return bool(here) and here[0] == self._site
