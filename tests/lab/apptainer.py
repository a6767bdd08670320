"""Where the real Apptainer is, and a root file system that needs no image from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from swarm_hpc.cache import cache_folder

ANSWER_S: Final = 60.0
REMEDY: Final = "run `make apptainer`"


@cache
def find_apptainer() -> Path | str:
    """The Apptainer on PATH, or else the one that `make apptainer` has put into the cache; or why there is none."""
    cached = cache_folder(os.environ) / "apptainer" / "bin" / "apptainer"
    on_path = shutil.which("apptainer")
    tried = []
    for path in (Path(on_path), cached) if on_path else (cached,):
        try:
            subprocess.run([path, "--version"], check=True, capture_output=True, text=True, timeout=ANSWER_S)
        except FileNotFoundError:
            continue
        except (OSError, subprocess.SubprocessError) as exc:
            tried.append(f"{path} cannot be run: {exc} {getattr(exc, 'stderr', None) or ''}".strip())
        else:
            return path
    return f"no Apptainer: {'; '.join(tried) or f'neither on PATH nor at {cached}'}: {REMEDY}"


def make_root(folder: Path, *programs: str) -> Path:
    """`folder` as a root file system with these programs of the host, and the libraries that they are linked with."""
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("passwd", "group"):
        (folder / "etc" / name).touch()
    for program in programs:
        path = shutil.which(program)
        assert path is not None, program
        shutil.copy(path, folder / "bin" / program)
        linked = subprocess.run(["ldd", path], check=True, capture_output=True, text=True, timeout=ANSWER_S).stdout
        for library in (word for word in linked.split() if word.startswith("/")):
            (folder / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, folder / library[1:])
    return folder
