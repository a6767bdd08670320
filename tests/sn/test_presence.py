"""When a site announces itself, and when it says of another one that it is lost; on a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn import presence as presence_file
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.powers import Rule, Standing
from swarm_hpc.sn.presence import Presence

LEASE_S = 15.0
OTHER_ACCOUNT = "0x" + "Be" * 20


@dataclass
class Consensus:
    """What presence.py asks of the consensus: the sites are the ledger's, the rest as a test says."""

    ledger: Ledger
    powers: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    quiet: float = 0.0
    behind: bool = False

    @property
    def sites(self) -> Sequence[SiteRecord]:
        return self.ledger.sites()

    @property
    def network(self):
        return SimpleNamespace(rule=lambda: Rule(power=PowerRule.SENIOR, jail_after_s=60))

    def standing(self) -> Standing:
        return Standing(powers=self.powers or {site.consensus_key: 10 for site in self.sites})

    def missing(self) -> list[str]:
        return self.absent

    def quiet_s(self) -> float:
        return self.quiet

    def is_catching_up(self) -> bool:
        return self.behind


@dataclass
class Site:
    """Site alpha of a network of alpha, beta and gamma."""

    ledger: Ledger
    consensus: Consensus
    presence: Presence
    silent: dict[str, float] = field(default_factory=dict)
    marked: list[str] = field(default_factory=list)
    now: float = 1000.0

    async def look(self, after_s: float = 2.0) -> None:
        self.now += after_s
        await self.presence._look()

    def record(self, name: str) -> SiteRecord:
        return next(site for site in self.ledger.sites() if site.name == name)

    @property
    def announced(self) -> int:
        return self.record("alpha").announced


@pytest.fixture
async def site(tmp_path, monkeypatch) -> AsyncIterator[Site]:
    founder = Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa", consensus_key="aa" * 32, p2p_id="aa" * 20)
    ledger = Ledger.open(LedgerConfig(), tmp_path, found=founder)
    ledger.vote("gamma", ledger.account, "g:1", "cc", True, consensus_key="cc" * 32, p2p_id="cc" * 20)
    ledger.vote("beta", OTHER_ACCOUNT, "b:1", "bb", True, consensus_key="bb" * 32, p2p_id="bb" * 20)
    live, consensus = LiveLedger(ledger), Consensus(ledger)
    made = Site(ledger, consensus, None)

    async def mark(name: str) -> None:
        made.marked.append(name)

    made.presence = Presence(
        consensus,
        live,
        SimpleNamespace(silent_s=lambda: made.silent),
        SimpleNamespace(lease_s=LEASE_S, mark_site_away=mark),
        site="alpha",
        endpoint="a:1",
    )
    monkeypatch.setattr(presence_file, "time", SimpleNamespace(monotonic=lambda: made.now))
    yield made
    await live.stop()
    live.close()
    ledger.close()


# --- announcements ---


async def test_a_site_with_all_in_order_announces_nothing(site):
    await site.look()
    assert site.announced == 1


async def test_a_site_that_moved_says_where_it_is_now(site):
    site.presence._endpoint = "new:1"
    await site.look()
    assert (site.announced, site.record("alpha").endpoint) == (2, "new:1")
    await site.look(after_s=60)
    assert site.announced == 2


async def test_a_site_without_power_announces_itself_and_not_more_often_than_every_ten_seconds(site):
    site.consensus.powers = {"bb" * 32: 10}
    for expected in (2, 2, 2, 2, 2, 3):
        await site.look()
        assert site.announced == expected


async def test_a_site_that_is_still_behind_waits_with_it(site):
    site.consensus.powers, site.consensus.behind = {"bb" * 32: 10}, True
    await site.look()
    assert site.announced == 1
    site.consensus.behind = False
    await site.look()
    assert site.announced == 2


async def test_a_block_is_made_where_an_absent_site_would_never_be_jailed_without_one(site):
    site.consensus.absent = ["beta"]
    site.consensus.quiet = 15.0  # a quarter of jail_after_s
    await site.look()
    assert site.announced == 1
    site.consensus.quiet = 15.1
    await site.look()
    assert site.announced == 2


async def test_only_the_first_site_that_is_there_makes_that_block(site):
    site.presence._site, site.presence._endpoint = "gamma", "g:1"
    site.consensus.absent, site.consensus.quiet = ["beta"], 100.0
    await site.look()
    assert site.record("gamma").announced == 0  # alpha is there
    site.consensus.absent = ["alpha", "beta"]
    await site.look()
    assert site.record("gamma").announced == 1


async def test_a_site_that_was_voted_out_says_nothing_any_more(site):
    site.presence._site = "beta"
    site.presence._endpoint = "moved:1"
    site.ledger.vote("beta", OTHER_ACCOUNT, "", "", False)
    assert not site.record("beta").active
    await site.look()
    assert site.announced == 1


# --- others that are lost ---


async def test_a_site_that_is_silent_for_a_lease_is_reported_and_its_nodes_are_marked_away(site):
    site.silent = {"beta": LEASE_S}
    await site.look()
    assert not site.record("beta").lost
    assert site.marked == []
    site.silent = {"beta": LEASE_S + 1}
    await site.look()
    assert site.record("beta").lost  # alpha and gamma speak through this account
    assert site.marked == ["beta"]


async def test_a_site_is_reported_once_also_while_the_others_still_hear_of_it(site):
    own = site.ledger.account
    for name, account in (("zeta", own), ("delta", OTHER_ACCOUNT), ("zeta", OTHER_ACCOUNT)):
        key = name.encode().hex().ljust(64, "0")
        site.ledger.vote(name, account, "x:1", "dd", True, consensus_key=key, p2p_id=key[:40])
    site.silent = {"beta": 100.0}
    await site.look()
    assert not site.record("beta").lost  # two of four others say so
    height = site.ledger.status().height
    await site.look()
    assert site.ledger.status().height == height


async def test_a_site_that_the_others_took_for_lost_announces_itself(site):
    site.ledger.report_lost("beta")
    lost = replace(site.record("alpha"), lost=True)
    assert site.presence._reason(lost) == "the others took it for lost"


async def test_who_is_not_the_first_one_there_leaves_the_marking_to_that_one(site):
    site.silent = {"beta": 100.0}
    site.presence._site, site.presence._endpoint = "gamma", "g:1"
    await site.look()
    assert site.record("beta").lost
    assert site.marked == []
