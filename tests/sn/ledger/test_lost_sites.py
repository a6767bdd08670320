"""A site that the others miss: who may say so, and what follows for its nodes."""

import pytest

from swarm_hpc.errors import NotFound, NotMember
from swarm_hpc.records import Platform
from tests.sn.ledger.conftest import MODEL, Training

FP = "cd" * 32


@pytest.fixture
def four(training: Training) -> Training:
    """Sites alpha, beta, gamma, delta of accounts 0 to 3; node delta/sl/sl-1 takes part in `heart`."""
    ledgers = [training.ledger]
    for number, site in enumerate(("beta", "gamma", "delta"), start=1):
        account = training.ledger_of(number)
        for ledger in ledgers:
            ledger.vote(site, account.account, f"{site}:1", FP, True)
            if any(one.name == site for one in ledger.sites()):
                break
        ledgers.append(account)
    delta = ledgers[3]
    delta.register_node("delta/sl/sl-1", "", "instance")
    delta.join("heart", "delta/sl/sl-1", 1, Platform.PYTORCH, MODEL)
    training.ledgers = ledgers  # type: ignore[attr-defined]
    return training


def is_lost(four, site="delta"):
    return next(one.lost for one in four.ledger.sites() if one.name == site)


def test_a_site_is_lost_when_more_than_half_of_the_others_say_so(four):
    alpha, beta, gamma, _ = four.ledgers
    alpha.report_lost("delta")
    alpha.report_lost("delta")
    assert not is_lost(four)
    beta.report_lost("delta")
    assert is_lost(four)
    gamma.report_lost("delta")
    assert is_lost(four)


def test_a_site_cannot_report_itself(four):
    with pytest.raises(NotMember):
        four.ledgers[3].report_lost("delta")


def test_nobody_reports_a_site_that_there_is_not(four):
    with pytest.raises(NotFound):
        four.ledger.report_lost("omega")


def test_nodes_of_a_lost_site_may_be_marked_away_by_any_member(four):
    alpha, beta, _, _ = four.ledgers
    for one in (alpha, beta):
        one.report_lost("delta")
    alpha.set_away("heart", "delta/sl/sl-1")
    alpha.set_node_active("delta/sl/sl-1", False)
    assert not alpha.node("delta/sl/sl-1").active
    away = next(each for each in alpha.contract("heart").participants if each.node == "delta/sl/sl-1")
    assert not away.active
    with pytest.raises(NotMember):
        alpha.set_node_active("delta/sl/sl-1", True)


def test_nodes_of_a_site_that_is_there_may_not(four):
    alpha = four.ledger
    alpha.report_lost("delta")
    with pytest.raises(NotMember):
        alpha.set_away("heart", "delta/sl/sl-1")
    with pytest.raises(NotMember):
        alpha.set_node_active("delta/sl/sl-1", False)


def test_a_lost_site_that_announces_itself_is_there_again(four):
    alpha, beta, gamma, delta = four.ledgers
    for one in (alpha, beta):
        one.report_lost("delta")
    delta.announce("delta:2")
    assert not is_lost(four)
    with pytest.raises(NotMember):
        alpha.set_away("heart", "delta/sl/sl-1")
    # what was said before counts no more
    gamma.report_lost("delta")
    assert not is_lost(four)


def test_an_announcement_changes_the_address_of_the_senders_sites_only(four):
    four.ledgers[1].announce("beta.new:1")
    endpoints = {one.name: one.endpoint for one in four.ledger.sites()}
    assert endpoints["beta"] == "beta.new:1"
    assert endpoints["gamma"] == "gamma:1"
    assert {one.name: one.announced for one in four.ledger.sites()} == {"alpha": 1, "beta": 1, "gamma": 0, "delta": 0}


def test_a_consensus_key_belongs_to_one_site(four):
    alpha, beta, gamma, _ = four.ledgers
    key = "ab" * 32
    for one in (alpha, beta, gamma):
        one.vote("beta", beta.account, "beta:1", FP, True, consensus_key=key, p2p_id="0" * 40)
    assert next(one.consensus_key for one in alpha.sites() if one.name == "beta") == key
    with pytest.raises(Exception, match="another site has this consensus key"):
        alpha.vote("gamma", gamma.account, "gamma:1", FP, True, consensus_key=key, p2p_id="1" * 40)
