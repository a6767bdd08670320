"""A Slurm that is away is told from one that refuses."""

from __future__ import annotations

from swarm_hpc.slurm.command import is_silent


def test_a_controller_that_is_away_is_told_from_a_refusal() -> None:
    assert is_silent("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert is_silent("sbatch: fatal: Could not establish a configuration source")
    assert not is_silent("sbatch: error: Batch job submission failed: Invalid partition name specified")
