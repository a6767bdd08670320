"""From a RUN_SWARM and a node of the profile to the program that is started, and what it sees. Pure, but for paths
that are looked at.

In a container paths are bound at their targets. Without one there is one file system: what the task says of a target is
replaced by where it leads to.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from swarm_hpc.config import ContainerConfig, ContainerKind, IdentityConfig, ProgramConfig, RoundConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.swop.profile import IdentityKind, NodeDefinition, Profile
from swarm_hpc.tasks.file import RunSwarm

_RUNSCRIPT: Final = "/.singularity.d/runscript"
"""What an image runs by itself."""
_IN_FOLDER: Final = ("/bin/sh", "-c", 'cd "$0" && exec "$@"')
_SET_BY_JOBS: Final = ("SITE", "SEED", "DATA_DIR", "SCRATCH_DIR")
"""Variables that a job's tasks get in any case: what the task says of them is set behind that."""
PYTHON: Final = "python"
"""Stands for the interpreter that runs the SL."""
_PYTHONS: Final = (PYTHON, "python3")
_ROUND: Final[Mapping[str, str]] = {
    "SL_LEADER_FAILURE_BASE_TIMEOUT": "leader_timeout_s",
    "SL_WAIT_FOR_FULL_QUORUM_SECONDS": "quorum_wait_s",
}
_SL: Final = "SL_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A path of the site that the program sees at `target`."""

    source: Path
    target: PurePosixPath
    writable: bool = False

    def leads(self, path: PurePosixPath) -> str | None:
        """Where that path is on the host; None: it is not at or below the target."""
        if not path.is_relative_to(self.target):
            return None
        return str(self.source / path.relative_to(self.target))


def seen_paths(body: RunSwarm, node: NodeDefinition, volumes: Path) -> list[Seen]:
    """The node's private data, writable: results are saved there; shared content, read-only unless the program works
    in it. The innermost first."""
    found: list[Seen] = []
    if body.private_content is not None and node.private_data is not None:
        source = node.private_data.resolve(volumes)
        found.append(Seen(source=source, target=PurePosixPath(body.private_content), writable=True))
    for mount in body.shared_content:
        target = PurePosixPath(mount.target)
        source = _volume(volumes, mount.source, node.index) if mount.is_volume else Path(mount.source)
        works_there = PurePosixPath(body.working_dir).is_relative_to(target)
        found.append(Seen(source=source, target=target, writable=works_there))
    for one in found:
        if not one.source.exists():
            raise ConfigError(f"there is no {one.source}, which the program is to see at {one.target}")
    return sorted(found, key=lambda one: len(one.target.parts), reverse=True)


def program(
    body: RunSwarm, profile: Profile, node: NodeDefinition, seen: Sequence[Seen], kind: ContainerKind, folder: Path
) -> ProgramConfig:
    """The program; it starts in `folder` and goes to the task's WorkingDir by itself. ConfigError."""
    words = _words(body, kind)
    env = profile.program_env(node, body.env)
    work = body.working_dir
    if kind is ContainerKind.NONE:
        words = [_translate(word, body, seen) for word in words]
        env = {name: _translate(value, body, seen) for name, value in env.items()}
        work = _lead(PurePosixPath(work), seen) or work
        if not Path(work).is_dir():
            raise ConfigError(
                f"WorkingDir: there is no folder {work} here, and no content of the task that leads to it"
            )
        if words[0] in _PYTHONS:
            words[0] = PYTHON
    late = [f"{name}={env.pop(name)}" for name in _SET_BY_JOBS if name in env]
    return ProgramConfig(
        command=[*_IN_FOLDER, work, *(["env", *late] if late else []), *words], cwd=str(folder), env=env
    )


def container(config: ContainerConfig, image: str, seen: Sequence[Seen]) -> ContainerConfig:
    """The container that the program runs in; the same where it is in none.

    Paths in the task's words are the container's: a file of the site that has the same one is not shown for it.
    """
    if config.kind is ContainerKind.NONE:
        return config
    outermost_first = reversed(seen)
    binds = [f"{one.source}:{one.target}{':rw' if one.writable else ''}" for one in outermost_first]
    return replace(config, image=image or config.image, binds=[*config.binds, *binds], bind_named=False)


def make_mount_points(seen: Sequence[Seen]) -> None:
    """Where a path is seen inside another one, that has a place for it: Apptainer makes none on the host's side."""
    for inner in seen:
        for outer in seen:
            if inner is not outer and (place := outer.leads(inner.target)) and inner.target != outer.target:
                Path(place).mkdir(parents=True, exist_ok=True)


def rules(config: RoundConfig, env: Mapping[str, str]) -> RoundConfig:
    """The training's rules with what the profile says of them in HPE's variables. ConfigError."""
    found: dict[str, int] = {}
    for name, key in _ROUND.items():
        if text := env.get(name, ""):
            if not text.isdecimal():
                raise ConfigError(f"{name}: {text!r} is no number of seconds")
            found[key] = int(text)
    return replace(
        config,
        leader_timeout_s=found.get("leader_timeout_s", config.leader_timeout_s),
        quorum_wait_s=found.get("quorum_wait_s", config.quorum_wait_s),
    )


def unmapped(env: Mapping[str, str]) -> list[str]:
    """Variables of HPE's SL that mean nothing here."""
    return sorted(name for name in env if name.startswith(_SL) and name not in _ROUND)


def identity(config: IdentityConfig, node: NodeDefinition, volumes: Path) -> IdentityConfig:
    """The node's own certificate, where its files are at the site; else the site's. The bundle is the node's CACERT
    only where that is a trust bundle (.json)."""
    files = _identity_files(node, volumes)
    if not has_identity(node, volumes):
        return config
    authority = files.get(IdentityKind.CACERT)
    bundle = str(authority) if authority is not None and authority.suffix == ".json" else config.bundle
    return replace(config, cert=str(files[IdentityKind.CERT]), key=str(files[IdentityKind.KEY]), bundle=bundle)


def has_identity(node: NodeDefinition, volumes: Path) -> bool:
    """Whether the node's own certificate and key are at the site."""
    files = _identity_files(node, volumes)
    return all(kind in files and files[kind].is_file() for kind in (IdentityKind.CERT, IdentityKind.KEY))


def _identity_files(node: NodeDefinition, volumes: Path) -> dict[IdentityKind, Path]:
    return {kind: place.resolve(volumes) for kind, place in node.identity.items()}


def _words(body: RunSwarm, kind: ContainerKind) -> list[str]:
    try:
        words = [*shlex.split(body.entrypoint), *shlex.split(body.command)]
    except ValueError as exc:
        raise ConfigError(f"Command: {body.command!r}: {exc}") from exc
    if not body.entrypoint and kind is not ContainerKind.NONE:
        return [_RUNSCRIPT, *words]
    if not words:
        raise ConfigError("Command: there is nothing to run")
    return words


def _translate(text: str, body: RunSwarm, seen: Sequence[Seen]) -> str:
    """A word or value that is a path at or below a target, as a path of the host. A relative one only where it leads
    out of what the working directory is in."""
    path = PurePosixPath(text)
    if not text or "\n" in text:
        return text
    if path.is_absolute():
        return _lead(path, seen) or text
    work = PurePosixPath(body.working_dir)
    whole = work / path
    inner = _covering(whole, seen)
    return _lead(whole, seen) or text if inner is not None and inner is not _covering(work, seen) else text


def _covering(path: PurePosixPath, seen: Sequence[Seen]) -> Seen | None:
    return next((one for one in seen if path.is_relative_to(one.target)), None)


def _lead(path: PurePosixPath, seen: Sequence[Seen]) -> str | None:
    found = _covering(path, seen)
    return None if found is None else found.leads(path)


def _volume(volumes: Path, name: str, index: int) -> Path:
    """The volume, or where there is one per node, the node's."""
    own = volumes / f"{name}-{index}"
    return own if own.exists() else volumes / name
