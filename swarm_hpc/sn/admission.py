"""Who becomes a member of the network, as far as this site has a say: applications, and its votes on them.

The Registry counts the votes: more than half of the active sites decide.
"""

from __future__ import annotations

import logging
from typing import Final

from swarm_hpc.config import Admission
from swarm_hpc.errors import NotAuthorized, NotFound
from swarm_hpc.identity.certs import TrustBundle
from swarm_hpc.records import SiteApplication, SiteList, SiteRecord
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger

log = logging.getLogger(__name__)

MAX_APPLICATIONS: Final = 256


class Applications:
    """The sites that ask this one for its vote. In memory: an SN that joins asks again and again."""

    def __init__(self, live: LiveLedger, bundle: TrustBundle, rule: Admission) -> None:
        self._live, self._bundle, self._rule = live, bundle, rule
        self._waiting: dict[str, SiteApplication] = {}

    async def sites(self) -> SiteList:
        """The members and those that ask."""
        sites = await self._live.read(lambda ledger: ledger.sites())
        return SiteList(sites=sites, applications=tuple(self._waiting.values()))

    async def apply(self, asks: SiteApplication) -> SiteList:
        """Vote for a site that asks, where `admission` says so; else remember that it asks. May be repeated.

        A site that was voted out is never voted for without its operator's and this site's operator's doing.
        """
        sites = await self._live.read(lambda ledger: ledger.sites())
        known = next((site for site in sites if site.name == asks.site), None)
        if known is not None and _is_so(known, asks, self._bundle.fingerprint(asks.site)):
            self._waiting.pop(asks.site, None)
        elif self._rule is Admission.TRUSTED and (known is None or known.active):
            await self._live.write(lambda ledger: self._vote_for(ledger, asks))
        else:
            self._remember(asks)
        return await self.sites()

    async def admit(self, site: str) -> SiteList:
        """Vote for a site that has asked. NotFound: none of that name has, lately."""
        asks = self._waiting.get(site)
        if asks is None:
            raise NotFound(f"site {site} has not asked this SN to become a member: start its SN with ledger.join")
        await self._live.write(lambda ledger: self._vote_for(ledger, asks))
        self._waiting.pop(site, None)
        return await self.sites()

    async def remove(self, site: str) -> SiteList:
        """Vote to remove a member. NotFound."""

        def act(ledger: Ledger) -> None:
            ledger.vote(site, ledger.account, "", "", False)

        await self._live.write(act)
        log.warning("this site has voted to remove %s", site)
        return await self.sites()

    def _vote_for(self, ledger: Ledger, asks: SiteApplication) -> None:
        ledger.vote(
            asks.site,
            asks.account,
            asks.endpoint,
            self._bundle.fingerprint(asks.site),
            True,
            consensus_key=asks.consensus_key,
            p2p_id=asks.p2p_id,
        )
        log.info("this site has voted to admit %s", asks.site)

    def _remember(self, asks: SiteApplication) -> None:
        if asks.site not in self._waiting:
            if len(self._waiting) >= MAX_APPLICATIONS:
                raise NotAuthorized(f"{len(self._waiting)} sites ask this SN already; its operator has to decide first")
            log.warning(
                "site %s asks to become a member: `swarm-hpc sites admit %s` votes for it", asks.site, asks.site
            )
        self._waiting[asks.site] = asks


def _is_so(known: SiteRecord, asks: SiteApplication, fingerprint: str) -> bool:
    there = (known.account, known.consensus_key, known.p2p_id, known.ca_fingerprint)
    return known.active and there == (asks.account, asks.consensus_key, asks.p2p_id, fingerprint)
