"""Two sites with a Slurm cluster each and one SN outside of all jobs, and how a test uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_hpc.config import ExperimentConfig, LocalConfig
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import ONE_THREAD, Swarm, fetch_rounds, fetch_status, sl_name
from swarm_hpc.records import NodeStatus, Platform, Round, RoundState
from swarm_hpc.slurm.query import fetch_ours
from tests.lab.slurm import Cluster, until

SITES = ("alpha", "beta")
COMMAND_S = 300.0
PATIENCE_S = 90.0
TINY = "tiny"
PROGRAM = Path(__file__).parents[1] / "programs" / "tiny.py"
SBATCH = Path(__file__).parents[3] / "sbatch"


@dataclass
class Network:
    """An SN at alpha, and both sites' profiles."""

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
            "sn": "" if "sn_file" in changes else self.swarm.client().sn,
            "identity": {"cert": identity.cert, "key": identity.key, "bundle": identity.bundle},
            "run_dir": str(self.run_dir(site)),
            "command": f"{sys.executable} -m swarm_hpc.cli",
            **changes,
        }
        (self.profiles / "site" / f"{site}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))

    def write_tiny(self) -> None:
        """DIR/experiment/tiny.yaml: a training that lasts until the file LAST_ROUND says that it is enough."""
        experiment = {
            "name": TINY,
            "metric": "mean",
            "platform": "pytorch",
            "prepare": [],
            "train": ["python", str(PROGRAM)],
            "env": {"LAST_ROUND": str(self._last_round), "TARGET": 1},
        }
        (self.profiles / "experiment").mkdir()
        text = yaml.safe_dump(experiment, sort_keys=False)
        (self.profiles / "experiment" / f"{TINY}.yaml").write_text(f"# @package experiment\n{text}")

    @property
    def _last_round(self) -> Path:
        return self.folder.root / "last-round"

    def let_finish(self) -> None:
        """Every training of TINY ends a few rounds from now."""
        beside = self._last_round.with_suffix(".new")  # a program may read it at any moment
        beside.write_text(str(len(self.rounds(TINY)) + 3))
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


@pytest.fixture
def network(tmp_path: Path, slurm_clusters: dict[str, Cluster]) -> Iterator[Callable[..., Network]]:
    """Makes a network, by default with its SN and profiles; afterwards no job and no process is left."""
    made: list[Network] = []

    def make(*, sn: bool = True) -> Network:
        experiment = ExperimentConfig(name="any", metric="any", platform=Platform.PYTORCH, prepare=[], train=[])
        config = LocalConfig(experiment=experiment, sites=len(SITES), lease_s=5.0)
        config.round.min_peers = 1
        config.transfer.keep_rounds = 0
        folder = RunFolder.create(tmp_path / "run")
        one = Network(Swarm(config, folder, SITES), folder, slurm_clusters)
        made.append(one)
        one.swarm.make_certificates()
        one.write_tiny()
        if sn:
            one.swarm.start_sn()
            for site in SITES:
                one.write_profile(site)
        return one

    yield make
    for one in made:
        for cluster in slurm_clusters.values():
            cluster.cancel_all()
        one.swarm.stop()
