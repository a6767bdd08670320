"""Tables for people."""

import io

from rich.console import Console

from swarm_hpc.local import tables
from swarm_hpc.local.verification import Verification
from swarm_hpc.records import LedgerStatus, NetworkStatus, NodeRecord, NodeStatus, Progress, SiteRecord
from swarm_hpc.sl.verify import Finding


def shown(show, value):
    console = Console(file=io.StringIO(), width=200)
    show(value, console)
    return console.file.getvalue()


SITE = SiteRecord(
    name="alpha",
    account="0x0",
    endpoint="h:1",
    ca_fingerprint="",
    consensus_key="",
    p2p_id="",
    active=True,
    joined_at=0,
    announced=1,
)


def test_a_status_shows_who_is_there_and_what_they_do():
    record = NodeRecord(name="alpha/sl/sl-1", endpoint="", instance="i", incarnation=1, active=True, since=0)
    node = NodeStatus(node=record, last_seen_s=75.0, progress=Progress(epoch=1, total_epochs=3, waiting="1 of 2 peers"))
    status = NetworkStatus(
        site="alpha",
        node="alpha/sn/sn",
        version="0.1.0",
        uptime_s=90061.0,
        ledger=LedgerStatus(kind="embedded", chain_id=5, height=8, transactions=7, blocks=8, genesis="0x0"),
        sites=(SITE,),
        nodes=(node,),
        contracts=(),
    )
    text = shown(tables.show_status, status)
    for expected in ("alpha/sn/sn", "up 1 d 1 h", "block 8", "1970-01-01", "1 min 15 s ago", "1/3", "1 of 2 peers"):
        assert expected in text
    assert "training contracts" not in text


def test_a_verification_names_the_round_that_is_wrong():
    finding = Finding(contract="digits", round=3, node="beta/sl/sl-1", reason="blob was changed")
    text = shown(tables.show_verification, Verification(rounds_checked=9, findings=(finding,), skipped=()))
    assert all(
        part in text for part in ("digits", " 3 ", "beta/sl/sl-1", "blob was changed", "9 rounds checked, 1 mismatch")
    )


def test_a_clean_verification_says_what_was_skipped_and_why():
    gone = Finding(contract="digits", round=1, node="", reason="not kept")
    text = shown(tables.show_verification, Verification(rounds_checked=9, findings=(), skipped=(gone,)))
    assert text == "skipped: digits round 1: not kept\n9 rounds checked, 0 mismatches, 1 skipped\n"


def test_many_skipped_rounds_are_counted():
    gone = tuple(Finding(contract="digits", round=n, node="", reason="not kept") for n in range(1, 9))
    text = shown(tables.show_verification, Verification(rounds_checked=1, findings=(), skipped=gone))
    assert text.splitlines()[3:] == ["skipped: 5 more for such a reason", "1 round checked, 0 mismatches, 8 skipped"]
