"""Which SN a command asks: one of a run folder of `swarm-hpc local`, or the one that the settings name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swarm_hpc.cli.command import settings_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.config import ClientConfig


def split_target(words: Sequence[str]) -> tuple[str, list[str]]:
    """The one word that is no setting (or empty), and the settings."""
    plain, settings = split_words(words)
    if len(plain) > 1:
        raise ConfigError(f"only one of {', '.join(plain)} can be given")
    return (plain[0] if plain else ""), settings


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are no settings, and the settings."""
    plain = [word for word in words if "=" not in word or Path(word).exists()]
    return plain, [word for word in words if word not in plain]


def client_of(run_dir: str, settings: str, words: Sequence[str], config_dir: str) -> ClientConfig:
    """How to ask an SN of that run folder (`sn=NAME` says which one), or, without a folder, that of the settings.

    `settings` names the YAML file. ConfigError, NotReachable where no such SN runs.
    """
    from swarm_hpc.config import ClientConfig
    from swarm_hpc.local.folder import RunFolder

    if not run_dir:
        return load(ClientConfig, settings, words, config_dir)
    others = [word for word in words if not word.startswith("sn=")]
    if others:
        raise ConfigError(f"{others[0]}: the run folder says everything but sn=NAME; settings go without a folder")
    folder = RunFolder.existing(run_dir)
    names = [word.removeprefix("sn=") for word in words]
    return folder.client(sn=folder.check_sn(names[-1]) if names else "sn")


def target_arguments(parser: argparse.ArgumentParser, *, words: str) -> None:
    """Settings, and what is named instead of them or beside them; `words`: which go together."""
    settings_arguments(parser)
    parser.usage = f"%(prog)s {words} [--json] [--debug] [--log-level LEVEL] [--config-dir DIR]"
