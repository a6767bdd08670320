"""What the contracts hand out, as records, and records as what the contracts take. No rule is decided here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import (
    LABEL,
    CheckIn,
    ContractSpec,
    ContractState,
    DeclaredContract,
    Event,
    FinishMode,
    Merge,
    NodeRecord,
    Participant,
    Platform,
    Resources,
    Round,
    RoundState,
    SiteRecord,
    Task,
    TaskRun,
    Taskrunner,
    TaskrunnerPeer,
    TaskState,
    TaskType,
    TrainingContract,
)
from swarm_hpc.sn.chain import LogEntry

ROUND_STATES = (RoundState.OPEN, RoundState.CLAIMED, RoundState.PUBLISHED)
FINISH_MODES = (None, FinishMode.INACTIVE, FinishMode.SNAPSHOT, FinishMode.ACTIVE)
TASK_STATES = (TaskState.IDLE, TaskState.RUNNING, TaskState.COMPLETE, TaskState.ERROR, TaskState.RESET)
NO_NUMBER = -(2**255)
"""Stands for None where the ledger keeps a loss or a metric."""
MICRO = 1_000_000
LOGS_PER_BLOCK = 1 << 16

View = Mapping[str, Any]


# --- records from the ledger ---


def site(view: View) -> SiteRecord:
    """A site of Registry.site_page."""
    return SiteRecord(**dict(view) | {"consensus_key": hash_text(view["consensus_key"])})


def node(view: View) -> NodeRecord:
    """A node of Registry.node or node_page."""
    return NodeRecord(**view)


def contract(view: View) -> TrainingContract:
    """Training.contract_view."""
    spec = view["spec"]
    return TrainingContract(
        spec=ContractSpec(
            **spec
            | {
                "platform": Platform(spec["platform"]),
                "merge": Merge.parse(spec["merge"]),
                "model": hash_text(spec["model"]),
            }
        ),
        state=ContractState.COMPLETED if view["completed"] else ContractState.TRAINING,
        round=view["round"],
        created_at=view["created_at"],
        participants=tuple(
            Participant(node=one["node"], active=one["active"], finished=FINISH_MODES[one["finished"]])
            for one in view["participants"]
        ),
    )


def declared(view: View) -> DeclaredContract:
    """Training.declared_view."""
    return DeclaredContract(**view)


def round_(contract_name: str, view: View) -> Round:
    """Training.round_view."""
    state = ROUND_STATES[view["state"]]
    below = state is not RoundState.OPEN or view["below_min_peers"]
    return Round(
        contract=contract_name,
        number=view["number"],
        state=state,
        check_ins=tuple(_check_in(one) for one in view["check_ins"]),
        num_active=view["num_active"],
        min_peers=view["min_peers"],
        closable=view["closable"],
        closes_in_s=None if below else view["closes_in_s"],
        leader=view["leader"],
        leader_due_in_s=view["leader_due_in_s"] if state is RoundState.CLAIMED else None,
        replaceable=view["replaceable"],
        orphaned=view["orphaned"],
        merged=hash_text(view["merged"]),
        published_at=view["published_at"],
    )


def _check_in(view: View) -> CheckIn:
    entry = view["entry"]
    return CheckIn(
        node=view["node"],
        blob=hash_text(entry["blob"]),
        weight=entry["weight"],
        num_nodes=entry["num_nodes"],
        loss=_from_micro(entry["loss"]),
        metric=_from_micro(entry["metric"]),
        epoch=entry["epoch"],
        resources=Resources(
            job=entry["job"], image=entry["image"], cpu_s=entry["cpu_ms"] / 1000, gpu_s=entry["gpu_ms"] / 1000
        ),
        at=view["at"],
    )


def task(view: View) -> Task:
    """Tasks.task_view."""
    fields = dict(view["task"])
    del fields["num_lines"]
    fields["type"] = TaskType(fields["type"])
    return Task(**fields, body=tuple(view["body"]))


def taskrunner(view: View) -> Taskrunner:
    """Tasks.taskrunner_view."""
    fields = _run(view)
    if not view["run"]:
        fields["state"] = TaskState.IDLE
    counts = {key: view[key] for key in ("name", "run", "num_runs", "version", "reachable")}
    return Taskrunner(**counts, **fields)


def task_run(taskrunner: str, view: View) -> TaskRun:
    """Tasks.run_view."""
    return TaskRun(taskrunner=taskrunner, number=view["number"], **_run(view))


def _run(view: View) -> dict[str, Any]:
    fields = dict(view["last"])
    del fields["prereq"]
    fields["state"] = TASK_STATES[fields["state"]]
    fields["peers"] = tuple(TaskrunnerPeer(**one | {"state": TASK_STATES[one["state"]]}) for one in view["peers"])
    return fields


def event(log: LogEntry) -> Event:
    """An event; its facts are the arguments without the contract's name and the key that it is found by."""
    facts: dict[str, str | int] = {}
    for name, value in log.arguments.items():
        if name == "mode":
            facts[name] = str(FINISH_MODES[value])
        elif name == "state":
            facts[name] = str(TASK_STATES[value])
        elif name not in ("key", "contract"):
            facts[name] = _fact(value)
    return Event(
        cursor=log.block * LOGS_PER_BLOCK + log.index,
        name=log.name,
        contract=log.arguments.get("contract", ""),
        block=log.block,
        at=log.at,
        facts=facts,
    )


def _fact(value: Any) -> str | int:
    if isinstance(value, tuple | list):
        return " ".join(map(hash_text, value))
    return hash_text(value) if isinstance(value, bytes) else value


# --- records for the ledger, in the order of the contracts' structs ---


def spec_arguments(spec: ContractSpec) -> tuple[object, ...]:
    """Training.Spec."""
    return (
        spec.name,
        str(spec.platform),
        text(str(spec.merge), 96, "merge"),
        spec.min_peers,
        spec.quorum_wait_s,
        spec.leader_timeout_s,
        hash_bytes(spec.model, "model"),
        text(spec.image, 71, "image"),
    )


def entry_arguments(check_in: CheckIn) -> tuple[object, ...]:
    """Training.Entry. Losses are kept to 1e-6, times to 1 ms; a loss that is no finite number counts as none."""
    used = check_in.resources
    return (
        hash_bytes(check_in.blob, "blob"),
        check_in.weight,
        check_in.num_nodes,
        _to_micro(check_in.loss),
        _to_micro(check_in.metric),
        check_in.epoch,
        text(used.job, 64, "resources.job"),
        text(used.image, 71, "resources.image"),
        round(used.cpu_s * 1000),
        round(used.gpu_s * 1000),
    )


def hash_bytes(digest: str, field: str) -> bytes:
    """64 hex digits as 32 bytes, none as zeros; ConfigError names the field."""
    try:
        value = bytes.fromhex(digest)
    except ValueError:
        value = b"?"
    if len(value) not in (0, 32):
        raise ConfigError(f"{field}: {digest!r} is no hash of 64 hex digits")
    return value.rjust(32, b"\0")


def hash_text(digest: bytes) -> str:
    """32 bytes as 64 hex digits, zeros as none."""
    return digest.hex() if any(digest) else ""


def label(value: str, field: str) -> None:
    """ConfigError where the value could not stand on the ledger, in a URL and in a file name."""
    if not LABEL.fullmatch(value):
        raise ConfigError(f"{field}: {value!r}: use letters, digits, '.', '_', '-', at most 63")


def text(value: str, most: int, field: str) -> str:
    """The value itself; ConfigError where the ledger has no room for it."""
    if len(value.encode()) > most:
        raise ConfigError(f"{field}: {value!r} is longer than {most} bytes")
    return value


def _to_micro(value: float | None) -> int:
    return NO_NUMBER if value is None or not math.isfinite(value) else round(value * MICRO)


def _from_micro(value: int) -> float | None:
    return None if value == NO_NUMBER else value / MICRO
