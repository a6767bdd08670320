"""Two sites with a Slurm cluster each, their SNs outside of all jobs, and how a test uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_hpc.config import ClientConfig, ExperimentConfig, LedgerKind, LocalConfig
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import ONE_THREAD, Swarm, fetch_rounds, fetch_status, sl_name
from swarm_hpc.records import NodeStatus, Platform, Round, RoundState
from swarm_hpc.slurm.query import fetch_ours
from tests.lab.namespaces import SiteNetwork, site_networks
from tests.lab.slurm import Cluster, clusters, until

SITES = ("alpha", "beta")
COMMAND_S = 300.0
PATIENCE_S = 90.0
TINY = "tiny"
RETURNING = "returning"
LOOPBACK = "export FI_PROVIDER=tcp FI_TCP_IFACE=lo UCX_NET_DEVICES=lo"
"""A line of set-up for MPI: all nodes are on this host."""
PROGRAMS = Path(__file__).parents[1] / "programs"
REACH = PROGRAMS / "reach.py"
SBATCH = Path(__file__).parents[3] / "sbatch"


@dataclass
class Network:
    """An SN at alpha, or with ledger=geth one at each site, and both sites' profiles."""

    swarm: Swarm
    folder: RunFolder
    slurm: dict[str, Cluster]
    profiles: Path = field(init=False)

    def __post_init__(self) -> None:
        self.profiles = self.folder.root / "profiles"
        (self.profiles / "site").mkdir(parents=True)

    def write_profile(self, site: str, **changes: Any) -> None:
        """DIR/site/SITE.yaml as the site's admin writes it."""
        identity = self.folder.identity(sl_name(site))
        profile = {
            "defaults": ["generic", "_self_"],
            "name": site,
            "sn": "" if "sn_file" in changes else self.client(site).sn,
            "identity": {"cert": identity.cert, "key": identity.key, "bundle": identity.bundle},
            "run_dir": str(self.run_dir(site)),
            "command": f"{sys.executable} -m swarm_hpc.cli",
            **changes,
        }
        (self.profiles / "site" / f"{site}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))

    def client(self, site: str) -> ClientConfig:
        """How to ask the SN that serves the site."""
        return self.swarm.client(self.swarm.sn_for(site))

    def write_experiments(self) -> None:
        """DIR/experiment/NAME.yaml: trainings that last until the file LAST_ROUND says that it is enough."""
        (self.profiles / "experiment").mkdir()
        for name in (TINY, RETURNING):
            experiment = {
                "name": name,
                "metric": "mean",
                "platform": "pytorch",
                "prepare": [],
                "train": ["python", str(PROGRAMS / f"{name}.py")],
                "env": {"LAST_ROUND": str(self._last_round), "TARGET": 1},
            }
            text = yaml.safe_dump(experiment, sort_keys=False)
            (self.profiles / "experiment" / f"{name}.yaml").write_text(f"# @package experiment\n{text}")

    @property
    def _last_round(self) -> Path:
        return self.folder.root / "last-round"

    def let_finish(self, contract: str = TINY) -> None:
        """Every training ends a few rounds of that contract from now."""
        beside = self._last_round.with_suffix(".new")  # a program may read it at any moment
        beside.write_text(str(len(self.rounds(contract)) + 3))
        beside.rename(self._last_round)

    def run_dir(self, site: str) -> Path:
        return self.folder.root / f"{site}-jobs"

    def command(self, site: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`swarm-hpc WORDS` on the site's login node."""
        return self.slurm[site].attempt(
            sys.executable, "-m", "swarm_hpc.cli", *words, env=ONE_THREAD, cwd=self.folder.root, timeout_s=COMMAND_S
        )

    def submit(self, site: str, *words: str) -> str:
        """`swarm-hpc submit`; the job's ID."""
        done = self.command(site, "submit", f"site={site}", "--config-dir", str(self.profiles), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sbatch(self, site: str, *words: str) -> str:
        """`sbatch sbatch/swarm_run.sbatch`; the job's ID."""
        return self.sbatch_file(site, "swarm_run", f"site={site}", "--config-dir", str(self.profiles), *words)

    def sbatch_file(self, site: str, name: str, *words: str) -> str:
        """`sbatch sbatch/NAME.sbatch`, with swarm-hpc in PATH; the job's ID."""
        env = {**ONE_THREAD, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{self.slurm[site].env['PATH']}"}
        script = SBATCH / f"{name}.sbatch"
        return self.slurm[site].run("sbatch", "--parsable", script, *words, env=env, cwd=self.folder.root)

    def end(self, site: str, job: str, patience_s: float = COMMAND_S) -> None:
        """Wait until the job has finished its work."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        state = self.slurm[site].await_state(job, *over, patience_s=patience_s)
        assert state == "COMPLETED", f"{state}\n{self.log(site, job)}"

    def look(self, site: str, job: str) -> tuple[str, str]:
        """State and reason of a job, from the function behind `swarm-hpc status`."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.slurm[site].env.items():
                patch.setenv(key, value)
            return next((one.state, one.why) for one in fetch_ours(now=time.time()) if one.id == job)

    def log(self, site: str, job: str) -> str:
        """What the job has said so far, its training programs included."""
        files = [self.run_dir(site) / f"slurm-{job}.log", self.folder.root / f"swarm-{job}.log"]
        files += sorted((self.run_dir(site) / f"job-{job}").glob("task-*/ml.log"))
        return "\n".join(f"--- {file}\n{file.read_text()}" for file in files if file.exists())

    def result(self, site: str, job: str, task: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.run_dir(site) / f"job-{job}" / f"task-{task}" / "result.json").read_text()
        )
        return found

    def steps(self, site: str, job: str, task: int = 0) -> list[int]:
        """The steps of RETURNING so far, in the order in which they were made."""
        file = self.run_dir(site) / f"job-{job}" / f"task-{task}" / "steps"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def node(self, site: str, job: str, task: int = 0) -> NodeStatus | None:
        """What the SN says of a task's node."""
        nodes = fetch_status(self.swarm.client()).nodes
        return next((one for one in nodes if one.node.name == f"{site}/sl/job-{job}-{task}"), None)

    def rounds(self, contract: str) -> list[Round]:
        """The published rounds so far."""
        if not any(one.spec.name == contract for one in fetch_status(self.swarm.client()).contracts):
            return []
        return [r for r in fetch_rounds(self.swarm.client(), contract) if r.state is RoundState.PUBLISHED]

    def await_round(self, contract: str, number: int, *sites: str, patience_s: float = PATIENCE_S) -> Round:
        """The first published round from `number` on with exactly these sites (or any)."""

        def found() -> Round | None:
            rounds = [r for r in self.rounds(contract) if r.number >= number]
            return next((r for r in rounds if not sites or sites_of(r) == set(sites)), None)

        return until(found, f"round {number} with {sites or 'anybody'}", patience_s)


def sites_of(one: Round) -> set[str]:
    return {check_in.node.partition("/")[0] for check_in in one.check_ins}


@contextmanager
def network_of(root: Path, slurm: dict[str, Cluster], ledger: LedgerKind = LedgerKind.EMBEDDED) -> Iterator[Network]:
    """A network whose SNs and profiles are still to come; afterwards no job and no process is left."""
    experiment = ExperimentConfig(name="any", metric="any", platform=Platform.PYTORCH, prepare=[], train=[])
    config = LocalConfig(experiment=experiment, sites=len(SITES), lease_s=5.0)
    config.ledger.kind = ledger
    config.round.min_peers = 1
    config.transfer.keep_rounds = 0
    folder = RunFolder.create(root)
    with Swarm(config, folder, SITES) as swarm:
        one = Network(swarm, folder, slurm)
        swarm.make_certificates()
        one.write_experiments()
        try:
            yield one
        finally:
            for cluster in slurm.values():
                cluster.cancel_all()


@pytest.fixture
def network(tmp_path: Path, slurm_clusters: dict[str, Cluster]) -> Iterator[Callable[..., Network]]:
    """Makes a network, by default with its SN and profiles."""
    with ExitStack() as stack:

        def make(*, sn: bool = True) -> Network:
            one = stack.enter_context(network_of(tmp_path / "run", slurm_clusters))
            if sn:
                one.swarm.start_sn()
                for site in SITES:
                    one.write_profile(site)
            return one

        yield make


@dataclass
class Apart:
    """Two sites with networks, clusters and SNs of their own: only their SNs reach each other."""

    net: Network
    networks: dict[str, SiteNetwork]

    def addresses(self, site: str) -> list[str]:
        """Whatever listens at the site: its SN, its slurmctld and its nodes' slurmd."""
        cluster = self.networks[site].cluster_address
        return [self.net.client(site).sn, *(f"{cluster}:{port}" for port in self.net.slurm[site].ports)]

    def reached(self, site: str) -> dict[str, list[str]]:
        """What of all this a job of the site reaches, by the node that it runs on."""
        nodes = self.net.slurm[site].nodes
        step = ("srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}")
        said = self.net.slurm[site].run(*step, sys.executable, REACH, *self._everything)
        return dict(json.loads(line) for line in said.splitlines())

    def reached_by_sns(self) -> list[str]:
        """What the host that the SNs are on reaches."""
        command = [sys.executable, REACH, *self._everything]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_S)
        _, found = json.loads(done.stdout)
        return list(found)

    @property
    def _everything(self) -> list[str]:
        return [address for site in SITES for address in self.addresses(site)]


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    """Both sites apart, with SNs and profiles."""
    with ExitStack() as stack:
        networks = stack.enter_context(site_networks(*SITES))
        launchers = {site: one.launcher for site, one in networks.items()}
        slurm = stack.enter_context(clusters(*SITES, launchers=launchers))
        net = stack.enter_context(network_of(tmp_path / "run", slurm, LedgerKind.GETH))
        for name, site in net.swarm.sn_of.items():
            net.swarm.start_sn(name, host=networks[site].service_address)
        for site in SITES:
            net.write_profile(site)
        yield Apart(net, networks)
