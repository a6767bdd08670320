"""From settings to what a job asks Slurm for, and to what each of its tasks runs. Pure: no file, no clock, no Slurm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from swarm_hpc.config import (
    SAVE_TIMEOUT_S,
    JobConfig,
    ProgramConfig,
    RanksConfig,
    RanksKind,
    SiteConfig,
    SlConfig,
    SubmitConfig,
)
from swarm_hpc.errors import ConfigError
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.slurm.container import train_command
from swarm_hpc.slurm.environment import Task

PREFIX: Final = "swarm"
"""Names of our jobs are this, or begin with it and a dash."""
# To the batch shell alone: USR2 would end a task that does not know it. Not USR1, which NCCL may take.
_WARNING: Final = "B:USR2@{}"
_ABOUT_TRAINING: Final = """\
# One site's part in a swarm training: each task is an SL node with the site's training program.
# sbatch SCRIPT experiment=digits site=alpha ... takes the settings of swarm-hpc submit, which makes such a script, too.
"""
_ABOUT_SN: Final = """\
# A site's SN as a job, where there is no service node for it. data_dir, on the shared file system, is its whole memory;
# endpoint.json in it says where the SN is. sbatch SCRIPT data_dir=... takes the settings of swarm-hpc sn.
"""
_RESERVE_S: Final = 60.0
"""Of the warning, for Slurm, which sends it up to 30 s late, and for the end of the program."""
_LIMIT: Final = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(?:(?:(\d+):)?(\d+):)?(\d+))")
"""days-hours:minutes:seconds, of which the last may be missing; hours:minutes:seconds, minutes:seconds, minutes."""
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Warned(Enum):
    """What a job does when Slurm warns it ahead of its time limit."""

    NOTHING = auto()
    REQUEUE = auto()
    """It goes back into the queue."""
    LEAVE = auto()
    """Its tasks leave first, and say whether it is to come back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan:
    """What sbatch is asked for, and what the job runs. script.py makes the text."""

    about: str
    """What the job is, as comments."""
    options: tuple[str, ...]
    """Options of sbatch, in order."""
    setup: tuple[str, ...]
    """Lines of bash before the tasks."""
    command: str
    """What each task runs, in bash."""
    words: tuple[str, ...] | None
    """Settings at the end of its command line; None: those that sbatch is given after the script's name."""
    mpi: str = "none"
    scratch: str = ""
    warned: Warned = Warned.NOTHING


def plan_job(site: SiteConfig, *, name: str, log: str, words: Sequence[str] | None) -> JobPlan:
    """A training job at that site; `log` may hold Slurm's %j.

    ConfigError where it would be warned when it has just begun, and go back into the queue again and again.
    """
    warned = Warned.LEAVE if site.requeue and site.warning_s > 0 else Warned.NOTHING
    limit_s = time_limit_s(site.time)
    if warned is Warned.LEAVE and limit_s is not None and limit_s <= site.warning_s:
        raise ConfigError(
            f"site.time: {site.time} is no longer than the warning ahead of its end, so the job would go back into the "
            f"queue as soon as it runs: give it more than {site.warning_s} s, or set site.warning_s=0"
        )
    chosen = {
        "job-name": name,
        "output": log,
        "open-mode": "append",  # or a requeued job would write over its own log
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": site.time,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "licenses": site.licenses,
        "nodes": str(site.nodes),
        "ntasks-per-node": str(site.tasks_per_node),
        "cpus-per-task": str(site.cpus_per_task),
        "mem": site.mem,
        "gpus-per-task": str(site.gpus_per_task or ""),
        "gres": site.gres,
        "signal": _WARNING.format(site.warning_s) if warned is Warned.LEAVE else "",
    }
    options = [f"--{key}={value}" for key, value in chosen.items() if value]
    return JobPlan(
        about=_ABOUT_TRAINING,
        options=(*options, "--requeue" if site.requeue else "--no-requeue", *site.sbatch),
        setup=(*(f"module load {module}" for module in site.modules), *site.setup),
        command=f"{site.command} sl --task",
        words=None if words is None else tuple(words),
        mpi=site.mpi,
        scratch=site.scratch,
        warned=warned,
    )


def time_limit_s(text: str) -> int | None:
    """A time limit in Slurm's notation; None where it is none, as 0 is."""
    found = _LIMIT.fullmatch(text.strip())
    if not found:
        return None
    days, hours, minutes, seconds, *clock = (int(part or 0) for part in found.groups())
    if not found[1]:
        # a number alone is minutes
        hours, minutes, seconds = clock if found[6] else (0, clock[2], 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None


def plan_sn() -> JobPlan:
    """A site's SN as a job, for sites without a service node; its settings are given to sbatch."""
    name = f"{PREFIX}-sn"
    chosen = {
        "job-name": name,
        "output": f"{name}-%j.log",
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "2",
        "signal": _WARNING.format(120),
    }
    return JobPlan(
        about=_ABOUT_SN,
        options=(*(f"--{key}={value}" for key, value in chosen.items()), "--requeue"),
        setup=(),
        command='swarm-hpc sn host=0.0.0.0 advertise="$(hostname)"',
        words=None,
        warned=Warned.REQUEUE,
    )


def job_name(config: SubmitConfig) -> str:
    """What the job is called."""
    return f"{PREFIX}-{config.experiment.name}"


def job_dir(config: SubmitConfig, task: Task) -> Path:
    """Where a job's tasks leave their results and their state; the same after a requeue."""
    return task.cwd / config.site.run_dir / f"job-{task.job}"


def node_name(site: SiteConfig, task: Task) -> NodeName:
    """The task's node, all tasks' where they merge by MPI: a requeued job is the same nodes again."""
    rank = 0 if is_one_node(site, task) else task.rank
    return NodeName.parse(f"{node_prefix(site.name, task.job)}{rank}")


def is_one_node(site: SiteConfig, task: Task) -> bool:
    """Whether the job's tasks merge among themselves by MPI, and the first one checks in for all."""
    return site.mpi != "none" and task.num_tasks > 1


def node_prefix(site: str, job: str) -> str:
    """How the names of a job's nodes begin."""
    return f"{site}/{Kind.SL}/job-{job}-"


def plan_task(config: SubmitConfig, task: Task, examples: Path) -> SlConfig:
    """The SL node of a task, with the site's training program as its child."""
    site, experiment = config.site, config.experiment
    folder = job_dir(config, task) / f"task-{task.rank}"
    ranks = RanksConfig()
    if is_one_node(site, task):
        ranks = RanksConfig(kind=RanksKind.MPI, num_ranks=task.num_tasks)
    return SlConfig(
        name=str(node_name(site, task)),
        sn=site.sn,
        state_dir=str(folder / "sl"),
        ranks=ranks,
        license=config.license,
        container=config.container.of(experiment.platform),
        job=JobConfig(id=task.job, num_gpus=task.num_gpus * (ranks.num_ranks or 1)),
        node_weight=config.node_weight,
        left_file=task.left_file,
        identity=site.identity,
        connection=config.connection,
        transfer=config.transfer,
        merge=config.merge,
        round=config.round,
        program=ProgramConfig(
            command=train_command(experiment, config.container, examples),
            cwd=str(folder),
            env={
                **dict.fromkeys(_THREADS, str(task.num_cpus)),
                **experiment.env,
                "SITE": site.name,
                "SEED": str(config.seed),
                **({"DATA_DIR": str(task.cwd / config.data_dir)} if config.data_dir else {}),
                "SCRATCH_DIR": str(folder),
            },
            log=str(folder / "ml.log"),
            save_timeout_s=max(SAVE_TIMEOUT_S, site.warning_s - _RESERVE_S),
        ),
    )
