"""Running a command of Slurm, and telling a Slurm that is away from one that refuses."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from swarm_hpc.errors import SlurmError, SlurmMissing

COMMAND_S: Final = 60.0
"""How long a command of Slurm may take."""
_DEFAULTS: Final = ("SQUEUE_", "SACCT_")
"""Variables that begin so say what a user wants to see of the queue by default."""
_SILENT: Final = re.compile("Unable to contact|timed out|Connection refused|configuration (?:source|file)", re.I)


def run(*words: str, timeout_s: float | None = None) -> str:
    """What a command of Slurm prints, times as Unix time. SlurmMissing, SlurmError."""
    limit_s = COMMAND_S if timeout_s is None else timeout_s
    # handed on, not read; SQUEUE_USERS and the like would hide jobs
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DEFAULTS)}
    env = {**kept, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=limit_s, env=env, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as exc:
        raise SlurmMissing(f"there is no Slurm on this host (no {words[0]})") from exc
    except subprocess.TimeoutExpired as exc:
        raise SlurmMissing(f"{words[0]}: Slurm does not answer within {limit_s:g} s") from exc
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise (SlurmMissing if is_silent(said) else SlurmError)(f"{words[0]}: {said}")
    return done.stdout


def is_silent(said: str) -> bool:
    """Whether a command failed because Slurm itself does not answer."""
    return bool(_SILENT.search(said))
