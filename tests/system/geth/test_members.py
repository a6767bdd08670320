"""Sites that come, are voted out, and stay away: the validators are always those that the ledger says."""

from __future__ import annotations

import asyncio

import pytest

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import IdentityError, LedgerError, NotMember, SwarmError
from swarm_hpc.identity import certs
from swarm_hpc.sn.client import SnClient
from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(600)]


def validators(net, name: str) -> int:
    """How many validators CometBFT itself has."""
    return int(net.comet(name).call("validators")["total"])


def refusal(net, node: str, of: str, act) -> SwarmError | None:
    """What that site's SN answers to a request of a node of another one; None where it grants it."""

    async def ask():
        identity = certs.load(net.identity(node))
        connection = ConnectionConfig(connect_timeout_s=5.0)
        async with SnClient(identity, net.address(of), connection=connection) as client:
            try:
                await act(client)
            except SwarmError as exc:
                return exc
            return None

    return asyncio.run(ask())


def test_a_site_joins_during_training_takes_part_and_is_voted_out(consortium_of):
    net = consortium_of(guests="epsilon")
    with trained(net, *net.names, final=net.names) as load:
        net.launch("epsilon")
        net.await_whole(*net.names, "epsilon")
        load.add("epsilon")
        load.await_part(*net.names, "epsilon")
        assert validators(net, "alpha") == 5
        blob = next(blob for _, node, blob in load.promises.check_ins if node == "alpha/sl/sl")
        assert refusal(net, "epsilon/sn/sn", "alpha", lambda client: client.download(blob)) is None

        load.drop("epsilon")
        for voter in ("alpha", "beta"):
            net.ask(voter, lambda client: client.remove("epsilon"))
        assert net.powers("gamma")["epsilon"] == 10
        net.ask("gamma", lambda client: client.remove("epsilon"))
        net.until(lambda: "epsilon" not in net.powers("delta"), "epsilon to be no validator any more")
        net.until(lambda: validators(net, "alpha") == 4, "CometBFT to have four validators")

        # Its SN is told, and gets nothing any more: no blocks, no parameters; its nodes cannot train.
        site = net.sites["epsilon"]
        site.wanted = False
        net.until(
            lambda: (seen := net.consensus("epsilon")) and "was voted out" in seen.halted,
            "epsilon's SN to say that it is no member any more",
        )
        assert isinstance(
            refusal(net, "epsilon/sn/sn", "alpha", lambda client: client.download(blob)), IdentityError | LedgerError
        )
        load.await_part(*net.names)
        height = net.consensus("epsilon").height
        load.await_part(*net.names)
        assert net.consensus("epsilon").height == height < net.consensus("alpha").height
        net.stop("epsilon")
        net.launch("epsilon")
        site.wanted = False
        net.until(lambda: not site.is_up, "epsilon's SN to end, since it is no member")
        assert site.process.code == NotMember.exit_code
        assert "was voted out" in site.process.tail()
