"""How jobs do, asked of squeue; no slurmdbd needed. Parsing is pure; `fetch_jobs` runs the command."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from swarm_hpc.errors import ProtocolError, SlurmError, SlurmMissing
from swarm_hpc.slurm.plan import PREFIX

COMMAND_S: Final = 60.0
"""How long a command of Slurm may take."""
# fmt: off
_OVER: Final = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
))
_FIELDS: Final = (
    "JobID", "State", "Reason", "UserName", "SubmitTime", "StartTime", "TimeUsed", "NumNodes", "NumTasks", "tres-alloc",
    "tres-per-job", "tres-per-node", "tres-per-task", "RestartCnt", "exit_code", "NodeList", "Partition", "Name",
)
# fmt: on
_SEPARATOR: Final = "|"
_UNKNOWN: Final = frozenset({"", "N/A", "Unknown", "(null)", "INVALID"})
_SPAN: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")
_SILENT: Final = re.compile("Unable to contact|timed out|Connection refused|configuration (?:source|file)", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job as Slurm sees it."""

    id: str
    name: str
    user: str
    partition: str
    state: str
    """Slurm's word, such as PENDING or RUNNING."""
    reason: str
    """Why it waits, as Slurm says it (Resources, Licenses, BeginTime); empty where there is nothing to say."""
    nodes: str
    """The compute nodes, as Slurm writes them; empty while there are none."""
    num_nodes: int
    num_tasks: int
    num_gpus: int
    queued_s: float
    """From its (latest) submission or requeue to its start, or until now."""
    ran_s: float
    """Since its latest start."""
    num_restarts: int
    exit_code: int

    @property
    def is_over(self) -> bool:
        """It has come to its end, whichever."""
        return self.state in _OVER

    @property
    def gpu_hours(self) -> float:
        """Since its latest start: what went before a requeue only slurmdbd knows."""
        return self.num_gpus * self.ran_s / 3600

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "gpu_hours": round(self.gpu_hours, 3)}


def fetch_jobs(ids: Sequence[str] = (), *, now: float) -> tuple[Job, ...]:
    """These jobs, ended ones as long as Slurm remembers them (MinJobAge, some minutes); without IDs, ours that are not
    over. `now` is Unix time.

    SlurmMissing: no Slurm on this host, or it does not answer. SlurmError: it refused to say.
    """
    words = ["squeue", "--noheader", f"--Format={','.join(f'{name}:{_SEPARATOR}' for name in _FIELDS)}"]
    try:
        text = run(*words, *([f"--jobs={','.join(ids)}", "--states=all"] if ids else []))
    except SlurmError as exc:
        if ids and "Invalid job id" in str(exc):
            return ()  # squeue says so only where it knows none of them
        raise
    return tuple(job for job in parse(text, now) if ids or is_ours(job))


def is_ours(job: Job) -> bool:
    """Whether the job's name is one of ours."""
    return job.name == PREFIX or job.name.startswith(f"{PREFIX}-")


def parse(text: str, now: float) -> tuple[Job, ...]:
    """What squeue printed, with times as seconds. ProtocolError where it is not in the form that was asked for."""
    return tuple(_job(line, now) for line in text.splitlines() if line.strip())


def run(*words: str) -> str:
    """What a command of Slurm prints. SlurmMissing, SlurmError."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMMAND_S, env=_with_seconds(), stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as exc:
        raise SlurmMissing(f"there is no Slurm on this host (no {words[0]})") from exc
    except subprocess.TimeoutExpired as exc:
        raise SlurmMissing(f"{words[0]}: Slurm does not answer within {COMMAND_S:g} s") from exc
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise (SlurmMissing if is_silent(said) else SlurmError)(f"{words[0]}: {said}")
    return done.stdout


def is_silent(said: str) -> bool:
    """Whether a command failed because Slurm itself does not answer."""
    return bool(_SILENT.search(said))


def _job(line: str, now: float) -> Job:
    values = line.split(_SEPARATOR)
    if len(values) <= len(_FIELDS):  # there is a separator after the last one, too
        raise ProtocolError(f"squeue printed {line!r}, which is not in the form that was asked for")
    # the name comes last, as it may hold anything
    found = dict(
        zip(_FIELDS, [*values[: len(_FIELDS) - 1], _SEPARATOR.join(values[len(_FIELDS) - 1 : -1])], strict=True)
    )
    text = {key: "" if value.strip() in _UNKNOWN else value.strip() for key, value in found.items()}
    try:
        submitted, started = float(text["SubmitTime"]), float(text["StartTime"] or now)
        return Job(
            id=text["JobID"],
            name=text["Name"],
            user=text["UserName"],
            partition=text["Partition"],
            state=text["State"],
            reason="" if text["Reason"] == "None" else text["Reason"],
            nodes=text["NodeList"],
            num_nodes=int(text["NumNodes"] or 0),
            num_tasks=int(text["NumTasks"] or 0),
            num_gpus=_gpus(text),
            # Slurm gives a waiting job the start that it expects
            queued_s=max(0.0, min(started, now) - submitted),
            ran_s=_seconds(text["TimeUsed"]),
            num_restarts=int(text["RestartCnt"] or 0),
            exit_code=int(text["exit_code"] or 0) >> 8,  # as wait() gives it
        )
    except ValueError as exc:
        raise ProtocolError(f"squeue printed {line!r}, where {exc}") from exc


def _gpus(text: dict[str, str]) -> int:
    """What is allocated, where the cluster counts GPUs (it does with slurmdbd only); else what was asked for."""
    if counted := re.search(r"gres/gpu=(\d+)", text["tres-alloc"]):
        return int(counted[1])
    nodes, tasks = int(text["NumNodes"] or 1), int(text["NumTasks"] or 1)
    asked = (("tres-per-job", 1), ("tres-per-node", nodes), ("tres-per-task", tasks))
    return next((_asked_gpus(text[key]) * times for key, times in asked if _asked_gpus(text[key])), 0)


def _asked_gpus(tres: str) -> int:
    """gres:gpu:a100:2, gres/gpu=2, gpu: how many GPUs a job's request for each of something means."""
    total = 0
    for item in tres.split(","):
        if found := re.fullmatch(r"(?:gres[:/])?gpu(?:[:/][A-Za-z]\w*)?(?:[:=](\d+))?", item):
            total += int(found[1] or 1)
    return total


def _seconds(span: str) -> float:
    """1-02:03:04, 2:03:04 or 3:04; 0 for a job that has not started."""
    if not span:
        return 0.0
    found = _SPAN.fullmatch(span)
    if not found:
        raise ValueError(f"{span!r} is no duration")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _with_seconds() -> dict[str, str]:
    return {**os.environ, "SLURM_TIME_FORMAT": "%s"}  # handed on, not read
