"""Where the work of tasks is done at a site, and its limits; a job description for the process that does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, ProtocolError
from swarm_hpc.records import TaskType, decode, encode

PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "ftp_proxy", "all_proxy")
_GIB: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Folders, programs and limits."""

    images: Path
    """Folder of the images."""
    volumes: Path
    """Folder of the volumes; each is a folder in it."""
    log: Path
    """File that takes what the programs say which do the work."""
    apptainer: str = ""
    """Path; empty: as everywhere."""
    level: int = 1
    """Compression of images."""
    nodes: tuple[int, ...] = ()
    """The idx of the profile's SL nodes: for SWARMCONTENT."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The profile's envvars; builds and downloads get the proxies among them."""
    registries: tuple[str, ...] | None = None
    """Of the policy: patterns of images that may come from a registry; None: any."""
    downloads: tuple[str, ...] | None = None
    """Of the policy: patterns of URIs, which count for redirections, too."""
    paths: tuple[str, ...] | None = None
    """Of the policy: folders, resolved, below which file:// may read; None: anywhere."""
    timeout_s: float = 3600.0
    """For each step of the work."""
    max_download_bytes: int = 64 * _GIB
    max_unpacked_bytes: int = 256 * _GIB
    """Of one archive."""

    @property
    def proxies(self) -> dict[str, str]:
        """Those variables of `env` that name proxies, in small and in capital letters."""
        return {name: value for name, value in self.env.items() if name.lower() in PROXIES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A task that a process is to do."""

    task: str
    type: TaskType
    outcome: str
    body: tuple[str, ...]
    """Lines, as the ledger has them."""
    places: Places


def write_job(file: Path, job: Job) -> None:
    """The job as a file that read_job() takes; nobody else may read it: proxies may have passwords."""
    write(file, json.dumps(encode(job)).encode(), mode=0o600)


def read_job(file: Path) -> Job:
    """ConfigError."""
    try:
        return decode(Job, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ProtocolError) as exc:
        raise ConfigError(f"{file}: is no description of a job: {exc}") from exc
