"""What happens to jobs on a real cluster: they wait in the queue, are cancelled, and are put back into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.lab.slurm import until
from tests.system.slurm.conftest import PATIENCE_S, TINY, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = (f"experiment={TINY}", "round.min_peers=1", "round.quorum_wait_s=2")


def jobs_seen(net: Network, site: str) -> list[dict[str, Any]]:
    """What `swarm-hpc status` says of the jobs, on that site's login node."""
    done = net.command(site, "status", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    jobs: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
    return jobs


def test_a_site_trains_while_another_ones_job_waits_and_is_joined_when_it_starts(
    network: Callable[..., Network],
) -> None:
    net = network()
    beta = net.slurm["beta"]
    blocker = beta.run("sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 600")
    beta.await_state(blocker, "RUNNING")
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(TINY, 2, "alpha")

    (seen,) = jobs_seen(net, "beta")
    assert (seen["id"], seen["name"], seen["state"]) == (jobs["beta"], "swarm-tiny", "PENDING")
    assert seen["reason"] in ("Resources", "Priority")
    assert seen["queued_s"] > 0
    table = net.command("beta", "status", str(net.folder.root)).stdout
    assert "Slurm jobs" in table
    assert f" {seen['reason']} " in table
    (running,) = jobs_seen(net, "alpha")
    assert (running["id"], running["state"], running["nodes"]) == (jobs["alpha"], "RUNNING", "alpha1")

    beta.run("scancel", blocker)
    net.await_round(TINY, 3, "alpha", "beta")
    net.let_finish()
    for site, job in jobs.items():
        net.end(site, job)


def test_a_cancelled_job_leaves_no_process_and_the_others_do_not_wait_for_it(network: Callable[..., Network]) -> None:
    net = network()
    jobs = {"alpha": net.submit("alpha", "site.nodes=2", *TRAINING), "beta": net.submit("beta", *TRAINING)}
    names = {f"alpha/sl/job-{jobs['alpha']}-{task}" for task in (0, 1)} | {f"beta/sl/job-{jobs['beta']}-0"}

    def together() -> bool:
        return any({c.node for c in one.check_ins} == names for one in net.rounds(TINY))

    until(together, "all three tasks in one round", PATIENCE_S)
    alpha = net.slurm["alpha"]
    alpha.run("scancel", jobs["alpha"])
    alpha.await_state(jobs["alpha"], "CANCELLED")
    until(lambda: not alpha.processes_of(jobs["alpha"]), "its processes to end", PATIENCE_S)

    for task in (0, 1):
        node = net.node("alpha", jobs["alpha"], task)
        assert node is not None and not node.node.active
    log = net.log("alpha", jobs["alpha"])
    assert log.count("leaving: the node is stopped (SIGTERM)") == 2
    net.await_round(TINY, len(net.rounds(TINY)) + 1, "beta")
    net.let_finish()
    net.end("beta", jobs["beta"])


def requeue(net: Network, job: str) -> None:
    net.slurm["alpha"].run("scontrol", "requeue", job)


def preempt(net: Network, job: str) -> None:
    words = ("--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3")
    net.slurm["alpha"].run("sbatch", *words)


@pytest.mark.parametrize("how", [requeue, preempt])
def test_a_requeued_job_comes_back_as_the_same_node_and_the_run_finishes(
    network: Callable[..., Network], how: Callable[[Network, str], None]
) -> None:
    net = network()
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(TINY, 2, "alpha", "beta")
    before = net.node("alpha", jobs["alpha"])
    assert before is not None

    how(net, jobs["alpha"])
    alone = net.await_round(TINY, 3, "beta")
    together = net.await_round(TINY, alone.number + 1, "alpha", "beta")
    assert {c.node for c in together.check_ins} == {f"{site}/sl/job-{job}-0" for site, job in jobs.items()}
    after = net.node("alpha", jobs["alpha"])
    assert after is not None and after.node.incarnation > before.node.incarnation
    (seen,) = jobs_seen(net, "alpha")
    assert (seen["state"], seen["num_restarts"]) == ("RUNNING", 1)
    finish_and_verify(net, jobs)


def test_a_job_whose_node_is_lost_runs_elsewhere_and_its_first_run_does_no_harm(
    network: Callable[..., Network],
) -> None:
    net = network()
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(TINY, 2, "alpha", "beta")
    alpha = net.slurm["alpha"]
    old = [process for process in alpha.processes_of(jobs["alpha"]) if "--task" in process.cmdline()]
    alpha.lose_node("alpha1")
    try:
        assert any(is_alive(process) for process in old)
        until(lambda: "NodeList=alpha2\n" in alpha.describe(jobs["alpha"]), "the job to run elsewhere", PATIENCE_S)
        until(lambda: not any(is_alive(process) for process in old), "the first run to end", PATIENCE_S)
        net.await_round(TINY, len(net.rounds(TINY)) + 1, "alpha", "beta")
        finish_and_verify(net, jobs)
    finally:
        alpha.find_node("alpha1")


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def finish_and_verify(net: Network, jobs: dict[str, str], contract: str = TINY) -> None:
    net.let_finish(contract)
    for site, job in jobs.items():
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)
    done = net.command("alpha", "verify", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rounds_checked"], report["mismatches"]) == (len(net.rounds(contract)), 0)
