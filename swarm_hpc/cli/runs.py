"""The verbs that run a whole swarm on this host, and look at one: `local`, `status` and `verify`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, console, settings_arguments
from swarm_hpc.cli.programs import find_programs
from swarm_hpc.cli.settings import EXAMPLES, load
from swarm_hpc.cli.target import client_of, split_target, target_arguments
from swarm_hpc.errors import ConfigError


def _local(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ContainerKind, LedgerKind, LocalConfig

    config = load(LocalConfig, "local", options.words, options.config_dir)
    from swarm_hpc.local import experiment, results

    if config.ledger.kind is LedgerKind.GETH and config.container.kind is ContainerKind.NONE:
        find_programs(config.ledger)  # containers have their image's, and the host's paths lead nowhere in them

    logs.start("local", options.log_level)
    summary = experiment.run(config, EXAMPLES)
    results.save(summary)
    if options.json:
        print(json.dumps(summary.as_json()))
    else:
        results.show(summary, console())
    return 0


def _status(options: argparse.Namespace) -> int:
    from swarm_hpc.local import jobs, swarm, tables
    from swarm_hpc.records import encode

    logs.start("status", options.log_level)
    run_dir, words = split_target(options.words)
    status = swarm.fetch_status(client_of(run_dir, "status", words, options.config_dir))
    found = jobs.fetch_ours()
    if options.json:
        text = [one.as_json() for one in found] if found is not None else None
        print(json.dumps({**encode(status), "jobs": text}))
        return 0
    out = console()
    tables.show_status(status, out)
    if found:
        tables.show_jobs(found, out)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ClientConfig
    from swarm_hpc.local import tables, verification
    from swarm_hpc.sn.programs import LedgerProgram, find_program

    target, words = split_target(options.words)
    logs.start("verify", options.log_level)
    if not target:
        raise ConfigError("name the run folder or the training contract: swarm-hpc verify RUN_DIR (see --help)")
    if _is_folder(target):
        _no_settings(words, "the run folder")
        report = verification.verify_folder(Path(target), partial(find_program, LedgerProgram.GETH, "", os.environ))
    elif not words:
        raise ConfigError(f"{target}: no such folder; for a contract of a running SN give sn=... and identity.*=...")
    else:
        report = verification.verify_contract(load(ClientConfig, "verify", words, options.config_dir), target)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        tables.show_verification(report, console())
    return 1 if report.mismatches else 0


def _is_folder(target: str) -> bool:
    try:
        return Path(target).is_dir()
    except OSError as exc:
        raise ConfigError(f"{target} cannot be read: {exc.strerror}") from exc


def _no_settings(words: Sequence[str], target: str) -> None:
    if words:
        raise ConfigError(f"{words[0]}: {target} says everything; settings go with a running SN only")


LOCAL = Command(
    about="run a whole swarm of several sites on this host and compare it with training alone",
    example="swarm-hpc local experiment=digits sites=4 merge=geomedian transfer=direct",
    arguments=settings_arguments,
    run=_local,
    settings="local",
    details="ledger/geth",
)

STATUS = Command(
    about="show ledger, sites, nodes and training contracts, as an SN sees them, and this cluster's Slurm jobs",
    example="swarm-hpc status runs/digits-20260131-120000\n"
    "  swarm-hpc status sn=sn.alpha.example:30304 identity.cert=swci-op.pem identity.key=swci-op-key.pem"
    " identity.bundle=bundle.json",
    arguments=partial(target_arguments, words="RUN_DIR [sn=NAME] | SETTING=VALUE ..."),
    run=_status,
    settings="status",
)

VERIFY = Command(
    about="recompute every merge from the blobs that were kept, and compare with the ledger",
    example="swarm-hpc verify runs/digits-20260131-120000\n"
    "  swarm-hpc verify xray sn=sn.alpha.example:30304 identity.cert=swci-op.pem identity.key=swci-op-key.pem"
    " identity.bundle=bundle.json",
    arguments=partial(target_arguments, words="RUN_DIR | CONTRACT SETTING=VALUE ..."),
    run=_verify,
    settings="verify",
)
