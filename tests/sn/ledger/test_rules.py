"""The rules of rounds under random calls: a plain model says what must be granted, on every kind of chain alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from swarm_hpc.errors import SwarmError
from swarm_hpc.records import CheckIn, ContractSpec, ContractState, FinishMode, Merge, Platform, Round, RoundState
from swarm_hpc.sn.ledger import Ledger

MODEL = "11" * 32
LEADER_TIMEOUT_S = 60
MODES = (FinishMode.INACTIVE, FinishMode.SNAPSHOT, FinishMode.ACTIVE)
NODES = st.integers(0, 3)
# Rounds near the current one, incarnations mostly right: refusals are tried, but most calls go on.
SHIFT = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
STALE = st.sampled_from([0, 0, 0, 0, 0, 0, 0, -1])


@dataclass
class Node:
    incarnation: int = 0
    joined: bool = False
    active: bool = False
    finished: FinishMode | None = None


@dataclass
class RoundModel:
    blobs: dict[int, int] = field(default_factory=dict)
    quorum_at: int = 0
    leader: int | None = None
    due: int = 0
    merged: int | None = None
    dropped: set[int] = field(default_factory=set)


@dataclass
class Model:
    """What docs/protocol.md says of one training contract; each method names the refusal it expects, or None."""

    min_peers: int
    quorum_wait_s: int
    nodes: list[Node] = field(default_factory=lambda: [Node() for _ in range(4)])
    rounds: list[RoundModel] = field(default_factory=lambda: [RoundModel()])
    completed: bool = False

    def refused(self, who: int, incarnation: int, number: int | None = None) -> str | None:
        node = self.nodes[who]
        if node.incarnation == 0:
            return "NotFound"
        if incarnation != node.incarnation:
            return "Fenced"
        if not node.joined or (number is not None and not 1 <= number <= len(self.rounds)):
            return "NotFound"
        return None

    def join(self, who: int, incarnation: int) -> str | None:
        node = self.nodes[who]
        if node.incarnation == 0:
            return "NotFound"
        if incarnation != node.incarnation:
            return "Fenced"
        if self.completed:
            return "TrainingOver"
        node.joined, node.active, node.finished = True, True, None
        return None

    def awaited(self) -> list[int]:
        return [i for i, one in enumerate(self.nodes) if one.active and one.finished is not FinishMode.INACTIVE]

    def closable(self, round_: RoundModel, now: int) -> bool:
        if len(round_.blobs) < self.min_peers:
            return False
        return set(self.awaited()) <= round_.blobs.keys() or now >= round_.quorum_at + self.quorum_wait_s

    def check_in(self, who: int, incarnation: int, number: int, blob: int, now: int) -> str | None:
        if refusal := self.refused(who, incarnation, number):
            return refusal
        round_, node = self.rounds[number - 1], self.nodes[who]
        if round_.leader is not None:
            return None if round_.blobs.get(who) == blob else "RoundClosed"
        if self.completed or node.finished is FinishMode.INACTIVE:
            return "TrainingOver"
        if who not in round_.blobs and len(round_.blobs) == self.min_peers - 1:
            round_.quorum_at = now
        round_.blobs[who], node.active = blob, True
        round_.dropped.discard(who)
        return None

    def replaceable(self, round_: RoundModel, now: int) -> bool:
        return round_.leader is not None and (now > round_.due or not self.nodes[round_.leader].active)

    def orphaned(self, round_: RoundModel, now: int) -> bool:
        return self.replaceable(round_, now) and not round_.blobs.keys() & set(self.awaited())

    def claim(self, who: int, incarnation: int, number: int, now: int) -> str | None:
        if refusal := self.refused(who, incarnation, number):
            return refusal
        round_ = self.rounds[number - 1]
        if round_.merged is not None:
            return "RoundClosed"
        if self.completed:
            return "TrainingOver"
        if round_.leader is None:
            if who not in round_.blobs or not self.closable(round_, now):
                return "NotEnoughPeers"
        elif round_.leader == who and not self.replaceable(round_, now):
            return None
        elif who not in round_.blobs and not (self.nodes[who].active and self.orphaned(round_, now)):
            return "RoundClosed"
        elif not self.replaceable(round_, now):
            return "RoundClaimed"
        round_.leader, round_.due = who, now + LEADER_TIMEOUT_S
        return None

    def drop(self, who: int, incarnation: int, number: int, absent: int) -> str | None:
        if refusal := self.refused(who, incarnation, number):
            return refusal
        if not self.nodes[absent].joined:
            return "NotFound"
        round_ = self.rounds[number - 1]
        if absent in round_.dropped:
            return None
        if round_.merged is not None:
            return "RoundClosed"
        if self.completed:
            return "TrainingOver"
        if round_.leader != who:
            return "NotLeader"
        if absent not in round_.blobs:
            return "NotFound"
        if self.nodes[absent].active:
            return "RoundError"
        del round_.blobs[absent]
        round_.dropped.add(absent)
        if len(round_.blobs) < self.min_peers:
            round_.leader = None
            self.complete_if_done()
        return None

    def publish(self, who: int, incarnation: int, number: int, merged: int) -> str | None:
        if refusal := self.refused(who, incarnation, number):
            return refusal
        round_ = self.rounds[number - 1]
        if round_.leader != who:
            return "NotLeader"
        if round_.merged is not None:
            return None if round_.merged == merged else "RoundClosed"
        if self.completed:
            return "TrainingOver"
        round_.merged = merged
        self.rounds.append(RoundModel())
        self.complete_if_done()
        return None

    def finish(self, who: int, incarnation: int, mode: FinishMode) -> str | None:
        if refusal := self.refused(who, incarnation):
            return refusal
        if self.nodes[who].finished is not mode:
            self.nodes[who].finished = mode
            self.complete_if_done()
        return None

    def set_away(self, who: int) -> str | None:
        if not self.nodes[who].joined:
            return "NotFound"
        if self.nodes[who].active:
            self.nodes[who].active = False
            self.complete_if_done()
        return None

    def complete_if_done(self) -> None:
        joined = [one for one in self.nodes if one.joined]
        if len(joined) < self.min_peers:
            return
        present = [one for one in joined if one.active]
        finished = all(one.finished for one in joined) or (present and all(one.finished for one in present))
        left = [one for one in joined if one.finished is not FinishMode.INACTIVE]
        self.completed |= len(left) < self.min_peers or (bool(finished) and not self.rounds[-1].blobs)


class Rules(RuleBasedStateMachine):
    """Makes each call on all networks at once: the same answers everywhere, and those that the model expects."""

    def __init__(self, networks: list[Any], case: int) -> None:
        super().__init__()
        self.networks = networks
        self.contract = f"contract-{case}"
        self.names = [f"alpha/sl/sl-{case}-{i}" for i in range(4)]
        self.frozen: dict[int, set[CheckIn]] = {}
        self.published: dict[int, Round] = {}

    @initialize(min_peers=st.integers(1, 3), quorum_wait_s=st.sampled_from([0, 20]))
    def create(self, min_peers: int, quorum_wait_s: int) -> None:
        self.model = Model(min_peers, quorum_wait_s)
        spec = ContractSpec(
            name=self.contract,
            platform=Platform.PYTORCH,
            merge=Merge(),
            min_peers=min_peers,
            quorum_wait_s=quorum_wait_s,
            leader_timeout_s=LEADER_TIMEOUT_S,
            model=MODEL,
        )
        self.everywhere(None, lambda ledger: ledger.create_contract(spec))
        for who in range(3):
            self.register(who)
            self.join(who, 0)

    def everywhere(self, expected: str | None, call: Callable[[Ledger], object]) -> None:
        outcomes = [outcome(call, network.ledger) for network in self.networks]
        assert len(set(outcomes)) == 1, outcomes
        assert outcomes[0][0] == expected, outcomes[0]

    def now(self) -> int:
        times = {network.ledger.now() for network in self.networks}
        assert len(times) == 1
        return times.pop()

    @rule(who=NODES)
    def register(self, who: int) -> None:
        self.model.nodes[who].incarnation += 1
        self.everywhere(None, lambda ledger: ledger.register_node(self.names[who], "", "i"))

    @rule(who=NODES, stale=STALE)
    def join(self, who: int, stale: int) -> None:
        incarnation = max(1, self.model.nodes[who].incarnation + stale)
        expected = self.model.join(who, incarnation)
        call = (self.contract, self.names[who], incarnation, Platform.PYTORCH, MODEL)
        self.everywhere(expected, lambda ledger: ledger.join(*call))

    @rule(who=NODES, shift=SHIFT, stale=STALE, blob=st.integers(1, 2))
    def check_in(self, who: int, shift: int, stale: int, blob: int) -> None:
        number, incarnation = self.numbers(who, shift, stale)
        expected = self.model.check_in(who, incarnation, number, blob, self.now())
        statement = CheckIn(node=self.names[who], blob=f"{blob:064x}", weight=1 + who)
        self.everywhere(expected, lambda ledger: ledger.check_in(self.contract, number, incarnation, statement))

    @rule(blob=st.integers(1, 2))
    def check_in_all(self, blob: int) -> None:
        for who, node in enumerate(self.model.nodes):
            if node.joined:
                self.check_in(who, 0, 0, blob)

    @rule(who=NODES, shift=SHIFT, stale=STALE)
    def claim(self, who: int, shift: int, stale: int) -> None:
        number, incarnation = self.numbers(who, shift, stale)
        expected = self.model.claim(who, incarnation, number, self.now())
        self.everywhere(expected, lambda ledger: ledger.claim(self.contract, number, self.names[who], incarnation))

    @rule(who=NODES, shift=SHIFT, stale=STALE, absent=NODES)
    def drop(self, who: int, shift: int, stale: int, absent: int) -> None:
        number, incarnation = self.numbers(who, shift, stale)
        expected = self.model.drop(who, incarnation, number, absent)
        call = (self.contract, number, self.names[who], incarnation, self.names[absent])
        self.everywhere(expected, lambda ledger: ledger.drop(*call))
        if expected is None and number in self.frozen:
            self.frozen[number] = {one for one in self.frozen[number] if one.node != self.names[absent]}

    @rule(absent=NODES, leave=st.booleans())
    def lose_and_drop_as_leader(self, absent: int, leave: bool) -> None:
        leader = self.model.rounds[-1].leader
        if leader is not None:
            if leave:
                self.set_away(absent)
            self.drop(leader, 0, 0, absent)

    @rule(who=NODES)
    def lose_all_others_and_claim(self, who: int) -> None:
        for other in range(4):
            if other != who:
                self.set_away(other)
        self.claim(who, 0, 0)

    @rule(who=NODES, shift=SHIFT, stale=STALE, merged=st.integers(1, 2))
    def publish(self, who: int, shift: int, stale: int, merged: int) -> None:
        number, incarnation = self.numbers(who, shift, stale)
        expected = self.model.publish(who, incarnation, number, merged)
        call = (self.contract, number, self.names[who], incarnation, f"{merged:064x}")
        self.everywhere(expected, lambda ledger: ledger.publish(*call))

    @rule(merged=st.integers(1, 2))
    def publish_as_leader(self, merged: int) -> None:
        leader = self.model.rounds[-1].leader
        if leader is not None:
            self.publish(leader, 0, 0, merged)

    @rule(who=NODES, mode=st.sampled_from(MODES), stale=STALE)
    def finish(self, who: int, mode: FinishMode, stale: int) -> None:
        incarnation = max(1, self.model.nodes[who].incarnation + stale)
        expected = self.model.finish(who, incarnation, mode)
        self.everywhere(expected, lambda ledger: ledger.finish(self.contract, self.names[who], incarnation, mode))

    @rule(who=NODES)
    def set_away(self, who: int) -> None:
        expected = self.model.set_away(who)
        self.everywhere(expected, lambda ledger: ledger.set_away(self.contract, self.names[who]))

    @rule(seconds=st.sampled_from([5, 20, 61]))
    def wait(self, seconds: int) -> None:
        for network in self.networks:
            network.wait(seconds)

    def numbers(self, who: int, shift: int, stale: int) -> tuple[int, int]:
        return max(0, len(self.model.rounds) + shift), max(1, self.model.nodes[who].incarnation + stale)

    @invariant()
    def everybody_sees_the_same_and_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        ledgers = [network.ledger for network in self.networks]
        contract = ledgers[0].contract(self.contract)
        round_ = ledgers[0].round(self.contract, contract.round)
        for other in ledgers[1:]:
            assert other.contract(self.contract) == contract
            assert other.round(self.contract, contract.round) == round_
        now, model = self.now(), self.model.rounds[-1]
        assert contract.round == len(self.model.rounds)
        assert (contract.state is ContractState.COMPLETED) == self.model.completed
        assert {(one.node, one.active, one.finished) for one in contract.participants} == {
            (self.names[i], node.active, node.finished) for i, node in enumerate(self.model.nodes) if node.joined
        }
        assert {one.node: int(one.blob, 16) for one in round_.check_ins} == {
            self.names[who]: blob for who, blob in model.blobs.items()
        }
        assert round_.state is (RoundState.OPEN if model.leader is None else RoundState.CLAIMED)
        assert round_.leader == ("" if model.leader is None else self.names[model.leader])
        assert round_.replaceable == self.model.replaceable(model, now)
        assert round_.orphaned == self.model.orphaned(model, now)
        if round_.state is RoundState.OPEN:
            assert round_.closable == (self.model.closable(model, now) and not self.model.completed)
            assert round_.num_active == len(self.model.awaited())
            assert (round_.closes_in_s is None) == (len(model.blobs) < self.model.min_peers)

    @invariant()
    def participants_are_frozen_but_for_drops_and_published_rounds_stay(self) -> None:
        if not hasattr(self, "model"):
            return
        ledger = self.networks[0].ledger
        for number in range(max(1, len(self.model.rounds) - 1), len(self.model.rounds) + 1):
            round_ = ledger.round(self.contract, number)
            if round_.state is RoundState.OPEN:
                # never claimed, or opened again by a drop
                self.frozen.pop(number, None)
            else:
                assert self.frozen.setdefault(number, set(round_.check_ins)) == set(round_.check_ins)
                assert len(round_.check_ins) >= self.model.min_peers
                assert round_.leader in self.names
            if round_.state is RoundState.PUBLISHED:
                assert self.published.setdefault(number, round_) == round_

    def teardown(self) -> None:
        """From the events alone: rounds are published once each, in order, by whoever claimed them last."""
        claimed: dict[int, str] = {}
        expected = 1
        for event in self.networks[0].ledger.events(contract=self.contract):
            number, node = int(event.facts.get("round", 0)), str(event.facts.get("node", ""))
            if event.name == "Claimed":
                assert number == expected
                claimed[number] = node
            elif event.name == "Published":
                assert (number, claimed[number]) == (expected, node)
                expected += 1


def outcome(call: Callable[[Ledger], object], ledger: Ledger) -> tuple[str | None, str]:
    try:
        call(ledger)
    except SwarmError as exc:
        return type(exc).__name__, str(exc)
    return None, ""


@pytest.mark.parametrize(
    ("kinds", "examples", "steps"),
    [
        (["embedded"], 10, 25),
        pytest.param(["embedded"], 40, 30, marks=pytest.mark.slow),
        pytest.param(["embedded", "py-evm"], 4, 20, marks=pytest.mark.slow),
        pytest.param(["embedded", "geth"], 4, 20, marks=pytest.mark.geth),
    ],
)
def test_random_calls_are_granted_and_refused_as_the_protocol_says(new_network, kinds, examples, steps):
    networks = [new_network(kind) for kind in kinds]
    cases = iter(range(10**6))
    run_state_machine_as_test(
        lambda: Rules(networks, next(cases)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
