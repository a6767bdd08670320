"""Tables for people: what an SN says of its network, and what a verification found.

For a console that takes text as it stands (cli/command.py): sites and users have written some of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from swarm_hpc.records import (
    ConsensusStatus,
    ContractState,
    NetworkStatus,
    NodeStatus,
    SiteList,
    SiteRecord,
    ValidatorStatus,
)
from swarm_hpc.slurm.job import Job

if TYPE_CHECKING:  # verification.py brings the whole ledger along, which a status needs not wait for
    from swarm_hpc.identity.ca import CertificateRow
    from swarm_hpc.local.verification import Verification

FINGERPRINT_CHARS = 12
MANY = 3
"""So many skipped rounds are told one by one."""


def show_status(status: NetworkStatus, console: Console) -> None:
    """Ledger, consensus, sites, nodes and training contracts of a network."""
    ledger = status.ledger
    console.print(
        f"{status.node}, version {status.version}, up {_span(status.uptime_s)}; ledger {ledger.kind}, chain"
        f" {ledger.chain_id}, block {ledger.height}, {ledger.transactions} transactions",
        soft_wrap=True,
        highlight=False,
    )
    if status.consensus is not None:
        show_consensus(status.consensus, console)
    sites = _table("sites", "site", "state", "address", "joined")
    for site in status.sites:
        sites.add_row(site.name, _site_state(site), site.endpoint, _date(site.joined_at))
    nodes = _table("nodes", "node", "state", ">last heard", ">epoch", ">loss", ">metric", "doing")
    for node in status.nodes:
        nodes.add_row(*_node_row(node))
    columns = ("contract", "state", ">round", "platform", "merge", ">min peers", "nodes")
    contracts = _table("training contracts", *columns)
    for contract in status.contracts:
        spec = contract.spec
        present = sum(participant.active for participant in contract.participants)
        number = contract.round - 1 if contract.state is ContractState.COMPLETED else contract.round
        contracts.add_row(
            spec.name,
            contract.state,
            str(number),
            spec.platform,
            str(spec.merge),
            str(spec.min_peers),
            f"{present} of {len(contract.participants)}",
        )
    for table in (sites, nodes, contracts):
        if table.row_count:
            console.print(table)


def show_consensus(consensus: ConsensusStatus, console: Console) -> None:
    """Whether the sites make blocks, what their operators should know, and who has how much say."""
    lag = f"{consensus.behind} behind" if consensus.behind else "in step"
    console.print(
        f"consensus height {consensus.height} ({lag}), last block {_span(consensus.last_block_age_s)} ago;"
        f" network {consensus.network[:12]}",
        soft_wrap=True,
        highlight=False,
    )
    if consensus.halted:
        console.print(f"HALTED: {consensus.halted}", style="bold red", soft_wrap=True, highlight=False)
    for warning in consensus.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, highlight=False)
    total = sum(one.power for one in consensus.validators)
    table = _table("validators", "site", ">power", ">share", "connection", ">last seen")
    for one in consensus.validators:
        table.add_row(*_validator_row(one, total), style=_validator_style(one))
    if table.row_count:
        console.print(table)


def _validator_row(one: ValidatorStatus, total: int) -> tuple[str, ...]:
    share = f"{100 * one.power / total:.0f} %" if one.power else "none"
    if one.connected:
        return one.site, str(one.power), share, "connected", "now"
    seen = "never" if one.last_seen_s is None else f"{_span(one.last_seen_s)} ago"
    return one.site, str(one.power), share, "missing", seen


def _validator_style(one: ValidatorStatus) -> str:
    if one.connected:
        return "" if one.power else "yellow"
    return "red" if one.power else "dim"


def show_sites(found: SiteList, console: Console) -> None:
    """The sites that are or were members, in the order of their admission, and those that ask to be."""
    table = _table("", "site", "address", "state", ">announced", "CA fingerprint", "joined")
    for site in found.sites:
        fingerprint = site.ca_fingerprint.replace(":", "")[:FINGERPRINT_CHARS].lower()
        row = (site.name, site.endpoint, _site_state(site), str(site.announced), fingerprint, _date(site.joined_at))
        table.add_row(*row)
    members = {site.name for site in found.sites if site.active}
    for asks in found.applications:
        state = "asks with other keys" if asks.site in members else "asks"
        table.add_row(asks.site, asks.endpoint, state, "", "", "", style="yellow")
    console.print(table)


def _site_state(site: SiteRecord) -> str:
    if not site.active:
        return "removed"
    return "member, lost" if site.lost else "member"


def _node_row(node: NodeStatus) -> tuple[str, ...]:
    progress = node.progress
    return (
        node.node.name,
        "active" if node.node.active else "away",
        "" if node.last_seen_s is None else f"{_span(node.last_seen_s)} ago",
        f"{progress.epoch}/{progress.total_epochs}" if progress.total_epochs else "",
        "" if progress.loss is None else f"{progress.loss:.4g}",
        "" if progress.metric is None else f"{progress.metric_name} {progress.metric:.4g}".strip(),
        progress.waiting or (progress.contract and f"training {progress.contract}"),
    )


def show_jobs(jobs: Sequence[Job], console: Console) -> None:
    """Slurm jobs: what each waits for or runs on, how it ended, and what it has used."""
    columns = ("job", "name", "user", "state", "why", ">in queue", ">ran", ">GPU hours", ">requeued", "nodes")
    table = _table("Slurm jobs", *columns)
    for job in jobs:
        used = f"{job.gpu_hours:.2f}{'' if job.has_all_gpu_hours else '*'}" if job.num_gpus else ""
        state = job.state if job.ended_s is None else f"{job.state} {_span(job.ended_s)} ago"
        spans = (_span(job.queued_s), _span(job.ran_s) if job.ran_s else "")
        number = str(job.num_restarts or "")
        table.add_row(job.id, job.name, job.user, state, job.why, *spans, used, number, job.nodes)
    console.print(table)
    if any(job.num_gpus and not job.has_all_gpu_hours for job in jobs):
        console.print("* since the latest start: there is no slurmdbd to tell of what went before", highlight=False)


def show_certificates(rows: Sequence[CertificateRow], console: Console) -> None:
    """What the certificates of a file say, one block each."""
    for row in rows:
        console.print(
            f"{', '.join(row.names) or row.subject}\n  site         {row.site or '-'}\n  subject      {row.subject}\n"
            f"  issuer       {row.issuer}\n  valid        {row.valid_from:%Y-%m-%d %H:%M} to"
            f" {row.valid_to:%Y-%m-%d %H:%M} UTC\n  fingerprint  {row.fingerprint}",
            soft_wrap=True,
            highlight=False,
        )


def show_verification(found: Verification, console: Console) -> None:
    """What was checked and, by round, what did not match."""
    table = _table("", "contract", "round", "node", "what is wrong")
    for finding in found.findings:
        table.add_row(finding.contract, str(finding.round), finding.node, finding.reason)
    if table.row_count:
        console.print(table)
    for finding in found.skipped[:MANY]:
        console.print(f"skipped: {finding}", highlight=False, soft_wrap=True)
    if len(found.skipped) > MANY:
        console.print(f"skipped: {len(found.skipped) - MANY} more for such a reason")
    skipped = f", {len(found.skipped)} skipped" if found.skipped else ""
    rounds = "round" if found.rounds_checked == 1 else "rounds"
    mismatches = "mismatch" if found.mismatches == 1 else "mismatches"
    text = f"{found.rounds_checked} {rounds} checked, {found.mismatches} {mismatches}{skipped}"
    console.print(text, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    """`>` before a column's name: numbers, to the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _span(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count or unit == "s")
