"""The verbs that run a node until it is told to stop: `sn` and `sl`."""

from __future__ import annotations

import argparse
import asyncio
import os

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, settings_arguments
from swarm_hpc.cli.settings import load


def _sn(options: argparse.Namespace) -> int:
    from swarm_hpc.config import SnConfig

    config = load(SnConfig, "sn", options.words, options.config_dir)
    from swarm_hpc.config import LedgerKind
    from swarm_hpc.identity import certs
    from swarm_hpc.sn import node
    from swarm_hpc.sn.programs import LedgerProgram, find_program

    if config.ledger.kind is LedgerKind.GETH:
        config.ledger.geth = str(find_program(LedgerProgram.GETH, config.ledger.geth, os.environ))
        config.ledger.cometbft = str(find_program(LedgerProgram.COMETBFT, config.ledger.cometbft, os.environ))
    logs.start(str(certs.load(config.identity).name), options.log_level)
    node.run(config)
    return 0


def _sl(options: argparse.Namespace) -> int:
    from swarm_hpc.config import SlConfig

    config = load(SlConfig, "sl", options.words, options.config_dir)
    from swarm_hpc.sl import node

    logs.start(config.name, options.log_level)
    asyncio.run(node.run(config))
    return 0


SN = Command(
    about="run a site's swarm network node: ledger, API and gateway for blobs",
    example="swarm-hpc sn identity.cert=sn-sn.pem identity.key=sn-sn-key.pem identity.bundle=bundle.json",
    arguments=settings_arguments,
    run=_sn,
    settings="sn",
)

SL = Command(
    about="run a swarm learning node and, beside it, an ML program",
    example="swarm-hpc sl name=alpha/sl/sl-1 sn=login:30304 identity.cert=sl-sl-1.pem identity.key=sl-sl-1-key.pem"
    " identity.bundle=bundle.json 'program.command=[python,train.py]'",
    arguments=settings_arguments,
    run=_sl,
    settings="sl",
)
