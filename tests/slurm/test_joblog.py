"""Why a job was put back into the queue, from its log. The words are those of Slurm 22.05."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.slurm.job import Cause
from swarm_hpc.slurm.joblog import choose_cause, find_cause, parse, read_end
from tests.slurm.conftest import JOB

REQUEUED = """\
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-alpha1: error: *** STEP 12.0 ON alpha1 CANCELLED AT 2026-11-26T02:02:35 DUE TO JOB REQUEUE ***
slurmstepd-alpha1: error: *** JOB 12 ON alpha1 CANCELLED AT 2026-11-26T02:02:35 DUE TO JOB REQUEUE ***
srun: error: alpha1: task 0: Terminated
"""
PREEMPTED = """\
slurmstepd-alpha1: error: *** STEP 12.0 ON alpha1 CANCELLED AT 2026-11-26T02:12:43 DUE TO PREEMPTION ***
slurmstepd-alpha1: error: *** JOB 12 ON alpha1 CANCELLED AT 2026-11-26T02:12:43 DUE TO PREEMPTION ***
"""
LOST = "srun: error: Node failure on alpha1\n"
FAILED = (
    "slurmstepd-alpha1: error: *** JOB 12 ON alpha1 CANCELLED AT 2026-11-26T02:22:43 DUE TO NODE FAILURE, SEE "
    "SLURMCTLD LOG FOR DETAILS ***\n"
)
WARNED = "*** JOB 12 ON alpha1 LEFT AT 2026-11-26T02:02:33 DUE TO TIME WARNING ***\n"
CANCELLED = "slurmstepd-alpha1: error: *** JOB 12 ON alpha1 CANCELLED AT 2026-11-26T02:32:43 ***\n"


def cause(
    text: str | None, num_restarts: int, *, requeued_at: str = "2026-11-26T03:00:00", lost: bool = False
) -> Cause:
    at = time.mktime(time.strptime(requeued_at, "%Y-%m-%dT%H:%M:%S"))
    job = replace(JOB, num_restarts=num_restarts, requeued_at=at, lost_step=lost)
    return choose_cause(job, None if text is None else parse(text, job.id))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REQUEUED, [Cause.COMMAND]),
        (REQUEUED + PREEMPTED, [Cause.COMMAND, Cause.PREEMPTION]),
        (PREEMPTED + LOST + FAILED, [Cause.PREEMPTION, Cause.NODE_FAILURE]),
        (PREEMPTED + PREEMPTED.replace("alpha1", "alpha2"), [Cause.PREEMPTION]),
        (PREEMPTED.replace("JOB 12", "JOB 1"), []),
        (CANCELLED, []),
        (WARNED, [Cause.TIME_WARNING]),
        (WARNED + REQUEUED, [Cause.TIME_WARNING]),
        (
            WARNED + PREEMPTED + REQUEUED.replace("02:02", "02:14"),
            [Cause.TIME_WARNING, Cause.PREEMPTION, Cause.COMMAND],
        ),
    ],
)
def test_each_run_that_slurm_has_ended_has_a_word(text: str, expected: list[Cause]) -> None:
    assert [word.cause for word in parse(text, "12")] == expected


def test_the_last_word_is_about_the_latest_requeue() -> None:
    assert cause(REQUEUED, 1) is Cause.COMMAND
    assert cause(REQUEUED + PREEMPTED, 2) is Cause.PREEMPTION
    assert cause(REQUEUED + LOST, 2) is Cause.NODE_FAILURE


def test_a_word_of_an_earlier_requeue_is_not() -> None:
    assert cause(REQUEUED, 2) is Cause.UNKNOWN
    assert cause(REQUEUED, 2, requeued_at="2026-11-26T02:02:38") is Cause.COMMAND


def test_without_a_word_a_step_that_nobody_saw_end_is_a_lost_node() -> None:
    assert cause("", 1) is Cause.UNKNOWN
    assert cause("", 1, lost=True) is Cause.NODE_FAILURE
    assert cause(None, 1, lost=True) is Cause.NODE_FAILURE
    assert cause(None, 2, lost=True) is Cause.UNKNOWN


def test_a_log_is_read_from_its_end_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "slurm-12.log"
    log.write_bytes(b"\xff\n" * (3 << 20) + PREEMPTED.encode())
    assert find_cause(replace(JOB, num_restarts=1, log=str(log))) is Cause.PREEMPTION
    assert find_cause(replace(JOB, num_restarts=0, log=str(log))) is Cause.UNKNOWN
    os.mkfifo(tmp_path / "pipe")
    assert [read_end(str(path)) for path in (tmp_path / "pipe", tmp_path / "none", tmp_path)] == [None] * 3
    assert read_end("") is None
