"""What a SWOP node says on the ledger, which all sites read and nobody can take back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from swarm_hpc.records import NodeStatus, TaskState, TaskType
from swarm_hpc.swop.part import Ending, Part, Slot, SlotState

MAX_BYTES: Final = 1024


def describe(part: Part, progress: Mapping[int, Sequence[NodeStatus]], said: str = "") -> str:
    """How the part stands: a line in words, and in RUN_SWARM one per SL node.

    `progress`: the SL nodes of each slot, as the SN knows them. `said`: the newest line of a work's own.
    """
    if part.kind is not TaskType.RUN_SWARM:
        return fit([f"{part.task}: {said or _count(part)}"])
    return fit([f"{part.task}: {_count(part)}", *_sl_lines(part, progress)])


def end(
    part: Part, progress: Mapping[int, Sequence[NodeStatus]], causes: Mapping[int, str], log_lines: Sequence[str]
) -> Ending:
    """What is reported when all slots are over. `causes` says more of failed slots than `why`."""
    is_swarm = part.kind is TaskType.RUN_SWARM
    failed = [slot for slot in part.slots if slot.state is SlotState.FAILED]
    if not failed:
        text = describe(part, progress, part.slots[0].why if part.slots else "")
        return Ending(state=TaskState.COMPLETE, text=text, num_done=part.num_done if is_swarm else 0)
    first = failed[0]
    cause = causes.get(first.index, "")
    where = f"node {first.index} of the profile: " if is_swarm else ""
    lines = [f"{part.task}: failed: {where}{first.why}{f': {cause}' if cause else ''}"]
    if is_swarm:
        lines += _sl_lines(part, progress)
    return Ending(state=TaskState.ERROR, text=fit([*lines, *log_lines]), num_done=part.num_done if is_swarm else 0)


def fit(lines: Sequence[str]) -> str:
    """As many of the lines as there is room for, the first one first; cut between characters."""
    text = "\n".join(" ".join(line.split()) for line in lines)
    return text.encode()[:MAX_BYTES].decode(errors="ignore")


def _count(part: Part) -> str:
    counted = {state: sum(slot.state is state for slot in part.slots) for state in SlotState}
    return ", ".join(f"{number} {state}" for state, number in counted.items() if number) or "begun"


def _sl_lines(part: Part, progress: Mapping[int, Sequence[NodeStatus]]) -> list[str]:
    return [line for slot in part.slots for line in _lines_of(slot, progress.get(slot.index, ()))]


def _lines_of(slot: Slot, nodes: Sequence[NodeStatus]) -> list[str]:
    """`<node> <state> <description>`: what users of HPE's GET TASKRUNNER PEER STATUS look for."""
    if not nodes:
        return [f"idx-{slot.index} {slot.state} {slot.why}"]
    return [f"{one.node.name} {slot.state} {_progress(one) or slot.why}" for one in nodes]


def _progress(one: NodeStatus) -> str:
    progress = one.progress
    if not progress.total_epochs:
        return ""
    waiting = f", {progress.waiting}" if progress.waiting else ""
    return f"{progress.contract} epoch {progress.epoch}/{progress.total_epochs}{waiting}"
