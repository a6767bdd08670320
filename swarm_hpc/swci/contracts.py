"""Commands about training contracts and their rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarm_hpc.errors import NotFound
from swarm_hpc.records import (
    CheckIn,
    DeclaredContract,
    NodeStatus,
    Progress,
    Round,
    TrainingContract,
)
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swci.grammar import Label, Subject
from swarm_hpc.swci.result import Result, facts, moment, said, table
from swarm_hpc.swci.session import Session

SUBJECT = Subject("Training contracts")

_PAGE: Final = 64
_REACH: Final = 1024
"""Rounds that are looked through for the latest check-in of a participant who stays away."""
UNINITIALIZED: Final = "UNINITIALIZED"
"""State of a name that was declared, and under which nobody has trained yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """How one node does in a contract: what it reported last, else what it checked in with."""

    node: str
    leader: bool
    """It leads the round under way, or led the last one."""
    loss: float | None
    metric: float | None
    total_epochs: int
    completed_epochs: int


@SUBJECT.command("CREATE CONTRACT {contract}")
async def create_contract(session: Session, contract: Label) -> Result:
    """Set a name aside for a training contract; the first node that trains under it says the rest."""
    await session.sn.declare_contract(contract)
    return said(f"CONTRACT CREATED : {contract}", data={"contract": contract})


@SUBJECT.command("LIST CONTRACTS")
async def list_contracts(session: Session) -> Result:
    """List the training contracts, and the names that were set aside for one."""
    declared, contracts = await session.sn.declared_contracts(), await session.sn.contracts()
    rows: list[tuple[object, ...]] = [
        (one.spec.name, one.state.upper(), one.round, len(one.participants), one.spec.min_peers) for one in contracts
    ]
    rows += [(one.name, UNINITIALIZED, 0, 0, "") for one in declared]
    heading = ("Name", "State", "Round", "Peers", "MinPeers")
    return said(*table(heading, rows), data={"contracts": contracts, "declared": declared})


@SUBJECT.command("GET CONTRACT INFO {contract}")
async def get_contract_info(session: Session, contract: Label) -> Result:
    """Show what a contract's participants have agreed on."""
    found = await _find(session.sn, contract)
    if isinstance(found, DeclaredContract):
        values = [("CONTRACT", found.name), ("STATE", UNINITIALIZED), ("CREATED", moment(found.created_at))]
        return said(*facts(values), data=found)
    spec = found.spec
    lines = facts(
        [
            ("CONTRACT", spec.name),
            ("TYPE", "TRAINING"),
            ("CREATED", moment(found.created_at)),
            ("PLATFORM", spec.platform.upper()),
            ("MERGE_METHOD", spec.merge.method.upper()),
            ("MERGE", spec.merge),
            ("MIN_PEERS", spec.min_peers),
            ("QUORUM_WAIT_S", spec.quorum_wait_s),
            ("LEADER_TIMEOUT_S", spec.leader_timeout_s),
            ("MODEL", spec.model),
            ("IMAGE", spec.image or "any"),
        ]
    )
    return said(*lines, data=found)


@SUBJECT.command("GET CONTRACT STATUS {contract}")
async def get_contract_status(session: Session, contract: Label) -> Result:
    """Show how far a contract's training is."""
    found = await _find(session.sn, contract)
    if isinstance(found, DeclaredContract):
        return said(*facts([("CONTRACT", found.name), ("STATE", UNINITIALIZED)]), data=found)
    view = (await session.sn.round(contract, found.round)).round
    peers = found.participants
    lines = facts(
        [
            ("CONTRACT", contract),
            ("STATE", found.state.upper()),
            ("PEERS", len(peers)),
            ("ACTIVE_PEERS", sum(one.active for one in peers)),
            ("COMPLETED_PEERS", sum(one.finished is not None for one in peers)),
            ("MIN_PEERS", found.spec.min_peers),
            ("ROUND", found.round),
            ("ROUND_STATE", view.state.upper()),
            ("CHECK_INS", len(view.check_ins)),
            ("LEADER", view.leader),
        ]
    )
    return said(*lines, data={"contract": found, "round": view})


@SUBJECT.command("PERFDATA {contract}")
async def perfdata(session: Session, contract: Label) -> Result:
    """Show loss, metric and epochs of each node of a contract, while it trains as well as later."""
    found = await _find(session.sn, contract)
    if isinstance(found, DeclaredContract):
        raise NotFound(f"{contract}: nobody has trained under this name yet")
    rounds = await _newest_rounds(session.sn, found)
    rows = tuple(_performances(found, rounds, await session.sn.nodes()))
    heading = ("UID", "SLAdmin", "Loss", "Metric", "TotalEpochs", "CompletedEpochs")
    cells = [
        (one.node, "YES" if one.leader else "NO", one.loss, one.metric, one.total_epochs or "", one.completed_epochs)
        for one in rows
    ]
    return said(*table(heading, cells), data=rows)


@SUBJECT.command("RESET CONTRACT {contract}")
async def reset_contract(session: Session, contract: Label) -> Result:
    """Make the name of a completed contract free for a new training; the old one stays under another name."""
    archive = await session.sn.reset_contract(contract)
    lines = (f"CONTRACT RESET : {contract}", f"ARCHIVED AS : {archive}")
    return said(*lines, data={"contract": contract, "archive": archive})


@SUBJECT.command("LIST ROUNDS {contract} [{first} [{last}]]", ours=True)
async def list_rounds(session: Session, contract: Label, first: int = 1, last: int | None = None) -> Result:
    """List a contract's rounds, from the first to the current one, or a part of them."""
    rounds = await session.sn.rounds(contract, first, last)
    heading = ("Round", "State", "CheckIns", "Leader", "Published", "Merged")
    rows = [
        (one.number, one.state.upper(), len(one.check_ins), one.leader, moment(one.published_at), one.merged)
        for one in rounds
    ]
    return said(*table(heading, rows), data=rounds)


@SUBJECT.command("GET ROUND {contract} {number}", ours=True)
async def get_round(session: Session, contract: Label, number: int) -> Result:
    """Show the check-ins of one round."""
    found = (await session.sn.round(contract, number)).round
    heading = ("UID", "Weight", "Nodes", "Loss", "Metric", "Epoch", "CheckedIn", "Blob")
    rows = [
        (one.node, one.weight, one.num_nodes, one.loss, one.metric, one.epoch, moment(one.at), one.blob)
        for one in found.check_ins
    ]
    return said(*table(heading, rows), data=found)


async def _find(sn: SnClient, name: str) -> TrainingContract | DeclaredContract:
    """The contract, or its name where that is all there is; NotFound."""
    try:
        return await sn.contract(name)
    except NotFound:
        for one in await sn.declared_contracts():
            if one.name == name:
                return one
        raise


async def _newest_rounds(sn: SnClient, contract: TrainingContract) -> tuple[Round, ...]:
    """So many of the newest rounds, in order, that each participant's latest check-in is among them: at most _REACH."""
    rounds: tuple[Round, ...] = ()
    missing = {one.node for one in contract.participants}
    end, last = max(contract.round - _REACH, 0), contract.round
    number = 2  # the open one, and the one before it, are mostly enough
    while missing and last > end:
        page = await sn.rounds(contract.spec.name, max(1, last - number + 1), last)
        rounds = (*page, *rounds)
        missing -= {check_in.node for one in page for check_in in one.check_ins}
        last, number = last - number, _PAGE
    return rounds


def _performances(
    contract: TrainingContract, rounds: tuple[Round, ...], nodes: tuple[NodeStatus, ...]
) -> list[Performance]:
    """One per participant, in the ledger's order."""
    progress = {one.node.name: one.progress for one in nodes if one.progress.contract == contract.spec.name}
    checked_in = {check_in.node: check_in for one in rounds for check_in in one.check_ins}
    led = [one.leader for one in rounds if one.leader]
    leader = led[-1] if led else ""
    return [
        _performance(one.node, one.node == leader, progress.get(one.node), checked_in.get(one.node))
        for one in contract.participants
    ]


def _performance(node: str, leader: bool, now: Progress | None, last: CheckIn | None) -> Performance:
    now = now or Progress()
    return Performance(
        node=node,
        leader=leader,
        loss=now.loss if now.loss is not None or last is None else last.loss,
        metric=now.metric if now.metric is not None or last is None else last.metric,
        total_epochs=now.total_epochs,
        completed_epochs=max(now.epoch, last.epoch if last else 0),
    )
