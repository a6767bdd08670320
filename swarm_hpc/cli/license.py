"""The verb `license`: run the licence server, ask it; make keys, sign, show and install licence files."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarm_hpc import logs
from swarm_hpc.cli.command import Command, console, settings_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.cli.target import split_words
from swarm_hpc.errors import ConfigError

if TYPE_CHECKING:
    from swarm_hpc.config import LicenseServerConfig
    from swarm_hpc.license.terms import LicenseStatus, LicenseTerms

_DAYS: Final = 365
_NO_IDENTITY: Final = ("identity.cert=''", "identity.key=''", "identity.bundle=''")
"""Installing a file needs none; what the user types counts all the same."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    parser.add_argument("--out", metavar="PATH", help="keys: folder; sign: file to write")
    parser.add_argument("--key", metavar="FILE.pem", help="sign: the owner's private key; show: the public one")
    parser.add_argument("--licensee", metavar="TEXT", help="sign: who may train")
    parser.add_argument("--seats", type=int, metavar="N", help="sign: how many nodes at the same time")
    parser.add_argument("--id", metavar="NAME", help="sign: name of the licence (if not given: made of the end's date)")
    parser.add_argument("--contact", default="", metavar="TEXT", help="sign: whom to ask for more seats")
    parser.add_argument("--feature", action="append", metavar="NAME", help="sign: what may be done (training)")
    parser.add_argument("--from", dest="valid_from", metavar="DATE", help="sign: first day, as 2027-01-31 (now)")
    parser.add_argument("--until", metavar="DATE", help="sign: its end, UTC; a day alone means the end of that day")
    parser.add_argument("--days", type=int, metavar="N", help=f"sign: instead of --until ({_DAYS})")
    parser.add_argument("--server", metavar="HOST:PORT", help="status: where the server is (host:port of the settings)")
    parser.usage = (
        "%(prog)s [SETTING=VALUE ...]\n"
        "           status [--server HOST:PORT] identity.cert=... identity.key=... identity.bundle=...\n"
        "           install FILE public_key=PUBLIC.pem [data_dir=DIR] | show FILE [--key PUBLIC.pem]\n"
        "           sign --key PRIVATE.pem --licensee TEXT --seats N --out FILE [--days N | --until DATE]\n"
        "           keys --out DIR\n"
        "           [--json] [--debug] [--log-level LEVEL] [--config-dir DIR]"
    )


def _run(options: argparse.Namespace) -> int:
    plain, settings = split_words(options.words)
    if not plain:
        return _serve(options, settings)
    logs.start("license", options.log_level)
    verb, *names = plain
    if verb not in VERBS:
        raise ConfigError(f"{verb!r}: swarm-hpc license runs the server; else write one of {', '.join(VERBS)}")
    wanted = 1 if verb in ("install", "show") else 0
    if len(names) != wanted:
        raise ConfigError(f"swarm-hpc license {verb} takes {'one FILE' if wanted else 'no name'} (see --help)")
    if settings and verb not in ("install", "status"):
        raise ConfigError(f"{settings[0]}: swarm-hpc license {verb} takes no settings")
    found = VERBS[verb](options, names, settings)
    if options.json:
        print(json.dumps(found))
    return 0


def _serve(options: argparse.Namespace, settings: list[str]) -> int:
    from swarm_hpc.config import LicenseServerConfig

    config = load(LicenseServerConfig, "license", settings, options.config_dir)
    from swarm_hpc.identity import certs
    from swarm_hpc.license import node

    logs.start(str(certs.load(config.identity).name), options.log_level)
    node.run(config)
    return 0


def _keys(options: argparse.Namespace, names: list[str], settings: list[str]) -> dict[str, Any]:
    from swarm_hpc.license import file

    passphrase = os.environ.get(file.PASSPHRASE_VARIABLE, "")
    private, public = file.make_keys(Path(_needed(options, "keys", "out")), passphrase=passphrase)
    if not options.json:
        print(f"{private}\n{public}")
    return {"key": str(private), "public_key": str(public), "encrypted": bool(passphrase)}


def _sign(options: argparse.Namespace, names: list[str], settings: list[str]) -> dict[str, Any]:
    from swarm_hpc.durable import write
    from swarm_hpc.license import file
    from swarm_hpc.records import encode

    out = Path(_needed(options, "sign", "out"))
    terms = _terms(options)
    passphrase = os.environ.get(file.PASSPHRASE_VARIABLE, "")
    key = file.load_private_key(Path(_needed(options, "sign", "key")), passphrase)
    try:
        write(out, file.sign(terms, key))
    except OSError as exc:
        raise ConfigError(f"--out: {out} cannot be written ({exc.strerror})") from exc
    if not options.json:
        print(out)
    return {"file": str(out), "terms": encode(terms)}


def _install(options: argparse.Namespace, names: list[str], settings: list[str]) -> dict[str, Any]:
    from swarm_hpc.license import file
    from swarm_hpc.license.desk import install
    from swarm_hpc.records import encode

    config = _config(options, [*_NO_IDENTITY, *settings])
    if not config.public_key:
        raise ConfigError("public_key: no value; it is the owner's license-public.pem: public_key=FILE.pem")
    key = file.load_public_key(Path(config.public_key))
    terms, path = install(Path(names[0]), Path(config.data_dir), key)
    if not options.json:
        print(f"{path}: licence {terms.id}; a server that runs there takes it at the next request")
    return {"file": str(path), "terms": encode(terms)}


def _show(options: argparse.Namespace, names: list[str], settings: list[str]) -> dict[str, Any]:
    from swarm_hpc.license import file
    from swarm_hpc.records import encode

    path = Path(names[0])
    terms = file.read(path, file.load_public_key(Path(options.key)) if options.key else None)
    if not options.json:
        print(_text(terms))
        print(f"signature  {'by the key of ' + options.key if options.key else 'not checked: give --key PUBLIC.pem'}")
    file.check_valid(terms, path)
    return {"terms": encode(terms), "signature_checked": bool(options.key)}


def _status(options: argparse.Namespace, names: list[str], settings: list[str]) -> dict[str, Any]:
    from swarm_hpc.license.client import ask_status
    from swarm_hpc.records import encode
    from swarm_hpc.transport.line import with_port

    config = _config(options, settings)
    status = ask_status(config.identity, options.server or with_port(config.host, config.port))
    if not options.json:
        _show_status(status)
    found: dict[str, Any] = encode(status)
    return found


def _config(options: argparse.Namespace, settings: list[str]) -> LicenseServerConfig:
    from swarm_hpc.config import LicenseServerConfig

    return load(LicenseServerConfig, "license", settings, options.config_dir)


def _terms(options: argparse.Namespace) -> LicenseTerms:
    """What is to be signed. ConfigError."""
    from swarm_hpc.errors import ProtocolError
    from swarm_hpc.license.terms import TRAINING, LicenseTerms
    from swarm_hpc.records import decode

    now = datetime.now(UTC).replace(microsecond=0)
    start = _date("from", options.valid_from, at_end=False) if options.valid_from else now
    if options.until and options.days is not None:
        raise ConfigError("--days: goes without --until")
    end = _date("until", options.until, at_end=True) if options.until else _span(start, options.days)
    if end <= max(start, now):
        raise ConfigError(f"--until: {end:%Y-%m-%d %H:%M} UTC is past, or before the licence begins")
    values = {
        "id": options.id or f"licence-{end:%Y-%m-%d}",
        "licensee": _needed(options, "sign", "licensee"),
        "contact": options.contact,
        "seats": _needed(options, "sign", "seats"),
        "features": tuple(options.feature or [TRAINING]),
        "valid_from": start,
        "valid_until": end,
    }
    try:
        return decode(LicenseTerms, values)
    except ProtocolError as exc:
        raise ConfigError(f"swarm-hpc license sign: {exc}") from exc


def _span(start: datetime, days: int | None) -> datetime:
    try:
        return start + timedelta(days=_DAYS if days is None else days)
    except OverflowError as exc:
        raise ConfigError(f"--days: {days} is too many") from exc


def _date(flag: str, text: str, *, at_end: bool) -> datetime:
    """A moment in UTC; a day alone is its first moment, or with `at_end` the one after its last."""
    is_day = len(text) <= len("2027-01-31")
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        return found + timedelta(days=1) if at_end and is_day else found
    except (ValueError, OverflowError) as exc:
        raise ConfigError(f"--{flag}: {text!r} is no date, such as 2027-01-31 or 2027-01-31T12:00+01:00") from exc


def _text(terms: LicenseTerms) -> str:
    from swarm_hpc.license.terms import day

    rows = {
        "licence": terms.id,
        "licensee": terms.licensee,
        "contact": terms.contact or "-",
        "seats": str(terms.seats),
        "features": ", ".join(terms.features),
        "valid": f"{day(terms.valid_from)} to {day(terms.valid_until)}",
    }
    return "\n".join(f"{key:<10} {value}" for key, value in rows.items())


def _show_status(status: LicenseStatus) -> None:
    from rich.table import Table

    out = console()
    if status.terms is not None:
        out.print(f"{_text(status.terms)}\ntaken      {status.used}", highlight=False, soft_wrap=True)
    if text := status.problem or status.warning:
        out.print(text, style="yellow", highlight=False, soft_wrap=True)
    if not status.holders:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("node", "seats", "since (UTC)", "heard of"):
        table.add_column(column, justify="right" if column == "seats" else "left")
    for one in status.holders:
        since = f"{one.since.astimezone(UTC):%Y-%m-%d %H:%M}"
        table.add_row(one.node, str(one.num_seats), since, f"{one.last_heard_s:.0f} s ago")
    out.print(table)


def _needed(options: argparse.Namespace, verb: str, name: str) -> Any:
    value = getattr(options, name)
    if value is None or value == "":
        raise ConfigError(f"swarm-hpc license {verb} needs --{name} (see swarm-hpc license --help)")
    return value


VERBS: Final = {"keys": _keys, "sign": _sign, "show": _show, "install": _install, "status": _status}

LICENSE: Final = Command(
    about="run the licence server, ask it; make, show and install licence files",
    example="swarm-hpc license public_key=license-public.pem data_dir=/srv/swarm-license identity.cert=...\n"
    "  swarm-hpc license keys --out owner                       # a passphrase: SWARM_HPC_LICENSE_PASSPHRASE\n"
    "  swarm-hpc license sign --key owner/license-key.pem --licensee 'Lung consortium' --seats 24 --days 365 \\\n"
    "      --contact licences@lung.example --out lung.json\n"
    "  swarm-hpc license show lung.json --key owner/license-public.pem\n"
    "  swarm-hpc license install lung.json public_key=license-public.pem data_dir=/srv/swarm-license\n"
    "  swarm-hpc license status --server license.example:5814 identity.cert=... identity.key=... identity.bundle=...",
    arguments=_arguments,
    run=_run,
    settings="license",
)
