"""Large training contracts: a round of many participants stays within a transaction's gas, and the limit is told."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import LedgerError
from swarm_hpc.records import CheckIn, ContractSpec, ContractState, FinishMode, Merge, Platform
from swarm_hpc.sn.ledger import Ledger

MODEL = "11" * 32


def join_all(ledger: Ledger, num_nodes: int) -> list[str]:
    ledger.create_contract(
        ContractSpec(
            name="large",
            platform=Platform.PYTORCH,
            merge=Merge(),
            min_peers=num_nodes,
            quorum_wait_s=0,
            leader_timeout_s=60,
            model=MODEL,
        )
    )
    nodes = [f"alpha/sl/sl-{i}" for i in range(num_nodes)]
    for node in nodes:
        ledger.register_node(node, "", "i")
        ledger.join("large", node, 1, Platform.PYTORCH, MODEL)
    return nodes


def merge(ledger: Ledger, nodes: list[str]) -> None:
    for node in nodes:
        ledger.check_in("large", 1, 1, CheckIn(node=node, blob="22" * 32, weight=1))
    assert ledger.round("large", 1).closable
    ledger.claim("large", 1, nodes[-1], 1)
    ledger.publish("large", 1, nodes[-1], 1, "33" * 32)
    round_ = ledger.round("large", 1)
    assert [one.node for one in round_.check_ins] == nodes
    assert (round_.num_active, round_.leader) == (len(nodes), nodes[-1])


@pytest.mark.slow
def test_a_round_of_64_participants_fits_into_its_transactions(network):
    nodes = join_all(network.ledger, 64)
    merge(network.ledger, nodes)
    network.ledger.finish("large", nodes[0], 1, FinishMode.INACTIVE)
    assert network.ledger.contract("large").state is ContractState.COMPLETED


@pytest.mark.slow
def test_256_participants_is_the_limit(new_network):
    ledger = new_network("embedded").ledger
    nodes = join_all(ledger, 256)
    ledger.register_node("alpha/sl/one-more", "", "i")
    with pytest.raises(LedgerError, match="at most 256 participants"):
        ledger.join("large", "alpha/sl/one-more", 1, Platform.PYTORCH, MODEL)
    merge(ledger, nodes)
