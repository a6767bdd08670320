"""The verbs that run a whole swarm on this host, and look at one: `local`, `status` and `verify`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, console, settings_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.errors import ConfigError

EXAMPLES: Final = Path(__file__).resolve().parents[1] / "examples"


def _local(options: argparse.Namespace) -> int:
    from swarm_hpc.config import LocalConfig

    config = load(LocalConfig, "local", options.words, options.config_dir)
    from swarm_hpc.local import experiment, results

    logs.start("local", options.log_level)
    summary = experiment.run(config, EXAMPLES)
    results.save(summary)
    if options.json:
        print(json.dumps(summary.as_json()))
    else:
        results.show(summary, console())
    return 0


def _status(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ClientConfig
    from swarm_hpc.local import swarm, tables
    from swarm_hpc.local.folder import RunFolder
    from swarm_hpc.records import encode

    run_dir, words = _split_target(options.words)
    logs.start("status", options.log_level)
    if run_dir:
        _no_settings(words, "the run folder")
        client = RunFolder.existing(run_dir).client()
    else:
        client = load(ClientConfig, "status", words, options.config_dir)
    status = swarm.fetch_status(client)
    if options.json:
        print(json.dumps(encode(status)))
    else:
        tables.show_status(status, console())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ClientConfig
    from swarm_hpc.local import tables, verification

    target, words = _split_target(options.words)
    logs.start("verify", options.log_level)
    if not target:
        raise ConfigError("name the run folder or the training contract: swarm-hpc verify RUN_DIR (see --help)")
    if Path(target).is_dir():
        _no_settings(words, "the run folder")
        report = verification.verify_folder(Path(target))
    elif not words:
        raise ConfigError(f"{target}: no such folder; for a contract of a running SN give sn=... and identity.*=...")
    else:
        report = verification.verify_contract(load(ClientConfig, "verify", words, options.config_dir), target)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        tables.show_verification(report, console())
    return 1 if report.mismatches else 0


def _no_settings(words: Sequence[str], target: str) -> None:
    if words:
        raise ConfigError(f"{words[0]}: {target} says everything; settings go with a running SN only")


def _split_target(words: Sequence[str]) -> tuple[str, list[str]]:
    """The one word that is no setting (or empty), and the settings."""
    plain = [word for word in words if "=" not in word or Path(word).exists()]
    if len(plain) > 1:
        raise ConfigError(f"only one of {', '.join(plain)} can be given")
    return (plain[0] if plain else ""), [word for word in words if word not in plain]


def _target_arguments(parser: argparse.ArgumentParser, *, target: str) -> None:
    settings_arguments(parser)
    parser.usage = f"%(prog)s {target} | SETTING=VALUE ... [--json] [--debug] [--log-level LEVEL] [--config-dir DIR]"


LOCAL = Command(
    about="run a whole swarm of several sites on this host and compare it with training alone",
    example="swarm-hpc local experiment=digits sites=4 merge=geomedian transfer=direct",
    arguments=settings_arguments,
    run=_local,
    settings="local",
)

STATUS = Command(
    about="show ledger, sites, nodes and training contracts, as an SN sees them",
    example="swarm-hpc status runs/digits-20260131-120000",
    arguments=partial(_target_arguments, target="RUN_DIR"),
    run=_status,
    settings="status",
)

VERIFY = Command(
    about="recompute every merge from the blobs that were kept, and compare with the ledger",
    example="swarm-hpc verify runs/digits-20260131-120000",
    arguments=partial(_target_arguments, target="RUN_DIR|CONTRACT"),
    run=_verify,
    settings="verify",
)
