"""The verbs that run a node until it is told to stop: `sn` and `sl`."""

from __future__ import annotations

import argparse
import asyncio

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, settings_arguments
from swarm_hpc.cli.containers import run_sl
from swarm_hpc.cli.programs import find_programs
from swarm_hpc.cli.recover import VERB, recover, recover_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.cli.submit import task_settings
from swarm_hpc.errors import ConfigError


def _sn(options: argparse.Namespace) -> int:
    if VERB in options.words:
        return recover(options)
    if options.without:
        raise ConfigError("--without: goes with swarm-hpc sn recover")
    from swarm_hpc.config import SnConfig

    config = load(SnConfig, "sn", options.words, options.config_dir)
    from swarm_hpc.config import LedgerKind
    from swarm_hpc.identity import certs
    from swarm_hpc.sn import node

    if config.ledger.kind is LedgerKind.GETH:
        find_programs(config.ledger)
    logs.start(str(certs.load(config.identity).name), options.log_level)
    node.run(config)
    return 0


def _sl(options: argparse.Namespace) -> int:
    from swarm_hpc.config import ContainerKind, SlConfig

    config = task_settings(options) if options.task else load(SlConfig, "sl", options.words, options.config_dir)
    logs.start(config.name, options.log_level)
    if config.container.kind is ContainerKind.APPTAINER:
        return run_sl(config)
    from swarm_hpc.sl import node

    asyncio.run(node.run(config))
    return 0


def _sl_arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    text = "be the node of this task of a Slurm job; the settings are then those of swarm-hpc submit"
    parser.add_argument("--task", action="store_true", help=text)


def _sn_arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    recover_arguments(parser)


SN = Command(
    about="run a site's swarm network node: ledger, API and gateway for blobs",
    example="swarm-hpc sn identity.cert=sn-sn.pem identity.key=sn-sn-key.pem identity.bundle=bundle.json\n"
    "  or, when sites are lost for good and too few are left to go on, by the operator of each that is left:\n"
    "  swarm-hpc sn recover --without gamma sn=login:30304 identity.cert=swci-me.pem identity.key=swci-me-key.pem "
    "identity.bundle=bundle.json",
    arguments=_sn_arguments,
    run=_sn,
    settings="sn",
    details="ledger/geth",
)

SL = Command(
    about="run a swarm learning node and, beside it, an ML program",
    example="swarm-hpc sl name=alpha/sl/sl-1 sn=login:30304 identity.cert=sl-sl-1.pem identity.key=sl-sl-1-key.pem"
    " identity.bundle=bundle.json 'program.command=[python,train.py]'",
    arguments=_sl_arguments,
    run=_sl,
    settings="sl",
)
