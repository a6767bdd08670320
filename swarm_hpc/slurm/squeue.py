"""What squeue prints, as jobs. Pure. It says all that slurmctld knows: what `scontrol show job` has is in it, too."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

from swarm_hpc.errors import ProtocolError
from swarm_hpc.slurm.job import OVER, Job

# fmt: off
FIELDS: Final = (
    "JobID", "State", "Reason", "UserName", "SubmitTime", "StartTime", "EndTime", "EligibleTime", "TimeUsed",
    "TimeLimit", "NumNodes", "NumTasks", "tres-alloc", "tres-per-job", "tres-per-node", "tres-per-task", "RestartCnt",
    "exit_code", "DerivedEC", "BatchHost", "NodeList", "Partition", "Dependency", "Licenses", "STDOUT", "WorkDir",
    "Name",
)
# fmt: on
SEPARATOR: Final = "\x1f"
FORMAT: Final = ",".join(f"{name}:{SEPARATOR}" for name in FIELDS)
"""For squeue --Format."""
_UNKNOWN: Final = frozenset({"", "N/A", "n/a", "NONE", "Unknown", "(null)", "INVALID"})
_END: Final = re.compile(rf"{SEPARATOR}(?:\n(?=\d+{SEPARATOR}[A-Z_]+{SEPARATOR})|\n?\Z)")
"""Of a job, before another one's ID and state, or the end."""
_SPAN: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")
_NO_VALUE: Final = 2**32 - 2
_LOST_STEP: Final = "-2"
"""A step whose exit code nobody could report."""


def parse(text: str, now: float) -> tuple[Job, ...]:
    """The jobs, with times as seconds. ProtocolError where the text is not in the form that was asked for."""
    # not by lines: a job's name may have several, and it is any user's on the cluster
    return tuple(_job(record, now) for record in _END.split(text) if record.strip())


def _job(line: str, now: float) -> Job:
    values = line.split(SEPARATOR)
    if len(values) < len(FIELDS):
        raise ProtocolError(f"squeue printed {line!r}, which is not in the form that was asked for")
    # the name comes last, as it may hold anything
    found = dict(zip(FIELDS, [*values[: len(FIELDS) - 1], SEPARATOR.join(values[len(FIELDS) - 1 :])], strict=True))
    text = {key: "" if value.strip() in _UNKNOWN else value.strip() for key, value in found.items()}
    try:
        submitted, started = float(text["SubmitTime"]), float(text["StartTime"] or now)
        is_over, num_restarts, status = text["State"] in OVER, _number(text["RestartCnt"]), _number(text["exit_code"])
        eligible_at = float(text["EligibleTime"] or 0)
        return Job(
            id=text["JobID"],
            name=text["Name"],
            user=text["UserName"],
            partition=text["Partition"],
            state=text["State"],
            reason="" if text["Reason"] == "None" else text["Reason"],
            nodes=text["NodeList"],
            num_nodes=_number(text["NumNodes"]),
            num_tasks=_number(text["NumTasks"]),
            num_gpus=_gpus(text),
            # Slurm gives a waiting job the start that it expects
            queued_s=max(0.0, min(started, now) - submitted),
            ran_s=_seconds(text["TimeUsed"]),
            num_restarts=num_restarts,
            exit_code=status >> 8 & 0xFF,  # as wait() gives it
            signal=status & 0x7F,
            batch_host=text["BatchHost"],
            time_limit=text["TimeLimit"],
            dependency=text["Dependency"],
            licenses=text["Licenses"],
            requeued_at=submitted if num_restarts else None,
            eligible_at=eligible_at if text["State"] == "PENDING" and eligible_at > now else None,
            ended_s=max(0.0, now - float(text["EndTime"] or now)) if is_over else None,
            log=_log(text),
            lost_step=text["DerivedEC"] == _LOST_STEP,
        )
    except ValueError as exc:
        raise ProtocolError(f"squeue printed {line!r}, where {exc}") from exc


def _number(text: str) -> int:
    number = int(text or 0)
    return number if number < _NO_VALUE else 0


def _log(text: dict[str, str]) -> str:
    """The file with the job's output; empty where its name holds what only the job's own node knows."""
    known = {"%%": "%", "%j": text["JobID"], "%A": text["JobID"], "%J": text["JobID"], "%x": text["Name"]}
    known["%u"] = text["UserName"]
    name = re.sub(r"%.", lambda found: known.get(found[0], "\0"), text["STDOUT"])
    return str(PurePath(text["WorkDir"], name)) if name and "\0" not in name else ""


def _gpus(text: dict[str, str]) -> int:
    """What is allocated, where the cluster counts GPUs (it does with slurmdbd only); else what was asked for."""
    if counted := count_gpus(text["tres-alloc"]):
        return counted
    nodes, tasks = _number(text["NumNodes"]) or 1, _number(text["NumTasks"]) or 1
    asked = (("tres-per-job", 1), ("tres-per-node", nodes), ("tres-per-task", tasks))
    return next((_asked_gpus(text[key]) * times for key, times in asked if _asked_gpus(text[key])), 0)


def count_gpus(tres: str) -> int:
    """GPUs in a list of allocated resources: cpu=2,gres/gpu=3."""
    counted = re.search(r"gres/gpu=(\d+)", tres)
    return int(counted[1]) if counted else 0


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
