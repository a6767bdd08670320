"""A job that reaches its time limit goes back into the queue by itself; so does an SN that is a job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarm_hpc.local.swarm import sn_name
from tests.lab.slurm import until
from tests.system.slurm.conftest import COMMAND_S, PATIENCE_S, TINY, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = (f"experiment={TINY}", "round.min_peers=1", "round.quorum_wait_s=2")


def test_near_its_time_limit_a_job_requeues_itself_and_the_run_finishes(network: Callable[..., Network]) -> None:
    net = network()
    alpha = net.slurm["alpha"]
    # Slurm looks at time limits every half minute or so: the warning comes within the minute, long before its end
    job = net.submit("alpha", "site.time=2", "site.warning_s=110", *TRAINING)
    net.await_round(TINY, 2, "alpha")
    short = alpha.run(
        "sbatch", "--parsable", "--job-name=swarm-short", "--time=1", "--wrap=sleep 600", cwd=net.folder.root
    )
    until(lambda: "Restarts=1" in alpha.describe(job), "the job to requeue itself", COMMAND_S)
    until(lambda: net.look("alpha", job)[1].endswith(" after scontrol requeue"), "status to say so", PATIENCE_S)
    before = len(net.rounds(TINY))
    net.await_round(TINY, before + 2, "alpha")
    assert net.look("alpha", job) == ("RUNNING", "started again after scontrol requeue")
    net.let_finish()
    net.end("alpha", job)
    alpha.await_state(short, "TIMEOUT", patience_s=COMMAND_S)
    assert net.look("alpha", short) == ("TIMEOUT", "TimeLimit 1:00")


def test_an_sn_may_be_a_job_that_is_requeued_between_two_trainings(network: Callable[..., Network]) -> None:
    net = network(sn=False)
    identity, data_dir = net.folder.identity(sn_name("alpha")), net.folder.sn_data
    words = [f"identity.{key}={getattr(identity, key)}" for key in ("cert", "key", "bundle")]
    words += [f"data_dir={data_dir}", "host=127.0.0.1", "advertise=127.0.0.1", "port=0", "transfer.keep_rounds=0"]
    net.write_profile("beta", sn_file=str(data_dir / "endpoint.json"))
    first = net.submit("beta", *TRAINING)  # it waits for the SN, which comes later
    sn = net.sbatch_file("alpha", "sn", *words)
    endpoint = data_dir / "endpoint.json"
    until(endpoint.exists, "the SN to be up", PATIENCE_S)
    net.await_round(TINY, 2, "beta")
    net.let_finish()
    net.end("beta", first)

    before = endpoint.read_text()
    net.slurm["alpha"].run("scancel", "--batch", "--signal=USR2", sn)
    until(lambda: endpoint.exists() and endpoint.read_text() != before, "the SN to be up again", PATIENCE_S)
    assert "Restarts=1" in net.slurm["alpha"].describe(sn)
    second = net.submit("beta", *TRAINING, "round.contract=second")
    net.end("beta", second)
    assert len(net.rounds(TINY)) >= 2
    assert len(net.rounds("second")) >= 2
