"""What Slurm says to a task of a job. The only file that reads SLURM_*, but for the threads of kernels/cpu.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_hpc.errors import NotInJob

_JOB: Final = "SLURM_JOB_ID"
_RANK: Final = "SLURM_PROCID"
LEFT_FILE: Final = "SWARM_LEFT_FILE"
"""Set by the job's own script (script.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task of a job: which, of how many, with what."""

    job: str
    """Job ID; each element of an array has its own. A requeued job keeps it."""
    rank: int
    num_tasks: int
    num_cpus: int = 1
    """CPUs of this task."""
    num_gpus: int = 0
    """GPUs of this task."""
    num_restarts: int = 0
    """How often the job was put back into the queue after it had started."""
    node: str = ""
    """Slurm's name of the compute node."""
    left_file: str = ""
    """What a task makes when it has left because of a warning, so that the job's script puts it back into the queue."""
    cwd: Path = Path()
    """Where relative paths start: the folder that the job was submitted from."""


def read_task(env: Mapping[str, str], cwd: Path) -> Task:
    """The task that this process is. NotInJob where srun did not start it."""
    for name in (_JOB, _RANK):
        if name not in env:
            raise NotInJob(f"{name} is not set: this is no task of a Slurm job; swarm-hpc submit starts one with srun")
    return Task(
        job=env[_JOB],
        rank=_number(env, _RANK, 0),
        num_tasks=_number(env, "SLURM_NTASKS", 1),
        num_cpus=_number(env, "SLURM_CPUS_PER_TASK", 1),
        num_gpus=_count_gpus(env),
        num_restarts=_number(env, "SLURM_RESTART_COUNT", 0),
        node=env.get("SLURMD_NODENAME", ""),
        left_file=env.get(LEFT_FILE, ""),
        cwd=cwd,
    )


def read_inherited(env: Mapping[str, str]) -> tuple[int, ...]:
    """The open file that a task has from srun for its MPI (PMI-2), as a file descriptor."""
    number = env.get("PMI_FD", "")
    return (int(number),) if number.isdecimal() else ()


def _count_gpus(env: Mapping[str, str]) -> int:
    """What Slurm lets the task see: a list of numbers, or of UUIDs."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if devices := env.get(name, ""):
            return 0 if devices in ("NoDevFiles", "-1") else len(devices.split(","))
    return 0


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    try:
        return int(text or default)
    except ValueError as exc:
        raise NotInJob(f"{name} is {text!r}, which is no number: only srun should set it") from exc
