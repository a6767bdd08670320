"""A job that comes back goes on where it was: no step is lost, none is made twice, and the rounds go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.slurm import until
from tests.system.slurm.conftest import COMMAND_S, LOOPBACK, PATIENCE_S, RETURNING, Network
from tests.system.slurm.test_jobs import finish_and_verify, preempt, requeue

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = (f"experiment={RETURNING}", "round.min_peers=1", "round.quorum_wait_s=2")


@pytest.mark.parametrize("how", [requeue, preempt])
def test_the_program_of_a_requeued_job_goes_on_at_its_next_step(
    network: Callable[..., Network], how: Callable[[Network, str], None]
) -> None:
    net = network()
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(RETURNING, 2, "alpha", "beta")
    how(net, jobs["alpha"])
    alone = net.await_round(RETURNING, 3, "beta")
    until(
        lambda: "the ML program has saved its state" in net.log("alpha", jobs["alpha"]),
        "it to save",
        20,
        lambda: net.log("alpha", jobs["alpha"]),
    )
    net.await_round(RETURNING, alone.number + 1, "alpha", "beta")
    assert "Restarts=1" in net.slurm["alpha"].describe(jobs["alpha"])
    finish_and_verify(net, jobs.items(), RETURNING)
    check_steps(net, "alpha", jobs["alpha"])


def test_ahead_of_its_time_limit_a_job_saves_and_comes_back(network: Callable[..., Network]) -> None:
    net = network()
    alpha = net.slurm["alpha"]
    # Slurm looks at time limits every half minute or so: the warning comes within the minute, long before its end
    job = net.submit("alpha", "site.time=2", "site.warning_s=110", "site.nodes=2", *TRAINING)
    unwarned = net.submit("beta", "site.time=1", "site.warning_s=0", *TRAINING)
    net.await_round(RETURNING, 2, "alpha", "beta")
    until(lambda: "Restarts=1" in alpha.describe(job), "the job to requeue itself", COMMAND_S)
    log, why = net.log("alpha", job), net.look("alpha", job)[1]
    assert why.endswith(" after the warning before its time limit")
    assert log.count("leaving: the job's time limit is near (SIGUSR2)") == 2
    assert log.count("the ML program has saved its state") == 2
    done = net.steps("alpha", job)
    until(lambda: len(net.steps("alpha", job)) > len(done), "it to go on", PATIENCE_S)
    net.slurm["beta"].await_state(unwarned, "TIMEOUT", patience_s=COMMAND_S)
    assert net.look("beta", unwarned) == ("TIMEOUT", "TimeLimit 1:00")
    until(lambda: not net.slurm["beta"].processes_of(unwarned), "its processes to end", PATIENCE_S)
    net.let_finish(RETURNING)
    net.end("alpha", job)
    for task in (0, 1):
        check_steps(net, "alpha", job, task)


@pytest.mark.mpi
def test_the_ranks_of_a_job_save_and_go_on_together(network: Callable[..., Network]) -> None:
    net = network()
    net.write_profile("alpha", nodes=2, mpi="pmi2", setup=[LOOPBACK])
    jobs = {site: net.submit(site, *TRAINING) for site in ("alpha", "beta")}
    net.await_round(RETURNING, 2, "alpha", "beta")
    requeue(net, jobs["alpha"])
    saved = "the ML program has saved its state"
    until(lambda: net.log("alpha", jobs["alpha"]).count(saved) == 2, "both to save", PATIENCE_S)
    net.await_round(RETURNING, len(net.rounds(RETURNING)) + 2, "alpha", "beta")
    finish_and_verify(net, jobs.items(), RETURNING)
    for task in (0, 1):
        check_steps(net, "alpha", jobs["alpha"], task)


def test_the_program_of_a_lost_node_goes_on_from_what_it_saved_last(network: Callable[..., Network]) -> None:
    net = network()
    words = (*TRAINING, "++experiment.env.SAVE_EVERY_S=1")
    jobs = {site: net.submit(site, *words) for site in ("alpha", "beta")}
    alpha = net.slurm["alpha"]
    until(lambda: len(net.steps("alpha", jobs["alpha"])) > 30, "the program to have saved", PATIENCE_S)
    alpha.lose_node("alpha1")
    try:
        alpha.kill_jobs()
        before = net.steps("alpha", jobs["alpha"])
        until(lambda: "NodeList=alpha2\n" in alpha.describe(jobs["alpha"]), "the job to run elsewhere", PATIENCE_S)
        until(lambda: len(net.steps("alpha", jobs["alpha"])) > len(before), "it to go on", PATIENCE_S)
        assert 1 < net.steps("alpha", jobs["alpha"])[len(before)] <= before[-1] + 1
        finish_and_verify(net, jobs.items(), RETURNING)
    finally:
        alpha.find_node("alpha1")


def check_steps(net: Network, site: str, job: str, task: int = 0) -> None:
    """Every step was made once, and what is not merged came along."""
    steps, result = net.steps(site, job, task), net.result(site, job, task)
    assert steps == list(range(1, len(steps) + 1))
    assert result["steps"] == result["momentum"] == len(steps)
