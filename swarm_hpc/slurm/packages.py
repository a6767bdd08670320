"""Gathers on the host what /opt/swarm-hpc will hold in an image: packages by uv, the ledger's programs, tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm import apptainer as program
from swarm_hpc.slurm.recipe import CONSTRAINTS, DISTRIBUTION, TESTS, Recipe, Source

INSIDE: Final = Path("/opt/swarm-hpc")
"""Where all of it lies in the image: a virtual environment."""
_NEWEST_GLIBC: Final = 40
"""uv knows no platform name for a newer 2.N; wheels for an older one run there as well."""
_PROJECT_FILES: Final = ("pyproject.toml", "README.md", "LICENSE", "swarm_hpc")
_INTERPRETER: Final = re.compile(rb"#![^\n]*python[^\n]*\n|#!/bin/sh\n'''exec' [^\n]*python[^\n]*\n' '''\n")
"""How a Python program begins; the second form is for long paths."""
_ASK: Final = """
import json, os, platform, sys
libc, version = os.confstr("CS_GNU_LIBC_VERSION").split()
print(json.dumps([*sys.version_info[:2], libc, *map(int, version.split(".")[:2]), platform.machine()]))
"""


@dataclass(frozen=True, slots=True)
class Platform:
    """What wheels have to fit."""

    python: str
    """Such as 3.11."""
    tag: str
    """As uv names it: x86_64-manylinux_2_36."""


def find_uv(env: Mapping[str, str]) -> Path:
    """The uv beside the running interpreter, else on PATH. ConfigError with the remedy."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv", path=env.get("PATH", ""))
    if not found:
        raise ConfigError(f"building images needs uv: run `{sys.executable} -m pip install uv`")
    return Path(found)


def ask_platform(apptainer: Path, base: Path) -> Platform:
    """Python and C library of a base image. ContainerError where it has none that wheels are made for."""
    words = [*program.as_anybody(), "--cleanenv", "--no-home", str(base), "python3", "-c", _ASK]
    said = program.run(apptainer, "exec", *words)
    major, minor, libc, libc_major, libc_minor, machine = json.loads(said.splitlines()[-1])
    if (libc, libc_major) != ("glibc", 2):
        raise ContainerError(f"{base}: its C library is {libc} {libc_major}, wheels need glibc 2: take another base")
    return Platform(f"{major}.{minor}", f"{machine}-manylinux_2_{min(libc_minor, _NEWEST_GLIBC)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What an image gets on top of its base."""

    recipe: Recipe
    source: Source
    platform: Platform
    programs: Mapping[str, Path]
    """Name in the image, and the file on this host."""


def gather(content: Content, folder: Path, *, uv: Path, timeout_s: float) -> None:
    """Fill `folder` (new) with what INSIDE will hold, but for the interpreter. Byte-compiling is left to the image.

    ContainerError with what uv said.
    """
    _install(content, folder, uv, timeout_s)
    site = _find_site(folder, content.platform)
    for script in sorted((folder / "bin").iterdir()):
        _point_inside(script)
    (folder / ".lock").unlink(missing_ok=True)
    for stray in (*site.glob("*.dist-info/direct_url.json"), *site.glob("*.dist-info/uv_*.json")):
        stray.unlink()  # where on this host a package came from
    installed = sorted({f"{one.metadata['Name']}=={one.version}" for one in distributions(path=[str(site)])})
    (folder / "requirements.txt").write_text("\n".join([*installed, ""]), encoding="utf-8")
    (folder / "examples").symlink_to(INSIDE / site.relative_to(folder) / "swarm_hpc/examples")
    (folder / "tests").mkdir()
    for name in content.recipe.tests:
        shutil.copyfile(TESTS / name, folder / "tests" / name)
    for name, file in content.programs.items():
        shutil.copyfile(file, folder / "bin" / name)
        (folder / "bin" / name).chmod(0o755)


def _install(content: Content, folder: Path, uv: Path, timeout_s: float) -> None:
    requirement = _requirement(content.recipe, content.source, folder.with_name(f"{folder.name}-project"))
    # --system-certs: institutions often have a proxy with a CA of their own
    command = [str(uv), "pip", "install", "--quiet", "--no-progress", "--system-certs"]
    command += ["--python", sys.executable, "--prefix", str(folder)]
    command += ["--python-version", content.platform.python, "--python-platform", content.platform.tag]
    command += ["--constraint", str(CONSTRAINTS), requirement, *content.recipe.packages]
    program.run_program("uv pip install", command, timeout_s=timeout_s)


def _requirement(recipe: Recipe, source: Source, project: Path) -> str:
    extras = f"[{','.join(recipe.extras)}]" if recipe.extras else ""
    if source.checkout is None:
        return f"{DISTRIBUTION}{extras}=={source.version}"
    # setuptools leaves its own files beside pyproject.toml, and puts old ones of those into the wheel
    project.mkdir()
    for name in _PROJECT_FILES:
        (project / name).symlink_to(source.checkout / name)
    return f"{DISTRIBUTION}{extras} @ {project.as_uri()}"


def _find_site(folder: Path, platform: Platform) -> Path:
    """The packages' folder; uv names it after the host's Python."""
    wanted = folder / f"lib/python{platform.python}"
    if not wanted.exists():
        (folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}").rename(wanted)
    return wanted / "site-packages"


def _point_inside(script: Path) -> None:
    """Let a Python program run by the image's interpreter. Beside, then renamed: uv's cache may hold the same file."""
    text = script.read_bytes()
    found = _INTERPRETER.match(text)
    if found is None:
        return
    beside = script.with_name(f".{script.name}")
    beside.write_bytes(b"#!" + os.fsencode(INSIDE / "bin/python3") + b"\n" + text[found.end() :])
    beside.chmod(0o755)
    beside.replace(script)
