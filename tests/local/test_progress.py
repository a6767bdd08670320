"""What the watcher of a local swarm reads."""

import io
from pathlib import Path

from swarm_hpc.local.progress import ProgressView, Watched
from swarm_hpc.records import LedgerStatus, NetworkStatus, NodeRecord, NodeStatus, Progress


def node(site, *, active=True, **progress):
    record = NodeRecord(name=f"{site}/sl/sl-1", endpoint="", instance="i", incarnation=1, active=active, since=0)
    return NodeStatus(node=record, last_seen_s=0.0, progress=Progress(**progress))


def watched(*nodes, ended=()):
    ledger = LedgerStatus(kind="embedded", chain_id=1, height=1, transactions=1, blocks=1, genesis="0x0")
    status = NetworkStatus(
        site="alpha", node="alpha/sn/sn", version="0", uptime_s=1.0, ledger=ledger, sites=(), nodes=nodes, contracts=()
    )
    return Watched(status=status, ended=frozenset(ended))


def lines(*looks):
    stream = io.StringIO()
    with ProgressView(["alpha", "beta"], Path("run"), stream) as view:
        view.say("training")
        for look in looks:
            view.show(look)
    return stream.getvalue().splitlines()


def test_without_a_terminal_each_look_is_one_line_with_every_site():
    first = node("alpha", epoch=2, total_epochs=5, loss=0.25, metric=0.5, metric_name="auc")
    out = lines(watched(first, node("beta", waiting="1 of 2 peers")))
    assert out[0] == "training (run)"
    assert out[1] == "round 0; alpha training 2/5 0.250 auc 0.500; beta 1 of 2 peers; baselines 0"


def test_the_state_tells_a_node_that_is_away_or_finished_or_still_to_come():
    assert "alpha away; beta starting" in lines(watched(node("alpha", active=False)))[1]
    assert "alpha finished" in lines(watched(node("alpha", active=False), ended={"alpha"}))[1]
    assert "alpha SN does not answer" in lines(Watched(status=None))[1]
