"""Volumes that tasks make: folders of the site, filled with downloads and what is in archives.

BUILDCONTENT makes the volume OUTCOME; SWARMCONTENT makes OUTCOME-IDX for each SL node of the profile, with the same
content, of which each may make its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL
from swarm_hpc.slurm.recipe import content_key
from swarm_hpc.swop.claims import Claim, turn
from swarm_hpc.swop.download import Limits, download
from swarm_hpc.swop.extract import extract, inside
from swarm_hpc.swop.places import Places
from swarm_hpc.tasks.file import DOWNLOAD, ContentType, MakeUserContent, Operation
from swarm_hpc.tasks.uri import is_uri, parse_uri

Say = Callable[[str], None]


def volume_names(body: MakeUserContent, outcome: str, nodes: tuple[int, ...]) -> list[str]:
    """Those that the task makes at a site whose profile has these nodes."""
    if not LABEL.fullmatch(outcome) or ".." in outcome:
        raise ConfigError(f"Outcome: {outcome!r} is no name of a volume: use letters, digits, '.', '_', '-'")
    if body.content_type is ContentType.BUILDCONTENT:
        return [outcome]
    if not nodes:
        raise ConfigError("SWARMCONTENT makes a volume per SL node, and the profile has no nodes")
    names = [f"{outcome}-{index}" for index in nodes]
    if too_long := [name for name in names if not LABEL.fullmatch(name)]:
        raise ConfigError(f"Outcome: {too_long[0]} is too long for the name of a volume: at most 63 characters")
    return names


def make_content(body: MakeUserContent, outcome: str, places: Places, say: Say) -> str:
    """Fill the volumes; what was made, in a line. SwarmError."""
    names = volume_names(body, outcome, places.nodes)
    operations = [[one.kind, one.target, one.out] for one in body.operations]
    key = content_key({"operations": operations, "type": body.content_type, "outcome": outcome})
    told = ", ".join(names)
    with turn(places.volumes, places.timeout_s) as work:
        missing = [name for name in names if not _is_made(places.volumes, name, key)]
        if not missing:
            return f"volume {told}: there already, from the same operations"
        for name in missing:  # before an hour of downloads
            Claim(places.volumes, name).take(outcome)
        first = work / "volume"
        first.mkdir(mode=0o755)
        for at, operation in enumerate(body.operations, 1):
            say(f"{at} of {len(body.operations)}: {operation.kind} {operation.target}")
            _operate(operation, first, work, places)
        for number, name in enumerate(missing):
            say(f"volume {name}")
            copy = first
            if number < len(missing) - 1:
                copy = work / f"copy{number}"
                shutil.copytree(first, copy, symlinks=True)
            _put(copy, places.volumes / name, work / f"old{number}")
            Claim(places.volumes, name).finish(outcome, key)
    return f"volume {told}: made by {len(body.operations)} operations"


def _is_made(volumes: Path, name: str, key: str) -> bool:
    return Claim(volumes, name).key() == key and (volumes / name).is_dir()


def _put(made: Path, volume: Path, old: Path) -> None:
    """A folder cannot be renamed over another one; its claim has no key while there is none."""
    if volume.exists():
        volume.rename(old)
    made.rename(volume)


def _operate(operation: Operation, volume: Path, work: Path, places: Places) -> None:
    limits = Limits(
        max_bytes=places.max_download_bytes,
        timeout_s=places.timeout_s,
        allowed=places.downloads,
        paths=places.paths,
    )
    out = inside(volume, operation.out or "")
    if operation.kind == DOWNLOAD:
        name = parse_uri(operation.target).name
        is_folder = not operation.out or operation.out.endswith("/") or out.is_dir()
        target = inside(volume, f"{operation.out or ''}/{name}") if is_folder else out
        _make_folder(target.parent)
        download(operation.target, target, limits)
        return
    if is_uri(operation.target):
        archive = work / "archive"
        download(operation.target, archive, limits)
    elif not (archive := inside(volume, operation.target)).is_file():
        raise ConfigError(f"EXTRACT: {operation.target}: no such file in the volume: DOWNLOAD it first, or give a URI")
    _make_folder(out)
    extract(archive, out, places.max_unpacked_bytes)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"Out: {folder.name} cannot be a folder ({exc.strerror}): give another path") from exc
