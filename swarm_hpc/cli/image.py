"""The verb `image`: build, list, verify and sign container images."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarm_hpc import logs, processes
from swarm_hpc.cli.command import Command, console, settings_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.cli.target import split_words
from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.config import ImageConfig
    from swarm_hpc.slurm.images import Image, Record

ALL: Final = "all"
_SHOWN_DIGEST: Final = 19
"""sha256: and twelve digits."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=VERBS, metavar="build|list|verify|sign")
    settings_arguments(parser)
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="build: a folder instead of a SIF file; it can be changed, and has no digest",
    )
    parser.add_argument("--force", action="store_true", help="build: make it anew although it is there")
    parser.add_argument("--digest", metavar="sha256:HEX", help="verify: what the digest has to be")
    parser.add_argument("--key", metavar="FILE.pem", help="verify: the public key; sign: the private one")
    parser.usage = (
        "%(prog)s build NAME ... | build all [--sandbox] [--force] | list |\n"
        "           verify NAME|PATH [--digest sha256:HEX] [--key PUBLIC.pem] | sign NAME|PATH --key PRIVATE.pem\n"
        "           [SETTING=VALUE ...] [--json] [--debug] [--log-level LEVEL] [--config-dir DIR]"
    )


def _run(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ImageConfig

    logs.start("image", options.log_level)
    names, settings = split_words(options.words)
    verb = VERBS[options.verb]
    with processes.interruptible():
        found = verb(options, names, load(ImageConfig, "image", settings, options.config_dir))
    if options.json:
        print(json.dumps(found))
    return 0


def _build(options: argparse.Namespace, names: list[str], config: ImageConfig) -> list[dict[str, Any]]:
    from swarm_hpc.slurm.build import NAMES, Builder

    wanted = list(NAMES) if names == [ALL] else names
    if not wanted:
        raise ConfigError(f"swarm-hpc image build NAME: name {', '.join(NAMES)} or {ALL}")
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ConfigError(f"{unknown[0]!r} is no image that can be built; there are {', '.join(NAMES)}, and {ALL}")
    builder = Builder(config, os.environ, _progress())
    made = []
    for name in wanted:
        built = builder.build(name, sandbox=options.sandbox, force=options.force)
        made.append({**_row(built.image, built.record), "is_new": built.is_new})
        if not options.json:
            state = "built" if built.is_new else "there already, with the same content"
            print(f"{built.image.path}: {state}{_told(built.image, built.record)}", flush=True)
    return made


def _list(options: argparse.Namespace, names: list[str], config: ImageConfig) -> list[dict[str, Any]]:
    from swarm_hpc.slurm.images import image_folder, list_images, read_record

    if names:
        raise ConfigError(f"{names[0]!r}: swarm-hpc image list takes no name; image_dir=DIR says which folder")
    folder = image_folder(config.image_dir, os.environ)
    found = [(image, read_record(image.path)) for image in list_images(folder)]
    if not options.json:
        _show(folder, found)
    return [_row(image, record) for image, record in found]


def _verify(options: argparse.Namespace, names: list[str], config: ImageConfig) -> dict[str, Any]:
    from swarm_hpc.slurm.apptainer import find_apptainer
    from swarm_hpc.slurm.images import check_digest, check_signature, digest_of, read_record

    image = _one(names, "verify", config)
    record = read_record(image.path)
    wanted = options.digest or (record.digest if record else "")
    if not wanted and not options.key:
        raise ConfigError(
            f"{image.path}: nothing is written beside it that it could be compared with: give --digest or --key"
        )
    if wanted:
        check_digest(image, wanted)
    if options.key:
        check_signature(image, Path(options.key), find_apptainer(config.apptainer, os.environ))
    digest = digest_of(image)
    if not options.json:
        against = "as asked for" if options.digest else "as recorded when it was built or signed"
        print(f"{image.path}\n{digest}{f': {against}' if wanted else ''}")
        if options.key:
            print(f"signed with the private key of {options.key}, and unchanged since")
    return {"path": str(image.path), "digest": digest, "digest_checked": bool(wanted), "signed": bool(options.key)}


def _sign(options: argparse.Namespace, names: list[str], config: ImageConfig) -> dict[str, Any]:
    from swarm_hpc.slurm.apptainer import find_apptainer
    from swarm_hpc.slurm.signing import PASSPHRASE_VARIABLE, sign

    image = _one(names, "sign", config)
    if not options.key:
        raise ConfigError(f"swarm-hpc image sign {image.name} needs --key PRIVATE.pem (see swarm-hpc image --help)")
    digest = sign(
        image,
        Path(options.key),
        find_apptainer(config.apptainer, os.environ),
        passphrase=os.environ.get(PASSPHRASE_VARIABLE, ""),
        timeout_s=config.timeout_s,
    )
    if not options.json:
        print(f"{image.path}: signed\n{digest}")
    return {"path": str(image.path), "digest": digest}


def _one(names: list[str], verb: str, config: ImageConfig) -> Image:
    from swarm_hpc.slurm.images import find_image, image_folder

    if len(names) != 1:
        raise ConfigError(f"swarm-hpc image {verb} takes one name or path")
    return find_image(names[0], image_folder(config.image_dir, os.environ))


def _progress() -> Callable[[str], None]:
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text} ...", file=sys.stderr, flush=True)

    return tell


def _row(image: Image, record: Record | None) -> dict[str, Any]:
    kept = asdict(record) if record else {}
    return {"name": image.name, "path": str(image.path), "is_sandbox": image.is_sandbox, **kept}


def _told(image: Image, record: Record) -> str:
    return "" if image.is_sandbox else f" ({_size(record.size_bytes)})\n{record.digest}"


def _show(folder: Path, found: list[tuple[Image, Record | None]]) -> None:
    from rich.table import Table

    out = console()
    if not found:
        out.print(f"no images in {folder}; `swarm-hpc image build all` makes them", soft_wrap=True, highlight=False)
        return
    out.print(str(folder), soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("image", "kind", "size", "version", "commit", "built", "digest"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=column == "image")
    for image, record in found:
        kind = "sandbox" if image.is_sandbox else "SIF"
        size = "" if image.is_sandbox else _size(image.path.stat().st_size)
        told = (
            (
                record.version,
                _short(record.commit),
                record.created[:16].replace("T", " "),
                record.digest[:_SHOWN_DIGEST],
            )
            if record
            else ()
        )
        table.add_row(image.name, kind, size, *told)
    out.print(table)


def _short(commit: str) -> str:
    number, dash, state = commit.partition("-")
    return f"{number[:10]}{dash}{state}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


VERBS: Final = {"build": _build, "list": _list, "verify": _verify, "sign": _sign}

IMAGE: Final = Command(
    about="build, list, verify and sign the container images that programs and nodes run in",
    example="swarm-hpc image build sl-pytorch                        # and its base; a minute or two\n"
    "  swarm-hpc image build all base=registry                  # base, sn, sl-pytorch and sl-keras\n"
    "  swarm-hpc image sign sl-pytorch --key image-key.pem      # its passphrase: SWARM_HPC_IMAGE_PASSPHRASE\n"
    "  swarm-hpc image verify ./sl-pytorch.sif --digest sha256:... --key image-public.pem\n"
    "  swarm-hpc image list",
    arguments=_arguments,
    run=_run,
    settings="image",
)
