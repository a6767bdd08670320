"""What each image is made of, and the key that tells one content from another. build.py does the making."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_hpc import __version__
from swarm_hpc.errors import ConfigError

DEFINITIONS: Final = Path(__file__).resolve().parents[1] / "apptainer"
"""The definition files, their tests, and constraints.txt: in a checkout and in an installed wheel alike."""
CONSTRAINTS: Final = DEFINITIONS / "constraints.txt"
TESTS: Final = DEFINITIONS / "tests"
BASE: Final = "base"
"""Name of the image that the others are built on."""
DISTRIBUTION: Final = "swarm-hpc"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What an image has on top of the base."""

    name: str
    extras: tuple[str, ...] = ()
    """Those of swarm-hpc."""
    packages: tuple[str, ...] = ()
    """What else is installed, at the versions of constraints.txt."""
    programs: tuple[str, ...] = ()
    """What of geth and cometbft is copied in from this host."""
    tests: tuple[str, ...]
    """Files of TESTS that `apptainer test` needs."""

    @property
    def definition(self) -> Path:
        """Its definition file."""
        return DEFINITIONS / f"{self.name}.def"


RECIPES: Final[Mapping[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="sn", programs=("geth", "cometbft"), tests=("sn.py",)),
        # scikit-learn: the examples score with it, and so do many programs
        Recipe(
            name="sl-pytorch",
            extras=("pytorch", "mpi"),
            packages=("scikit-learn",),
            tests=("sl_pytorch.py", "merging.py"),
        ),
        Recipe(
            name="sl-keras",
            extras=("keras", "mpi"),
            packages=("scikit-learn",),
            tests=("sl_keras.py", "merging.py"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The swarm-hpc that goes into an image: that of the checkout we run from, else the released one."""

    checkout: Path | None
    """None: what is installed here came from a wheel, and the same version is installed in the image."""
    version: str
    commit: str
    """Of the checkout, with -dirty where files differ from it; `unknown` without git."""
    fingerprint: str
    """Another one when any file of the package differs."""


def find_source(package: Path | None = None) -> Source:
    """Where `package` (by default the running swarm_hpc) comes from."""
    package = package or DEFINITIONS.parent
    project = package.parent / "pyproject.toml"
    if not project.is_file():
        return Source(checkout=None, version=__version__, commit=UNKNOWN, fingerprint=f"{DISTRIBUTION}=={__version__}")
    settings = tomllib.loads(project.read_text(encoding="utf-8"))
    setuptools = settings["tool"]["setuptools"]
    files = _package_files(package, setuptools["package-data"][package.name])
    found = {str(file.relative_to(package)): hash_file(file) for file in files}
    return Source(
        checkout=package.parent,
        version=__version__,
        commit=_commit(package.parent),
        fingerprint=content_key({"project": settings["project"], "setuptools": setuptools, "files": found}),
    )


def _package_files(package: Path, patterns: Sequence[str]) -> set[Path]:
    """What setuptools puts into the wheel: never what a user keeps in the checkout."""
    files = {file for pattern in ("**/*.py", *patterns) for file in package.glob(pattern)}
    return {file for file in files if file.is_file() and "__pycache__" not in file.parts}


def _commit(checkout: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def content_key(ingredients: Mapping[str, object]) -> str:
    """64 hex digits: the same for the same ingredients (plain values), another one when any of them changes."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def recipe_key(recipe: Recipe, source: Source, *, base_digest: str, programs: Mapping[str, Path], level: int) -> str:
    """Key of an image on the base with that digest, with those programs (name: file) copied in."""
    return content_key(
        {
            "definition": hash_file(recipe.definition),
            "base": base_digest,
            "source": source.fingerprint,
            "extras": recipe.extras,
            "packages": recipe.packages,
            "constraints": hash_file(CONSTRAINTS),
            "programs": {name: hash_file(file) for name, file in programs.items()},
            "tests": {name: hash_file(TESTS / name) for name in recipe.tests},
            "level": level,
        }
    )


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hex. ConfigError where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror})") from exc
