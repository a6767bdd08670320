"""A root folder with Debian's or Ubuntu's Python, from the mirror that apt uses here: a base without a registry."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm.apptainer import run_program

PACKAGES: Final = ("python3", "python3-venv", "ca-certificates")
_LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_INDEX: Final = "$(REPO_URI)|$(COMPONENT)|$(CODENAME)"
_ELSE: Final = "or build with base=registry, or base=PATH of an image with Python"


def suite_of(release: Path = Path("/etc/os-release")) -> str:
    """This host's release, such as bookworm. ConfigError where it is not one of Debian's or Ubuntu's."""
    lines = release.read_text(encoding="utf-8").splitlines() if release.is_file() else []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    suite = values.get("VERSION_CODENAME", "").strip('"')
    if not suite or shutil.which("apt-get") is None:
        raise ConfigError(f"base=debian: this host is no Debian or Ubuntu: build there, {_ELSE}")
    return suite


def make_root(suite: str, folder: Path, *, timeout_s: float) -> None:
    """Fill `folder` (new) with a small system; all its files are ours, and it has no devices. Root is not needed.

    ConfigError, ContainerError.
    """
    if shutil.which("mmdebstrap") is None:
        raise ConfigError(f"base=debian needs mmdebstrap: run `make apptainer` or install it with apt, {_ELSE}")
    archive = folder.with_suffix(".tar")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    command += ['--aptopt=Acquire::Languages "none"', suite, str(archive), _mirror(suite)]
    run_program("mmdebstrap", command, timeout_s=timeout_s)
    folder.mkdir()
    words = ["tar", "-C", str(folder), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)]
    run_program("tar", words, timeout_s=timeout_s)
    archive.unlink()
    run_program("chmod", ["chmod", "-R", "u+rwX", str(folder)], timeout_s=timeout_s)


def _mirror(suite: str) -> str:
    words = ["apt-get", "indextargets", "--format", _INDEX, "Created-By: Packages"]
    for line in run_program("apt-get indextargets", words, timeout_s=60).splitlines():
        address, component, codename = line.split("|")
        if (component, codename) == ("main", suite):
            return address
    raise ContainerError(f"apt knows no mirror of {suite}: run `apt-get update` as root, {_ELSE}")
