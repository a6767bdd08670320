"""What transactions cost where there is a price: the same after any number of SN starts."""

from __future__ import annotations

import pytest

from tests.sn.ledger.conftest import Network

STARTS = 8


def paid(network: Network) -> int:
    """Gas price of the newest transaction."""
    w3 = network.ledger._chain._w3
    block = w3.eth.get_block("latest")
    return int(w3.eth.get_transaction(block["transactions"][-1])["gasPrice"])


@pytest.mark.geth
def test_opening_the_ledger_again_and_again_does_not_raise_the_price(new_network):
    """geth suggests a price by what was paid before: who paid more than that would drive it up without end."""
    network = new_network("geth")
    before = paid(network)
    for _ in range(STARTS):
        network.ledger_of(0).register_node("alpha/sl/sl-1", "", "i")
        assert paid(network) <= before
