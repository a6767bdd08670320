"""Sites whose clocks differ by half a minute; CometBFT's own clock is the host's, whose votes' median it takes."""

import time

import pytest

from swarm_hpc.sn.abci import MAX_AHEAD_S
from tests.lab.geth import GethNetwork

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(300)]
AHEAD_S = {"gamma": 30.0, "delta": -30.0}


def test_clocks_that_differ_by_30_s_hold_up_nothing(tmp_path, ledger_programs, caplog):
    with GethNetwork(
        tmp_path, ledger_programs, clock=lambda site: time.time() + AHEAD_S.get(site.name, 0.0)
    ) as network:
        for number in range(3):
            for site in network.sites:
                network.ledger(site).announce(f"{site.name}.{number}.test:1")
        network.await_height(network.sites[0].block_number())
        newest = network.sites[0].block_time()
        endpoints = [{one.name: one.endpoint for one in network.ledger(site).sites()} for site in network.sites]
    assert endpoints == [{site.name: f"{site.name}.2.test:1" for site in network.sites}] * 4
    assert newest - time.time() < max(AHEAD_S.values()) + 10 < MAX_AHEAD_S
    assert "refused" not in caplog.text, "no site takes another's time for wrong"
