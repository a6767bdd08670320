"""The rules of docs/protocol.md 4 on every kind of chain: what is granted, what is refused and by which exception."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from swarm_hpc.errors import (
    ConfigError,
    ContractMismatch,
    Fenced,
    ImageRefused,
    LedgerError,
    ModelMismatch,
    NotEnoughPeers,
    NotFound,
    NotLeader,
    NotMember,
    RoundClaimed,
    RoundClosed,
    SwarmError,
    TrainingOver,
)
from swarm_hpc.records import (
    CheckIn,
    ContractSpec,
    ContractState,
    FinishMode,
    Merge,
    MergeMethod,
    Participant,
    Platform,
    Resources,
    RoundState,
)

MODEL = "11" * 32
A, B, C = "alpha/sl/sl-1", "alpha/sl/sl-2", "alpha/sl/sl-3"
FP = "bb" * 32


def blob(number: int) -> str:
    return f"{number:064x}"


def check_in(node: str, number: int = 1, **fields: Any) -> CheckIn:
    return CheckIn(node=node, blob=blob(number), **{"weight": 10} | fields)


def spec(**fields: Any) -> ContractSpec:
    settings = {"name": "heart", "min_peers": 2, "quorum_wait_s": 30, "leader_timeout_s": 60, "model": MODEL} | fields
    return ContractSpec(platform=Platform.PYTORCH, merge=Merge(), **settings)


def names(ledger: Any, contract: str | None = None) -> list[str]:
    return [event.name for event in ledger.events(contract=contract)]


# --- sites ---


def test_the_founder_is_the_first_site(network):
    (site,) = network.ledger.sites()
    assert (site.name, site.account, site.active) == ("alpha", network.ledger.account, True)
    assert site.joined_at == network.ledger.events()[0].at
    assert network.ledger.events()[0].facts["site"] == "alpha"


def test_a_site_is_admitted_by_more_than_half_and_then_votes(network):
    ledger, beta = network.ledger, network.ledger_of(1)
    with pytest.raises(NotMember):
        beta.vote("beta", beta.account, "b:1", FP, True)
    ledger.vote("beta", beta.account, "b:1", FP, True)
    assert [site.name for site in ledger.sites()] == ["alpha", "beta"]
    gamma = network.ledger_of(2)
    ledger.vote("gamma", gamma.account, "c:1", FP, True)
    ledger.vote("gamma", gamma.account, "c:1", FP, True)
    assert len(ledger.sites()) == 2, "one of two sites is not more than half, however often it votes"
    beta.vote("gamma", gamma.account, "c:1", FP, True)
    assert [site.active for site in ledger.sites()] == [True, True, True]
    height = ledger.status().height
    gamma.vote("gamma", gamma.account, "c:1", FP, True)
    assert ledger.status().height == height + 1, "voting for what is so is granted"
    assert names(ledger).count("SiteAdmitted") == 3


def test_a_removed_site_has_no_say_and_old_votes_do_not_count_for_it_again(network):
    ledger, beta, gamma = (network.ledger_of(i) for i in range(3))
    ledger.vote("beta", beta.account, "b:1", FP, True)
    ledger.vote("gamma", gamma.account, "c:1", FP, True)
    beta.vote("gamma", gamma.account, "c:1", FP, True)
    ledger.vote("beta", beta.account, "", "", False)
    gamma.vote("beta", beta.account, "", "", False)
    assert [site.active for site in ledger.sites()] == [True, False, True]
    with pytest.raises(NotMember):
        beta.register_node("beta/sl/sl-1", "", "i")
    with pytest.raises(NotMember):
        beta.vote("gamma", gamma.account, "c:1", FP, False)
    ledger.vote("beta", beta.account, "b:1", FP, True)
    assert not ledger.sites()[1].active
    gamma.vote("beta", beta.account, "b:1", FP, True)
    assert ledger.sites()[1].active


def test_an_account_that_hosts_several_sites_votes_for_each_of_them(network):
    for site in ("beta", "gamma", "delta"):
        network.ledger.vote(site, network.ledger.account, f"{site}:1", FP, True)
    assert len(network.ledger.sites()) == 4
    network.ledger.register_node("delta/sl/sl-1", "", "i")


def test_the_last_site_stays(network):
    with pytest.raises(LedgerError, match="last site"):
        network.ledger.vote("alpha", network.ledger.account, "", "", False)


# --- nodes ---


def test_registering_raises_the_incarnation_and_fences_off_the_one_before(training):
    ledger = training.ledger
    assert ledger.register_node(A, "here:1", "other").incarnation == 2
    record = ledger.node(A)
    assert (record.endpoint, record.instance, record.active) == ("here:1", "other", True)
    for call in (
        lambda: ledger.check_in("heart", 1, 1, check_in(A)),
        lambda: ledger.claim("heart", 1, A, 1),
        lambda: ledger.publish("heart", 1, A, 1, blob(9)),
        lambda: ledger.join("heart", A, 1, Platform.PYTORCH, MODEL),
        lambda: ledger.finish("heart", A, 1, FinishMode.INACTIVE),
    ):
        with pytest.raises(Fenced, match=A):
            call()
    ledger.check_in("heart", 1, 2, check_in(A))


def test_a_site_speaks_for_its_own_nodes_only(training):
    beta = training.ledger_of(1)
    training.ledger.vote("beta", beta.account, "b:1", FP, True)
    for call in (
        lambda: beta.register_node(A, "", "i"),
        lambda: beta.set_node_active(A, False),
        lambda: beta.set_away("heart", A),
        lambda: beta.check_in("heart", 1, 1, check_in(A)),
    ):
        with pytest.raises(NotMember):
            call()
    with pytest.raises(NotFound):
        beta.register_node("nowhere/sl/sl-1", "", "i")


def test_nodes_are_marked_away_and_present(training):
    training.ledger.set_node_active(A, False)
    training.ledger.set_node_active(A, False)
    assert not training.ledger.node(A).active
    training.ledger.set_node_active(A, True)
    assert names(training.ledger).count("NodeActive") == 2


def test_more_nodes_than_fit_on_one_page_are_listed_in_order(network):
    wanted = [f"alpha/sl/sl-{i}" for i in range(35)]
    for name in wanted:
        network.ledger.register_node(name, "", "i")
    assert [node.name for node in network.ledger.nodes()] == wanted


# --- training contracts ---


def test_creating_a_contract_again_needs_the_same_settings(training):
    ledger = training.ledger
    settings = ledger.contract("heart").spec
    ledger.create_contract(settings)
    for other in (
        replace(settings, platform=Platform.KERAS),
        replace(settings, merge=Merge(method=MergeMethod.GEOMEDIAN)),
        replace(settings, merge=Merge(method=MergeMethod.KRUM)),
        replace(settings, min_peers=3),
        replace(settings, quorum_wait_s=1),
        replace(settings, leader_timeout_s=1),
        replace(settings, image="ab" * 32),
    ):
        with pytest.raises(ContractMismatch):
            ledger.create_contract(other)
    with pytest.raises(ModelMismatch):
        ledger.create_contract(replace(settings, model="22" * 32))
    assert names(ledger).count("ContractCreated") == 1
    robust = Merge(method=MergeMethod.MULTIKRUM, num_byzantine=2, num_selected=3)
    ledger.create_contract(replace(settings, name="lung", merge=robust))
    assert ledger.contract("lung").spec.merge == robust
    assert [contract.spec.name for contract in ledger.contracts()] == ["heart", "lung"]


def test_joining_needs_the_contracts_platform_and_model(training):
    ledger = training.ledger
    with pytest.raises(ContractMismatch, match="platform"):
        ledger.join("heart", A, 1, Platform.KERAS, MODEL)
    with pytest.raises(ModelMismatch):
        ledger.join("heart", A, 1, Platform.PYTORCH, "22" * 32)
    with pytest.raises(NotFound):
        ledger.join("lung", A, 1, Platform.PYTORCH, MODEL)
    with pytest.raises(NotFound):
        ledger.join("heart", "alpha/sl/unknown", 1, Platform.PYTORCH, MODEL)


def test_joining_again_brings_a_participant_back(training):
    ledger = training.ledger
    ledger.set_away("heart", A)
    ledger.finish("heart", A, 1, FinishMode.SNAPSHOT)
    assert ledger.contract("heart").participants[0] == Participant(node=A, active=False, finished=FinishMode.SNAPSHOT)
    ledger.join("heart", A, 1, Platform.PYTORCH, MODEL)
    assert ledger.contract("heart").participants[0] == Participant(node=A, active=True, finished=None)


# --- rounds ---


def test_a_round_closes_when_everyone_has_checked_in(training):
    training.check_in(A, B)
    view = training.ledger.round("heart", 1)
    assert (view.state, view.closable, view.num_active, view.min_peers) == (RoundState.OPEN, False, 3, 2)
    with pytest.raises(NotEnoughPeers):
        training.ledger.claim("heart", 1, A, 1)
    training.check_in(C)
    assert training.ledger.round("heart", 1).closable
    training.ledger.claim("heart", 1, A, 1)
    view = training.ledger.round("heart", 1)
    assert (view.state, view.leader, view.replaceable) == (RoundState.CLAIMED, A, False)
    training.ledger.publish("heart", 1, A, 1, blob(7))
    view = training.ledger.round("heart", 1)
    assert (view.state, view.merged, view.num_active) == (RoundState.PUBLISHED, blob(7), 3)
    assert view.published_at == training.ledger.events()[-1].at
    assert training.ledger.contract("heart").round == 2
    assert [one.number for one in training.ledger.rounds("heart")] == [1, 2]


def test_a_round_closes_without_stragglers_after_quorum_wait(training):
    training.check_in(A)
    assert training.ledger.round("heart", 1).closes_in_s is None
    training.check_in(B)
    left = training.ledger.round("heart", 1).closes_in_s
    assert left == 30
    training.wait(left - 1)
    view = training.ledger.round("heart", 1)
    assert (view.closes_in_s, view.closable) == (1, False)
    with pytest.raises(NotEnoughPeers, match="awaited"):
        training.ledger.claim("heart", 1, B, 1)
    training.wait(1)
    view = training.ledger.round("heart", 1)
    assert (view.closes_in_s, view.closable) == (0, True)
    training.ledger.claim("heart", 1, B, 1)


def test_a_round_never_closes_below_min_peers_however_long_it_waits(training):
    training.check_in(A)
    training.ledger.set_away("heart", B)
    training.ledger.set_away("heart", C)
    training.wait(100_000)
    view = training.ledger.round("heart", 1)
    assert (view.closable, view.num_active) == (False, 1)
    with pytest.raises(NotEnoughPeers, match="min_peers"):
        training.ledger.claim("heart", 1, A, 1)


def test_an_away_node_is_not_waited_for_and_comes_back_by_checking_in(training):
    training.ledger.set_away("heart", C)
    training.check_in(A, B)
    assert training.ledger.round("heart", 1).closable
    training.check_in(C)
    assert training.ledger.contract("heart").participants[2].active
    assert len(training.ledger.round("heart", 1).check_ins) == 3


def test_a_check_in_is_replaced_while_the_round_is_open_and_frozen_by_the_claim(training):
    training.check_in(A, B, C)
    training.check_in(A, blob=5)
    training.check_in(A, blob=5)
    assert names(training.ledger, "heart").count("CheckedIn") == 4
    training.ledger.claim("heart", 1, B, 1)
    before = training.ledger.round("heart", 1).check_ins
    assert [one.blob for one in before] == [blob(5), blob(1), blob(1)]
    with pytest.raises(RoundClosed):
        training.check_in(A, blob=6)
    training.check_in(A, blob=5)
    assert training.ledger.round("heart", 1).check_ins == before


def test_everything_of_a_check_in_is_kept(training):
    used = Resources(job="1234_5", image=f"sha256:{'cd' * 32}", cpu_s=12.345, gpu_s=0.5)
    sent = check_in(A, weight=37, num_nodes=4, loss=-0.125, metric=0.987654, epoch=3, resources=used)
    training.ledger.check_in("heart", 1, 1, sent)
    (kept,) = training.ledger.round("heart", 1).check_ins
    assert kept == replace(sent, at=training.ledger.events()[-1].at)


def test_only_programs_in_the_image_that_the_contract_names_check_in(training):
    ledger, image = training.ledger, f"sha256:{'ab' * 32}"
    ledger.create_contract(replace(ledger.contract("heart").spec, name="lung", image=image))
    ledger.join("lung", A, 1, Platform.PYTORCH, MODEL)
    for used in (Resources(), Resources(image=f"sha256:{'cd' * 32}")):
        with pytest.raises(ImageRefused, match="names another container image"):
            ledger.check_in("lung", 1, 1, check_in(A, resources=used))
    ledger.check_in("lung", 1, 1, check_in(A, resources=Resources(image=image)))
    (kept,) = ledger.round("lung", 1).check_ins
    assert kept.resources.image == image


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_kept_as_none(training, loss):
    training.ledger.check_in("heart", 1, 1, check_in(A, loss=loss))
    assert training.ledger.round("heart", 1).check_ins[0].loss is None


def test_a_late_node_is_told_that_the_round_closed(training):
    training.ledger.set_away("heart", C)
    training.check_in(A, B)
    training.ledger.claim("heart", 1, A, 1)
    with pytest.raises(RoundClosed, match=f"{C} checking in to round 1 of heart"):
        training.check_in(C)
    training.ledger.publish("heart", 1, A, 1, blob(7))
    with pytest.raises(RoundClosed):
        training.check_in(C)
    training.check_in(C, number=2)
    with pytest.raises(NotFound):
        training.check_in(C, number=3)


def test_only_one_leads_and_another_takes_over_when_it_is_overdue(training):
    ledger = training.ledger
    training.check_in(A, B, C)
    ledger.claim("heart", 1, A, 1)
    ledger.claim("heart", 1, A, 1)
    with pytest.raises(RoundClaimed):
        ledger.claim("heart", 1, B, 1)
    with pytest.raises(NotLeader):
        ledger.publish("heart", 1, B, 1, blob(7))
    training.wait(61)
    view = ledger.round("heart", 1)
    assert view.replaceable
    assert view.leader_due_in_s < 0
    ledger.claim("heart", 1, B, 1)
    assert ledger.round("heart", 1).leader == B
    with pytest.raises(NotLeader):
        ledger.publish("heart", 1, A, 1, blob(7))
    ledger.publish("heart", 1, B, 1, blob(7))
    assert names(ledger, "heart").count("Claimed") == 2


def test_an_absent_leader_is_replaced_at_once(training):
    training.check_in(A, B, C)
    training.ledger.claim("heart", 1, A, 1)
    training.ledger.set_away("heart", A)
    assert training.ledger.round("heart", 1).replaceable
    training.ledger.claim("heart", 1, C, 1)
    training.ledger.publish("heart", 1, C, 1, blob(7))


def test_only_who_checked_in_may_claim(training):
    training.ledger.set_away("heart", C)
    training.check_in(A, B)
    with pytest.raises(NotEnoughPeers):
        training.ledger.claim("heart", 1, C, 1)
    training.ledger.claim("heart", 1, A, 1)
    with pytest.raises(RoundClosed):
        training.ledger.claim("heart", 1, C, 1)


def test_publishing_again_is_granted_with_the_same_hash_only(training):
    training.merge_round(1)
    training.ledger.publish("heart", 1, A, 1, blob(101))
    with pytest.raises(RoundClosed):
        training.ledger.publish("heart", 1, A, 1, blob(5))
    with pytest.raises(NotLeader):
        training.ledger.publish("heart", 1, B, 1, blob(101))
    with pytest.raises(NotLeader):
        training.ledger.publish("heart", 2, A, 1, blob(101))
    with pytest.raises(RoundClosed):
        training.ledger.claim("heart", 1, B, 1)
    assert training.ledger.contract("heart").round == 2


# --- the end ---


def test_training_is_over_when_every_active_participant_has_finished(training):
    training.merge_round(1)
    training.ledger.finish("heart", A, 1, FinishMode.SNAPSHOT)
    training.ledger.finish("heart", B, 1, FinishMode.ACTIVE)
    assert training.ledger.contract("heart").state is ContractState.TRAINING
    training.ledger.set_away("heart", C)
    assert training.ledger.contract("heart").state is ContractState.COMPLETED
    with pytest.raises(TrainingOver):
        training.check_in(C, number=2)
    with pytest.raises(TrainingOver):
        training.ledger.join("heart", C, 1, Platform.PYTORCH, MODEL)
    training.ledger.finish("heart", C, 1, FinishMode.SNAPSHOT)
    assert names(training.ledger, "heart").count("Completed") == 1


def test_an_open_check_in_keeps_the_training_going_until_it_is_merged(training):
    training.check_in(A, B, C)
    for node in (A, B, C):
        training.ledger.finish("heart", node, 1, FinishMode.SNAPSHOT)
    assert training.ledger.contract("heart").state is ContractState.TRAINING
    training.ledger.claim("heart", 1, A, 1)
    training.ledger.publish("heart", 1, A, 1, blob(7))
    assert training.ledger.contract("heart").state is ContractState.COMPLETED


def test_training_is_over_when_too_few_are_left(training):
    training.ledger.finish("heart", A, 1, FinishMode.INACTIVE)
    training.ledger.finish("heart", A, 1, FinishMode.INACTIVE)
    with pytest.raises(TrainingOver, match="the node has finished"):
        training.check_in(A)
    assert training.ledger.round("heart", 1).num_active == 2
    training.ledger.finish("heart", B, 1, FinishMode.INACTIVE)
    assert training.ledger.contract("heart").state is ContractState.COMPLETED


def test_everybody_away_is_not_the_end(training):
    training.ledger.finish("heart", A, 1, FinishMode.SNAPSHOT)
    for node in (B, C):
        training.ledger.set_away("heart", node)
        training.ledger.join("heart", node, 1, Platform.PYTORCH, MODEL)
    for node in (A, B, C):
        training.ledger.set_away("heart", node)
    assert training.ledger.contract("heart").state is ContractState.TRAINING


def test_nothing_is_over_before_min_peers_have_joined(network):
    ledger = network.ledger
    ledger.create_contract(spec(min_peers=2))
    ledger.register_node(A, "", "i")
    ledger.join("heart", A, 1, Platform.PYTORCH, MODEL)
    ledger.finish("heart", A, 1, FinishMode.INACTIVE)
    assert ledger.contract("heart").state is ContractState.TRAINING


# --- refusals, events, threads ---


@pytest.mark.parametrize(
    "call",
    [
        lambda ledger: ledger.register_node("alpha/sl", "", "i"),
        lambda ledger: ledger.register_node(A, "e" * 300, "i"),
        lambda ledger: ledger.vote("no spaces", ledger.account, "", "", True),
        lambda ledger: ledger.create_contract(spec(name="a/b")),
        lambda ledger: ledger.create_contract(spec(name="x", min_peers=0)),
        lambda ledger: ledger.create_contract(spec(name="x", min_peers=257)),
        lambda ledger: ledger.create_contract(spec(name="x", min_peers=-1)),
        lambda ledger: ledger.create_contract(spec(name="x", leader_timeout_s=0)),
        lambda ledger: ledger.create_contract(spec(name="x", model="abc")),
        lambda ledger: ledger.check_in("heart", 1, 1, check_in(A, weight=0)),
        lambda ledger: ledger.check_in("heart", 1, 1, check_in(A, weight=101)),
        lambda ledger: ledger.check_in("heart", 1, 1, check_in(A, num_nodes=0)),
        lambda ledger: ledger.check_in("heart", 1, 1, replace(check_in(A), blob="")),
        lambda ledger: ledger.check_in("heart", 1, 1, replace(check_in(A), blob="zz")),
        lambda ledger: ledger.check_in("heart", 1, 1, check_in(A, resources=Resources(job="j" * 65))),
    ],
)
def test_values_that_cannot_be_used_are_configuration_errors(training, call: Callable[[Any], object]):
    height = training.ledger.status().height
    with pytest.raises(ConfigError):
        call(training.ledger)
    assert training.ledger.status().height == height, "a refusal costs no transaction"


@pytest.mark.parametrize(
    "call",
    [
        lambda ledger: ledger.node("alpha/sl/none"),
        lambda ledger: ledger.contract("none"),
        lambda ledger: ledger.round("none", 1),
        lambda ledger: ledger.round("heart", 0),
        lambda ledger: ledger.round("heart", 2),
        lambda ledger: ledger.set_away("heart", "alpha/sl/none"),
        lambda ledger: ledger.set_node_active("alpha/sl/none", True),
    ],
)
def test_what_is_not_there_is_not_found(training, call: Callable[[Any], object]):
    with pytest.raises(NotFound):
        call(training.ledger)


def test_a_refusal_that_only_the_block_shows_is_the_same_exception(training):
    """The state may change between the trial call and the transaction: then the transaction itself is refused."""
    height = training.ledger.status().height
    with pytest.raises(NotLeader, match="claim the round before publishing"):
        training.ledger._chain.send_untried("Training", "publish", "heart", 1, A, 1, b"1" * 32, what="publishing")
    assert training.ledger.status().height == height + 1
    training.check_in(A)


def test_events_come_in_order_after_a_cursor_and_by_contract(training):
    ledger = training.ledger
    ledger.create_contract(spec(name="lung"))
    before = ledger.cursor()
    assert ledger.events(before) == ()
    training.merge_round(1)
    later = ledger.events(before)
    assert [event.name for event in later] == ["CheckedIn"] * 3 + ["Claimed", "Published"]
    assert later[-1].facts == {"round": 1, "node": A, "merged": blob(101)}
    assert later[-1].contract == "heart"
    everything = ledger.events()
    cursors = [event.cursor for event in everything]
    assert cursors == sorted(set(cursors))
    for at in (0, len(cursors) // 2, len(cursors) - 1):
        assert ledger.events(cursors[at]) == everything[at + 1 :]
    assert ledger.events(limit=3) == everything[:3]
    assert ledger.events(contract="lung") == tuple(event for event in everything if event.contract == "lung")
    assert ledger.cursor() >= cursors[-1]


def test_threads_share_a_ledger_and_one_of_them_leads(training):
    training.check_in(A, B, C)
    results: dict[str, SwarmError | None] = {}

    def claim(node: str) -> None:
        try:
            training.ledger.claim("heart", 1, node, 1)
            results[node] = None
        except SwarmError as exc:
            results[node] = exc

    threads = [threading.Thread(target=claim, args=(node,)) for node in (A, B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    leader = training.ledger.round("heart", 1).leader
    assert results.pop(leader) is None
    assert [type(one) for one in results.values()] == [RoundClaimed, RoundClaimed]
