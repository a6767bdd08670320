"""What the tests of this folder share: being on a login node, and a job as Slurm tells of it."""

from __future__ import annotations

import pytest

from swarm_hpc.slurm.job import Job
from tests.lab.slurm import Cluster

JOB = Job(
    id="12",
    name="swarm-digits",
    user="ada",
    partition="gpu",
    state="RUNNING",
    reason="",
    nodes="n1",
    num_nodes=1,
    num_tasks=1,
    num_gpus=2,
    queued_s=98.0,
    ran_s=3600.0,
    num_restarts=2,
    exit_code=0,
)


@pytest.fixture
def alpha(slurm_clusters: dict[str, Cluster], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process is on alpha's login node."""
    for key, value in slurm_clusters["alpha"].env.items():
        monkeypatch.setenv(key, value)
    return slurm_clusters["alpha"]
