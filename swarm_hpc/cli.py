"""`swarm-hpc COMMAND [settings]`: words to settings objects, those to whoever does the work, errors to exit codes.

The only file that knows hydra. Everything heavy is imported after the command is known, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from swarm_hpc import __version__, logs
from swarm_hpc.errors import ConfigError, SwarmError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
CONF = Path(__file__).resolve().parent / "conf"
EXAMPLES = Path(__file__).resolve().parent / "examples"
INTERRUPTED = 130
PIPE_WIDTH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A verb of the command line."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    settings: str = ""
    """Name of the YAML file in conf/ with this command's settings; empty where it has none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (DESIGN 8)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _dispatch(words)
    except SwarmError as exc:
        return _failed(exc, str(exc), exc.exit_code, debug)
    except KeyboardInterrupt as exc:
        return _failed(exc, "interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        return 1  # whoever read our output went away: nobody is left to tell
    except Exception as exc:  # noqa: BLE001 - the outermost edge: whatever is left is a bug of ours
        text = f"{type(exc).__name__}: {exc} (a bug; run again with --debug for the traceback)"
        return _failed(exc, text, 1, debug)


def _failed(exc: BaseException, text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(exc)
    print(f"swarm-hpc: {' '.join(text.split())}", file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise ConfigError(f"{name!r} is not a command{_nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = _Parser(prog=f"swarm-hpc {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this text")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--debug", action="store_true", help="log everything; show the traceback of an error")
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        metavar="LEVEL",
        help="DEBUG, INFO, WARNING or ERROR",
    )
    command.arguments(parser)
    if "-h" in words or "--help" in words:
        print(_help(name, command, parser))
        return 0
    options = parser.parse_intermixed_args(words[1:])
    if options.debug:
        options.log_level = "DEBUG"
    return command.run(options)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


# ---- help ------------------------------------------------------------------------------------------------------------


def _overview() -> str:
    rows = "\n".join(f"  {name:<8} {command.about}" for name, command in COMMANDS.items())
    return (
        f"usage: swarm-hpc COMMAND [SETTING=VALUE ...] [--json] [--debug] [--log-level LEVEL]\n\n"
        f"Swarm learning for HPC sites.\n\n{rows}\n\n"
        f"swarm-hpc COMMAND --help shows a command's settings and an example.\n"
        f"Exit codes: 0 done, 1 failed, 2 usage or settings, 3 refused, 4 not reachable or timed out, 130 interrupted."
    )


def _help(name: str, command: Command, parser: argparse.ArgumentParser) -> str:
    parts = [parser.format_help().rstrip(), f"{command.about}\n\nexample:\n  {command.example}"]
    if command.settings:
        parts.append(_settings_text(command.settings))
    return "\n\n".join(parts)


def _settings_text(name: str) -> str:
    """The command's YAML file as its own documentation, and the choices of the groups that it draws on."""
    file = CONF / f"{name}.yaml"
    text = file.read_text(encoding="utf-8").split("  - _self_\n", 1)[1].strip("\n")
    lines = [f"  {line}".rstrip() for line in text.splitlines()]
    groups = [
        f"  {group}={'|'.join(_choices(group))}  (if not given: {choice}; settings in {CONF / group})"
        for group, choice in _groups(name).items()
    ]
    return "\n".join(
        [f"settings and their defaults, ??? where there is none ({file}):", *lines, "", "groups of settings:", *groups]
    )


def _groups(name: str) -> dict[str, str]:
    """The config groups in the defaults list of conf/<name>.yaml, with the choice made there."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)$", text, flags=re.MULTILINE))


def _choices(group: str, config_dir: str = "") -> list[str]:
    folders = [CONF / group] + ([Path(config_dir) / group] if config_dir else [])
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with what comes closest to `word`, in full or in its last part; else empty."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:
        last = word.rpartition(".")[2]
        by_last = {name.rpartition(".")[2]: name for name in names}
        near = [by_last[key] for key in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]}?" if near else ""


# ---- settings --------------------------------------------------------------------------------------------------------


def load(cls: type[T], name: str, overrides: Sequence[str], config_dir: str = "") -> T:
    """The settings of a command: conf/<name>.yaml, the groups it draws on, and what the user typed.

    ConfigError, in one line, for an unknown key or choice (with the nearest that exists), a missing or a bad value.
    """
    from swarm_hpc import config

    return config.load(cls, compose(name, overrides, config_dir))


def compose(name: str, overrides: Sequence[str], config_dir: str = "") -> dict[str, Any]:
    """As `load`, but plain values."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    words = list(overrides)
    if config_dir:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir: {config_dir} is not a folder")
        words.append(f"hydra.searchpath=['file://{_quoted(str(folder))}']")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                composed = hydra_compose(name, overrides=words)
            except HydraException as exc:
                text = _wrong_word(name, overrides, config_dir)
                if not text and isinstance(exc, OverrideParseException):
                    text = f"{exc.override}: {str(exc).splitlines()[0]}"
                if not text:
                    chosen = [word for word in words if _chosen(word, name, config_dir)]
                    known = _keys(OmegaConf.to_container(hydra_compose(name, overrides=chosen)))
                    text = _unknown_key(name, overrides, known)
                raise ConfigError(text or str(exc)) from exc
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as exc:
        raise ConfigError(f"{exc.full_key}: no value; give {exc.full_key}=... (swarm-hpc {name} --help)") from exc
    except OmegaConfBaseException as exc:
        raise ConfigError(f"{exc.full_key or name}: {str(exc).splitlines()[0]}") from exc
    except YAMLError as exc:
        raise ConfigError(f"not valid YAML: {exc}") from exc
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _chosen(word: str, name: str, config_dir: str) -> bool:
    """Whether an override chooses, correctly, from a config group (or is our own search path)."""
    key, _, value = word.partition("=")
    group = key.removeprefix("+")
    known = group in _groups(name) or key.startswith("+")
    return key == "hydra.searchpath" or (known and value in _choices(group, config_dir))


def _keys(values: object, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return []
    return [full for key, value in values.items() for full in [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]]


def _wrong_word(name: str, overrides: Sequence[str], config_dir: str) -> str:
    """What is wrong with a word that is no setting, or that chooses what is not there; empty if nothing is."""
    groups = _groups(name)
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals and not key.startswith("~"):
            return f"{word!r} is not a setting: write KEY=VALUE{_nearest(word, groups)}"
        if key in groups and value not in (choices := _choices(key, config_dir)):
            return f"{word}: no such choice{_nearest(value, choices)}; {key} is one of {', '.join(choices)}"
    return ""


def _unknown_key(name: str, overrides: Sequence[str], known: Sequence[str]) -> str:
    """Which override names no setting, with the nearest that there is; empty if all do."""
    groups = _groups(name)
    for word in overrides:
        key = word.partition("=")[0].removeprefix("~")
        if key in known or key in groups or key.startswith("+"):
            continue
        if key.rpartition(".")[0].endswith("env"):
            return f"{key}: no such variable yet; add it with +{word}"
        near = _nearest(key, [*known, *groups])
        return f"{key}: swarm-hpc {name} has no such setting{near} (swarm-hpc {name} --help lists them)"
    return ""


# ---- the commands ----------------------------------------------------------------------------------------------------


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="SETTING=VALUE", help="a setting, see below")
    parser.add_argument(
        "--config-dir", default="", metavar="DIR", help="folder with own groups: DIR/experiment/mine.yaml"
    )


def _target_arguments(parser: argparse.ArgumentParser, *, target: str) -> None:
    _settings_arguments(parser)
    parser.usage = f"%(prog)s {target} | SETTING=VALUE ... [--json] [--debug] [--log-level LEVEL] [--config-dir DIR]"


def _sn(options: argparse.Namespace) -> int:
    from swarm_hpc.config import SnConfig

    config = load(SnConfig, "sn", options.words, options.config_dir)
    from swarm_hpc.identity import certs
    from swarm_hpc.sn import node

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
        results.show(summary, _console())
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
        tables.show_status(status, _console())
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
        tables.show_verification(report, _console())
    return 1 if report.mismatches else 0


def _console() -> Console:
    """Where results for people go; a pipe has no width, so nothing is cut short there."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def _no_settings(words: Sequence[str], target: str) -> None:
    if words:
        raise ConfigError(f"{words[0]}: {target} says everything; settings go with a running SN only")


def _split_target(words: Sequence[str]) -> tuple[str, list[str]]:
    """The one word that is no setting (or empty), and the settings."""
    plain = [word for word in words if "=" not in word or Path(word).exists()]
    if len(plain) > 1:
        raise ConfigError(f"only one of {', '.join(plain)} can be given")
    return (plain[0] if plain else ""), [word for word in words if word not in plain]


def _certs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=CERTS, metavar="ca|issue|bundle|show")
    parser.add_argument("words", nargs="+", metavar="SITE | SITE/KIND/NAME | SITE=CA.pem ... | FILE")
    parser.add_argument("--trust-domain", metavar="T", help="ca, bundle: name that the whole network shares")
    parser.add_argument("--out", metavar="PATH", help="folder (ca, issue) or file (bundle) to write")
    parser.add_argument("--ca", metavar="DIR", help="issue: folder of the site's CA")
    parser.add_argument("--days", type=int, metavar="N", help="ca, issue: how long the certificate is valid")
    parser.add_argument("--dns", action="append", default=[], metavar="NAME", help="issue: a DNS name to add")


def _certs(options: argparse.Namespace) -> int:
    logs.start("certs", options.log_level)
    if len(options.words) > 1 and options.verb != "bundle":
        raise ConfigError(f"{options.words[1]}: swarm-hpc certs {options.verb} takes one name")
    made = CERTS[options.verb](options)
    if options.json:
        print(json.dumps(made, default=str))
    elif options.verb != "show":
        print("\n".join(str(path) for path in made.values()))
    return 0


def _certs_ca(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca

    site = options.words[0]
    folder = Path(options.out or f"pki/{site}")
    file = ca.create_ca(site, _needed(options, "trust_domain"), folder, days=options.days or ca.CA_DAYS)
    return {"ca": str(file), "key": str(folder / "ca-key.pem")}


def _certs_issue(options: argparse.Namespace) -> dict[str, Any]:
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


def _certs_bundle(options: argparse.Namespace) -> dict[str, Any]:
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


def _certs_show(options: argparse.Namespace) -> dict[str, Any]:
    from swarm_hpc.identity import ca
    from swarm_hpc.local import tables

    rows = ca.describe(Path(options.words[0]))
    if not options.json:
        tables.show_certificates(rows, _console())
    return {"certificates": [asdict(row) for row in rows]}


def _needed(options: argparse.Namespace, name: str) -> str:
    value: str | None = getattr(options, name)
    if not value:
        flag = name.replace("_", "-")
        raise ConfigError(f"swarm-hpc certs {options.verb} needs --{flag} (see swarm-hpc certs --help)")
    return value


CERTS = {"ca": _certs_ca, "issue": _certs_issue, "bundle": _certs_bundle, "show": _certs_show}

COMMANDS = {
    "local": Command(
        about="run a whole swarm of several sites on this host and compare it with training alone",
        example="swarm-hpc local experiment=digits sites=4 merge=geomedian transfer=direct",
        arguments=_settings_arguments,
        run=_local,
        settings="local",
    ),
    "status": Command(
        about="show ledger, sites, nodes and training contracts, as an SN sees them",
        example="swarm-hpc status runs/digits-20260131-120000",
        arguments=partial(_target_arguments, target="RUN_DIR"),
        run=_status,
        settings="status",
    ),
    "verify": Command(
        about="recompute every merge from the blobs that were kept, and compare with the ledger",
        example="swarm-hpc verify runs/digits-20260131-120000",
        arguments=partial(_target_arguments, target="RUN_DIR|CONTRACT"),
        run=_verify,
        settings="verify",
    ),
    "sn": Command(
        about="run a site's swarm network node: ledger, API and gateway for blobs",
        example="swarm-hpc sn identity.cert=sn-sn.pem identity.key=sn-sn-key.pem identity.bundle=bundle.json",
        arguments=_settings_arguments,
        run=_sn,
        settings="sn",
    ),
    "sl": Command(
        about="run a swarm learning node and, beside it, an ML program",
        example="swarm-hpc sl name=alpha/sl/sl-1 sn=login:30304 identity.cert=sl-sl-1.pem identity.key=sl-sl-1-key.pem"
        " identity.bundle=bundle.json 'program.command=[python,train.py]'",
        arguments=_settings_arguments,
        run=_sl,
        settings="sl",
    ),
    "certs": Command(
        about="make a site's CA, its nodes' certificates and the trust bundle; show what a file holds",
        example="swarm-hpc certs ca alpha --trust-domain swarm.test --out pki/alpha\n"
        "  swarm-hpc certs issue alpha/sn/sn --ca pki/alpha --out pki/alpha\n"
        "  swarm-hpc certs bundle alpha=pki/alpha/ca.pem beta=beta-ca.pem --trust-domain swarm.test --out bundle.json\n"
        "  swarm-hpc certs show bundle.json",
        arguments=_certs_arguments,
        run=_certs,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
