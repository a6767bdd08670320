"""Nodes lost during a claimed round: whose blob cannot be had is dropped, and an orphaned round finds a leader."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import Fenced, NotFound, NotLeader, RoundClaimed, RoundClosed, RoundError, TrainingOver
from swarm_hpc.records import CheckIn, ContractSpec, ContractState, FinishMode, Merge, Platform, RoundState

MODEL = "11" * 32
A, B, C = "alpha/sl/sl-1", "alpha/sl/sl-2", "alpha/sl/sl-3"
MERGED = "77" * 32


@pytest.fixture
def claimed(training):
    """Round 1 of `heart` (min_peers 2) with the check-ins of A, B and C; A leads it."""
    training.check_in(A, B, C)
    training.ledger.claim("heart", 1, A, 1)
    return training


def nodes(ledger, contract="heart"):
    return {one.node for one in ledger.round(contract, 1).check_ins}


def test_the_leader_drops_a_node_that_is_away_and_goes_on_with_the_rest(claimed):
    ledger = claimed.ledger
    ledger.set_away("heart", B)
    ledger.drop("heart", 1, A, 1, B)
    view = ledger.round("heart", 1)
    assert (view.state, view.leader, nodes(ledger)) == (RoundState.CLAIMED, A, {A, C})
    assert ledger.events()[-1].name == "Dropped"
    assert ledger.events()[-1].facts == {"round": 1, "node": A, "absent": B}
    ledger.publish("heart", 1, A, 1, MERGED)
    assert nodes(ledger) == {A, C}


def test_dropping_again_has_no_effect_not_even_once_the_round_is_published(claimed):
    ledger = claimed.ledger
    ledger.set_away("heart", B)
    ledger.drop("heart", 1, A, 1, B)
    ledger.drop("heart", 1, A, 1, B)
    ledger.publish("heart", 1, A, 1, MERGED)
    ledger.drop("heart", 1, A, 1, B)
    assert [event.name for event in ledger.events()].count("Dropped") == 1


def test_a_node_that_is_there_is_not_dropped(claimed):
    with pytest.raises(RoundError, match="the node is there") as caught:
        claimed.ledger.drop("heart", 1, A, 1, B)
    assert type(caught.value) is RoundError
    assert nodes(claimed.ledger) == {A, B, C}


def test_only_the_leader_of_a_claimed_round_drops_others(training):
    ledger = training.ledger
    ledger.set_away("heart", C)
    training.check_in(A, B)
    ledger.set_away("heart", B)
    with pytest.raises(NotLeader, match="claim the round"):
        ledger.drop("heart", 1, A, 1, B)
    ledger.claim("heart", 1, B, 1)
    with pytest.raises(NotLeader, match="another node leads"):
        ledger.drop("heart", 1, A, 1, B)
    with pytest.raises(NotFound, match="not checked in"):
        ledger.drop("heart", 1, B, 1, C)
    with pytest.raises(NotFound, match="not joined"):
        ledger.drop("heart", 1, B, 1, "alpha/sl/none")
    ledger.register_node(B, "", "other")
    with pytest.raises(Fenced):
        ledger.drop("heart", 1, B, 1, B)


def test_a_published_round_keeps_its_check_ins(claimed):
    claimed.ledger.publish("heart", 1, A, 1, MERGED)
    claimed.ledger.set_away("heart", B)
    with pytest.raises(RoundClosed, match="published"):
        claimed.ledger.drop("heart", 1, A, 1, B)


def test_below_min_peers_the_round_opens_again_and_counts_its_quorum_anew(claimed):
    ledger = claimed.ledger
    for node in (B, C):
        ledger.set_away("heart", node)
        ledger.drop("heart", 1, A, 1, node)
    view = ledger.round("heart", 1)
    assert (view.state, view.leader, view.closable, view.closes_in_s) == (RoundState.OPEN, "", False, None)
    assert nodes(ledger) == {A}
    assert (view.num_active, ledger.contract("heart").round) == (1, 1)
    with pytest.raises(NotLeader):
        ledger.publish("heart", 1, A, 1, MERGED)
    ledger.join("heart", C, 1, Platform.PYTORCH, MODEL)
    claimed.wait(100)
    claimed.check_in(B, blob=5)
    left = ledger.round("heart", 1).closes_in_s
    assert left == 30, "C is active and waited for, from the new quorum on"
    claimed.check_in(C)
    ledger.claim("heart", 1, B, 1)
    assert nodes(ledger) == {A, B, C}


def test_a_dropped_node_is_told_that_the_round_closed_or_checks_in_again(claimed):
    ledger = claimed.ledger
    ledger.set_away("heart", B)
    ledger.drop("heart", 1, A, 1, B)
    with pytest.raises(RoundClosed):
        claimed.check_in(B)
    ledger.set_away("heart", C)
    ledger.drop("heart", 1, A, 1, C)
    claimed.check_in(B)
    ledger.claim("heart", 1, A, 1)
    ledger.set_away("heart", B)
    ledger.drop("heart", 1, A, 1, B)
    assert nodes(ledger) == {A}


def test_a_leader_drops_itself_when_it_is_away_and_leads_the_round_of_the_others(claimed):
    ledger = claimed.ledger
    with pytest.raises(RoundError, match="the node is there"):
        ledger.drop("heart", 1, A, 1, A)
    ledger.set_away("heart", A)
    ledger.drop("heart", 1, A, 1, A)
    assert (ledger.round("heart", 1).state, ledger.round("heart", 1).leader) == (RoundState.CLAIMED, A)
    ledger.publish("heart", 1, A, 1, MERGED)
    assert nodes(ledger) == {B, C}


def test_dropping_the_last_check_in_ends_a_training_that_only_waited_for_it(network):
    ledger = network.ledger
    ledger.create_contract(
        ContractSpec(
            name="lung",
            platform=Platform.PYTORCH,
            merge=Merge(),
            min_peers=1,
            quorum_wait_s=0,
            leader_timeout_s=60,
            model=MODEL,
        )
    )
    for node in (A, B):
        ledger.register_node(node, "", "i")
        ledger.join("lung", node, 1, Platform.PYTORCH, MODEL)
    ledger.check_in("lung", 1, 1, CheckIn(node=B, blob="22" * 32, weight=1))
    ledger.claim("lung", 1, B, 1)
    ledger.finish("lung", A, 1, FinishMode.SNAPSHOT)
    ledger.set_away("lung", B)
    assert ledger.contract("lung").state is ContractState.TRAINING
    ledger.claim("lung", 1, A, 1)
    ledger.drop("lung", 1, A, 1, B)
    assert ledger.contract("lung").state is ContractState.COMPLETED
    with pytest.raises(TrainingOver):
        ledger.drop("lung", 1, A, 1, A)


def test_a_round_that_everybody_in_it_has_left_is_led_by_another(training):
    ledger = training.ledger
    ledger.set_away("heart", C)
    training.check_in(A, B)
    ledger.claim("heart", 1, A, 1)
    ledger.set_away("heart", A)
    view = ledger.round("heart", 1)
    assert (view.replaceable, view.orphaned) == (True, False), "B is there"
    with pytest.raises(RoundClosed):
        ledger.claim("heart", 1, C, 1)
    ledger.set_away("heart", B)
    assert ledger.round("heart", 1).orphaned
    with pytest.raises(RoundClosed):
        ledger.claim("heart", 1, C, 1)
    ledger.join("heart", C, 1, Platform.PYTORCH, MODEL)
    ledger.claim("heart", 1, C, 1)
    ledger.claim("heart", 1, C, 1)
    view = ledger.round("heart", 1)
    assert (view.leader, view.replaceable, view.orphaned, nodes(ledger)) == (C, False, False, {A, B})
    ledger.publish("heart", 1, C, 1, MERGED)
    assert ledger.contract("heart").round == 2


def test_who_stands_in_for_the_lost_is_replaced_by_them_only_when_overdue(training):
    ledger = training.ledger
    ledger.set_away("heart", C)
    training.check_in(A, B)
    ledger.claim("heart", 1, A, 1)
    for node in (A, B):
        ledger.set_away("heart", node)
    ledger.join("heart", C, 1, Platform.PYTORCH, MODEL)
    ledger.claim("heart", 1, C, 1)
    ledger.join("heart", A, 1, Platform.PYTORCH, MODEL)
    with pytest.raises(RoundClaimed):
        ledger.claim("heart", 1, A, 1)
    training.wait(61)
    view = ledger.round("heart", 1)
    assert (view.replaceable, view.orphaned) == (True, False)
    ledger.claim("heart", 1, A, 1)
    with pytest.raises(RoundClosed):
        ledger.claim("heart", 1, C, 1)


def test_a_leader_that_finished_inactive_leaves_an_orphan_once_it_is_overdue(training):
    ledger = training.ledger
    ledger.set_away("heart", C)
    training.check_in(A, B)
    ledger.claim("heart", 1, A, 1)
    ledger.join("heart", C, 1, Platform.PYTORCH, MODEL)
    ledger.finish("heart", A, 1, FinishMode.INACTIVE)
    ledger.set_away("heart", B)
    assert not ledger.round("heart", 1).replaceable
    training.wait(61)
    assert ledger.round("heart", 1).orphaned
    ledger.claim("heart", 1, C, 1)
