"""What sacct prints where a cluster has slurmdbd: all runs of a job, and jobs that slurmctld has forgotten. Pure.

The clusters that the tests start have no slurmdbd; the tests hold what a real one (22.05) has said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from swarm_hpc.errors import ProtocolError
from swarm_hpc.slurm.job import OVER, Cause, Job
from swarm_hpc.slurm.squeue import count_gpus

# fmt: off
FIELDS: Final = (
    "JobIDRaw", "State", "User", "Partition", "Submit", "Start", "End", "ElapsedRaw", "NNodes", "AllocTRES",
    "ExitCode", "Reason", "NodeList", "Timelimit", "JobName",
)
WORDS: Final = (
    "sacct", "--allocations", "--duplicates", "--parsable2", "--noheader", f"--format={','.join(FIELDS)}",
)
# fmt: on
"""Asks for a line per run; sacct gives times as SLURM_TIME_FORMAT says."""
_UNKNOWN: Final = frozenset({"", "None", "Unknown", "None assigned"})
_BEGINNING: Final = re.compile(r"\n(?=\d+\|)")
_CAUSES: Final = {"PREEMPTED": Cause.PREEMPTION, "NODE_FAIL": Cause.NODE_FAILURE, "REQUEUED": Cause.COMMAND}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One start of a job, or its wait for one: a requeued job has several."""

    job: str
    name: str
    user: str
    partition: str
    state: str
    """How it ended, without `by ...`; REQUEUED, PREEMPTED and NODE_FAIL may be followed by another run."""
    cancelled_by: str
    """User name or ID."""
    reason: str
    """Why it waited, even if it has ended since."""
    nodes: str
    num_nodes: int
    num_gpus: int
    time_limit: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    ran_s: float
    exit_code: int
    signal: int


def parse(text: str) -> dict[str, tuple[Run, ...]]:
    """The runs of each job, in order. ProtocolError where the text is not in the form that was asked for."""
    # not by lines: a job's name may have several, and it is any user's on the cluster
    records = _BEGINNING.split(text.removesuffix("\n"))
    runs = sorted((_run(record) for record in records if record.strip()), key=lambda one: (one.job, _age(one)))
    return {job: tuple(group) for job, group in groupby(runs, key=lambda one: one.job)}


def complete(job: Job, runs: Sequence[Run]) -> Job:
    """The job as slurmctld knows it, with what slurmdbd knows of it besides."""
    # a cluster may give an ID anew after years: only as many runs as slurmctld has counted
    own = [run for run in runs if (run.name, run.user) == (job.name, job.user)][-1 - job.num_restarts :]
    if not own:
        return job
    # a run that waits may not be there yet
    earlier = own if own[-1].ended_at and not job.is_over else own[:-1]
    return replace(
        job,
        earlier_gpu_s=_gpu_seconds(earlier),
        requeued_after=_cause(earlier) or job.requeued_after,
        cancelled_by=own[-1].cancelled_by if job.is_over else "",
    )


def forgotten(runs: Sequence[Run], now: float) -> Job:
    """A job that only slurmdbd knows."""
    last = runs[-1]
    return Job(
        id=last.job,
        name=last.name,
        user=last.user,
        partition=last.partition,
        state=last.state,
        reason="" if last.state in OVER else last.reason,
        nodes=last.nodes,
        num_nodes=last.num_nodes,
        num_tasks=0,
        num_gpus=last.num_gpus,
        queued_s=max(0.0, (last.started_at or last.ended_at or now) - last.submitted_at),
        ran_s=last.ran_s,
        num_restarts=len(runs) - 1,
        exit_code=last.exit_code,
        signal=last.signal,
        time_limit=last.time_limit,
        requeued_at=last.submitted_at if len(runs) > 1 else None,
        ended_s=max(0.0, now - (last.ended_at or now)) if last.state in OVER else None,
        requeued_after=_cause(runs[:-1]),
        cancelled_by=last.cancelled_by,
        earlier_gpu_s=_gpu_seconds(runs[:-1]),
    )


def _cause(earlier: Sequence[Run]) -> Cause:
    """Why there is another one after these."""
    return _CAUSES.get(earlier[-1].state, Cause.UNKNOWN) if earlier else Cause.UNKNOWN


def _gpu_seconds(runs: Iterable[Run]) -> float:
    return sum(run.num_gpus * run.ran_s for run in runs)


def _age(run: Run) -> tuple[float, float]:
    return run.submitted_at, run.started_at or float("inf")


def _run(line: str) -> Run:
    values = line.split("|")
    if len(values) < len(FIELDS):
        raise ProtocolError(f"sacct printed {line!r}, which is not in the form that was asked for")
    # the name comes last, as it may hold anything
    found = dict(zip(FIELDS, [*values[: len(FIELDS) - 1], "|".join(values[len(FIELDS) - 1 :])], strict=True))
    text = {key: "" if value in _UNKNOWN else value for key, value in found.items()}
    # `CANCELLED by 1000`
    state = re.fullmatch(r"(\w+)\+?(?: by (\S+))?", text["State"])
    ended = re.fullmatch(r"(\d+):(\d+)", text["ExitCode"] or "0:0")
    try:
        if not state or not ended:
            raise ValueError(f"{text['State']!r} or {text['ExitCode']!r} is unknown")
        return Run(
            job=text["JobIDRaw"],
            name=text["JobName"],
            user=text["User"],
            partition=text["Partition"],
            state=state[1],
            cancelled_by=state[2] or "",
            reason=text["Reason"],
            nodes=text["NodeList"],
            num_nodes=int(text["NNodes"] or 0),
            num_gpus=count_gpus(text["AllocTRES"]),
            time_limit=text["Timelimit"],
            submitted_at=float(text["Submit"]),
            started_at=float(text["Start"]) if text["Start"] else None,
            ended_at=float(text["End"]) if text["End"] else None,
            ran_s=float(text["ElapsedRaw"] or 0),
            exit_code=int(ended[1]),
            signal=int(ended[2]),
        )
    except ValueError as exc:
        raise ProtocolError(f"sacct printed {line!r}, where {exc}") from exc
