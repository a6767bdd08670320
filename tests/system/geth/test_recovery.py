"""Two of four sites are gone for good: the operators of the others agree to go on, and one comes back after all."""

import json

import pytest

from swarm_hpc.errors import ConfigError
from swarm_hpc.sn import epochs
from swarm_hpc.sn.network import Network
from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(400)]


def recover(net, name, *without):
    return net.ask(name, lambda client: client.recover(without))


def test_half_of_the_sites_go_on_by_agreement_and_the_others_may_return(consortium_of):
    net = consortium_of()
    with trained(net) as load:
        load.await_rounds(1)
    before = load.results("alpha")
    with pytest.raises(ConfigError, match="the ledger goes on"):
        recover(net, "alpha", "gamma", "delta")

    for name in ("gamma", "delta"):
        net.kill(name, back=False)
    net.until(lambda: (seen := net.consensus("alpha")) and seen.halted, "alpha to see that the ledger stands still")
    assert {"gamma", "delta"} <= set(net.consensus("alpha").halted.replace(",", " ").split())
    net.until(lambda: (seen := net.consensus("beta")) and seen.halted, "beta to see it, too")
    with pytest.raises(ConfigError, match="delta is missing, too"):
        recover(net, "alpha", "gamma")
    with pytest.raises(ConfigError, match="is connected"):
        recover(net, "alpha", "beta", "gamma", "delta")

    alone = recover(net, "alpha", "gamma", "delta")
    assert (alone.approved, alone.missing) == (("alpha",), ("beta",))
    assert net.consensus("alpha").halted, "one operator alone changes nothing"
    both = recover(net, "beta", "gamma", "delta")
    assert not both.missing
    net.await_whole("alpha", "beta")
    assert net.powers("alpha")["alpha"] > net.powers("alpha")["beta"] > 0
    assert (net.powers("alpha")["gamma"], net.powers("alpha")["delta"]) == (0, 0)
    assert load.results("beta") == before

    net.launch("gamma")
    net.await_whole("alpha", "beta", "gamma")
    with trained(net, "alpha", "beta", "gamma", final=("alpha", "beta", "gamma")) as again:
        again.await_rounds(1)
    assert {number: again.results("gamma")[number] for number in before} == before
    record = json.loads((net.sites["gamma"].ledger / epochs.FILE).read_text())
    assert [sorted(one["approvals"]) for one in record] == [["alpha", "beta"]]


def test_who_agreed_is_proven_by_signatures(consortium_of):
    net = consortium_of("alpha beta")
    net.kill("alpha", back=False)
    net.until(lambda: (seen := net.consensus("beta")) and seen.halted, "beta to see that the ledger stands still")
    done = recover(net, "beta", "alpha")
    assert (done.approved, done.missing) == (("beta",), ())
    net.await_whole("beta")
    folder = net.sites["beta"].ledger
    network = Network.load(folder / "network.json")
    (epoch,) = epochs.load(folder / epochs.FILE, network)
    assert epoch.without == ("alpha",)
    assert not epoch.missing()
