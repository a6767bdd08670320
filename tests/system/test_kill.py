"""kill -9 at any place: the others finish, or wait and say so; who comes back rejoins at the current round."""

import signal
import time
from collections.abc import Iterator

import pytest

from swarm_hpc import processes
from swarm_hpc.config import MergeConfig, TransferConfig, TransferMode
from swarm_hpc.local.swarm import fetch_rounds
from swarm_hpc.records import MergePlan, RoundState
from tests.system.conftest import CONTRACT, PATIENCE_S, Network, sites_of, until

every_way = pytest.mark.parametrize(
    ("plan", "mode"),
    [
        (MergePlan.LEADER, TransferMode.GATEWAY),
        (MergePlan.LEADER, TransferMode.DIRECT),
        (MergePlan.SHARDED, TransferMode.DIRECT),
    ],
)
both_plans = pytest.mark.parametrize("plan", MergePlan)
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]
EVERYBODY = {"alpha", "beta", "gamma"}


def claims(network: Network) -> Iterator[tuple[str, int]]:
    """(site of the leader, round) of each claim from now on, as soon as it is made."""
    cursor, deadline = network.events(0, 0.0)[0], time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        cursor, events = network.events(cursor, 10.0)
        for event in events:
            if event.name == "Claimed":
                yield str(event.facts["node"]).partition("/")[0], int(event.facts["round"])


def stop_a_leader(network: Network) -> tuple[str, int]:
    """SIGSTOP an SL between its claim and its publication; (site, round)."""
    for site, number in claims(network):
        network.swarm.kill(site, signal.SIGSTOP)
        now = next(r for r in fetch_rounds(network.swarm.client(), CONTRACT) if r.number == number)
        if now.state is RoundState.CLAIMED:
            return site, number
        network.swarm.kill(site, signal.SIGCONT)  # it was quicker than we are
    raise AssertionError("no leader could be caught before it had published")


def kill_while_another_leads(network: Network, site: str) -> int:
    """SIGKILL the site's SL just when another one claims a round; the number of the round."""
    number = next(number for leader, number in claims(network) if leader != site)
    network.swarm.kill(site, signal.SIGKILL)
    return number


def rejoin(network: Network, site: str, number: int) -> None:
    """Restart the site's SL; it takes part in a round after `number`, in which all do."""
    network.start_sl(site, env={"SIZE": "1000000"})
    network.await_round(number + 1, with_sites=EVERYBODY)


@every_way
def test_a_killed_leader_is_replaced_and_rejoins(network, mode, plan):
    net = network(transfer=TransferConfig(mode=mode), merge=MergeConfig(plan=plan))
    net.start(SIZE="1000000")
    net.await_round(1, with_sites=EVERYBODY)
    site, number = stop_a_leader(net)
    net.swarm.kill(site, signal.SIGKILL)
    others = EVERYBODY - {site}

    after = net.await_round(number)
    assert after.number == number
    assert after.leader.partition("/")[0] in others
    net.await_round(number + 1, with_sites=others)
    rejoin(net, site, number)
    net.finish()


def test_a_stalled_leader_is_replaced_and_returns_as_an_ordinary_node(network):
    net = network(lease_s=30.0, leader_timeout_s=2)
    net.start(SIZE="1000000")
    site, number = stop_a_leader(net)
    after = net.await_round(number)
    assert after.leader.partition("/")[0] != site
    net.swarm.kill(site, signal.SIGCONT)
    net.await_round(number + 1, with_sites=EVERYBODY)
    net.finish()


@every_way
def test_the_others_go_on_without_a_killed_node_which_rejoins(network, mode, plan):
    net = network(transfer=TransferConfig(mode=mode), merge=MergeConfig(plan=plan))
    net.start(SIZE="1000000")
    net.await_round(1, with_sites=EVERYBODY)
    number = kill_while_another_leads(net, "beta")
    number = net.await_round(number + 1, with_sites={"alpha", "gamma"}).number
    rejoin(net, "beta", number)
    net.finish()


def test_the_others_go_on_when_a_leader_dies_with_the_only_copy_of_its_result(network):
    net = network(transfer=TransferConfig(mode=TransferMode.DIRECT))
    net.start(SIZE="1000000")
    net.await_round(1, with_sites=EVERYBODY)
    site, number = next(claims(net))
    until(lambda: fetch_rounds(net.swarm.client(), CONTRACT)[number - 1].state is RoundState.PUBLISHED, "a result")
    net.swarm.kill(site, signal.SIGKILL)
    number = net.await_round(number + 1, with_sites=EVERYBODY - {site}).number
    rejoin(net, site, number)
    net.finish()


def test_a_killed_program_ends_its_node_and_can_be_started_again(network):
    net = network()
    net.start(SIZE="1000000")
    net.await_round(1, with_sites=EVERYBODY)
    net.ml_process("gamma").kill()
    gamma = net.swarm.processes["gamma"]
    until(lambda: gamma.code is not None, "gamma's SL to end")
    assert gamma.code == 1
    assert "SIGKILL" in gamma.log.read_text()
    number = net.await_round(2, with_sites={"alpha", "beta"}).number
    rejoin(net, "gamma", number)
    net.finish()


@both_plans
def test_training_survives_a_killed_sn_that_comes_back_after_ten_seconds(network, plan):
    net = network(merge=MergeConfig(plan=plan))
    net.start()
    before = net.await_round(2)
    net.swarm.kill("sn", signal.SIGKILL)
    processes.stop([net.swarm.processes["sn"]], grace_s=0)
    time.sleep(10)  # what is tested: a network without its SN for that long
    net.swarm.start_sn()
    assert net.rounds()[before.number - 1].merged == before.merged
    net.await_round(before.number + 3, with_sites=EVERYBODY)
    net.finish()


def test_below_min_peers_the_rest_waits_and_says_so(network):
    net = network("alpha beta", min_peers=2)
    net.start()
    net.await_round(1)
    net.swarm.kill("beta", signal.SIGKILL)

    def waiting():
        alpha = net.node("alpha")
        return alpha is not None and "min_peers 2" in alpha.progress.waiting

    until(waiting, "alpha to say that it waits for peers")
    number = len(net.rounds())
    assert net.swarm.processes["alpha"].code is None
    net.start_sl("beta")
    after = net.await_round(number + 1)
    assert sites_of(after) == {"alpha", "beta"}
    net.finish()
