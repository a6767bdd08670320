"""The verb `sites`: who is a member of a network, and the votes of a site's operator on that."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, console, settings_arguments
from swarm_hpc.cli.target import client_of, split_words
from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.config import ClientConfig
    from swarm_hpc.records import SiteList

VOTES: Final = ("admit", "remove")


def _arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    parser.usage = (
        "%(prog)s [admit SITE | remove SITE] RUN_DIR [sn=NAME] | SETTING=VALUE ... [--json] [--debug]"
        " [--log-level LEVEL] [--config-dir DIR]"
    )


def _run(options: argparse.Namespace) -> int:
    from swarm_hpc.local import tables
    from swarm_hpc.records import encode

    logs.start("sites", options.log_level)
    plain, words = split_words(options.words)
    vote, site, run_dir = _take_apart(plain)
    found = _ask(client_of(run_dir, "sites", words, options.config_dir), vote, site)
    if options.json:
        print(json.dumps(encode(found)))
        return 0
    out = console()
    tables.show_sites(found, out)
    if vote:
        out.print(_outcome(found, vote, site), highlight=False, soft_wrap=True)
    return 0


def _take_apart(plain: Sequence[str]) -> tuple[str, str, str]:
    """Vote (or empty), site, run folder (or empty)."""
    rest = list(plain)
    vote = rest.pop(0) if rest and rest[0] in VOTES else ""
    if vote and not rest:
        raise ConfigError(f"swarm-hpc sites {vote} SITE: name the site (see swarm-hpc sites --help)")
    site = rest.pop(0) if vote else ""
    if len(rest) > 1:
        raise ConfigError(
            f"{rest[0]!r}: write sites, sites admit SITE or sites remove SITE (see swarm-hpc sites --help)"
        )
    return vote, site, rest[0] if rest else ""


def _ask(config: ClientConfig, vote: str, site: str) -> SiteList:
    from swarm_hpc.sn.client import ask

    if vote == "admit":
        return ask(config, lambda client: client.admit(site))
    if vote == "remove":
        return ask(config, lambda client: client.remove(site))
    return ask(config, lambda client: client.sites())


def _outcome(found: SiteList, vote: str, site: str) -> str:
    """What came of a vote so far."""
    is_member = any(one.name == site and one.active for one in found.sites)
    if is_member == (vote == "admit"):
        return f"{site} is a member now" if is_member else f"{site} is no member any more"
    needed = sum(one.active for one in found.sites) // 2 + 1
    return f"voted; {site} is {'still' if is_member else 'not yet'} a member: {needed} sites have to vote so"


SITES = Command(
    about="show the member sites and those that ask; vote to admit or to remove one",
    example="swarm-hpc sites sn=sn.alpha.example:30304 identity.cert=swci-op.pem identity.key=swci-op-key.pem"
    " identity.bundle=bundle.json\n"
    "  swarm-hpc sites admit epsilon sn=... identity.*=...      # as an swci node of the SN's own site\n"
    "  swarm-hpc sites remove beta runs/digits-20260131-120000 sn=sn-gamma",
    arguments=_arguments,
    run=_run,
    settings="sites",
)
