"""What goes onto the ledger: short, in words, and never more than there is room for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.records import TaskState, TaskType
from swarm_hpc.swop import report
from swarm_hpc.swop.part import Part, SlotState, with_slots

PART = with_slots(Part(taskrunner="r", run=1, task="train", kind=TaskType.RUN_SWARM, token="aa"), "me", [0, 1])


def test_each_node_has_a_line() -> None:
    part = PART.with_slot(replace(PART.slots[0], state=SlotState.STARTED, why="job 7 pending: Resources"))
    assert (
        report.describe(part, {})
        == "train: 1 waiting, 1 started\nidx-0 started job 7 pending: Resources\nidx-1 waiting"
    )


def test_a_part_failed_if_one_of_its_slots_did() -> None:
    part = PART.with_slot(replace(PART.slots[0], state=SlotState.DONE))
    part = part.with_slot(replace(PART.slots[1], state=SlotState.FAILED, why="job 8 timeout: TimeLimit 1:00"))
    ending = report.end(part, {}, {1: "epoch 3"}, ["epoch 2", "epoch 3"])
    assert (ending.state, ending.num_done) == (TaskState.ERROR, 1)
    assert ending.text.splitlines() == [
        "train: failed: node 1 of the profile: job 8 timeout: TimeLimit 1:00: epoch 3",
        "idx-0 done",
        "idx-1 failed job 8 timeout: TimeLimit 1:00",
        "epoch 2",
        "epoch 3",
    ]


@given(st.lists(st.text()))
def test_a_text_always_fits(lines: list[str]) -> None:
    text = report.fit(lines)
    assert len(text.encode()) <= report.MAX_BYTES
