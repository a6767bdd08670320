"""Tables for people."""

import io
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from swarm_hpc.cli.command import console
from swarm_hpc.identity.ca import CertificateRow
from swarm_hpc.local import tables
from swarm_hpc.local.verification import Verification
from swarm_hpc.records import (
    ConsensusStatus,
    LedgerStatus,
    NetworkStatus,
    NodeRecord,
    NodeStatus,
    Progress,
    SiteApplication,
    SiteList,
    SiteRecord,
    ValidatorStatus,
)
from swarm_hpc.sl.verify import Finding
from swarm_hpc.slurm.job import Cause
from tests.slurm.conftest import JOB


def shown(show, value):
    with redirect_stdout(io.StringIO()) as out:
        show(value, console())
    return out.getvalue()


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


def validator(site, power=10, last_seen_s=0.0):
    return ValidatorStatus(site=site, power=power, connected=last_seen_s == 0.0, last_seen_s=last_seen_s)


def consensus(*validators, **changes):
    values = {"network": "ab" * 32, "height": 330, "last_block_age_s": 3.2, "behind": 0, "halted": "", "warnings": ()}
    return ConsensusStatus(validators=validators, **(values | changes))


def row_of(text, site):
    [row] = [line for line in text.splitlines() if f"│ {site}" in line]
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_the_consensus_shows_who_has_how_much_say_and_who_is_there():
    found = consensus(validator("alpha", 20), validator("gamma"), validator("beta", last_seen_s=75.0), behind=4)
    text = shown(tables.show_consensus, found)
    assert "height 330 (4 behind), last block 3 s ago; network abababababab\n" in text
    assert row_of(text, "alpha") == ["alpha", "20", "50 %", "connected", "now"]
    assert row_of(text, "beta") == ["beta", "10", "25 %", "missing", "1 min 15 s ago"]
    assert text.index("gamma") < text.index("beta")  # in order of admission
    assert "HALTED" not in text and "warning" not in text


def test_a_site_without_power_or_that_was_never_seen_is_told_as_that():
    found = consensus(validator("alpha"), validator("beta", 0, last_seen_s=None))
    assert row_of(shown(tables.show_consensus, found), "beta") == ["beta", "0", "none", "missing", "never"]
    assert row_of(shown(tables.show_consensus, consensus(validator("alpha", 0))), "alpha")[2] == "none"


def test_a_halt_is_red_and_names_who_is_missing_and_warnings_are_yellow():
    found = consensus(halted="the ledger stands still: missing: beta", warnings=("[bold]the clock[/] differs",))
    terminal = Console(
        file=io.StringIO(), width=40, force_terminal=True, color_system="standard", markup=False, emoji=False
    )
    tables.show_consensus(found, terminal)
    text = terminal.file.getvalue()
    assert "\x1b[1;31mHALTED: the ledger stands still: missing: beta\x1b[0m" in text
    assert "\x1b[33mwarning: [bold]the clock[/] differs\x1b[0m" in text


def test_the_sites_are_shown_with_those_that_ask():
    removed = replace(SITE, name="beta", active=False)
    lost = replace(SITE, name="gamma", lost=True, ca_fingerprint="AB:CD:EF:01:23:45:67:89", announced=3)
    asks = [
        SiteApplication(site=name, account="0x0", endpoint=f"{name}:1", consensus_key="", p2p_id="")
        for name in ("delta", "alpha")
    ]
    text = shown(tables.show_sites, SiteList(sites=(SITE, removed, lost), applications=tuple(asks)))
    assert row_of(text, "beta")[2] == "removed"
    assert row_of(text, "gamma") == ["gamma", "h:1", "member, lost", "3", "abcdef012345", "1970-01-01 00:00"]
    assert row_of(text, "delta") == ["delta", "delta:1", "asks", "", "", ""]
    assert "│ alpha │ alpha:1 │ asks with other keys │" in text


def test_a_job_says_why_it_is_where_it_is_and_what_it_has_used():
    job = replace(JOB, requeued_after=Cause.PREEMPTION, ran_s=1800.0)
    text = shown(tables.show_jobs, [job])
    assert "started again after preemption" in text
    assert " 1.00* " in text
    assert "* since the latest start" in text
    summed = shown(tables.show_jobs, [replace(job, earlier_gpu_s=3600.0)])
    assert " 2.00 " in summed
    assert "*" not in summed


def test_a_job_that_has_ended_says_how_and_when():
    over = replace(JOB, state="FAILED", exit_code=3, ended_s=40.0)
    text = shown(tables.show_jobs, [over])
    assert "FAILED 40 s ago" in text
    assert "exit code 3" in text


def test_what_others_have_named_is_shown_as_it_stands():
    asks = SiteApplication(site="beta", account="0x0", endpoint="[fe80::100:1]:30304", consensus_key="", p2p_id="")
    text = shown(tables.show_sites, SiteList(sites=(replace(SITE, endpoint="[fd00::5]:30304"),), applications=(asks,)))
    assert row_of(text, "alpha")[1] == "[fd00::5]:30304"
    assert row_of(text, "beta")[1] == "[fe80::100:1]:30304"
    assert "swarm-[/x] :100:" in shown(tables.show_jobs, [replace(JOB, name="swarm-[/x] :100:")])
    finding = Finding(contract="digits", round=3, node="", reason="h.0.weight [float32] is missing")
    for where in ("findings", "skipped"):
        found = Verification(**{"rounds_checked": 1, "findings": (), "skipped": (), where: (finding,)})
        assert finding.reason in shown(tables.show_verification, found)


def test_a_certificate_of_any_name_is_shown():
    at = datetime(2026, 1, 31, tzinfo=UTC)
    row = CertificateRow(
        subject="CN=[/x] GPU [lab]",
        names=(),
        site="",
        issuer="CN=[ca]",
        valid_from=at,
        valid_to=at,
        fingerprint="ab:100:cd",
    )
    text = shown(tables.show_certificates, [row])
    assert all(part in text for part in ("CN=[/x] GPU [lab]\n", "CN=[ca]\n", "ab:100:cd"))


def test_nothing_that_is_shown_steers_the_terminal():
    text = shown(tables.show_jobs, [replace(JOB, name="swarm-\x1b[8m\x9b2Jé", user="a\rb")])
    assert "swarm-\\x1b[8m\\x9b2Jé" in text and "a\\x0db" in text
    assert text.isprintable() or {one for one in text if not one.isprintable()} == {"\n"}
