"""Finds Apptainer on this host and runs it for what ends soon or has a deadline; container.py runs programs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

from swarm_hpc.cache import cache_folder
from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.processes import kill_session

COMMAND_S: Final = 120.0
"""How long a command of Apptainer may take that neither builds an image nor runs a program."""
_SHOWN_LINES: Final = 4
_SHOWN_BYTES: Final = 16384


def find_apptainer(configured: str, env: Mapping[str, str]) -> Path:
    """Absolute path of apptainer: `configured` (container.apptainer), else on PATH, else from the cache of
    `make apptainer`. ConfigError with the remedy."""
    remedy = "run `make apptainer`, or set container.apptainer=/path/to/apptainer (swarm-hpc image: apptainer=...)"
    if configured:
        path = Path(configured).absolute()
        if not _is_program(path):
            raise ConfigError(
                f"container.apptainer: {path} is no program that can be run; correct it, or leave it empty"
            )
        return path
    if found := shutil.which("apptainer", path=env.get("PATH", "")):
        return Path(found).absolute()
    cached = cache_folder(env) / "apptainer/bin/apptainer"
    if not _is_program(cached):
        raise ConfigError(f"there is no apptainer on PATH, nor is there {cached}: {remedy}")
    return cached


def as_anybody() -> list[str]:
    """Options of exec and test that let root, who in a container may lack a capability, act as any user does."""
    return [] if os.geteuid() else ["--userns"]


def run(apptainer: Path, *words: str, timeout_s: float = COMMAND_S, env: Mapping[str, str] | None = None) -> str:
    """What `apptainer WORDS` prints on stdout; `env` is added to our own environment.

    ContainerError, with the last lines that it said, when it fails or is not done after `timeout_s`; nothing that it
    started is left then.
    """
    return run_program(f"apptainer {words[0]}", [str(apptainer), *words], timeout_s=timeout_s, env=env)


def run_program(
    what: str,
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """As `run`, for the other programs that make images; `what` is what an error calls it."""
    # files: a pipe would be waited for as long as any grandchild holds it
    with TemporaryFile() as out, TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},  # handed on, not read
                cwd=cwd,
                start_new_session=True,
                umask=0o022,  # what is in an image belongs to root, and everybody is to read it
                pass_fds=pass_fds,
            )
        except OSError as exc:
            raise ContainerError(f"{what}: {command[0]} cannot be run ({exc.strerror})") from exc
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise ContainerError(f"{what}: not done after {timeout_s:g} s; last: {_last_lines(err)}") from exc
        finally:
            if process.returncode is None:
                kill_session(process.pid)  # not reaped yet, so the number is still its own
                process.wait()
        if code:
            raise ContainerError(f"{what}: {_last_lines(err, out) or f'exit code {code}'}")
        out.seek(0)
        return out.read().decode(errors="replace")


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _last_lines(*files: IO[bytes]) -> str:
    """What was said last, on one line: of the first of the files that says anything but progress."""
    for file in files:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SHOWN_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        if told := [line for line in lines if line and not line.startswith("INFO:")]:
            return " | ".join(told[-_SHOWN_LINES:])
    return ""
