"""Who gets this site's vote, on a real ledger: by its trust bundle, by its operator, and never again once voted out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from swarm_hpc.config import Admission, LedgerConfig
from swarm_hpc.errors import NotAuthorized, NotFound
from swarm_hpc.records import SiteApplication
from swarm_hpc.sn import admission
from swarm_hpc.sn.admission import Applications
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.live import LiveLedger

BETA = SiteApplication(
    site="beta",
    account="0x" + "Be" * 20,
    endpoint="beta.test:30304",
    consensus_key="bb" * 32,
    p2p_id="bb" * 20,
)


@pytest.fixture
async def live(tmp_path) -> AsyncIterator[LiveLedger]:
    founder = Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa", consensus_key="aa" * 32, p2p_id="aa" * 20)
    ledger = Ledger.open(LedgerConfig(), tmp_path, found=founder)
    live = LiveLedger(ledger)
    yield live
    await live.stop()
    live.close()
    ledger.close()


@pytest.fixture
async def hosted(live) -> SiteApplication:
    """Beta, which speaks through alpha's account: its vote is cast with alpha's."""
    return replace(BETA, account=await live.read(lambda ledger: ledger.account))


@pytest.fixture
def trusting(live, consortium) -> Applications:
    return Applications(live, consortium.identity("alpha/sn/sn").bundle, Admission.TRUSTED)


@pytest.fixture
def manual(live, consortium) -> Applications:
    return Applications(live, consortium.identity("alpha/sn/sn").bundle, Admission.MANUAL)


def members(found) -> list[str]:
    return [site.name for site in found.sites if site.active]


def asking(found) -> list[str]:
    return [one.site for one in found.applications]


async def test_a_site_of_the_trust_bundle_is_voted_for_when_it_asks(trusting, consortium):
    found = await trusting.apply(BETA)
    assert members(found) == ["alpha", "beta"]
    record = found.sites[1]
    assert (record.endpoint, record.consensus_key, record.p2p_id) == ("beta.test:30304", "bb" * 32, "bb" * 20)
    assert record.ca_fingerprint == consortium.identity("alpha/sn/sn").bundle.fingerprint("beta")
    assert record.announced == 0  # it has no say before its SN is there


async def test_asking_again_changes_nothing(trusting, live):
    await trusting.apply(BETA)
    cursor = live.cursor
    assert members(await trusting.apply(BETA)) == ["alpha", "beta"]
    assert live.cursor == cursor


async def test_a_member_that_lost_its_keys_is_voted_for_with_new_ones(trusting, hosted):
    await trusting.apply(hosted)
    found = await trusting.apply(replace(hosted, consensus_key="cc" * 32, p2p_id="cc" * 20))
    assert [(site.name, site.consensus_key[:2]) for site in found.sites] == [("alpha", "aa"), ("beta", "cc")]


async def test_by_hand_a_site_only_asks_until_the_operator_votes(manual):
    found = await manual.apply(BETA)
    assert (members(found), asking(found)) == (["alpha"], ["beta"])
    assert asking(await manual.apply(BETA)) == ["beta"]
    found = await manual.admit("beta")
    assert (members(found), asking(found)) == (["alpha", "beta"], [])


async def test_the_operator_votes_for_what_the_site_asked_last(manual):
    await manual.apply(BETA)
    await manual.apply(replace(BETA, endpoint="beta.test:443"))
    assert (await manual.admit("beta")).sites[1].endpoint == "beta.test:443"


async def test_a_site_that_never_asked_cannot_be_admitted(manual):
    with pytest.raises(NotFound, match="gamma has not asked this SN"):
        await manual.admit("gamma")


async def test_a_site_that_was_voted_out_is_not_voted_for_again_by_itself(trusting, hosted):
    await trusting.apply(hosted)
    assert members(await trusting.remove("beta")) == ["alpha"]
    found = await trusting.apply(hosted)
    assert (members(found), asking(found)) == (["alpha"], ["beta"])
    found = await trusting.admit("beta")
    assert (members(found), asking(found)) == (["alpha", "beta"], [])


async def test_an_unknown_site_cannot_be_removed(trusting):
    with pytest.raises(NotFound):
        await trusting.remove("gamma")


async def test_one_vote_of_several_does_not_decide(live, consortium, trusting):
    for name in ("gamma", "delta"):
        key = name[0].encode().hex() * 32
        await live.write(
            lambda ledger, name=name, key=key: ledger.vote(
                name, "0x" + "Dd" * 20, "x:1", "ff", True, consensus_key=key, p2p_id=key[:40]
            )
        )
        if name == "gamma":  # alpha is one of two from now on
            assert members(await trusting.sites()) == ["alpha", "gamma"]
    found = await trusting.apply(BETA)
    assert "beta" not in members(found)


async def test_only_so_many_sites_may_ask_at_a_time(manual, consortium, monkeypatch):
    monkeypatch.setattr(admission, "MAX_APPLICATIONS", 1)
    await manual.apply(BETA)
    with pytest.raises(NotAuthorized, match="its operator has to decide first"):
        await manual.apply(replace(BETA, site="alpha", consensus_key="dd" * 32))
    assert asking(await manual.apply(BETA)) == ["beta"]
