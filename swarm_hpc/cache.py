"""The folder outside any checkout for what takes long to make: geth and CometBFT, Apptainer, container images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cache_folder(env: Mapping[str, str]) -> Path:
    """SWARM_HPC_CACHE, else swarm-hpc in the user's cache folder; absolute. The scripts in scripts/ say the same."""
    if own := env.get("SWARM_HPC_CACHE"):
        return Path(own).absolute()
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "swarm-hpc"
