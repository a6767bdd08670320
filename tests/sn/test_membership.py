"""Leases on a real ledger, with a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import DuplicateNode, NotFound
from swarm_hpc.records import NodeName, Platform, Progress
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership

ONE, TWO = "alpha/sl/one", "beta/sl/two"
MODEL = "ab" * 32


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """An SN's membership, its ledger and its clock."""

    ledger: Ledger
    live: LiveLedger
    clock: Clock
    membership: Membership

    async def register(self, name: str, instance: str = "i") -> int:
        return (await self.membership.register(NodeName.parse(name), "", instance)).incarnation


@pytest.fixture
async def site(consortium, tmp_path) -> AsyncIterator[Site]:
    bundle = consortium.identity("alpha/sn/sn").bundle
    ledger = Ledger.open(LedgerConfig(), tmp_path, found=Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa"))
    live, clock = LiveLedger(ledger), Clock()
    yield Site(ledger, live, clock, Membership(live, lease_s=10, endpoint="a:1", bundle=bundle, clock=clock))
    await live.stop()
    ledger.close()


async def test_a_silent_node_is_marked_away_in_all_its_contracts_and_rounds_go_on_without_it(site, new_spec):
    one, two = await site.register(ONE), await site.register(TWO)
    for contract in ("demo", "other"):
        site.ledger.create_contract(new_spec(name=contract, min_peers=1, quorum_wait_s=3600))
        site.ledger.join(contract, ONE, one, Platform.PYTORCH, MODEL)
        site.ledger.join(contract, TWO, two, Platform.PYTORCH, MODEL)
    assert site.ledger.round("demo", 1).num_active == 2
    site.clock.now += 6
    await site.membership.heartbeat(ONE, one, Progress())
    site.clock.now += 4
    await site.membership.end_expired()
    assert [node.active for node in site.ledger.nodes()] == [True, False]
    for contract in ("demo", "other"):
        assert site.ledger.round(contract, 1).num_active == 1
    with pytest.raises(NotFound, match="register and join again"):
        await site.membership.heartbeat(TWO, two, Progress())


async def test_the_end_of_a_lease_wakes_who_waits_for_the_contract(site, new_spec):
    one = await site.register(ONE)
    await site.live.write(lambda ledger: ledger.create_contract(new_spec()))
    await site.live.write(lambda ledger: ledger.join("demo", ONE, one, Platform.PYTORCH, MODEL))
    waiting = asyncio.create_task(site.live.wait("demo", site.live.cursor, timeout_s=60))
    site.clock.now += 10
    await site.membership.end_expired()
    assert await waiting is True


async def test_a_node_that_is_heard_of_just_before_it_would_be_marked_away_stays(site):
    one = await site.register(ONE)
    site.clock.now += 11
    await site.membership.heartbeat(ONE, one, Progress())
    await site.membership.end_expired()
    assert site.ledger.node(ONE).active


async def test_after_a_restart_every_active_node_has_a_fresh_lease(site, consortium):
    one = await site.register(ONE)
    two = await site.register(TWO)
    await site.membership.leave(TWO, two)
    site.clock.now += 100
    bundle = consortium.identity("alpha/sn/sn").bundle
    again = Membership(site.live, lease_s=10, endpoint="a:1", bundle=bundle, clock=site.clock)
    await again.restart()
    await again.end_expired()
    assert [node.active for node in site.ledger.nodes()] == [True, False]
    await again.heartbeat(ONE, one, Progress())
    with pytest.raises(DuplicateNode):
        await again.register(NodeName.parse(ONE), "", "another")
    site.clock.now += 10
    await again.end_expired()
    assert not site.ledger.node(ONE).active


async def test_of_two_instances_that_start_together_one_has_the_name(site):
    answers = await asyncio.gather(site.register(ONE, "a"), site.register(ONE, "b"), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["DuplicateNode", "int"]


async def test_a_name_is_free_when_its_lease_is_over(site):
    await site.register(ONE, "a")
    site.clock.now += 10
    assert await site.register(ONE, "b") == 2


async def test_a_registration_is_completed_although_its_client_left(site):
    call = asyncio.create_task(site.register(ONE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await site.live.stop()
    await site.membership.heartbeat(ONE, site.ledger.node(ONE).incarnation, Progress())


async def test_the_ledger_follows_when_the_sn_moves(site, consortium):
    await site.register(TWO)
    await site.membership.announce("b:2")
    bundle = consortium.identity("alpha/sn/sn").bundle
    assert [(each.name, each.endpoint, each.ca_fingerprint) for each in site.ledger.sites()] == [
        (name, "b:2", bundle.fingerprint(name)) for name in ("alpha", "beta")
    ]
    height = site.ledger.status().height
    await site.membership.announce("b:2")
    assert site.ledger.status().height == height


async def test_the_node_of_a_site_that_was_voted_out_is_given_up_once(site, caplog):
    await site.register(TWO)
    site.ledger.vote("beta", site.ledger.account, "", "", False)
    site.clock.now += 11
    for _ in range(2):
        await site.membership.end_expired()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "no member any more" in said[0]
