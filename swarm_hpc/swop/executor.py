"""What starts SL nodes with their programs: as Slurm jobs or as processes. slurm_executor.py and local_executor.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from swarm_hpc.config import ContainerConfig, IdentityConfig, ProgramConfig, RoundConfig
from swarm_hpc.swop.part import SlotState


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One SL node with its program, as a task and the profile want it."""

    tag: str
    folder: Path
    """Of the slot: all files of it go there, and it is the same after a restart of SWOP."""
    name: str
    """Last part of the node's name, where the executor lets it be chosen."""
    program: ProgramConfig
    identity: IdentityConfig
    round: RoundConfig
    container: ContainerConfig
    num_gpus: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How something that was started stands."""

    state: SlotState
    why: str = ""
    """In words: `pending: Resources`, `exit code 3`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an SL node ended as it did, in its own words."""

    text: str = ""
    """One line, without anything that its program wrote; empty: it did not say."""
    is_programs: bool = True
    """It was the program's fault: the program's own last line says more."""


class Executor(ABC):
    """All methods block, for as long as Slurm does at most. They raise SlurmError, ConfigError and the like."""

    @abstractmethod
    def start(self, order: Order) -> str:
        """Start it, unless something was started under that tag already; its handle."""

    @abstractmethod
    def poll(self, folder: Path, handle: str) -> Standing:
        """How it stands."""

    @abstractmethod
    def cancel(self, folder: Path, tag: str, handle: str) -> None:
        """End it, or see to it that it never starts; again: no effect. Returns when it has ended. TimedOut."""

    @abstractmethod
    def tail(self, folder: Path, handle: str, num_lines: int) -> list[str]:
        """The last lines of what it wrote, the ML program's where there are any."""

    @abstractmethod
    def failure(self, folder: Path, handle: str) -> Failure:
        """Why it has failed."""

    @abstractmethod
    def node_prefix(self, name: str, handle: str) -> str:
        """How the names of its SL nodes begin; `name` is the order's."""
