from __future__ import annotations

import pytest

from swarm_hpc.errors import Fenced, NotFound
from swarm_hpc.records import NodeRecord, Progress
from swarm_hpc.sn.leases import Leases

NODE = "alpha/sl/sl-1"


@pytest.fixture
def leases() -> Leases:
    leases = Leases(lease_s=10)
    leases.grant(NODE, 1, now=100)
    return leases


def test_a_node_lives_for_its_lease(leases: Leases) -> None:
    assert leases.alive(NODE, 109.9)
    assert leases.left_s(NODE, 104) == 6
    assert not leases.alive(NODE, 110)
    assert leases.expired(109.9) == ()
    assert leases.expired(110) == (NODE,)


def test_a_heartbeat_renews_the_lease_and_keeps_the_progress(leases: Leases) -> None:
    leases.renew(NODE, 1, 108, Progress(epoch=3))
    leases.renew(NODE, 1, 109)
    assert leases.alive(NODE, 118.9)
    assert leases.progress(NODE).epoch == 3
    assert leases.last_seen_s(NODE, 112) == 3


def test_a_heartbeat_that_comes_late_still_counts_while_nobody_has_called_the_node_away(leases: Leases) -> None:
    leases.renew(NODE, 1, 111)
    assert leases.expired(111) == ()


def test_an_earlier_incarnation_is_fenced_off(leases: Leases) -> None:
    leases.grant(NODE, 2, now=101)
    with pytest.raises(Fenced, match="incarnation 1 was replaced by 2"):
        leases.renew(NODE, 1, 102)
    leases.renew(NODE, 2, 102)


def test_a_node_that_is_away_is_told_to_register_again(leases: Leases) -> None:
    leases.drop(NODE)
    leases.drop(NODE)
    with pytest.raises(NotFound, match="register and join again"):
        leases.renew(NODE, 1, 102)
    assert leases.last_seen_s(NODE, 102) is None
    assert leases.progress(NODE) == Progress()


def test_after_a_restart_active_nodes_have_a_fresh_lease() -> None:
    leases = Leases(lease_s=10)
    records = [
        NodeRecord(name=name, endpoint="", instance="i", incarnation=4, active=active, since=0)
        for name, active in (("alpha/sl/here", True), ("alpha/sl/gone", False))
    ]
    leases.restart(records, now=50)
    assert leases.alive("alpha/sl/here", 59)
    assert not leases.alive("alpha/sl/gone", 50)
    leases.renew("alpha/sl/here", 4, 55)
