"""Says on the ledger that this site is there: when its address has changed, when it has no voting power yet or lost it,
and when somebody else is missing and no block comes by which that could be seen."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, NoReturn

from swarm_hpc.errors import LedgerHalted, SwarmError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn.consensus import Consensus
from swarm_hpc.sn.live import LiveLedger

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
_AGAIN_S: Final = 10.0


class Presence:
    """One site's announcements. Run `keep` as a task."""

    def __init__(self, consensus: Consensus, live: LiveLedger, site: str, endpoint: str) -> None:
        self._consensus, self._live, self._site, self._endpoint = consensus, live, site, endpoint
        self._announced_at = -_AGAIN_S

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
        if own is None or not own.active or time.monotonic() - self._announced_at < _AGAIN_S:
            return
        reason = self._reason(own)
        if reason and not await asyncio.to_thread(self._consensus.is_catching_up):
            log.info("announcing this site: %s", reason)
            self._announced_at = time.monotonic()
            await self._live.write(lambda ledger: ledger.announce(self._endpoint))

    def _reason(self, own: SiteRecord) -> str:
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
