"""Container images as files: where they are, what identifies one, whether it is signed. build.py makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from swarm_hpc.cache import cache_folder
from swarm_hpc.errors import ConfigError, ContainerError, ImageNotFound, ImageRefused
from swarm_hpc.slurm import apptainer as program

_METADATA: Final = ".singularity.d"
"""Every sandbox has this folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is written beside an image when it is made, as PATH.json."""

    key: str
    """Of its content: see recipe.py."""
    digest: str = ""
    """As `digest_of` gave it."""
    size_bytes: int = 0
    version: str
    commit: str
    """Of swarm-hpc, when the image was made."""
    base: str
    """Digest of the image below it."""
    created: str
    apptainer: str
    """Its version."""


@dataclass(frozen=True, slots=True)
class Image:
    """A SIF file, or a sandbox: an image as a folder, which can change."""

    name: str
    path: Path
    is_sandbox: bool


def image_folder(configured: str, env: Mapping[str, str]) -> Path:
    """Folder of the images that have names: `configured` (image_dir), else `images` in the cache folder."""
    return Path(configured).absolute() if configured else cache_folder(env) / "images"


def find_image(named: str, folder: Path) -> Image:
    """The image that is meant by a path (it has a slash or ends in .sif) or by a name: NAME.sif, else the sandbox
    NAME in `folder`. ImageNotFound lists which there are."""
    if "/" in named or named.endswith(".sif"):
        path = Path(named).absolute()
        if (image := _image_at(path)) is None:
            raise ImageNotFound(f"{path}: neither a SIF file nor a sandbox")
        return image
    for path in (folder / f"{named}.sif", folder / named):
        if named and (image := _image_at(path)):
            return image
    names = ", ".join(image.name for image in list_images(folder)) or "none"
    raise ImageNotFound(
        f"no image {named!r} in {folder} (there: {names}): run `swarm-hpc image build {named}`, or give the path of one"
    )


def list_images(folder: Path) -> list[Image]:
    """The images in a folder, by name; a name may be there twice, as a file and as a sandbox."""
    if not folder.is_dir():
        return []
    paths = [
        path for path in folder.iterdir() if not path.name.startswith(".") and (path.suffix == ".sif" or path.is_dir())
    ]
    images = [image for path in paths if (image := _image_at(path))]
    return sorted(images, key=lambda image: (image.name, image.is_sandbox))


def digest_of(image: Image) -> str:
    """`sha256:<64 hex digits>` of a SIF file, signature included; empty for a sandbox, which can change."""
    if image.is_sandbox:
        return ""
    with image.path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_record(image: Path) -> Record | None:
    """What is written beside an image; None where there is nothing that can be read."""
    try:
        values = json.loads(_record_file(image).read_text(encoding="utf-8"))
        return Record(**values)
    except (OSError, ValueError, TypeError):
        return None


def record_image(image: Image, record: Record) -> Record:
    """Write `record` beside the image, with the digest and size that it has now."""
    size_bytes = 0 if image.is_sandbox else image.path.stat().st_size
    record = replace(record, digest=digest_of(image), size_bytes=size_bytes)
    file = _record_file(image.path)
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    beside.replace(file)
    return record


def _record_file(image: Path) -> Path:
    return image.with_name(f"{image.name}.json")


def check_digest(image: Image, wanted: str) -> None:
    """ImageRefused unless the image has that digest, `sha256:<64 hex digits>`."""
    if image.is_sandbox:
        raise ImageRefused(f"{image.path}: a sandbox can change and has no digest; wanted is {wanted}")
    if (found := digest_of(image)) != wanted.lower():
        raise ImageRefused(f"{image.path}: its digest is {found}, wanted is {wanted}: get it again from who built it")


def check_signature(image: Image, public_key: Path, apptainer: Path) -> None:
    """ImageRefused unless the image is a SIF file as it was signed with the private key of `public_key` (PEM)."""
    if not public_key.is_file():
        raise ConfigError(f"public_key: there is no file {public_key}")
    if image.is_sandbox:
        raise ImageRefused(f"{image.path}: a sandbox has no signature; wanted is a SIF file signed for {public_key}")
    try:
        program.run(apptainer, "verify", "--key", str(public_key), str(image.path))
    except ContainerError as exc:
        raise ImageRefused(
            f"{image.path}: not signed with the private key of {public_key}, or changed since ({exc}); "
            "sign it with `swarm-hpc image sign`, or get it again from who did"
        ) from exc


def _image_at(path: Path) -> Image | None:
    if path.is_file():
        return Image(path.name.removesuffix(".sif"), path, is_sandbox=False)
    return Image(path.name, path, is_sandbox=True) if (path / _METADATA).is_dir() else None
