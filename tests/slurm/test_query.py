"""Where jobs are and why, asked of a real Slurm without slurmdbd."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from swarm_hpc.slurm.job import Job
from swarm_hpc.slurm.query import fetch_jobs, fetch_ours
from tests.lab.slurm import Cluster, until

pytestmark = pytest.mark.slurm


@pytest.fixture
def alpha(alpha: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """This process is on alpha's login node, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return alpha


def sbatch(cluster: Cluster, *words: str) -> str:
    return cluster.run("sbatch", "--parsable", "--job-name=swarm-x", *words, cwd=Path.cwd())


def look(job: str) -> Job:
    return next(one for one in fetch_ours(now=time.time()) if one.id == job)


def test_each_reason_to_wait_is_told(alpha: Cluster) -> None:
    runs = [sbatch(alpha, "--licenses=swarm:1", "--mem=500", "--wrap=sleep 600") for _ in range(2)]
    for job in runs:
        alpha.await_state(job, "RUNNING")
    waits = {
        "Licenses swarm:1": sbatch(alpha, "--licenses=swarm:1", "--wrap=true"),
        f"Dependency afterok:{runs[0]}(unfulfilled)": sbatch(alpha, f"--dependency=afterok:{runs[0]}", "--wrap=true"),
        "JobHeldUser": sbatch(alpha, "--hold", "--wrap=true"),
        "Resources": sbatch(alpha, "--exclusive", "--nodes=2", "--wrap=true"),
        "Priority": sbatch(alpha, "--exclusive", "--nodes=2", "--wrap=true"),
    }
    later = sbatch(alpha, "--begin=now+600", "--wrap=true")
    deadline = time.monotonic() + 20
    while (told := {look(job).why: job for job in waits.values()}) != waits and time.monotonic() < deadline:
        time.sleep(0.2)
    assert told == waits
    job = look(later)
    assert job.reason == "BeginTime"
    assert job.eligible_at is not None and 500 < job.eligible_at - time.time() <= 600
    alpha.run("scancel", runs[0])
    alpha.cancel_all()


def test_what_the_user_asks_squeue_for_by_default_hides_no_job(alpha: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sbatch(alpha, "--hold", "--wrap=true")
    for name in ("SQUEUE_USERS", "SQUEUE_PARTITION", "SQUEUE_NAMES", "SQUEUE_ACCOUNT", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "another")
    assert [one.id for one in fetch_jobs([job], now=time.time())] == [job]
    assert look(job).reason == "JobHeldUser"
    alpha.cancel_all()


def test_each_end_is_told_after_those_that_run(alpha: Cluster) -> None:
    held = sbatch(alpha, "--hold", "--wrap=true")
    ends = {
        sbatch(alpha, "--wrap=true"): ("COMPLETED", ""),
        sbatch(alpha, "--wrap=exit 3"): ("FAILED", "exit code 3"),
        sbatch(alpha, "--wrap=kill -9 $$"): ("FAILED", "signal 9 (SIGKILL), JobLaunchFailure"),
    }
    for job, (state, _) in ends.items():
        alpha.await_state(job, state)
    lost = sbatch(alpha, "--no-requeue", "--wrap=sleep 600")
    alpha.await_state(lost, "RUNNING")
    node = look(lost).nodes
    alpha.lose_node(node)
    try:
        alpha.await_state(lost, "NODE_FAIL")
        ends[lost] = ("NODE_FAIL", f"NodeDown {node}")
        ours = fetch_ours(now=time.time())
        assert {one.id: (one.state, one.why) for one in ours if one.id in ends} == ends
        order = [one.id for one in ours]
        assert max(order.index(one.id) for one in ours if not one.is_over) < min(order.index(job) for job in ends)
        assert all(one.ended_s is not None and one.ended_s < 120 for one in ours if one.id in ends)
    finally:
        alpha.find_node(node)
    alpha.run("scancel", held)
    assert (look(held).state, look(held).why) == ("CANCELLED", "")
    alpha.cancel_all()


def test_a_preempted_job_that_may_not_be_requeued_is_over(alpha: Cluster) -> None:
    job = sbatch(alpha, "--no-requeue", "--wrap=sleep 600")
    alpha.await_state(job, "RUNNING")
    sbatch(alpha, "--partition=urgent", "--exclusive", "--nodes=2", "--wrap=true")
    alpha.await_state(job, "PREEMPTED")
    assert look(job).is_over
    alpha.cancel_all()


def test_gpu_hours_without_slurmdbd_are_those_of_the_latest_start(alpha: Cluster) -> None:
    job = sbatch(alpha, "--gres=gpu:2", "--requeue", "--wrap=sleep 600")
    alpha.await_state(job, "RUNNING")
    assert (look(job).num_gpus, look(job).has_all_gpu_hours) == (2, True)
    alpha.run("scontrol", "requeue", job)
    alpha.await_state(job, "PENDING")
    assert look(job).as_json()["gpu_hours_since"] == "latest start"
    assert look(job).why.endswith("back in the queue after scontrol requeue")
    assert [one.id for one in fetch_jobs([job], now=time.time())] == [job]
    alpha.cancel_all()


def test_a_lost_node_that_left_no_word_is_known_by_the_step_that_nobody_saw_end(alpha: Cluster) -> None:
    job = sbatch(alpha, "--requeue", "--output=/dev/null", "--wrap=srun sleep 600")
    steps = ("squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i")
    until(lambda: f"{job}.0" in alpha.run(*steps), "its step to run", 30.0, lambda: alpha.describe(job))
    node = look(job).nodes
    alpha.lose_node(node)
    try:
        until(lambda: look(job).why.endswith("after node failure"), "the reason", 20.0, lambda: str(look(job)))
    finally:
        alpha.find_node(node)
    alpha.cancel_all()
