"""The digits across two Slurm clusters: one site submits with swarm-hpc, the other one with sbatch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_hpc.cli.settings import EXAMPLES
from swarm_hpc.local.swarm import ONE_THREAD
from tests.system.slurm.conftest import LOOPBACK, SITES, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]


def deal(folder: Path) -> None:
    words = [str(folder), "--sites", str(len(SITES)), "--names", ",".join(SITES)]
    subprocess.run([sys.executable, EXAMPLES / "digits" / "prepare.py", *words], check=True, capture_output=True)


def train_without_swarm(data: Path, scratch: Path) -> float:
    env = {"DATA_DIR": str(data), "SCRATCH_DIR": str(scratch), "SWARM_LOOPBACK": "TRUE", "SEED": "0"}
    program = [sys.executable, EXAMPLES / "digits" / "train.py"]
    subprocess.run(program, check=True, capture_output=True, env={**os.environ, **ONE_THREAD, **env})
    return float(json.loads((scratch / "result.json").read_text())["value"])


def test_both_sites_gain_and_the_ledger_can_be_verified(network: Callable[..., Network], tmp_path: Path) -> None:
    net = network()
    data = tmp_path / "data"
    deal(data)
    words = {site: ("experiment=digits", "merge=geomedian", f"data_dir={data / site}") for site in SITES}
    jobs = {"beta": net.sbatch("beta", *words["beta"])}
    followed = net.command(
        "alpha", "submit", "site=alpha", "--config-dir", str(net.profiles), *words["alpha"], "--wait", "poll_s=1"
    )
    assert followed.returncode == 0, f"{followed.stderr}\n{net.log('beta', jobs['beta'])}"
    jobs["alpha"] = followed.stdout.strip()
    assert f"job {jobs['alpha']}: RUNNING on alpha1: epoch " in followed.stderr
    assert f"job {jobs['alpha']}: COMPLETED on alpha1" in followed.stderr
    for site, job in jobs.items():
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)

    pooled = train_without_swarm(data / "pooled", tmp_path / "pooled")
    for site, job in jobs.items():
        alone = train_without_swarm(data / site, tmp_path / f"{site}-alone")
        assert alone < 0.91
        assert net.result(site, job)["value"] >= pooled - 0.02

    rounds = net.rounds("digits")
    nodes = {check_in.node for one in rounds for check_in in one.check_ins}
    assert nodes == {f"{site}/sl/job-{job}-0" for site, job in jobs.items()}
    done = net.command("alpha", "verify", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rounds_checked"], report["mismatches"]) == (len(rounds), 0)
    assert len(rounds) > 20


@pytest.mark.mpi
def test_the_tasks_of_a_job_on_two_nodes_merge_by_mpi_and_check_in_as_one(
    network: Callable[..., Network], tmp_path: Path
) -> None:
    net = network()
    data = tmp_path / "data"
    deal(data)
    net.write_profile("alpha", nodes=2, mpi="pmi2", setup=[LOOPBACK])
    words = ("experiment=digits", "round.min_peers=2")
    jobs = {site: net.submit(site, *words, f"data_dir={data / site}") for site in SITES}
    for site, job in jobs.items():
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)

    rounds = net.rounds("digits")
    assert len(rounds) > 20
    nodes = {(check_in.node, check_in.num_nodes) for one in rounds for check_in in one.check_ins}
    assert nodes == {(f"alpha/sl/job-{jobs['alpha']}-0", 2), (f"beta/sl/job-{jobs['beta']}-0", 1)}
    results = {net.result("alpha", jobs["alpha"], task)["value"] for task in (0, 1)}
    assert results == {net.result("beta", jobs["beta"])["value"]}, "all have the same model"
    pooled = train_without_swarm(data / "pooled", tmp_path / "pooled")
    assert results.pop() >= pooled - 0.02
    done = net.command("alpha", "verify", str(net.folder.root), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mismatches"] == 0
