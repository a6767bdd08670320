"""A cluster of an ordinary user's."""

from __future__ import annotations

import pytest

from tests.lab.slurm import clusters
from tests.lab.unprivileged import Unprivileged

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_daemons_and_jobs_are_the_ordinary_users(unprivileged: Unprivileged) -> None:
    with clusters("alpha", launchers={"alpha": unprivileged.launcher}, user=unprivileged.user) as up:
        alpha = up["alpha"]
        assert alpha.run("srun", "--nodes=2", "id", "-un").split() == [unprivileged.user] * 2
        job = alpha.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600", cwd=unprivileged.home)
        alpha.await_state(job, "RUNNING")
        if unprivileged.holder:
            assert {daemon.popen.pid for daemon in alpha.daemons.values()} < unprivileged.pids()
        alpha.cancel_all()
