"""The digits across two Slurm clusters: one site submits with swarm-hpc, the other one with sbatch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from swarm_hpc.cli.settings import EXAMPLES
from swarm_hpc.local.swarm import ONE_THREAD
from tests.lab.slurm import until
from tests.system.slurm.conftest import LOOPBACK, PATIENCE_S, SITES, Apart, Network

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]


def deal(folder: Path) -> None:
    words = [str(folder), "--sites", str(len(SITES)), "--names", ",".join(SITES)]
    subprocess.run([sys.executable, EXAMPLES / "digits" / "prepare.py", *words], check=True, capture_output=True)


def train_without_swarm(data: Path, scratch: Path) -> float:
    env = {"DATA_DIR": str(data), "SCRATCH_DIR": str(scratch), "SWARM_LOOPBACK": "TRUE", "SEED": "0"}
    program = [sys.executable, EXAMPLES / "digits" / "train.py"]
    subprocess.run(program, check=True, capture_output=True, env={**os.environ, **ONE_THREAD, **env})
    return float(json.loads((scratch / "result.json").read_text())["value"])


def check_gain(net: Network, jobs: dict[str, str], data: Path, scratch: Path) -> None:
    """What the demo aims at: alone each site falls short, and in the swarm it comes close to training on all data."""
    pooled = train_without_swarm(data / "pooled", scratch / "pooled")
    for site, job in jobs.items():
        assert train_without_swarm(data / site, scratch / f"{site}-alone") < 0.91
        assert net.result(site, job)["value"] >= pooled - 0.02


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

    check_gain(net, jobs, data, tmp_path)
    rounds = net.rounds("digits")
    nodes = {check_in.node for one in rounds for check_in in one.check_ins}
    assert nodes == {f"{site}/sl/job-{job}-0" for site, job in jobs.items()}
    report = verify(net, "alpha", str(net.folder.root))
    assert (report["rounds_checked"], report["mismatches"]) == (len(rounds), 0)
    assert len(rounds) > 20


def train_on_two_nodes_and_one(net: Network, data: Path, *words: str) -> dict[str, str]:
    """Alpha's job has two tasks that merge by MPI, beta's one; their IDs, when both have ended."""
    net.write_profile("alpha", nodes=2, mpi="pmi2", setup=[LOOPBACK])
    deal(data)
    common = ("experiment=digits", "round.min_peers=2", *words)
    jobs = {site: net.submit(site, *common, f"data_dir={data / site}") for site in SITES}
    for site, job in jobs.items():
        net.end(site, job)
        assert not net.slurm[site].processes_of(job)
    return jobs


def check_that_all_took_part(net: Network, jobs: dict[str, str]) -> None:
    """In every round both of alpha's tasks, as one node, and beta's; all of them have the same model at the end."""
    rounds = net.rounds("digits")
    assert len(rounds) > 20
    nodes = {(check_in.node, check_in.num_nodes) for one in rounds for check_in in one.check_ins}
    assert nodes == {(f"alpha/sl/job-{jobs['alpha']}-0", 2), (f"beta/sl/job-{jobs['beta']}-0", 1)}
    assert all(len(one.check_ins) == len(SITES) for one in rounds)
    results = {net.result("alpha", jobs["alpha"], task)["value"] for task in (0, 1)}
    assert results == {net.result("beta", jobs["beta"])["value"]}


def verify(net: Network, site: str, *words: str) -> dict[str, Any]:
    """What `swarm-hpc verify WORDS` says on the site's login node."""
    done = net.command(site, "verify", *words, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.mpi
def test_the_tasks_of_a_job_on_two_nodes_merge_by_mpi_and_check_in_as_one(
    network: Callable[..., Network], tmp_path: Path
) -> None:
    net, data = network(), tmp_path / "data"
    jobs = train_on_two_nodes_and_one(net, data)
    check_that_all_took_part(net, jobs)
    check_gain(net, jobs, data, tmp_path)
    assert verify(net, "alpha", str(net.folder.root))["mismatches"] == 0


@pytest.mark.geth
@pytest.mark.mpi
@pytest.mark.netns
def test_sites_whose_compute_nodes_reach_nothing_but_their_own_sn_train_together(apart: Apart, tmp_path: Path) -> None:
    net, data = apart.net, tmp_path / "data"
    own = {site: apart.addresses(site) for site in SITES}
    assert apart.reached_by_sns() == [*own["alpha"], *own["beta"]]
    for site in SITES:
        assert apart.reached(site) == dict.fromkeys(net.slurm[site].nodes, own[site])
    daemons = {site: apart.networks[site].pids() for site in SITES}

    jobs = train_on_two_nodes_and_one(net, data, "transfer=gateway")
    for site in SITES:
        until(lambda site=site: apart.networks[site].pids() <= daemons[site], f"only daemons at {site}", PATIENCE_S)
    check_that_all_took_part(net, jobs)
    check_gain(net, jobs, data, tmp_path)
    for site in SITES:
        identity = asdict(net.client(site).identity)
        words = (f"sn={net.client(site).sn}", *(f"identity.{key}={value}" for key, value in identity.items()))
        report = verify(net, site, "digits", *words)
        checked = (report["rounds_checked"], report["rounds_skipped"], report["mismatches"])
        assert checked == (len(net.rounds("digits")), 0, 0)
