"""Sites whose clocks differ by half a minute: the SN's own, which stamps Ethereum's blocks, and CometBFT's, which
stamps the votes whose median is the time of its blocks."""

import os
import time

import pytest

from swarm_hpc.cache import cache_folder
from swarm_hpc.sn.abci import MAX_AHEAD_S
from swarm_hpc.sn.contracts import TICKS_PER_S
from tests.conftest import cannot_run
from tests.lab.geth import GethNetwork
from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(600)]
AHEAD_S = {"gamma": 30.0, "delta": -30.0}


@pytest.fixture(scope="module")
def shifted_cometbft() -> str:
    """A CometBFT whose clock is wrong by SWARM_HPC_CLOCK_SHIFT_S."""
    found = sorted((cache_folder(os.environ) / "bin").glob("cometbft-shifted-*"))
    if not found:
        cannot_run("no CometBFT with a clock that can be set off: scripts/install_ledger_tools.sh --for-tests")
    return str(found[-1])


def test_clocks_that_differ_by_30_s_hold_up_nothing(tmp_path, ledger_programs, caplog):
    with GethNetwork(
        tmp_path, ledger_programs, clock=lambda site: time.time() + AHEAD_S.get(site.name, 0.0)
    ) as network:
        for number in range(3):
            for site in network.sites:
                network.ledger(site).announce(f"{site.name}.{number}.test:1")
        network.await_height(network.sites[0].block_number())
        newest_s = network.sites[0].block_time_ms() / TICKS_PER_S
        endpoints = [{one.name: one.endpoint for one in network.ledger(site).sites()} for site in network.sites]
    assert endpoints == [{site.name: f"{site.name}.2.test:1" for site in network.sites}] * 4
    assert newest_s - time.time() < max(AHEAD_S.values()) + 10 < MAX_AHEAD_S
    assert "refused" not in caplog.text, "no site takes another's time for wrong"


def test_votes_by_clocks_that_differ_by_30_s_hold_up_nothing_and_the_wrong_clock_is_told(
    consortium_of, shifted_cometbft
):
    environments = {
        site: {"COMETBFT_BINARY": shifted_cometbft, "SWARM_HPC_CLOCK_SHIFT_S": str(shift_s)}
        for site, shift_s in AHEAD_S.items()
    }
    net = consortium_of(environments=environments)

    def is_told_of_its_clock(site: str) -> bool:
        return any("check NTP" in warning for warning in net.consensus(site).warnings)

    with trained(net) as load:
        load.await_rounds(3)
        net.until(lambda: is_told_of_its_clock("gamma"), "gamma to be told that its clock is ahead")
        assert not is_told_of_its_clock("alpha")
