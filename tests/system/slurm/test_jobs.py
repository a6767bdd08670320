"""What happens to jobs on a real cluster: they wait in the queue, are cancelled, and are put back into it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import pytest

from swarm_hpc.records import Round
from swarm_hpc.slurm.job import Cause
from tests.lab.slurm import until
from tests.system.slurm.conftest import PATIENCE_S, TINY, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = (f"experiment={TINY}", "round.min_peers=1", "round.quorum_wait_s=2")


def seen(net: Network, site: str, job: str) -> dict[str, Any]:
    """What `swarm-hpc status` says of the job, on that site's login node."""
    done = net.command(site, "status", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = next(one for one in json.loads(done.stdout)["jobs"] if one["id"] == job)
    return found


def test_a_site_trains_while_another_ones_job_waits_and_is_joined_when_it_starts(
    network: Callable[..., Network],
) -> None:
    net = network()
    beta = net.slurm["beta"]
    blocker = beta.run("sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 600")
    beta.await_state(blocker, "RUNNING")
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(TINY, 2, "alpha")

    waiting = seen(net, "beta", jobs["beta"])
    assert (waiting["name"], waiting["state"]) == ("swarm-tiny", "PENDING")
    assert waiting["reason"] in ("Resources", "Priority")
    assert waiting["why"] == waiting["reason"]
    assert waiting["queued_s"] > 0
    table = net.command("beta", "status", str(net.folder.root)).stdout
    assert "Slurm jobs" in table
    assert f" {waiting['why']} " in table
    running = seen(net, "alpha", jobs["alpha"])
    assert (running["state"], running["why"], running["nodes"]) == ("RUNNING", "", "alpha1")

    beta.run("scancel", blocker)
    net.await_round(TINY, 3, "alpha", "beta")
    net.let_finish()
    for site, job in jobs.items():
        net.end(site, job)
        assert net.look(site, job) == ("COMPLETED", "")


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
    assert net.look("alpha", jobs["alpha"]) == ("CANCELLED", "")
    until(lambda: not alpha.processes_of(jobs["alpha"]), "its processes to end", PATIENCE_S)

    for task in (0, 1):
        node = net.node("alpha", jobs["alpha"], task)
        assert node is not None and not node.node.active
    log = net.log("alpha", jobs["alpha"])
    assert log.count("leaving: the node is stopped (SIGTERM)") == 2
    net.await_round(TINY, len(net.rounds(TINY)) + 1, "beta")
    net.let_finish()
    net.end("beta", jobs["beta"])


def test_two_jobs_of_a_site_with_one_contract_are_nodes_of_their_own(network: Callable[..., Network]) -> None:
    net = network()
    sites = ("alpha", "alpha", "beta")
    jobs = [(site, net.submit(site, *TRAINING, "round.min_peers=3")) for site in sites]
    names = {f"{site}/sl/job-{job}-0" for site, job in jobs}
    assert len(names) == 3

    def together() -> Round | None:
        return next((one for one in net.rounds(TINY) if {c.node for c in one.check_ins} == names), None)

    first = until(together, "all three jobs in one round", PATIENCE_S)
    net.await_round(TINY, first.number + 2)
    for site, job in jobs:
        assert net.look(site, job) == ("RUNNING", "")
    finish_and_verify(net, jobs)
    rounds = net.rounds(TINY)
    assert [one.number for one in rounds] == list(range(rounds[0].number, rounds[0].number + len(rounds)))
    assert all({c.node for c in one.check_ins} == names for one in rounds)
    results = [net.result(site, job) for site, job in jobs]
    assert results[0] == results[1] == results[2]


def requeue(net: Network, job: str) -> None:
    net.slurm["alpha"].run("scontrol", "requeue", job)


def preempt(net: Network, job: str) -> None:
    words = ("--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3")
    net.slurm["alpha"].run("sbatch", *words)


@pytest.mark.parametrize(("how", "cause"), [(requeue, Cause.COMMAND), (preempt, Cause.PREEMPTION)])
def test_a_requeued_job_comes_back_as_the_same_node_and_the_run_finishes(
    network: Callable[..., Network], how: Callable[[Network, str], None], cause: Cause
) -> None:
    net = network()
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(TINY, 2, "alpha", "beta")
    before = net.node("alpha", jobs["alpha"])
    assert before is not None

    how(net, jobs["alpha"])
    why = until(lambda: why_it_waits(net, jobs["alpha"]), "the job to be back in the queue", PATIENCE_S)
    assert re.fullmatch(f"((BeginTime .*|Resources|Priority); )?back in the queue after {cause}", why)
    alone = net.await_round(TINY, 3, "beta")
    together = net.await_round(TINY, alone.number + 1, "alpha", "beta")
    assert {c.node for c in together.check_ins} == {f"{site}/sl/job-{job}-0" for site, job in jobs.items()}
    after = net.node("alpha", jobs["alpha"])
    assert after is not None and after.node.incarnation > before.node.incarnation
    again = seen(net, "alpha", jobs["alpha"])
    assert (again["state"], again["num_restarts"]) == ("RUNNING", 1)
    assert (again["requeued_after"], again["why"]) == (cause, f"started again after {cause}")
    finish_and_verify(net, jobs.items())


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
        why = until(lambda: why_it_waits(net, jobs["alpha"]), "the job to be back in the queue", PATIENCE_S)
        assert why.endswith("back in the queue after node failure")
        until(lambda: "NodeList=alpha2\n" in alpha.describe(jobs["alpha"]), "the job to run elsewhere", PATIENCE_S)
        assert net.look("alpha", jobs["alpha"]) == ("RUNNING", "started again after node failure")
        until(lambda: not any(is_alive(process) for process in old), "the first run to end", PATIENCE_S)
        net.await_round(TINY, len(net.rounds(TINY)) + 1, "alpha", "beta")
        finish_and_verify(net, jobs.items())
    finally:
        alpha.find_node("alpha1")


def why_it_waits(net: Network, job: str) -> str:
    """Why alpha's job waits; empty while it does not."""
    state, why = net.look("alpha", job)
    return why if state == "PENDING" else ""


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def finish_and_verify(net: Network, jobs: Iterable[tuple[str, str]], contract: str = TINY) -> None:
    """Let these jobs, each with its site, end by themselves, and recompute all merges."""
    net.let_finish(contract)
    for site, job in jobs:
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)
    done = net.command("alpha", "verify", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rounds_checked"], report["mismatches"]) == (len(net.rounds(contract)), 0)
