"""A SWOP node's own part in one run of a taskrunner, as a value: what is begun, how it stands, how it ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from swarm_hpc.records import TaskState, TaskType


class SlotState(StrEnum):
    """How far one of the things is that a part starts: a job, a process."""

    WAITING = "waiting"
    """To be started; perhaps it was, just before SWOP was killed."""
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """It has come to its end, whichever."""
        return self in (SlotState.DONE, SlotState.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One thing that a part starts, once: an SL node with its program, or the work of another task."""

    index: int
    """RUN_SWARM: `idx` of the profile's node."""
    tag: str
    """Unique, and known before anything is started: what is there under it already is not started again."""
    state: SlotState = SlotState.WAITING
    handle: str = ""
    """What the executor calls it: a job's ID; empty until it is started."""
    why: str = ""
    """How it stands, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What is reported at the end."""

    state: TaskState
    text: str
    num_done: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What this node does in one run. Journalled before each step, so that a killed SWOP goes on with it."""

    taskrunner: str
    run: int
    task: str
    kind: TaskType
    token: str
    """Random: no other part has it, even if a new ledger counts its runs from 1 again."""
    slots: tuple[Slot, ...] = ()
    dropped: str = ""
    """Why it is given up: what it has started is to be ended. Empty: it is not."""
    ending: Ending | None = None

    @property
    def is_over(self) -> bool:
        """All that it has started has come to its end."""
        return all(slot.state.is_over for slot in self.slots)

    @property
    def num_done(self) -> int:
        """How many slots have done their work."""
        return sum(slot.state is SlotState.DONE for slot in self.slots)

    def folder(self, state_dir: Path) -> Path:
        """Where everything of this part is kept."""
        return state_dir / "runs" / f"{self.taskrunner}-{self.run}-{self.token}"

    def folder_of(self, slot: Slot, state_dir: Path) -> Path:
        """Where everything of a slot is kept."""
        return self.folder(state_dir) / f"slot-{slot.index}"

    def with_slot(self, slot: Slot) -> Part:
        """The same with that slot as it is now."""
        return replace(self, slots=tuple(slot if one.index == slot.index else one for one in self.slots))


def with_slots(part: Part, swop: str, indexes: Sequence[int]) -> Part:
    """The part with slots that are to be started."""
    slots = (Slot(index=index, tag=f"swarm-{swop}-{part.run}-{index}-{part.token}") for index in indexes)
    return replace(part, slots=tuple(slots))
