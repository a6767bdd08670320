"""What a SWOP node does next, from its taskrunner's record and its own journal. Pure: no clock, no socket, no file."""

from __future__ import annotations

from enum import Enum, auto

from swarm_hpc.records import Taskrunner, TaskrunnerPeer, TaskState
from swarm_hpc.swop.part import Part


class Step(Enum):
    """The next thing to do."""

    REST = auto()
    """Nothing, until the taskrunner changes."""
    CLAIM = auto()
    """Report RUNNING; if that is taken, begin the part. Nothing of it was started before."""
    WORK = auto()
    """Go on with the part."""
    FINISH = auto()
    """Report how the part ended."""
    CLOSE = auto()
    """The ledger knows how the part ended: forget it."""
    DROP = auto()
    """End what the part has started, and forget it."""


def decide(runner: Taskrunner, me: str, part: Part | None) -> Step:
    """The next step of node `me`. `part` is what the journal has: it was claimed before it was written there."""
    mine = _mine(runner, me)
    if part is None:
        open_to_us = mine is not None and mine.state in (TaskState.IDLE, TaskState.RUNNING)
        # whether a run with another target has invited us, too, only the ledger knows: it refuses the claim if not
        return Step.CLAIM if open_to_us and runner.state is TaskState.RUNNING else Step.REST
    if part.dropped or (runner.name, runner.run) != (part.taskrunner, part.run) or mine is None:
        return Step.DROP
    if mine.state is TaskState.RUNNING and runner.state is TaskState.RUNNING:
        return Step.FINISH if part.ending else Step.WORK
    # ended on the ledger; or IDLE, by an invitation to try again, which only one that has ended gets
    return Step.CLOSE if part.ending else Step.DROP


def needs(runner: Taskrunner) -> tuple[object, ...]:
    """What a refused claim depends on: while this stays the same, the answer would, too."""
    return runner.name, runner.run, runner.target, runner.num_peers, *((peer.node, peer.state) for peer in runner.peers)


def why_dropped(runner: Taskrunner, part: Part) -> str:
    """For the log."""
    if runner.name != part.taskrunner:
        return f"this node now follows {runner.name}"
    if runner.run != part.run:
        return f"{runner.name} was reset"
    return f"run {part.run} of {runner.name} goes on without this node's part"


def _mine(runner: Taskrunner, me: str) -> TaskrunnerPeer | None:
    return next((peer for peer in runner.peers if peer.node == me), None)
