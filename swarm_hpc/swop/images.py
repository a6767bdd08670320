"""Images that tasks make: built from lines of a Dockerfile, or fetched from a registry, as SIF files of the site."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from swarm_hpc import processes
from swarm_hpc.config import ImageConfig
from swarm_hpc.errors import ConfigError, ContainerError, ImageNotFound, ProgramFailed
from swarm_hpc.slurm.build import NAMES, Builder
from swarm_hpc.slurm.images import Image, digest_of, find_image
from swarm_hpc.slurm.recipe import UNKNOWN, content_key
from swarm_hpc.swop.claims import Claim
from swarm_hpc.swop.docker_steps import CONTEXT, ENVIRONMENT, MOUNT, REFERENCE, Base, translate
from swarm_hpc.swop.places import Places
from swarm_hpc.swop.policy import image_reference
from swarm_hpc.tasks.file import MakeUserContainer, PullImage

Say = Callable[[str], None]
_END_S: Final = 10.0


def image_name(outcome: str) -> str:
    """What the image of that name in a registry is called in the site's folder: `team/env:2.3` is team+env@2.3.

    Without the ending of its file, which find_image() takes for a path.
    """
    if not REFERENCE.fullmatch(outcome) or ".." in outcome or len(outcome) > 160:
        raise ConfigError(f"Outcome: {outcome!r} is no name of an image: write NAME, or REPO/NAME:TAG")
    return outcome.replace("/", "+").replace(":", "@").removesuffix(".sif")


def make_container(body: MakeUserContainer, outcome: str, places: Places, say: Say) -> str:
    """Build the image; what was made, in a line. SwarmError."""
    builder, name = _builder(places, say), _own_name(outcome)
    found: list[tuple[str, str]] = []

    def find_base(named: str) -> Base:
        image = _local(named, places.images)
        found.append((named, digest_of(image) if image else UNKNOWN))
        if image is not None:
            return Base("localimage", str(image.path))
        _check_registry(named, places)
        return Base("docker", named)

    definition = translate(body.build_steps, find_base, places.proxies)
    for note in definition.notes:
        say(note)
    context = _context(body, places)
    volume = Claim(places.volumes, body.build_context or "").key() if context else ""
    key = content_key({"steps": body.build_steps, "base": found, "context": volume, "outcome": outcome})
    if (context is None or volume) and builder.find(name, key):
        return f"image {outcome} is there already, from the same steps: {name}.sif"
    claim = Claim(builder.folder, f"{name}.sif")
    with builder.turn() as work:
        claim.take(outcome)
        mount = _mount(work, places)
        (work / "image.def").write_text(definition.text, encoding="utf-8")
        options = ["--bind", f"{mount}:{MOUNT}:ro"]
        options += ["--bind", f"{context}:{MOUNT}/{CONTEXT}:ro"] if context else []
        say(f"building {outcome} from {found[0][0]}")
        _run(builder.command(work / "image.sif", str(work / "image.def"), options), work, places)
        return _keep(builder, work, name, outcome, key, found[0][1])


def pull_image(body: PullImage, outcome: str, places: Places, say: Say) -> str:
    """Fetch the image; what was made, in a line. SwarmError."""
    builder, name, reference = _builder(places, say), _own_name(outcome), image_reference(body)
    if not REFERENCE.fullmatch(reference) or ".." in reference:
        raise ConfigError(f"{reference!r} is no name of an image: write OrgAndReg, RepoName and Tag as in a registry")
    _check_registry(reference, places)
    options = []
    if body.auth is not None:
        auth = Path(body.auth)
        if not auth.is_absolute() or not auth.is_file():
            raise ConfigError(f"Auth: there is no file {body.auth} at this site: `apptainer registry login` makes one")
        options = ["--authfile", str(auth)]
    key = content_key({"reference": reference, "outcome": outcome})
    if builder.find(name, key):
        return f"image {outcome} is there already: {name}.sif"
    claim = Claim(builder.folder, f"{name}.sif")
    with builder.turn() as work:
        claim.take(outcome)
        say(f"fetching {reference}")
        _run(builder.command(work / "image.sif", f"docker://{reference}", options), work, places)
        return _keep(builder, work, name, outcome, key, reference)


def _builder(places: Places, say: Say) -> Builder:
    config = ImageConfig(
        image_dir=str(places.images), apptainer=places.apptainer, level=places.level, timeout_s=places.timeout_s
    )
    return Builder(config, os.environ, say)


def _own_name(outcome: str) -> str:
    name = image_name(outcome)
    if name in NAMES:
        raise ConfigError(f"Outcome: {outcome} is an image of swarm-hpc itself: choose another name")
    return name


def _local(named: str, folder: Path) -> Image | None:
    try:
        return find_image(image_name(named), folder)
    except ImageNotFound:
        return None


def _check_registry(reference: str, places: Places) -> None:
    allowed = places.registries
    if allowed is not None and not any(fnmatch.fnmatchcase(reference, one) for one in allowed):
        raise ConfigError(
            f"{reference}: there is no such image in {places.images}, and the policy of this site lets none of that "
            f"name come from a registry (registries: {', '.join(allowed) or 'none'})"
        )


def _context(body: MakeUserContainer, places: Places) -> Path | None:
    if body.build_context is None:
        return None
    folder = places.volumes / body.build_context
    if not folder.is_dir():
        raise ConfigError(
            f"BuildContext: there is no volume {folder}: make it by a task (MAKE_SWARM_USER_CONTENT), or by hand"
        )
    return _bindable(folder)


def _mount(work: Path, places: Places) -> Path:
    """What the build sees at MOUNT."""
    mount = work / "mount"
    (mount / CONTEXT).mkdir(parents=True)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in places.proxies.items()]
    (mount / ENVIRONMENT).touch(mode=0o600)  # proxies may have passwords, and others may enter the folder
    (mount / ENVIRONMENT).write_text("".join(lines), encoding="utf-8")
    return _bindable(mount)


def _bindable(folder: Path) -> Path:
    if not set(str(folder)).isdisjoint(':,"'):
        raise ConfigError(f"{folder}: it is bound into a container, and may have no colon, comma nor quote")
    return folder


def _run(command: Sequence[str], work: Path, places: Places) -> None:
    """Until it has ended; what it says goes to the log. ContainerError."""
    (work / "tmp").mkdir()
    env = {"APPTAINER_TMPDIR": str(work / "tmp"), **places.proxies}
    # everybody is to read what is in an image
    before = os.umask(0o022)
    try:
        process = processes.Process.start("apptainer build", command, log=places.log, env=env, cwd=work)
    finally:
        os.umask(before)
    try:
        processes.wait([process], places.timeout_s)
    except ProgramFailed as exc:
        raise ContainerError(str(exc)) from exc
    finally:
        processes.stop([process], _END_S)


def _keep(builder: Builder, work: Path, name: str, outcome: str, key: str, base: str) -> str:
    claim = Claim(builder.folder, f"{name}.sif")
    built = builder.keep(work / "image.sif", name, key=key, base=base, work=work)
    claim.finish(outcome, key)
    return f"image {outcome}: {built.image.path.name}, {built.record.digest}"
