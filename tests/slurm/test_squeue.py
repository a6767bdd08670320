"""What squeue prints, as records. The lines are those of Slurm 22.05."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import ProtocolError
from swarm_hpc.slurm.job import Job
from swarm_hpc.slurm.squeue import FIELDS, SEPARATOR, parse

NOW = 1795658600.0
# JobID|State|Reason|UserName|SubmitTime|StartTime|EndTime|EligibleTime|TimeUsed|TimeLimit|NumNodes|NumTasks|...
REST = "|/home/ada/runs/slurm-%j.log|/home/ada|swarm-digits|"
RUNNING = (
    "1|RUNNING|None|ada|1795658563|1795658564|1827194400|1795658563|1-02:00:36|365-00:00:00|2|2|"
    "cpu=2,mem=1000M,node=2,billing=2|N/A|N/A|gres:gpu:1|1|0|0|alpha1|alpha[1-2]|main|(null)|(null)" + REST
)
PENDING = (
    "2|PENDING|Resources|ada|1795658340|1827194337|NONE|1795658340|0:00|UNLIMITED|2|2|"
    "cpu=2,mem=1000M,node=2,billing=2|N/A|gres:gpu:2|N/A|0|0|0|n/a||main|(null)|(null)" + REST
)
FAILED = (
    "3|FAILED|NonZeroExitCode|ada|1795658336|1795658337|1795658344|1795658336|0:07|365-00:00:00|1|1|"
    "cpu=1,mem=500M,node=1,billing=1|N/A|N/A|N/A|0|768|0|alpha1|alpha1|main|(null)|(null)" + REST
)


def line_of(text: str) -> str:
    return text.replace("|", SEPARATOR)


def one(text: str) -> Job:
    (job,) = parse(line_of(text) + "\n", NOW)
    return job


def test_a_running_job() -> None:
    job = one(RUNNING)
    assert job == Job(
        id="1",
        name="swarm-digits",
        user="ada",
        partition="main",
        state="RUNNING",
        reason="",
        nodes="alpha[1-2]",
        num_nodes=2,
        num_tasks=2,
        num_gpus=2,
        queued_s=1.0,
        ran_s=26 * 3600 + 36.0,
        num_restarts=1,
        exit_code=0,
        batch_host="alpha1",
        time_limit="365-00:00:00",
        requeued_at=1795658563.0,
        log="/home/ada/runs/slurm-1.log",
    )
    assert job.gpu_hours == pytest.approx(52.02)
    assert not job.has_all_gpu_hours
    assert not job.is_over


def test_a_waiting_job_waits_until_now_whatever_start_slurm_expects() -> None:
    job = one(PENDING)
    assert (job.state, job.why, job.queued_s, job.ran_s) == ("PENDING", "Resources", NOW - 1795658340, 0.0)
    assert one(PENDING.replace("1827194337", "N/A")).queued_s == job.queued_s


def test_a_failed_job_tells_its_exit_code_and_when_it_ended() -> None:
    job = one(FAILED)
    assert (job.is_over, job.exit_code, job.signal, job.ran_s, job.ended_s) == (True, 3, 0, 7.0, NOW - 1795658344)
    assert (job.why, job.has_all_gpu_hours) == ("exit code 3", True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Reason": "Priority"}, "Priority"),
        ({"Reason": "Licenses", "Licenses": "swarm:1"}, "Licenses swarm:1"),
        ({"Reason": "Dependency", "Dependency": "afterok:4(unfulfilled)"}, "Dependency afterok:4(unfulfilled)"),
        (
            {"Reason": "DependencyNeverSatisfied", "Dependency": "afterok:15(failed)"},
            "DependencyNeverSatisfied afterok:15(failed)",
        ),
        ({"Reason": "JobHeldUser"}, "JobHeldUser"),
        ({"Reason": "None"}, ""),
        ({"Reason": "Resources", "RestartCnt": "2"}, "Resources; back in the queue after a requeue"),
        ({"State": "RUNNING", "Reason": "None", "RestartCnt": "1"}, "started again after a requeue"),
        ({"State": "TIMEOUT", "Reason": "TimeLimit", "TimeLimit": "1:00", "exit_code": "15"}, "TimeLimit 1:00"),
        ({"State": "CANCELLED", "Reason": "None", "exit_code": "15"}, ""),
        ({"State": "CANCELLED", "Reason": "JobHeldUser", "NumTasks": "4294967294"}, ""),
        ({"State": "FAILED", "Reason": "JobLaunchFailure", "exit_code": "9"}, "signal 9 (SIGKILL), JobLaunchFailure"),
        ({"State": "NODE_FAIL", "Reason": "NodeDown", "NodeList": "alpha2"}, "NodeDown alpha2"),
        ({"State": "OUT_OF_MEMORY", "Reason": "OutOfMemory", "exit_code": "125"}, "OutOfMemory"),
        ({"State": "PREEMPTED", "Reason": "None"}, ""),
        ({"State": "COMPLETED", "Reason": "None"}, ""),
    ],
)
def test_the_reason_is_told_in_slurms_own_words(changes: dict[str, str], expected: str) -> None:
    values = dict(zip(FIELDS, PENDING.split("|")[:-1], strict=True)) | changes
    job = one("".join(f"{value}|" for value in values.values()))
    assert (job.why, job.as_json()["why"]) == (expected, expected)


def test_a_job_that_may_not_start_yet_says_when() -> None:
    job = one(PENDING.replace("Resources", "BeginTime").replace("NONE|1795658340", "NONE|1795658653"))
    assert job.eligible_at == 1795658653.0
    assert job.why.startswith("BeginTime 2026-11-2")


def test_a_name_may_hold_anything() -> None:
    assert one(PENDING.replace("|swarm-digits|", "|a|b |c|")).name == SEPARATOR.join(("a", "b ", "c"))


@pytest.mark.parametrize("name", ["theirs\nand more\x0c", "\ntheirs", "\n\n", "theirs|\n|5|\n5"])
def test_a_name_of_two_lines_does_not_hide_the_other_jobs(name: str) -> None:
    odd = PENDING.replace("|swarm-digits|", f"|{name}|")
    names = [job.name for job in parse(line_of(f"{odd}\n{RUNNING}\n"), NOW)]
    assert names == [line_of(name).strip(), "swarm-digits"]


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ("/runs/%x-%A-%u.out", "/runs/swarm-digits-2-ada.out"),
        ("runs/slurm-2.log", "/home/ada/runs/slurm-2.log"),
        ("/runs/100%%.log", "/runs/100%.log"),
        ("/runs/%N.log", ""),
        ("(null)", ""),
    ],
)
def test_the_log_is_the_file_that_slurm_writes(stdout: str, expected: str) -> None:
    assert one(PENDING.replace("/home/ada/runs/slurm-%j.log", stdout)).log == expected


@pytest.mark.parametrize(
    ("job", "tres", "node", "task", "expected"),
    [
        ("N/A", "cpu=2,gres/gpu=3,gres/gpu:a100=3", "N/A", "gres:gpu:9", 3),
        ("N/A", "cpu=2", "N/A", "gres:gpu:2", 8),
        ("N/A", "cpu=2", "gres:gpu:a100:2", "N/A", 4),
        ("gres/gpu:5", "cpu=2", "N/A", "N/A", 5),
        ("N/A", "cpu=2", "gres/gpu=2", "N/A", 4),
        ("N/A", "cpu=2", "gpu", "N/A", 2),
        ("N/A", "cpu=2", "gres:nic:2", "N/A", 0),
        ("N/A", "cpu=2", "N/A", "N/A", 0),
    ],
)
def test_gpus_are_what_is_allocated_or_else_what_was_asked_for(
    job: str, tres: str, node: str, task: str, expected: int
) -> None:
    values = dict(zip(FIELDS, RUNNING.split("|")[:-1], strict=True))
    values |= {"NumTasks": "4", "tres-alloc": tres, "tres-per-job": job, "tres-per-node": node, "tres-per-task": task}
    assert one("".join(f"{value}|" for value in values.values())).num_gpus == expected


@pytest.mark.parametrize("name", ["swarm", "swarm-digits", "swarm-"])
def test_our_jobs_are_known_by_their_names(name: str) -> None:
    assert one(PENDING.replace("swarm-digits", name)).is_ours
    assert not one(PENDING.replace("swarm-digits", f"my-{name}")).is_ours


@pytest.mark.parametrize(
    "text", ["JOBID STATE", "1|RUNNING|", PENDING.replace("0:00", "soon"), PENDING.replace("|2|2|", "|x|2|")]
)
def test_other_output_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ProtocolError, match="squeue printed"):
        parse(line_of(text), NOW)


def test_nothing_is_no_job() -> None:
    assert parse("\n", NOW) == ()
