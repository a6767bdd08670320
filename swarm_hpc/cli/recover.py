"""`swarm-hpc sn recover`: this site's operator agrees to go on without sites that will not come back."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from swarm_hpc import logs
from swarm_hpc.cli.command import console
from swarm_hpc.cli.target import client_of, split_words
from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.records import RecoveryStatus

VERB = "recover"


def recover_arguments(parser: argparse.ArgumentParser) -> None:
    """What `recover` takes beside settings."""
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SITE",
        help=f"{VERB}: go on without this site; once for each",
    )


def recover(options: argparse.Namespace) -> int:
    """Tell this site's SN, and show who else has agreed."""
    from swarm_hpc.records import encode

    logs.start(VERB, options.log_level)
    plain, words = split_words([word for word in options.words if word != VERB])
    if len(plain) > 1:
        raise ConfigError(f"{plain[1]!r}: write swarm-hpc sn recover --without SITE ... [RUN_DIR]")
    if not options.without:
        raise ConfigError("swarm-hpc sn recover: name who is to be left behind: --without SITE, once for each")
    config = client_of(plain[0] if plain else "", "status", words, options.config_dir)
    from swarm_hpc.sn.client import ask

    found = ask(config, lambda client: client.recover(options.without))
    if options.json:
        print(json.dumps(encode(found)))
    else:
        console().print(_text(found), highlight=False, soft_wrap=True)
    return 0


def _text(found: RecoveryStatus) -> str:
    agreed = f"agreed to go on without {', '.join(found.without)}: {', '.join(found.approved)}"
    if found.missing:
        return f"{agreed}\nstill to agree: {', '.join(found.missing)} (their operators give the same command)"
    return f"{agreed}\nall have agreed: the network goes on in epoch {found.number}"
