"""What sacct (22.05) prints: runs of a job, added to what slurmctld knows, or in place of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm_hpc.errors import ProtocolError
from swarm_hpc.slurm.job import Cause, Job
from swarm_hpc.slurm.sacct import complete, forgotten, parse
from tests.slurm.conftest import JOB

NOW = 20000.0
TRES = "billing=4,cpu=4,gres/gpu=2,mem=8G,node=1"
# JobIDRaw|State|User|Partition|Submit|Start|End|ElapsedRaw|NNodes|AllocTRES|ExitCode|Reason|NodeList|Timelimit|JobName
PREEMPTED = f"12|PREEMPTED|ada|gpu|1000|1010|4610|3600|1|{TRES}|0:0|None|n1|1-00:00:00|swarm-digits"
REQUEUED = f"12|REQUEUED|ada|gpu|4612|4700|6500|1800|1|{TRES}|0:0|None|n2|1-00:00:00|swarm-digits"
NODE_FAIL = f"12|NODE_FAIL|ada|gpu|4612|4700|6500|1800|1|{TRES}|1:0|None|n2|1-00:00:00|swarm-digits"
RUNNING = f"12|RUNNING|ada|gpu|6502|6600|Unknown|13400|1|{TRES}|0:0|None|n1|1-00:00:00|swarm-digits"
CANCELLED = f"12|CANCELLED by 1000|ada|gpu|6502|6600|10200|3600|1|{TRES}|0:15|None|n1|1-00:00:00|swarm-digits"
PENDING = "12|PENDING|ada|gpu|6502|Unknown|Unknown|0|1||0:0|Resources|None assigned|1-00:00:00|swarm-digits"


# What a real one said of a job at four moments.
REAL = """\
4|REQUEUED|root|main|1795659841|1795659841|1795659845|4|1|billing=1,cpu=1,gres/gpu=1,mem=500M,node=1|0:0|None|alpha2|UNLIMITED|swarm-x
4|PREEMPTED|root|main|1795659846|1795659852|1795659858|6|1|billing=1,cpu=1,gres/gpu=1,mem=500M,node=1|0:0|BeginTime|alpha1|UNLIMITED|swarm-x
4|NODE_FAIL|root|main|1795659858|1795659864|1795659868|4|1|billing=1,cpu=1,gres/gpu=1,mem=500M,node=1|0:0|BeginTime|alpha1|UNLIMITED|swarm-x
4|PENDING|root|main|1795659868|Unknown|Unknown|0|1|billing=1,cpu=1,gres/gpu=1,mem=500M,node=1|0:0|BeginTime|None assigned|UNLIMITED|swarm-x
4|CANCELLED by 0|root|main|1795659868|1795659874|1795659874|0|1|billing=1,cpu=1,gres/gpu=1,mem=500M,node=1|0:0|BeginTime|alpha2|UNLIMITED|swarm-x
""".splitlines()  # noqa: E501


def complete_with(*lines: str, job: Job = JOB) -> Job:
    return complete(job, parse("\n".join(lines))["12"])


def test_gpu_hours_are_summed_over_all_runs_of_a_job() -> None:
    job = complete_with(RUNNING, PREEMPTED, REQUEUED)
    assert (job.gpu_hours, job.has_all_gpu_hours) == (2.0 + 1.0 + 2.0, True)
    assert job.as_json()["gpu_hours_since"] == "first start"
    assert JOB.as_json()["gpu_hours_since"] == "latest start"


@pytest.mark.parametrize(
    ("before", "cause"),
    [(REQUEUED, Cause.COMMAND), (NODE_FAIL, Cause.NODE_FAILURE), (PREEMPTED, Cause.PREEMPTION)],
)
def test_how_the_run_before_ended_is_why_there_is_another_one(before: str, cause: Cause) -> None:
    assert complete_with(before, RUNNING).why == f"started again after {cause}"


@pytest.mark.parametrize(
    ("num_runs", "state", "gpu_s", "expected"),
    [
        (1, "PENDING", 4.0, "BeginTime; back in the queue after scontrol requeue"),
        (2, "PENDING", 10.0, "BeginTime; back in the queue after preemption"),
        (4, "PENDING", 14.0, "BeginTime; back in the queue after node failure"),
        (5, "CANCELLED", 14.0, "by 0"),
    ],
)
def test_a_real_jobs_life(num_runs: int, state: str, gpu_s: float, expected: str) -> None:
    job = replace(JOB, id="4", name="swarm-x", user="root", state=state, reason="BeginTime", num_gpus=1, ran_s=0.0)
    lines = [line for line in REAL[:num_runs] if num_runs < 5 or "PENDING" not in line]
    known = complete(replace(job, num_restarts=min(num_runs, 3)), parse("\n".join(lines))["4"])
    assert (known.earlier_gpu_s, known.why) == (gpu_s, expected)


def test_why_a_job_waited_is_not_why_it_ended() -> None:
    ended = REAL[2].replace("NODE_FAIL", "FAILED").replace("|0:0|", "|3:0|")
    assert forgotten(parse(ended)["4"], NOW).why == "exit code 3"


@pytest.mark.parametrize("lines", [(PREEMPTED, PENDING), (PREEMPTED,)])
def test_a_run_that_waits_may_be_there_or_not(lines: tuple[str, ...]) -> None:
    job = complete_with(*lines, job=replace(JOB, state="PENDING", reason="Resources", ran_s=0.0, num_restarts=1))
    assert (job.gpu_hours, job.why) == (2.0, "Resources; back in the queue after preemption")


def test_an_id_that_was_given_before_does_not_count() -> None:
    years_ago = PREEMPTED.replace("|1000|1010|4610|", "|100|110|910|")
    other = REQUEUED.replace("swarm-digits", "climate")
    assert complete_with(years_ago, other, PREEMPTED, RUNNING, job=replace(JOB, num_restarts=1)).gpu_hours == 4.0
    assert complete_with(other) == JOB


def test_who_cancelled_a_job_is_told() -> None:
    job = complete_with(CANCELLED, job=replace(JOB, state="CANCELLED", num_restarts=0, signal=15))
    assert (job.why, job.cancelled_by) == ("by 1000", "1000")


def test_a_job_that_only_slurmdbd_knows() -> None:
    job = forgotten(parse("\n".join([PREEMPTED, REQUEUED, CANCELLED]))["12"], NOW)
    assert (job.state, job.why, job.num_restarts, job.gpu_hours) == ("CANCELLED", "by 1000", 2, 5.0)
    assert (job.ended_s, job.queued_s, job.ran_s, job.signal) == (NOW - 10200, 98.0, 3600.0, 15)
    timeout = CANCELLED.replace("CANCELLED by 1000", "TIMEOUT")
    assert forgotten(parse(timeout)["12"], NOW).why == "TimeLimit 1-00:00:00"


def test_jobs_are_kept_apart_and_a_name_may_hold_anything() -> None:
    found = parse("\n".join([RUNNING, RUNNING.replace("12|RUN", "13|RUN").replace("swarm-digits", "a|b")]))
    assert [(job, runs[0].name) for job, runs in found.items()] == [("12", "swarm-digits"), ("13", "a|b")]


def test_a_name_of_several_lines_takes_no_other_jobs_runs_away() -> None:
    other = RUNNING.replace("12|RUN", "13|RUN").replace("swarm-digits", "two\nlines | 4\n")
    found = parse("\n".join([other, RUNNING, ""]))
    assert [(job, runs[0].name) for job, runs in found.items()] == [("12", "swarm-digits"), ("13", "two\nlines | 4\n")]


@pytest.mark.parametrize("text", ["12|RUNNING", RUNNING.replace("6502", "soon"), RUNNING.replace("0:0", "none")])
def test_other_output_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ProtocolError, match="sacct printed"):
        parse(text)


def test_nothing_is_no_job() -> None:
    assert parse("\n") == {}
