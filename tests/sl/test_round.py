"""What a node decides to do in a round, alone and among others that are interleaved at random and may be lost."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_hpc.records import (
    CheckIn,
    ContractSpec,
    ContractState,
    FinishMode,
    Merge,
    Participant,
    Platform,
    RoundState,
    TrainingContract,
)
from swarm_hpc.sl import round as rounds
from swarm_hpc.sl.round import decide
from tests.lab.rounds import round_of

A, B, C = "alpha/sl/sl", "beta/sl/sl", "gamma/sl/sl"
SPEC = ContractSpec(
    name="digits",
    platform=Platform.PYTORCH,
    merge=Merge(),
    min_peers=2,
    quorum_wait_s=30,
    leader_timeout_s=10,
    model="00",
)


def contract(*participants, state=ContractState.TRAINING):
    nodes = [p if isinstance(p, Participant) else Participant(node=p, active=True) for p in participants or (A, B, C)]
    return TrainingContract(spec=SPEC, state=state, round=7, created_at=0, participants=tuple(nodes))


def view(*checked_in, **changes):
    check_ins = tuple(CheckIn(node=node, blob=f"blob of {node}", weight=1) for node in checked_in)
    return round_of(7, **{"check_ins": check_ins, "num_active": 3} | changes)


def next_of(me, seen, agreed=None, **options):
    return decide(seen, agreed or contract(), me, f"blob of {me}", **options)


def test_a_node_checks_in_to_an_open_round():
    assert next_of(A, view()) == rounds.CheckIn()
    assert next_of(A, view(B)) == rounds.CheckIn()


def test_other_parameters_than_those_checked_in_are_checked_in_again():
    assert decide(view(A), contract(), A, "other") == rounds.CheckIn()


def test_a_closable_round_is_claimed_by_those_in_it():
    assert next_of(A, view(A, B, closable=True)) == rounds.Claim()
    assert next_of(C, view(A, B, closable=True)) == rounds.CheckIn()


def test_below_min_peers_a_node_says_for_whom_it_waits():
    action = next_of(A, view(A, min_peers=3))
    assert action == rounds.Wait(
        "digits round 7: 1 of 3 peers checked in (min_peers 3); waiting for beta/sl/sl, gamma/sl/sl", 30.0
    )


def test_too_few_nodes_are_told_to_start_more():
    action = next_of(A, view(A, num_active=1), contract(A, Participant(node=B, active=False)))
    assert action.reason == "digits round 7: 1 of 1 peers checked in (min_peers 2); start 1 more SL node"


def test_with_min_peers_a_node_says_when_the_round_closes():
    action = next_of(A, view(A, B, closes_in_s=12))
    assert action == rounds.Wait("digits round 7: 2 of 3 peers checked in; closes in 12 s without gamma/sl/sl", 12.0)


def test_nodes_that_are_away_or_finished_inactive_are_not_waited_for():
    gone = Participant(node=B, active=False)
    done = Participant(node=C, active=True, finished=FinishMode.INACTIVE)
    assert "waiting for" not in next_of(A, view(A), contract(A, gone, done)).reason


def test_the_leader_merges_and_the_others_wait_for_it():
    claimed = view(A, B, state=RoundState.CLAIMED, leader=A, leader_due_in_s=8)
    assert next_of(A, claimed) == rounds.Merge()
    assert next_of(B, claimed) == rounds.Wait(
        "digits round 7: alpha/sl/sl merges the parameters of 2 peers (8 s left)", 8.0
    )


def test_a_lost_leader_is_replaced_by_a_participant_only():
    lost = view(A, B, state=RoundState.CLAIMED, leader=A, leader_due_in_s=-2, replaceable=True)
    assert next_of(B, lost) == rounds.Claim()
    assert isinstance(next_of(C, lost), rounds.Wait)
    assert next_of(A, lost) == rounds.Merge()


def test_a_round_whose_participants_are_all_lost_is_led_by_another():
    orphan = view(A, B, state=RoundState.CLAIMED, leader=A, replaceable=True, orphaned=True)
    assert next_of(C, orphan) == rounds.Claim()
    assert next_of(C, replace(orphan, leader=C, replaceable=False, orphaned=False)) == rounds.Merge()


def test_a_node_whose_blob_is_gone_withdraws_from_a_claimed_round_only():
    claimed = view(A, B, state=RoundState.CLAIMED, leader=B)
    assert decide(claimed, contract(), A, "other", lost=True) == rounds.Withdraw()
    assert decide(replace(claimed, leader=A), contract(), A, "other", lost=True) == rounds.Withdraw()
    assert decide(view(A, B), contract(), A, "other", lost=True) == rounds.CheckIn()
    away = contract(Participant(node=A, active=False), B)
    assert isinstance(decide(claimed, away, A, "other", lost=True), rounds.Wait)
    assert decide(replace(claimed, leader=A), away, A, "other", lost=True) == rounds.Merge()


def test_a_published_round_is_taken_late_by_who_is_not_in_it():
    done = view(A, B, state=RoundState.PUBLISHED, merged="m")
    assert next_of(A, done) == rounds.Take("m", late=False)
    assert next_of(C, done) == rounds.Take("m", late=True)


def test_a_completed_contract_is_over_unless_the_round_has_a_result():
    completed = contract(state=ContractState.COMPLETED)
    assert next_of(A, view(A), completed) == rounds.Over()
    assert next_of(A, view(A, state=RoundState.PUBLISHED, merged="m"), completed) == rounds.Take("m", late=False)


def test_a_finished_node_waits_until_others_open_the_round():
    agreed = contract(Participant(node=A, active=True, finished=FinishMode.SNAPSHOT), B)
    assert next_of(A, view(), agreed, standing=True).reason == "digits: 1 of 2 nodes still train: beta/sl/sl"
    assert next_of(A, view(B), agreed, standing=True) == rounds.CheckIn()


class Rules:
    """The ledger's rules for one round (docs/protocol.md 4), in memory and with a clock to turn by hand."""

    def __init__(self, nodes, min_peers):
        self.active = dict.fromkeys(nodes, True)
        self.round = view(min_peers=min_peers)
        self.now = self.quorum_at = self.due = 0
        self.results = []
        self.unreachable = set()
        """Nodes that are gone with their blobs."""

    def look(self):
        waited = [node for node, active in self.active.items() if active]
        seen = self.round
        inside = {check_in.node for check_in in seen.check_ins}
        quorum = len(inside) >= seen.min_peers
        claimed = seen.state is RoundState.CLAIMED
        replaceable = claimed and (self.now > self.due or not self.active[seen.leader])
        return replace(
            seen,
            num_active=len(waited),
            closable=seen.state is RoundState.OPEN
            and quorum
            and (inside >= set(waited) or self.now - self.quorum_at >= SPEC.quorum_wait_s),
            closes_in_s=self.quorum_at + SPEC.quorum_wait_s - self.now if quorum and not claimed else None,
            leader_due_in_s=self.due - self.now if claimed else None,
            replaceable=replaceable,
            orphaned=replaceable and not inside & set(waited),
        )

    def contract(self):
        return contract(*(Participant(node=node, active=active) for node, active in self.active.items()))

    def check_in(self, node):
        if self.round.state is not RoundState.OPEN:
            return
        others = tuple(check_in for check_in in self.round.check_ins if check_in.node != node)
        mine = CheckIn(node=node, blob=f"blob of {node}", weight=1)
        self.round = replace(self.round, check_ins=(*others, mine))
        if len(self.round.check_ins) == self.round.min_peers:
            self.quorum_at = self.now

    def claim(self, node):
        seen = self.look()
        if seen.orphaned or ((seen.closable or seen.replaceable) and rounds.is_checked_in(seen, node)):
            self.round = replace(self.round, state=RoundState.CLAIMED, leader=node)
            self.due = self.now + SPEC.leader_timeout_s

    def drop(self, node, absent):
        if self.round.state is not RoundState.CLAIMED or self.round.leader != node or self.active[absent]:
            return
        self.round = replace(self.round, check_ins=tuple(c for c in self.round.check_ins if c.node != absent))
        if len(self.round.check_ins) < self.round.min_peers:
            self.round = replace(self.round, state=RoundState.OPEN, leader="")

    def publish(self, node, merged):
        if self.round.state is RoundState.CLAIMED and self.round.leader == node:
            self.results.append(merged)
            self.round = replace(self.round, state=RoundState.PUBLISHED, merged=merged)


class Node:
    """Follows `decide`; between looking and acting, anything may happen, and merging takes several steps."""

    def __init__(self, name, rules):
        self.name, self.rules = name, rules
        self.action = None
        self.merged = None

    def step(self):
        if self.action is None:
            self.action = next_of(self.name, self.rules.look(), self.rules.contract())
            return
        action, self.action = self.action, None
        match action:
            case rounds.CheckIn():
                self.rules.check_in(self.name)
            case rounds.Claim():
                self.rules.claim(self.name)
            case rounds.Merge():
                self.lead(self.rules.round.check_ins)
            case rounds.Take(merged, late):
                assert late is not (f"blob of {self.name}" in merged.split("+"))
                self.merged = merged

    def lead(self, check_ins):
        missing = [check_in.node for check_in in check_ins if check_in.node in self.rules.unreachable]
        for node in missing:
            self.rules.drop(self.name, node)
        if not missing:
            self.rules.publish(self.name, "+".join(sorted(check_in.blob for check_in in check_ins)))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(2, 5))
def test_all_nodes_that_live_end_with_the_same_single_result(data, num_nodes):
    names = [f"s{i}/sl/sl" for i in range(num_nodes)]
    min_peers = data.draw(st.integers(1, num_nodes))
    rules = Rules(names, min_peers)
    nodes = {name: Node(name, rules) for name in names}
    lost = 0
    for _ in range(data.draw(st.integers(0, 60))):
        name = data.draw(st.sampled_from(sorted(nodes)))
        match data.draw(st.sampled_from(["step", "step", "step", "lose", "wait"])):
            case "step":
                nodes[name].step()
            # the ledger hears of it now or when the lease is over; transfer=direct: the blob is lost, too
            case "lose" if num_nodes - lost > min_peers:
                rules.active[name] = data.draw(st.booleans())
                if data.draw(st.booleans()):
                    rules.unreachable.add(name)
                del nodes[name]
                lost += 1
            case "wait":
                rules.now += data.draw(st.integers(1, 40))
    for name in names:
        rules.active[name] = name in nodes
    for _ in range(60):
        for node in nodes.values():
            node.step()
        rules.now += 3
    assert {node.merged for node in nodes.values()} == set(rules.results)
    assert len(rules.results) == 1
