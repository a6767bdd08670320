"""Which SNs should have a blob, by what the ledger said."""

from __future__ import annotations

from swarm_hpc.records import CheckIn, Event
from swarm_hpc.sn.holders import Holders, Holding
from tests.lab.rounds import published

ONE, TWO, MERGED = "11" * 32, "22" * 32, "33" * 32


def event(name: str, contract: str = "demo", **facts: str | int) -> Event:
    return Event(cursor=1, name=name, contract=contract, block=1, at=0, facts=facts)


def test_a_check_in_is_at_its_nodes_site_and_a_leader_may_have_a_copy():
    holders = Holders()
    holders.learn(event("CheckedIn", round=1, node="alpha/sl/one", blob=ONE))
    holders.learn(event("CheckedIn", round=1, node="beta/sl/two", blob=TWO))
    holders.learn(event("Claimed", round=1, node="beta/sl/two", due=5))
    assert holders.of(ONE) == (Holding(blob=ONE, contract="demo", round=1, homes=("alpha",), copies=("beta",)),)
    assert holders.of(TWO) == (Holding(blob=TWO, contract="demo", round=1, homes=("beta",)),)
    assert holders.of(MERGED) == ()


def test_what_is_shared_is_at_its_nodes_site():
    holders = Holders()
    holders.learn(event("Shared", round=2, node="alpha/sl/one", step=0, blobs=f"{ONE} {TWO}"))
    holders.learn(event("Shared", round=2, node="beta/sl/two", step=1, blobs=""))
    for blob in (ONE, TWO):
        assert holders.of(blob) == (Holding(blob=blob, contract="demo", round=2, homes=("alpha",)),)


def test_a_merged_blob_is_at_the_leaders_site_and_soon_everywhere():
    holders = Holders()
    holders.learn(event("Published", round=1, node="beta/sl/two", merged=MERGED))
    assert holders.of(MERGED) == (Holding(blob=MERGED, contract="demo", round=1, homes=("beta",), everywhere=True),)


def test_a_round_says_the_same_as_its_events():
    by_events, by_round = Holders(), Holders()
    for one in (
        event("CheckedIn", round=4, node="alpha/sl/one", blob=ONE),
        event("Claimed", round=4, node="beta/sl/two", due=5),
        event("Published", round=4, node="beta/sl/two", merged=MERGED),
    ):
        by_events.learn(one)
    check_ins = (CheckIn(node="alpha/sl/one", blob=ONE, weight=1),)
    round_ = published(4, MERGED, contract="demo", check_ins=check_ins, leader="beta/sl/two")
    by_round.learn_round(round_)
    by_round.learn_round(round_)
    for blob in (ONE, MERGED):
        assert by_events.of(blob) == by_round.of(blob) != ()


def test_the_latest_round_of_each_contract_counts():
    holders = Holders()
    holders.learn(event("CheckedIn", round=2, node="beta/sl/two", blob=ONE))
    holders.learn(event("CheckedIn", round=1, node="alpha/sl/one", blob=ONE))
    holders.learn(event("CheckedIn", "other", round=1, node="gamma/sl/three", blob=ONE))
    assert [(one.contract, one.round, one.homes) for one in holders.of(ONE)] == [
        ("demo", 2, ("beta",)),
        ("other", 1, ("gamma",)),
    ]


def test_old_rounds_are_forgotten():
    holders = Holders()
    for number in (1, 2, 3):
        holders.learn(event("CheckedIn", round=number, node="alpha/sl/one", blob=TWO))
        holders.learn(event("CheckedIn", round=number, node="alpha/sl/one", blob=f"a{number}" * 32))
    holders.forget("demo", 3)
    holders.forget("unknown", 3)
    assert not holders.of("a1" * 32)
    assert not holders.of("a2" * 32)
    assert holders.of("a3" * 32)
    assert [one.round for one in holders.of(TWO)] == [3]
