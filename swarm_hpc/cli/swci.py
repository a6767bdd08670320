"""The command `swci`: its words and settings, and HPE's environment variables that stand for some of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swarm_hpc import __version__, logs
from swarm_hpc.cli.command import Command, exit_code, settings_arguments
from swarm_hpc.cli.settings import load
from swarm_hpc.errors import ConfigError
from swarm_hpc.printable import printable

if TYPE_CHECKING:
    from swarm_hpc.config import SwciConfig
    from swarm_hpc.identity.certs import Identity

PROGRAM: Final = "swci"
INIT_SCRIPT: Final = "swci-init"
"""Run at the start where --usr-dir is given and it has a file of this name, as in HPE."""
SETTINGS: Final = {
    "SWCI_WEB_PORT": "web.port",
    "SWCI_RUN_TASK_MAX_WAIT_TIME": "run_task_max_wait_min",
    "SWCI_GENERIC_TASK_MAX_WAIT_TIME": "generic_task_max_wait_min",
}
"""HPE's environment variables; a setting that is given wins."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `swci` and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without é must not end a session
    return exit_code(PROGRAM, list(sys.argv[1:] if argv is None else argv), _dispatch)


def _dispatch(words: list[str]) -> int:
    if "--version" in words:
        print(__version__)
        return 0
    if "-h" in words or "--help" in words:
        print(SWCI.help(PROGRAM))
        return 0
    options = SWCI.parser(PROGRAM).parse_intermixed_args(words)
    if options.debug:
        options.log_level = "DEBUG"
    return SWCI.run(options)


def _arguments(parser: argparse.ArgumentParser) -> None:
    settings_arguments(parser)
    parser.add_argument("-c", "--command", metavar="COMMAND", help="carry out this command alone")
    parser.add_argument("--init", "--init-script-name", dest="init", metavar="FILE", help="carry out a script first")
    parser.add_argument("--usr-dir", metavar="DIR", help=f"usr_dir=DIR, and --init {INIT_SCRIPT} where DIR has it")
    parser.add_argument("--web", action="store_true", help="serve commands over HTTP instead of a shell")


def _run(options: argparse.Namespace) -> int:
    from swarm_hpc.config import SwciConfig

    is_web = options.web or os.environ.get("SWCI_MODE", "").upper() == "WEB"
    _check_words(options, is_web=is_web)
    given = [f"usr_dir={json.dumps(options.usr_dir)}"] if options.usr_dir else []
    config = load(SwciConfig, PROGRAM, [*_from_environment(os.environ), *options.words, *given], options.config_dir)
    from swarm_hpc.swci import node

    identity = node.load_identity(config)
    logs.start(str(identity.name), options.log_level)
    if is_web:
        node.run_web(config, identity)
        return 0
    if options.command is not None:
        return _run_one(config, identity, options.command, as_json=options.json)
    init = _script(options, config.usr_dir)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    return asyncio.run(
        node.run_console(config, identity, init, out=sys.stdout, err=sys.stderr, interactive=interactive)
    )


def _check_words(options: argparse.Namespace, *, is_web: bool) -> None:
    chosen = [
        name for name, is_given in (("--web", is_web), ("-c", options.command), ("--init", options.init)) if is_given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"only one of {' and '.join(chosen)} can be given")
    if options.json and options.command is None:
        raise ConfigError("--json goes with -c COMMAND")


def _from_environment(environ: Mapping[str, str]) -> list[str]:
    return [f"{key}={environ[name]}" for name, key in SETTINGS.items() if environ.get(name)]


def _script(options: argparse.Namespace, usr_dir: str) -> Path | None:
    """The script to begin with: as named here, or in the user folder."""
    named = options.init or os.environ.get("SWCI_STARTUP_SCRIPT", "")
    if named:
        here, there = Path(named), Path(usr_dir).expanduser() / named
        return there if not here.exists() and there.exists() else here
    default = Path(usr_dir).expanduser() / INIT_SCRIPT
    return default if options.usr_dir and default.is_file() else None


def _run_one(config: SwciConfig, identity: Identity, text: str, *, as_json: bool) -> int:
    from swarm_hpc.swci import node

    def tell(said: str, *, end: str = "\n") -> None:
        print(printable(said), end=end, flush=True, file=sys.stderr if as_json else sys.stdout)

    result = asyncio.run(node.run_command(config, identity, text, tell))
    if as_json:
        print(json.dumps(result.as_json()))
    elif result.lines:
        print(printable("\n".join(result.lines)))
    return 0


SWCI = Command(
    about="the command interface: a shell, scripts, single commands, and commands over HTTP",
    example="swci sn=login:30304 identity.cert=swci-me.pem identity.key=swci-me-key.pem identity.bundle=bundle.json\n"
    "  swci --init train.swci sn=... identity.*=...              # a script, as HPE's swci-init\n"
    '  swci -c "list nodes" --json sn=... identity.*=...\n'
    "  swci --web usr_dir=tasks sn=... identity.*=...            # port 30306",
    arguments=_arguments,
    run=_run,
    settings=PROGRAM,
    program=PROGRAM,
)
