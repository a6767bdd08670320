"""What a SWOP node does for a task, behind one interface: node.py knows no Slurm, no profile and no kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from swarm_hpc.records import Task, TaskType
from swarm_hpc.swop.executor import Failure, Standing
from swarm_hpc.swop.part import Part, Slot


class Doing(ABC):
    """One task as this site does it. All methods block, and may be called again with the effect of one call."""

    @property
    @abstractmethod
    def indexes(self) -> Sequence[int]:
        """Of the slots that are to be started."""

    @abstractmethod
    def start(self, part: Part, slot: Slot, folder: Path) -> str:
        """Start the slot, unless it was started; its handle. SwarmError."""

    @abstractmethod
    def poll(self, slot: Slot, folder: Path) -> Standing:
        """How it stands. SlurmError."""

    @abstractmethod
    def tail(self, slot: Slot, folder: Path, num_lines: int) -> list[str]:
        """The last lines of what it wrote."""

    @abstractmethod
    def failure(self, slot: Slot, folder: Path) -> Failure:
        """Why a slot has failed."""

    @abstractmethod
    def node_prefix(self, part: Part, slot: Slot) -> str:
        """How the names of its SL nodes begin; empty: it has none."""


class Workshop(ABC):
    """What this site can do."""

    @property
    @abstractmethod
    def num_sl(self) -> int:
        """How many SL nodes it can start."""

    @abstractmethod
    def open(self, task: Task, prereqs: Sequence[Task]) -> Doing:
        """Take on the task; `prereqs` are what comes before it, the nearest first.

        TaskRefused: the site's policy is against it. ConfigError: its body cannot be done here.
        """

    @abstractmethod
    def cancel(self, kind: TaskType, slot: Slot, folder: Path) -> None:
        """End what was started for the slot, and see to it that nothing is. Needs no task: that may be gone."""
