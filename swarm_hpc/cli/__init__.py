"""`swarm-hpc COMMAND [settings]`: words to settings objects, those to whoever does the work, errors to exit codes.

Everything heavy is imported after the command is known, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from swarm_hpc import __version__
from swarm_hpc.cli import certs, image, license, nodes, runs, sites, submit, swop
from swarm_hpc.cli.command import Command, exit_code
from swarm_hpc.cli.settings import nearest
from swarm_hpc.errors import ConfigError

COMMANDS: Final[dict[str, Command]] = {
    "local": runs.LOCAL,
    "status": runs.STATUS,
    "verify": runs.VERIFY,
    "sites": sites.SITES,
    "sn": nodes.SN,
    "sl": nodes.SL,
    "license": license.LICENSE,
    "submit": submit.SUBMIT,
    "swop": swop.SWOP,
    "certs": certs.CERTS,
    "image": image.IMAGE,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return exit_code("swarm-hpc", list(sys.argv[1:] if argv is None else argv), _dispatch)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise ConfigError(f"{name!r} is not a command{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if "-h" in words or "--help" in words:
        print(command.help(name))
        return 0
    options = command.parser(name).parse_intermixed_args(words[1:])
    if options.debug:
        options.log_level = "DEBUG"
    return command.run(options)


def _overview() -> str:
    rows = "\n".join(f"  {name:<8} {command.about}" for name, command in COMMANDS.items())
    return (
        f"usage: swarm-hpc COMMAND [SETTING=VALUE ...] [--json] [--debug] [--log-level LEVEL]\n\n"
        f"Swarm learning for HPC sites.\n\n{rows}\n\n"
        f"swarm-hpc COMMAND --help shows a command's settings and an example.\n"
        f"Exit codes: 0 done, 1 failed, 2 usage or settings, 3 refused, 4 not reachable or timed out, 130 interrupted."
    )
