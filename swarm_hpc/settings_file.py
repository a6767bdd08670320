"""A node's settings as a file that its command reads back: `swarm-hpc COMMAND --config-dir FOLDER +node=NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from swarm_hpc import durable
from swarm_hpc.records import encode

GROUP: Final = "node"


def write(folder: Path, command: str, name: str, settings: object) -> list[str]:
    """Write them to `folder`, a hydra search path; what `swarm-hpc` is given to run the command with them.

    Nobody else may read the file: the variables of a program may be passwords and tokens.
    """
    file = folder / GROUP / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_literal(encode(settings)), sort_keys=False)
    words = [command, "--config-dir", str(folder), f"+{GROUP}={name}"]
    durable.write(file, f"# @package _global_\n# swarm-hpc {' '.join(words)}\n{text}".encode(), mode=0o600)
    return words


def _literal(value: Any) -> Any:
    """Plain values whose text stands for itself: `${` would be an interpolation to hydra."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value
