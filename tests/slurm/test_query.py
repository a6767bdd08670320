"""What squeue prints, as records. The lines are those of Slurm 22.05."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import ProtocolError
from swarm_hpc.slurm.query import Job, is_ours, is_silent, parse

NOW = 1795626900.0
RUNNING = (
    "1|RUNNING|None|ada|1795626863|1795626864|1-02:00:36|2|2|{alloc}|N/A|N/A|gres:gpu:1|1|0|alpha[1-2]|main|swarm|"
)
NO_TRES = "cpu=2,mem=1000M,node=2,billing=2"
PENDING = "2|PENDING|Priority|ada|1795626863|1827162864|0:00|2|2|cpu=2|N/A|gres:gpu:2|N/A|0|0||main|swarm-digits|"
FAILED = "3|FAILED|NonZeroExitCode|ada|1795626863|1795626864|0:07|1|1|cpu=1|N/A|N/A|N/A|0|768|alpha1|main|swarm|"


def one(line: str) -> Job:
    (job,) = parse(line + "\n", NOW)
    return job


def test_a_running_job() -> None:
    job = one(RUNNING.format(alloc=NO_TRES))
    assert job == Job(
        id="1",
        name="swarm",
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
    )
    assert job.gpu_hours == pytest.approx(52.02)
    assert not job.is_over


def test_a_waiting_job_waits_until_now_whatever_start_slurm_expects() -> None:
    job = one(PENDING)
    assert (job.state, job.reason, job.queued_s, job.ran_s) == ("PENDING", "Priority", NOW - 1795626863, 0.0)
    assert one(PENDING.replace("1827162864", "N/A")).queued_s == job.queued_s


def test_a_failed_job_tells_its_exit_code() -> None:
    job = one(FAILED)
    assert (job.is_over, job.exit_code, job.ran_s) == (True, 3, 7.0)


def test_a_name_may_hold_anything() -> None:
    assert one(PENDING.replace("|swarm-digits|", "|a|b |c|")).name == "a|b |c"


@pytest.mark.parametrize(
    ("job", "tres", "node", "task", "expected"),
    [
        ("N/A", "cpu=2,gres/gpu=3,gres/gpu:a100=3", "N/A", "gres:gpu:9", 3),
        ("N/A", NO_TRES, "N/A", "gres:gpu:2", 8),
        ("N/A", NO_TRES, "gres:gpu:a100:2", "N/A", 4),
        ("gres/gpu:5", NO_TRES, "N/A", "N/A", 5),
        ("N/A", NO_TRES, "gres/gpu=2", "N/A", 4),
        ("N/A", NO_TRES, "gpu", "N/A", 2),
        ("N/A", NO_TRES, "gres:nic:2", "N/A", 0),
        ("N/A", NO_TRES, "N/A", "N/A", 0),
    ],
)
def test_gpus_are_what_is_allocated_or_else_what_was_asked_for(
    job: str, tres: str, node: str, task: str, expected: int
) -> None:
    line = f"1|RUNNING|None|ada|1|2|0:00|2|4|{tres}|{job}|{node}|{task}|0|0|n[1-2]|main|swarm|"
    assert one(line).num_gpus == expected


@pytest.mark.parametrize("name", ["swarm", "swarm-digits", "swarm-"])
def test_our_jobs_are_known_by_their_names(name: str) -> None:
    assert is_ours(one(PENDING.replace("swarm-digits", name)))
    assert not is_ours(one(PENDING.replace("swarm-digits", f"my-{name}")))


@pytest.mark.parametrize(
    "line", ["JOBID STATE", "1|RUNNING|", PENDING.replace("0:00", "soon"), PENDING.replace("|2|2|", "|x|2|")]
)
def test_other_output_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(ProtocolError, match="squeue printed"):
        parse(line, NOW)


def test_nothing_is_no_job() -> None:
    assert parse("\n", NOW) == ()


def test_a_controller_that_is_away_is_told_from_a_refusal() -> None:
    assert is_silent("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert is_silent("sbatch: fatal: Could not establish a configuration source")
    assert not is_silent("sbatch: error: Batch job submission failed: Invalid partition name specified")
