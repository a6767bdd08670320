"""What nodes that merge a round in shards state on the ledger, and who reads what of it."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import ConfigError, Fenced, NotFound, NotMember
from swarm_hpc.records import Statement

A, B, C = "alpha/sl/sl-1", "alpha/sl/sl-2", "alpha/sl/sl-3"
OF, OTHER = "ab" * 32, "cd" * 32


def blobs(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:064x}" for number in numbers)


def share(ledger, node, *numbers, of=OF, step=0, number=1, incarnation=1):
    ledger.share("heart", number, node, incarnation, Statement(of=of, step=step, blobs=blobs(*numbers)))


def test_each_peer_reads_its_own_of_everybodys_blobs(training):
    ledger = training.ledger
    share(ledger, A, 11, 12, 13)
    share(ledger, B, 21, 22, 23)
    found = [ledger.shared("heart", 1, OF, 0, place) for place in range(4)]
    assert found == [dict(zip((A, B), blobs(10 + place, 20 + place), strict=True)) for place in (1, 2, 3)] + [{}]


def test_a_statement_of_another_round_step_or_set_of_check_ins_is_not_meant(training):
    ledger = training.ledger
    share(ledger, A, 1)
    for asked in (("heart", 2, OF, 0, 0), ("heart", 1, OTHER, 0, 0), ("heart", 1, OF, 1, 0), ("lung", 1, OF, 0, 0)):
        assert ledger.shared(*asked) == {}
    share(ledger, A, 2, step=1)
    share(ledger, A, 3, of=OTHER)
    assert ledger.shared("heart", 1, OF, 0, 0) == {}
    assert ledger.shared("heart", 1, OF, 1, 0) == {A: blobs(2)[0]}
    assert ledger.shared("heart", 1, OTHER, 0, 0) == {A: blobs(3)[0]}


def test_the_latest_statement_counts_and_the_same_again_is_none(training):
    ledger = training.ledger
    share(ledger, A, 1, 2)
    share(ledger, A, 1, 2)
    share(ledger, A, 3)
    share(ledger, B)
    assert ledger.shared("heart", 1, OF, 0, 0) == {A: blobs(3)[0]}
    said = [event for event in ledger.events(contract="heart") if event.name == "Shared"]
    assert [event.facts["blobs"] for event in said] == [" ".join(blobs(1, 2)), *blobs(3), ""]
    assert said[0].facts == {"round": 1, "node": A, "step": 0, "blobs": " ".join(blobs(1, 2))}


def test_a_node_that_gives_up_states_no_hash(training):
    ledger = training.ledger
    ledger.share("heart", 1, A, 1, Statement(of=OF, step=1, blobs=("",)))
    assert ledger.shared("heart", 1, OF, 1, 0) == {A: ""}


def test_nobody_speaks_for_another_sites_node_or_an_older_process(training, network):
    ledger = training.ledger
    with pytest.raises(NotMember):
        share(network.ledger_of(1), A, 1)
    with pytest.raises(NotFound):
        share(ledger, "alpha/sl/nobody", 1)
    ledger.register_node(A, "", "again")
    with pytest.raises(Fenced):
        share(ledger, A, 1)
    share(ledger, A, 1, incarnation=2)
    assert list(ledger.shared("heart", 1, OF, 0, 0)) == [A]


@pytest.mark.parametrize(
    "statement",
    [
        Statement(of=OF, step=16, blobs=blobs(1)),
        Statement(of="ab", step=0, blobs=blobs(1)),
        Statement(of=OF, step=0, blobs=("xy",)),
        Statement(of=OF, step=0, blobs=blobs(*range(1, 258))),
    ],
    ids=["step", "of", "hash", "too many"],
)
def test_what_does_not_fit_is_refused(training, statement):
    with pytest.raises(ConfigError):
        training.ledger.share("heart", 1, A, 1, statement)


def test_there_may_be_as_many_peers_as_a_training_contract_takes(training):
    """In one transaction: the chain's limit of gas holds for it."""
    share(training.ledger, A, *range(1, 257))
    assert training.ledger.shared("heart", 1, OF, 0, 255) == {A: blobs(256)[0]}


@pytest.mark.slow
def test_many_nodes_are_read_page_by_page(training):
    ledger = training.ledger
    nodes = [f"alpha/sl/more-{number}" for number in range(66)]
    for number, node in enumerate(nodes):
        ledger.register_node(node, "", "i")
        share(ledger, node, number + 1)
    assert ledger.shared("heart", 1, OF, 0, 0) == dict(zip(nodes, blobs(*range(1, 67)), strict=True))
