"""Following a job, and asking for jobs, on a real Slurm: what is not as one would wish."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from swarm_hpc.errors import JobFailed, JobRefused, SlurmMissing, TimedOut
from swarm_hpc.slurm import command
from swarm_hpc.slurm.executor import submit
from swarm_hpc.slurm.query import fetch_ours
from swarm_hpc.slurm.watch import follow
from tests.lab.slurm import Cluster

pytestmark = pytest.mark.slurm


def test_a_job_that_is_not_over_in_time_goes_on_by_itself(alpha: Cluster) -> None:
    job = alpha.run("sbatch", "--parsable", "--hold", "--job-name=swarm-held", "--wrap=true")
    seen = []
    with pytest.raises(TimedOut, match="goes on by itself"):
        for now in follow([job], poll_s=0.1, timeout_s=0.0):
            seen.append(now)
    assert [(one.id, one.state, one.reason) for one in seen] == [(job, "PENDING", "JobHeldUser")]
    assert job in [one.id for one in fetch_ours(now=time.time())]
    alpha.cancel_all()


def test_a_job_that_slurm_does_not_know_cannot_be_followed(alpha: Cluster) -> None:
    with pytest.raises(JobFailed, match="Slurm knows no job 4000000 any more"):
        list(follow(["4000000"], poll_s=0.1, timeout_s=10.0))


def test_jobs_of_others_are_not_ours(alpha: Cluster) -> None:
    alpha.run("sbatch", "--parsable", "--hold", "--job-name=climate", "--wrap=true")
    assert "climate" not in {one.name for one in fetch_ours(now=time.time())}
    alpha.cancel_all()


def test_a_controller_that_is_away_is_told_from_a_job_that_is_refused(
    alpha: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "#!/bin/bash\n#SBATCH --licenses=nobody-has-it:1\n"
    with pytest.raises(JobRefused, match="Invalid license specification"):
        submit(script, tmp_path)
    conf = (alpha.folder / "slurm.conf").read_text()
    port = next(line for line in conf.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(conf.replace(port, "SlurmctldPort=1") + "MessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setattr(command, "COMMAND_S", 5.0)
    with pytest.raises(SlurmMissing):
        fetch_ours(now=time.time())
