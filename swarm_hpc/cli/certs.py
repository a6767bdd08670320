"""The verb `certs`: a site's CA, its nodes' certificates, the trust bundle."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, console
from swarm_hpc.errors import ConfigError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=VERBS, metavar="ca|issue|bundle|show")
    parser.add_argument("words", nargs="+", metavar="SITE | SITE/KIND/NAME | SITE=CA.pem ... | FILE")
    text = "ca, bundle: name that the whole network shares; issue: where the CA does not say it"
    parser.add_argument("--trust-domain", metavar="T", help=text)
    text = "folder (ca; if not given: pki/SITE. issue; if not given: the CA's) or file (bundle) to write"
    parser.add_argument("--out", metavar="PATH", help=text)
    parser.add_argument("--ca", metavar="DIR", help="issue: folder of the site's CA")
    text = "ca, issue: how long the certificate is valid (if not given: 3650, 365)"
    parser.add_argument("--days", type=int, metavar="N", help=text)
    parser.add_argument("--dns", action="append", default=[], metavar="NAME", help="issue: a DNS name to add")


def _run(options: argparse.Namespace) -> int:
    logs.start("certs", options.log_level)
    if len(options.words) > 1 and options.verb != "bundle":
        raise ConfigError(f"{options.words[1]}: swarm-hpc certs {options.verb} takes one name")
    try:
        made = VERBS[options.verb](options)
    except OSError as exc:
        raise ConfigError(f"--out: {options.out or exc.filename}: {exc.strerror}") from exc
    if options.json:
        print(json.dumps(made, default=str))
    elif options.verb != "show":
        print("\n".join(str(path) for path in made.values()))
    return 0


def _ca(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca

    site = options.words[0]
    folder = Path(options.out or f"pki/{site}")
    days = ca.CA_DAYS if options.days is None else options.days
    file = ca.create_ca(site, _needed(options, "trust_domain"), folder, days=days)
    return {"ca": str(file), "key": str(folder / "ca-key.pem")}


def _issue(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca
    from swarm_hpc.records import NodeName

    try:
        name = NodeName.parse(options.words[0])
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    folder = Path(_needed(options, "ca"))
    days = ca.NODE_DAYS if options.days is None else options.days
    out = Path(options.out) if options.out else folder
    cert, key = ca.issue(folder, name, out, days=days, dns=options.dns, trust_domain=options.trust_domain)
    return {"cert": str(cert), "key": str(key)}


def _bundle(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca

    cas: dict[str, Path] = {}
    for word in options.words:
        site, equals, path = word.partition("=")
        if not equals or site in cas:
            raise ConfigError(f"{word!r}: write each site once, as SITE=CA.pem")
        cas[site] = Path(path)
    out = Path(_needed(options, "out"))
    ca.write_bundle(cas, _needed(options, "trust_domain"), out)
    return {"bundle": str(out)}


def _show(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca
    from swarm_hpc.local import tables

    rows = ca.describe(Path(options.words[0]))
    if not options.json:
        tables.show_certificates(rows, console())
    return {"certificates": [asdict(row) for row in rows]}


def _needed(options: argparse.Namespace, name: str) -> str:
    value: str | None = getattr(options, name)
    if not value:
        flag = name.replace("_", "-")
        raise ConfigError(f"swarm-hpc certs {options.verb} needs --{flag} (see swarm-hpc certs --help)")
    return value


VERBS: Final = {"ca": _ca, "issue": _issue, "bundle": _bundle, "show": _show}

CERTS = Command(
    about="make a site's CA, its nodes' certificates and the trust bundle; show what a file holds",
    example="swarm-hpc certs ca alpha --trust-domain swarm.test --out pki/alpha\n"
    "  swarm-hpc certs issue alpha/sn/sn --ca pki/alpha --out pki/alpha\n"
    "  swarm-hpc certs bundle alpha=pki/alpha/ca.pem beta=beta-ca.pem --trust-domain swarm.test --out bundle.json\n"
    "  swarm-hpc certs show bundle.json",
    arguments=_arguments,
    run=_run,
)
