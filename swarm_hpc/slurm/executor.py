"""Submission of a script through submitit. The only file that imports it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from swarm_hpc.errors import ConfigError, JobRefused, SlurmError, SlurmMissing
from swarm_hpc.slurm.command import COMMAND_S, is_silent

log = logging.getLogger(__name__)

_ID: Final = re.compile(r"job (\d+)|\A(\d+)(?:;|\s|\Z)")
"""Of a job, as sbatch says it, also with --parsable."""
_ASKS: Final = "#SBATCH "
_TIMED_OUT: Final = 124
"""Exit code of `timeout`."""


class _ScriptExecutor(SlurmExecutor):
    """submitit with our own script: its tasks are commands, not pickled functions."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(folder)
        self._text = text
        self.taken = ""
        """ID of the job, as soon as Slurm has it."""

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._text

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # submitit waits for sbatch without end
        limited = ["timeout", f"{COMMAND_S:g}"]
        sbatch, *script = super()._make_submission_command(submission_file_path)
        return [*limited, sbatch, *_options(self._text), *script]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        said = string if isinstance(string, str) else string.decode(errors="replace")
        found = _ID.search(said)
        if not found:  # --quiet
            raise SlurmError(f"Slurm has taken the job, but sbatch does not say its ID (it said {said!r}): see squeue")
        self.taken = found[1] or found[2]
        return self.taken


def submit(text: str, folder: Path) -> str:
    """Hand a script to Slurm; the job's ID. The script is kept in `folder` as ID_submission.sh.

    SlurmMissing: there is no Slurm, or it does not answer. JobRefused: it does not want the job. SlurmError: it
    took it, and sbatch does not say its ID. ConfigError: nothing can be written in the folder.
    """
    try:
        executor = _ScriptExecutor(folder, text)
    except RuntimeError as exc:
        raise SlurmMissing("there is no Slurm on this host (no srun): submit from a login node of the cluster") from exc
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
            job: Any = executor._submit_command("")
    except FailedJobError as exc:
        said = _said(exc)
        if is_silent(said):
            # Slurm answers late at times, when it has long since taken the job
            hint = "; it may have taken the job: see squeue before you try again" if "timed out" in said else ""
            raise SlurmMissing(f"Slurm does not answer: {said}{hint}") from exc
        raise JobRefused(f"Slurm does not take the job: {said}") from exc
    except OSError as exc:
        if not executor.taken:
            raise ConfigError(f"{folder}: the job's script cannot be written there ({exc.strerror})") from exc
        log.warning("job %s: its script is not kept in %s (%s)", executor.taken, folder, exc.strerror)
        return executor.taken
    return str(job.job_id)


def _options(text: str) -> list[str]:
    """What a script asks for: on the command line it counts more than SBATCH_TIMELIMIT and the like, which count more
    than the script."""
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    asked = [line.removeprefix(_ASKS) for line in head if line.startswith(_ASKS)]
    return [word for option in asked for word in shlex.split(option, comments=True)]


def _said(error: FailedJobError) -> str:
    """What sbatch said last; an error of submitit holds all of it."""
    cause = error.__cause__
    if isinstance(cause, subprocess.CalledProcessError) and cause.returncode == _TIMED_OUT:
        return f"sbatch timed out after {COMMAND_S:g} s"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "sbatch failed and does not say why"
