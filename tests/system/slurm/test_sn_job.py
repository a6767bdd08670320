"""An SN that is a job goes back into the queue by itself near its time limit, and the sites find it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarm_hpc.local.swarm import sn_name
from tests.lab.slurm import until
from tests.system.slurm.conftest import PATIENCE_S, TINY, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = (f"experiment={TINY}", "round.min_peers=1", "round.quorum_wait_s=2")


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
