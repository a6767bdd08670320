"""Slurm jobs of an ordinary user, whose SLs and programs are in containers from a SIF file, as on a real cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_hpc.cli.settings import EXAMPLES
from swarm_hpc.slurm.images import digest_of
from tests.lab.slurm import until
from tests.system.apptainer.conftest import User
from tests.system.slurm.conftest import LOOPBACK, PATIENCE_S, PROGRAMS, RETURNING, SITES, TINY, Network
from tests.system.slurm.test_digits import check_gain, check_that_all_took_part
from tests.system.slurm.test_jobs import finish_and_verify, preempt, requeue
from tests.system.slurm.test_return import TRAINING, check_steps

pytestmark = [
    pytest.mark.apptainer,
    pytest.mark.slurm,
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


def words_of(user: User, net: Network, *words: str) -> tuple[str, ...]:
    """For jobs whose programs are in this repository, and look at a file of the network's folder."""
    return (*TRAINING, *user.words, f"container.binds=['{net.folder.root}','{PROGRAMS}']", *words)


@pytest.mark.mpi
def test_two_clusters_train_in_containers_with_mpi_between_those_of_a_job(
    user: User, network: Callable[[], Network], tmp_path: Path
) -> None:
    net = network()
    net.write_profile("alpha", nodes=2, mpi="pmi2", gpus_per_task=1, setup=[LOOPBACK])
    data = user.who.home / "data"
    words = [str(data), "--sites", str(len(SITES)), "--names", ",".join(SITES)]
    user.who.run(sys.executable, EXAMPLES / "digits" / "prepare.py", *words).check_returncode()
    digest = digest_of(user.image())
    common = ("experiment=digits", "round.min_peers=2", f"round.image={digest}", *user.words)
    jobs = {"alpha": net.submit("alpha", *common, f"data_dir={data / 'alpha'}")}
    jobs["beta"] = net.sbatch("beta", *common, f"data_dir={data / 'beta'}")
    for site, job in jobs.items():
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)
    check_that_all_took_part(net, jobs)
    check_gain(net, jobs, data, tmp_path)
    for one in net.rounds("digits"):
        used = {check_in.node.partition("/")[0]: check_in.resources for check_in in one.check_ins}
        assert {site: each.job for site, each in used.items()} == jobs
        assert {each.image for each in used.values()} == {digest}
        assert used["beta"].gpu_s == 0
        assert used["alpha"].gpu_s > 0
    user.check_that_nothing_is_left_of_jobs()


@pytest.mark.parametrize(("how", "place"), [(requeue, "container"), (preempt, "host")])
def test_the_program_of_a_requeued_job_goes_on_at_its_next_step(
    user: User, network: Callable[[], Network], how: Callable[[Network, str], None], place: str
) -> None:
    net = network()
    jobs = {site: net.submit(site, *words_of(user, net, f"container.sl={place}")) for site in SITES}
    net.await_round(RETURNING, 2, *SITES)
    how(net, jobs["alpha"])
    alone = net.await_round(RETURNING, 3, "beta")
    saved = "the ML program has saved its state"
    until(lambda: saved in net.log("alpha", jobs["alpha"]), "it to save", 20, lambda: net.log("alpha", jobs["alpha"]))
    net.await_round(RETURNING, alone.number + 1, *SITES)
    finish_and_verify(net, jobs.items(), RETURNING)
    check_steps(net, "alpha", jobs["alpha"])
    user.check_that_nothing_is_left_of_jobs()


def test_a_warning_ahead_of_the_time_limit_goes_through_both_containers(
    user: User, network: Callable[[], Network]
) -> None:
    net = network()
    alpha = net.slurm["alpha"]
    job = net.submit("alpha", *words_of(user, net, "site.warning_s=110"))
    net.await_round(RETURNING, 2, "alpha")
    # what Slurm sends the batch shell when the time comes, which waits for no time limit
    alpha.run("scancel", "--signal=USR2", "--batch", job)
    until(
        lambda: "Restarts=1" in alpha.describe(job),
        "the job to requeue itself",
        PATIENCE_S,
        lambda: net.log("alpha", job),
    )
    log = net.log("alpha", job)
    assert "leaving: the job's time limit is near (SIGUSR2)" in log
    assert "the ML program has saved its state" in log
    done = net.steps("alpha", job)
    until(lambda: len(net.steps("alpha", job)) > len(done), "it to go on", PATIENCE_S)
    net.let_finish(RETURNING)
    net.end("alpha", job)
    check_steps(net, "alpha", job)


def test_a_cancelled_job_ends_in_order_and_nothing_is_left_of_it(user: User, network: Callable[[], Network]) -> None:
    net = network()
    alpha = net.slurm["alpha"]
    job = net.submit("alpha", *words_of(user, net))
    net.await_round(RETURNING, 2, "alpha")
    alpha.run("scancel", job)
    alpha.await_state(job, "CANCELLED")
    until(lambda: not alpha.processes_of(job), "its processes to end", PATIENCE_S)
    log = net.log("alpha", job)
    assert "leaving: the node is stopped (SIGTERM)" in log
    assert "the ML program has saved its state" in log
    node = net.node("alpha", job)
    assert node is not None and not node.node.active
    user.check_that_nothing_is_left_of_jobs()


def test_a_job_whose_program_runs_in_another_image_is_refused(user: User, network: Callable[[], Network]) -> None:
    net = network()
    named = f"round.image={digest_of(user.image())}"
    alpha = net.submit("alpha", *words_of(user, net, named))
    net.await_round(RETURNING, 1, "alpha")
    changed = user.who.home / "changed.sif"
    user.who.run("cp", user.image().path, changed).check_returncode()
    with changed.open("ab") as file:
        file.write(b"\0")
    others = {
        "this one runs in image sha256:": (*words_of(user, net), f"container.image={changed}"),
        "this one runs in no container image with a digest": (*TRAINING, "container=none"),
    }
    for why, words in others.items():
        beta = net.submit("beta", *words, named)
        assert net.slurm["beta"].await_state(beta, "FAILED", patience_s=PATIENCE_S)
        assert why in net.log("beta", beta)
    honest = net.submit("beta", *words_of(user, net))
    assert net.slurm["beta"].await_state(honest, "FAILED", patience_s=PATIENCE_S)
    assert "image" in net.log("beta", honest)
    assert all(c.node.startswith("alpha/") for one in net.rounds(RETURNING) for c in one.check_ins)
    net.let_finish(RETURNING)
    net.end("alpha", alpha)


def test_a_program_that_fails_in_its_container_says_why(user: User, network: Callable[[], Network]) -> None:
    net = network()
    job = net.submit("alpha", *words_of(user, net, f"experiment={TINY}", "++experiment.env.TARGET=no-number"))
    net.slurm["alpha"].await_state(job, "FAILED", patience_s=PATIENCE_S)
    log = net.log("alpha", job)
    assert "the ML program python3 ended with exit code 1" in log
    assert "could not convert string to float" in log
    assert subprocess.run(["pgrep", "-u", user.who.user, "squashfuse"], capture_output=True).returncode == 1
