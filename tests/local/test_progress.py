"""What the watcher of a local swarm reads."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from swarm_hpc.local.progress import LINE_CHARS, ProgressView, Watched
from swarm_hpc.records import (
    ConsensusStatus,
    ContractSpec,
    ContractState,
    LedgerStatus,
    Merge,
    NetworkStatus,
    NodeRecord,
    NodeStatus,
    Platform,
    Progress,
    TrainingContract,
    ValidatorStatus,
)


def node(site, *, active=True, contract="digits", **progress):
    record = NodeRecord(name=f"{site}/sl/sl-1", endpoint="", instance="i", incarnation=1, active=active, since=0)
    return NodeStatus(node=record, last_seen_s=0.0, progress=Progress(contract=contract, **progress))


def contract(number, state=ContractState.TRAINING):
    spec = ContractSpec(
        name="digits",
        platform=Platform.PYTORCH,
        merge=Merge(),
        min_peers=2,
        quorum_wait_s=1,
        leader_timeout_s=1,
        model="0" * 64,
    )
    return TrainingContract(spec=spec, state=state, round=number, created_at=0, participants=())


def watched(*nodes, ended=(), contracts=(), **baselines):
    ledger = LedgerStatus(kind="embedded", chain_id=1, height=1, transactions=1, blocks=1, genesis="0x0")
    status = NetworkStatus(
        site="alpha",
        node="alpha/sn/sn",
        version="0",
        uptime_s=1.0,
        ledger=ledger,
        sites=(),
        nodes=nodes,
        contracts=contracts,
    )
    return Watched(status=status, ended=frozenset(ended), **baselines)


def lines(*looks, every_s=1.0):
    """What is printed without a terminal when a look is taken every so often."""
    now = 0.0
    stream = io.StringIO()
    with ProgressView(["alpha", "beta"], Path("run"), stream=stream, clock=lambda: now) as view:
        view.say("training")
        for look in looks:
            now += every_s
            view.show(look)
    return stream.getvalue().splitlines()


def test_a_line_counts_the_sites_by_what_they_do():
    out = lines(watched(node("alpha"), node("beta", contract=""), num_alone=3, num_alone_done=1))
    assert out == ["   0 s  training, in run", "   1 s  round 0: 1 training, 1 starting; baselines 1 of 3"]


def test_the_state_tells_a_node_that_is_away_or_finished_or_still_to_come():
    assert "1 away, 1 starting" in lines(watched(node("alpha", active=False), contracts=[contract(1)]))[1]
    assert "1 finished, 1 starting" in lines(watched(ended={"alpha"}))[1]
    over = [contract(8, ContractState.COMPLETED)]
    assert "round 7: 2 finished" in lines(watched(node("alpha", active=False), ended={"beta"}, contracts=over))[1]
    assert "2 unknown (the SN does not answer)" in lines(Watched(status=None))[1]


def test_nothing_is_said_twice_until_ten_seconds_have_passed():
    looks = [watched(node("alpha"), node("beta"), contracts=[contract(n)]) for n in range(1, 25)]
    assert [line.split(":")[0] for line in lines(*looks)[1:]] == [
        "   1 s  round 1",
        "  11 s  round 11",
        "  21 s  round 21",
    ]


def test_a_wait_that_lasts_is_told_of_one_node():
    reason = "digits round 5: 1 of 2 peers checked in"
    stuck = watched(node("alpha", waiting=reason), node("beta", waiting=reason), contracts=[contract(5)])
    out = lines(stuck, stuck, stuck)
    assert len(out) == 3
    assert out[2].endswith("round 5: 2 training; alpha: 1 of 2 peers checked in")


def test_a_line_is_never_long():
    stuck = watched(node("alpha", waiting="a long story " * 30), contracts=[contract(5)])
    assert max(map(len, lines(stuck, stuck))) <= LINE_CHARS + len("   0 s  ")


def test_a_terminal_shows_a_table_with_one_unfolded_row_per_site():
    console = Console(file=io.StringIO(), width=100)
    view = ProgressView(["alpha", "beta"], Path("run"), metric="auc", stream=io.StringIO(), clock=lambda: 0.0)
    first = node("alpha", epoch=2, total_epochs=5, loss=0.25, metric=0.5, waiting="digits round 3: " + "waiting " * 20)
    console.print(view.table(watched(first, node("beta"))))
    text = console.file.getvalue()
    [row] = [line for line in text.splitlines() if "alpha" in line]
    assert "waiting waiting" in row and "round 3" not in row
    assert all(part in row for part in ("2/5", "0.250", "0.500"))
    assert max(map(len, text.splitlines())) <= 100


def test_a_terminal_shows_names_as_they_stand():
    console = Console(file=io.StringIO(), width=100)
    view = ProgressView(["alpha"], Path("run [old]"), metric="f1 [macro]", stream=io.StringIO(), clock=lambda: 0.0)
    console.print(view.table(watched(node("alpha", waiting="trying [fd00::5]:30304 again"))))
    text = console.file.getvalue()
    assert all(part in text for part in ("f1 [macro]", "run [old]/logs", "trying [fd00::5]:30304 again"))


def halted(look, *missing):
    sites = [ValidatorStatus(site=name, power=10, connected=name not in missing, last_seen_s=0) for name in "abcd"]
    consensus = ConsensusStatus(
        network="",
        height=1,
        last_block_age_s=60.0,
        behind=0,
        validators=tuple(sites),
        halted="the ledger stands still: a long story" if missing else "",
        warnings=(),
    )
    return replace(look, status=replace(look.status, consensus=consensus))


def test_a_ledger_that_stands_still_is_told_of_with_the_sites_that_are_missing():
    look = watched(node("alpha"), node("beta"), contracts=[contract(5)])
    out = lines(halted(look), halted(look, "b", "c"), halted(look, "b", "c"), halted(look))
    assert [line.partition("; ")[2] for line in out[1:]] == ["", "the ledger stands still without b, c", ""]


def test_the_table_has_it_under_its_rows():
    console = Console(file=io.StringIO(), width=100)
    view = ProgressView(["alpha", "beta"], Path("run"), stream=io.StringIO(), clock=lambda: 0.0)
    console.print(view.table(halted(watched(node("alpha")), "d")))
    assert "the ledger stands still without d" in console.file.getvalue()
