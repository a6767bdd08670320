"""Makes container images and keeps them by their content: what is there already is not made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from swarm_hpc.config import ImageConfig
from swarm_hpc.errors import ConfigError, ContainerError, ImageNotFound
from swarm_hpc.locks import lock
from swarm_hpc.slurm import apptainer as program
from swarm_hpc.slurm import debian
from swarm_hpc.slurm.images import Image, Record, find_image, image_folder, read_record, record_image
from swarm_hpc.slurm.packages import Content, ask_platform, find_uv, gather
from swarm_hpc.slurm.recipe import (
    BASE,
    DEFINITIONS,
    RECIPES,
    UNKNOWN,
    Source,
    content_key,
    find_source,
    hash_file,
    recipe_key,
)
from swarm_hpc.sn.programs import find_program

DEBIAN: Final = "debian"
REGISTRY: Final = "registry"
REGISTRY_IMAGE: Final = "python:3.11-slim-bookworm"
"""What base=registry takes."""
NAMES: Final = (BASE, *RECIPES)
"""The images that can be built, in this order."""
_BUILDING: Final = ".build-"


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is there now, and whether it had to be made."""

    image: Image
    record: Record
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Origin:
    """What the base itself is made from."""

    name: str
    key: str
    bootstrap: str
    reference: str
    folder: Path | None
    """Where `reference` is looked for; None: it has to be made first."""
    digest: str = UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """An image that is to be made."""

    name: str
    key: str
    source: Source
    arguments: Mapping[str, str]
    """Of its definition, but for version and commit."""
    sandbox: bool


class Builder:
    """Builds images into one folder. `tell` hears what is being done."""

    def __init__(self, config: ImageConfig, env: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self._config = config
        self._env = env
        self._tell = tell
        self._level = config.level
        self.apptainer = program.find_apptainer(config.apptainer, env)
        self.folder = image_folder(config.image_dir, env)

    def build(self, name: str, *, sandbox: bool = False, force: bool = False) -> Built:
        """The image of that name, made if it is not there with the same content, and if `force`; so is its base, but
        that only if it has to. One at a time per folder; others wait for their turn.

        ConfigError, ContainerError; the image that was there before is untouched then.
        """
        if name not in NAMES:
            raise ConfigError(f"{name!r} is no image that can be built; there are {', '.join(NAMES)}")
        with self._alone():
            if name == BASE:
                return self._base(sandbox=sandbox, force=force)
            return self._layered(name, self._base(), sandbox=sandbox, force=force)

    def find(self, name: str, key: str) -> Built | None:
        """The SIF file of that name, where it was made with that key and nothing has replaced it since."""
        return self._already(name, key, sandbox=False)

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """A working folder beside the images while nobody else builds, for an image that is none of NAMES."""
        with self._alone(), self._working_folder() as work:
            yield work

    def command(self, target: Path, source: str, options: Sequence[str] = ()) -> list[str]:
        """How `target` is built from a definition file, or an image of a registry."""
        command = [*_as_builder(), str(self.apptainer), "build"]
        command += ["--force", "--notest"]  # --force: the base has labels of the same names
        command += ["--mksquashfs-args", f"-all-root -comp zstd -Xcompression-level {self._level}"]
        return [*command, *options, str(target), source]

    def keep(self, beside: Path, name: str, *, key: str, base: str, work: Path) -> Built:
        """Put the SIF file `beside`, made in a turn, into its place under that name, and record it."""
        image = Image(name, self._path(name, sandbox=False), is_sandbox=False)
        return self._keep(beside, image, self._record(key=key, source=find_source(), base=base), work)

    def _base(self, *, sandbox: bool = False, force: bool = False) -> Built:
        origin = self._origin()
        ingredients = {"definition": hash_file(DEFINITIONS / f"{BASE}.def"), "origin": origin.key, "level": self._level}
        key = content_key(ingredients)
        if not force and (built := self._already(BASE, key, sandbox)):
            return built
        with self._working_folder() as work:
            if origin.folder is None:
                self._tell(f"{BASE}: fetching {origin.name} from apt's mirror (about a minute)")
                debian.make_root(origin.name, work / "root", timeout_s=self._config.timeout_s)
            arguments = {"BOOTSTRAP": origin.bootstrap, "FROM": origin.reference}
            arguments |= {"BASE_NAME": origin.name, "BASE_DIGEST": origin.digest}
            plan = _Plan(name=BASE, key=key, source=find_source(), arguments=arguments, sandbox=sandbox)
            return self._make(plan, work, cwd=origin.folder or work)

    def _origin(self) -> _Origin:
        chosen = self._config.base
        if chosen == DEBIAN:
            suite = debian.suite_of()
            key = content_key({"suite": suite, "packages": debian.PACKAGES})
            return _Origin(name=suite, key=key, bootstrap="localimage", reference="root", folder=None)
        if chosen == REGISTRY:
            key = content_key({"registry": REGISTRY_IMAGE})
            return _Origin(
                name=REGISTRY_IMAGE, key=key, bootstrap="docker", reference=REGISTRY_IMAGE, folder=self.folder
            )
        try:
            path = find_image(str(Path(chosen).absolute()), self.folder).path
        except ImageNotFound as exc:
            raise ConfigError(f"base: {chosen!r} is neither {DEBIAN}, {REGISTRY} nor the path of an image") from exc
        digest = f"sha256:{hash_file(path)}" if path.is_file() else UNKNOWN
        key = content_key({"path": str(path) if digest == UNKNOWN else digest})
        return _Origin(
            name=path.name, key=key, bootstrap="localimage", reference=path.name, folder=path.parent, digest=digest
        )

    def _layered(self, name: str, base: Built, *, sandbox: bool, force: bool) -> Built:
        recipe, source = RECIPES[name], find_source()
        programs = {one: find_program(one, "", self._env) for one in recipe.programs}
        digest = base.record.digest
        key = recipe_key(recipe, source, base_digest=digest, programs=programs, level=self._level)
        if not force and (built := self._already(name, key, sandbox)):
            return built
        uv = find_uv(self._env)
        with self._working_folder() as work:
            self._tell(f"{name}: gathering packages with uv")
            platform = ask_platform(self.apptainer, base.image.path)
            content = Content(recipe=recipe, source=source, platform=platform, programs=programs)
            gather(content, work / "content", uv=uv, timeout_s=self._config.timeout_s)
            arguments = {"BASE": base.image.path.name, "BASE_NAME": BASE, "BASE_DIGEST": digest}
            plan = _Plan(name=name, key=key, source=source, arguments=arguments, sandbox=sandbox)
            return self._make(plan, work, cwd=self.folder, content=work / "content")

    def _already(self, name: str, key: str, sandbox: bool) -> Built | None:
        path = self._path(name, sandbox)
        record = read_record(path)
        if record is None or record.key != key or not path.exists():
            return None
        if not sandbox and path.stat().st_size != record.size_bytes:
            return None
        return Built(Image(name, path, sandbox), record, is_new=False)

    def _make(self, plan: _Plan, work: Path, *, cwd: Path, content: Path | None = None) -> Built:
        """Build beside, test, rename. The base is named relative to `cwd`: images do not tell where they were made."""
        path = self._path(plan.name, plan.sandbox)
        beside = work / path.name
        arguments = {**plan.arguments, "VERSION": plan.source.version, "COMMIT": plan.source.commit}
        options = ["--sandbox"] if plan.sandbox else []
        options += ["--bind", f"{content}:/mnt:ro"] if content else []
        options += [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        command = self.command(beside, str(DEFINITIONS / f"{plan.name}.def"), options)
        (work / "tmp").mkdir()
        env, timeout_s = {"APPTAINER_TMPDIR": str(work / "tmp")}, self._config.timeout_s
        self._tell(f"{plan.name}: building {'the sandbox' if plan.sandbox else 'and packing the file'}")
        program.run_program("apptainer build", command, timeout_s=timeout_s, env=env, cwd=cwd)
        self._tell(f"{plan.name}: running its own test")
        words = [*program.as_anybody(), "--cleanenv", "--no-home", str(beside)]
        program.run(self.apptainer, "test", *words, timeout_s=timeout_s)
        record = self._record(key=plan.key, source=plan.source, base=plan.arguments["BASE_DIGEST"])
        return self._keep(beside, Image(plan.name, path, plan.sandbox), record, work)

    def _keep(self, beside: Path, image: Image, record: Record, work: Path) -> Built:
        _put(beside, image.path, work)
        return Built(image, record_image(image, record), is_new=True)

    def _record(self, *, key: str, source: Source, base: str) -> Record:
        return Record(
            key=key,
            version=source.version,
            commit=source.commit,
            base=base,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            apptainer=program.run(self.apptainer, "--version").split()[-1],
        )

    def _path(self, name: str, sandbox: bool) -> Path:
        return self.folder / (name if sandbox else f"{name}.sif")

    @contextmanager
    def _working_folder(self) -> Iterator[Path]:
        """On the images' own file system: an image is several GB, and is renamed at the end."""
        with TemporaryDirectory(dir=self.folder, prefix=_BUILDING) as folder:
            Path(folder).chmod(0o755)  # mmdebstrap works in it as other users as well
            yield Path(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One build at a time: what an earlier, killed one has left is removed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("w")
        except OSError as exc:
            raise ConfigError(f"image_dir: {self.folder} cannot be written to ({exc.strerror})") from exc
        with file:
            self._take(file.fileno())
            for left in self.folder.glob(f"{_BUILDING}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    def _take(self, fd: int) -> None:
        timeout_s = self._config.timeout_s
        try:
            lock(fd, timeout_s, waiting=lambda: self._tell(f"waiting for another build into {self.folder}"))
        except TimeoutError as exc:
            raise ContainerError(f"{self.folder}: another build has not ended for {timeout_s:g} s") from exc
        except OSError as exc:
            raise ContainerError(
                f"{self.folder} cannot be locked ({exc.strerror}): set image_dir to a local disk"
            ) from exc


def _as_builder() -> list[str]:
    """Root in a container may lack what Apptainer wants of root; in a user namespace it is a user like any other."""
    return [] if os.geteuid() else ["unshare", "--map-root-user"]


def _put(beside: Path, path: Path, work: Path) -> None:
    """Into its place; a folder cannot be renamed over another one."""
    if path.is_dir():
        path.rename(work / "old")
    beside.rename(path)
