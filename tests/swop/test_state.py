"""What a SWOP does next, for each thing that a ledger and a journal can say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.records import Taskrunner, TaskrunnerPeer, TaskState, TaskType
from swarm_hpc.swop.part import Ending, Part, with_slots
from swarm_hpc.swop.state import Step, decide

ME = "alpha/swop/me"
IDLE, RUNNING, COMPLETE, ERROR = TaskState.IDLE, TaskState.RUNNING, TaskState.COMPLETE, TaskState.ERROR
PART = Part(taskrunner="runner", run=3, task="train", kind=TaskType.RUN_SWARM, token="aa")
OVER = replace(PART, ending=Ending(state=COMPLETE, text="done"))
DROPPED = replace(PART, dropped="it was reset")


def runner(mine: TaskState = IDLE, *, state: TaskState = RUNNING, run: int = 3, target: str = "") -> Taskrunner:
    return Taskrunner(
        name="runner",
        state=state,
        task="train",
        counts_sl=True,
        num_peers=1,
        target=target,
        assigned_at=0,
        ended_at=0,
        run=run,
        num_runs=max(run, 3),
        version=9,
        reachable=True,
        peers=(TaskrunnerPeer(node=ME, num_sl=1, state=mine, text="", num_done=0, at=0),),
    )


@pytest.mark.parametrize(
    ("said", "part", "step"),
    [
        (runner(state=IDLE, run=0), None, Step.REST),
        (runner(), None, Step.CLAIM),
        (runner(RUNNING), None, Step.CLAIM),  # killed between the claim and the journal: nothing was started
        (runner(COMPLETE), None, Step.REST),
        (runner(ERROR), None, Step.REST),
        (runner(COMPLETE, state=COMPLETE), None, Step.REST),
        (runner(RUNNING), PART, Step.WORK),
        (runner(RUNNING), OVER, Step.FINISH),
        (runner(COMPLETE), OVER, Step.CLOSE),  # killed between the report and the journal
        (runner(COMPLETE, state=COMPLETE), OVER, Step.CLOSE),
        (runner(), OVER, Step.CLOSE),  # told to try again before we noticed that the report was taken
        (runner(), PART, Step.DROP),
        (runner(RUNNING), DROPPED, Step.DROP),  # killed while it gave up
        (runner(state=IDLE, run=0), PART, Step.DROP),
        (runner(run=4), PART, Step.DROP),
        (runner(run=4), OVER, Step.DROP),
        (replace(runner(RUNNING), name="another"), PART, Step.DROP),
        (replace(runner(), peers=()), None, Step.REST),
        (replace(runner(), peers=()), PART, Step.DROP),
    ],
)
def test_the_next_step_follows_from_the_ledger_and_the_journal(said: Taskrunner, part: Part | None, step: Step) -> None:
    assert decide(said, ME, part) is step


@given(
    st.sampled_from(list(TaskState)),
    st.sampled_from([IDLE, RUNNING, COMPLETE, ERROR]),
    st.integers(0, 5),
    st.sampled_from([PART, OVER, DROPPED]),
)
def test_a_part_is_only_worked_on_while_its_own_run_has_it_running(
    mine: TaskState, state: TaskState, run: int, part: Part
) -> None:
    step = decide(runner(mine, state=state, run=run), ME, part)
    if step in (Step.WORK, Step.FINISH):
        assert (mine, state, run, part.dropped) == (RUNNING, RUNNING, part.run, "")
    assert step not in (Step.CLAIM, Step.REST)


def test_tags_tell_runs_nodes_and_ledgers_apart() -> None:
    part = with_slots(PART, "me", [0, 7])
    assert [slot.tag for slot in part.slots] == ["swarm-me-3-0-aa", "swarm-me-3-7-aa"]
