"""A Slurm job as a record, and in words why it is where it is. Pure."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from swarm_hpc.slurm.plan import PREFIX

# fmt: off
OVER: Final = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
))
"""States in which a job has come to its end."""
# fmt: on


class Cause(StrEnum):
    """What put a job back into the queue."""

    PREEMPTION = "preemption"
    NODE_FAILURE = "node failure"
    COMMAND = "scontrol requeue"
    """By hand, or by an SN that is a job, near its time limit."""
    TIME_WARNING = "the warning before its time limit"
    UNKNOWN = ""


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
    """Slurm's word for why it waits or has ended (Resources, TimeLimit); empty where there is nothing to say."""
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
    signal: int = 0
    """The signal that ended it; 0: none."""
    batch_host: str = ""
    """The compute node that runs its script."""
    time_limit: str = ""
    dependency: str = ""
    """What it depends on, as Slurm writes it: afterok:3(unfulfilled)."""
    licenses: str = ""
    requeued_at: float | None = None
    """Unix time of the latest requeue."""
    eligible_at: float | None = None
    """Unix time before which it does not start; None: no such limit."""
    ended_s: float | None = None
    """How long ago it ended."""
    requeued_after: Cause = Cause.UNKNOWN
    """What put it back into the queue the latest time."""
    cancelled_by: str = ""
    """Who cancelled it; only slurmdbd knows."""
    log: str = ""
    """The file with its output; empty where Slurm does not say."""
    lost_step: bool = False
    """A step of it ended with a node that was lost, in this run or an earlier one."""
    earlier_gpu_s: float | None = None
    """Seconds times GPUs of its runs before the latest start; None: not known, as there is no slurmdbd."""

    @property
    def is_over(self) -> bool:
        """It has come to its end, whichever."""
        return self.state in OVER

    @property
    def is_ours(self) -> bool:
        """Whether its name is one of ours."""
        return self.name == PREFIX or self.name.startswith(f"{PREFIX}-")

    @property
    def has_all_gpu_hours(self) -> bool:
        """Whether `gpu_hours` are those of all its runs, or only those since its latest start."""
        return self.earlier_gpu_s is not None or not self.num_restarts

    @property
    def gpu_hours(self) -> float:
        """Of all its runs, as far as they are known."""
        return (self.num_gpus * self.ran_s + (self.earlier_gpu_s or 0.0)) / 3600

    @property
    def why(self) -> str:
        """Why it is in its state, for people: `Licenses swarm:1`, `signal 9 (SIGKILL)`; empty: nothing to say."""
        words = [self._end() if self.is_over else self._wait()]
        if self.num_restarts and not self.is_over:
            text = "back in the queue" if self.state == "PENDING" else "started again"
            words.append(f"{text} after {self.requeued_after or 'a requeue'}")
        return "; ".join(word for word in words if word)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        since = "first start" if self.has_all_gpu_hours else "latest start"
        return {**asdict(self), "why": self.why, "gpu_hours": round(self.gpu_hours, 3), "gpu_hours_since": since}

    def _wait(self) -> str:
        if self.reason.startswith("Dependency"):
            return f"{self.reason} {self.dependency}".strip()
        if self.reason == "Licenses":
            return f"{self.reason} {self.licenses}".strip()
        if self.reason == "BeginTime" and self.eligible_at is not None:
            return f"BeginTime {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.eligible_at))}"
        return self.reason

    def _end(self) -> str:
        match self.state:
            case "COMPLETED":
                return ""
            case "OUT_OF_MEMORY":
                return self.reason or "OutOfMemory"
            case "CANCELLED":
                return f"by {self.cancelled_by}" if self.cancelled_by else ""
            case "TIMEOUT":
                return f"TimeLimit {self.time_limit}".strip()
            case "NODE_FAIL":
                return f"{self.reason or 'NodeDown'} {self.nodes}".strip()
            case "FAILED":
                other = "" if self.reason == "NonZeroExitCode" else self.reason
                return ", ".join(word for word in (self.exit, other) if word)
        return ", ".join(word for word in (self.reason, self.exit) if word)

    @property
    def exit(self) -> str:
        """`exit code 3`, `signal 9 (SIGKILL)`; empty for neither."""
        if not self.signal:
            return f"exit code {self.exit_code}" if self.exit_code else ""
        known = {one.value: one.name for one in signal.Signals}
        return f"signal {self.signal}" + (f" ({known[self.signal]})" if self.signal in known else "")
