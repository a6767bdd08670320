"""What a lab leaves behind when it fails; without a real Slurm."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.lab.slurm import Cluster


def test_everything_that_speaks_to_a_cluster_is_killed_and_nothing_of_another_one(tmp_path: Path) -> None:
    mine, other = (Cluster(site, tmp_path / site, ports=()) for site in ("alpha", "beta"))
    command = ("sleep", "60")
    with (
        subprocess.Popen(command, env=mine.env) as watcher,
        subprocess.Popen(command, env={**mine.env, "SLURM_JOB_ID": "7"}) as task,
        subprocess.Popen(command, env={**other.env, "SLURM_JOB_ID": "7"}) as foreign,
    ):
        assert {one.pid for one in mine.processes_of("7")} == {task.pid}
        mine.kill_all()
        assert watcher.wait(10) == task.wait(10) == -signal.SIGKILL
        assert foreign.poll() is None
        other.kill_all()
        assert foreign.wait(10) == -signal.SIGKILL
