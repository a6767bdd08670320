"""A Slurm that is away is told from one that refuses."""

from __future__ import annotations

import pytest

from swarm_hpc.slurm.command import is_silent, run


def test_what_the_user_sees_of_the_queue_by_default_is_not_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_USERS", "SACCT_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    told = run("env").splitlines()
    assert {"SLURM_CONF=mine", "SLURM_TIME_FORMAT=%s"} <= set(told)
    assert not [line for line in told if line.startswith(("SQUEUE_", "SACCT_"))]


def test_a_controller_that_is_away_is_told_from_a_refusal() -> None:
    assert is_silent("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert is_silent("sbatch: fatal: Could not establish a configuration source")
    assert not is_silent("sbatch: error: Batch job submission failed: Invalid partition name specified")
