"""What a verb of the command line is: its words, its help, and what it runs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from swarm_hpc.cli.settings import CONF, choices_of, groups_of
from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED: Final = 130
PIPE_WIDTH: Final = 200
CONFIG_DIR_VARIABLE: Final = "SWARM_HPC_CONFIG_DIR"
"""Environment variable with the folder that --config-dir means where it is not given; a cluster's admin sets it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A verb of the command line."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    settings: str = ""
    """Name of the YAML file in conf/ with this command's settings; empty where it has none."""
    details: str = ""
    """A choice of one of its groups (ledger/geth) whose settings are worth being shown as well."""
    program: str = ""
    """What is typed to run it; empty: swarm-hpc and the verb."""

    def parser(self, name: str) -> Parser:
        """The words that it takes."""
        parser = Parser(prog=self.program or f"swarm-hpc {name}", add_help=False, allow_abbrev=False)
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
        self.arguments(parser)
        return parser

    def help(self, name: str) -> str:
        """What `swarm-hpc NAME --help` prints."""
        parts = [self.parser(name).format_help().rstrip(), f"{self.about}\n\nexample:\n  {self.example}"]
        if self.settings:
            parts.append(_settings_text(self.settings))
        if self.details:
            parts.append(_details_text(self.details))
        return "\n\n".join(parts)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """ConfigError with argparse's message."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def exit_code(program: str, words: list[str], run: Callable[[list[str]], int]) -> int:
    """Run a program's words and return its exit code; an error is one line on stderr."""
    debug = "--debug" in words
    try:
        return run(words)
    except SwarmError as exc:
        return _failed(program, exc, str(exc), exc.exit_code, debug=debug)
    except KeyboardInterrupt as exc:
        return _failed(program, exc, "interrupted", INTERRUPTED, debug=debug)
    except BrokenPipeError:
        return 1  # whoever read our output went away: nobody is left to tell
    except Exception as exc:  # noqa: BLE001 - the outermost edge: whatever is left is a bug of ours
        text = f"{type(exc).__name__}: {exc} (a bug; run again with --debug for the traceback)"
        return _failed(program, exc, text, 1, debug=debug)


def _failed(program: str, exc: BaseException, text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(exc)
    print(printable(f"{program}: {' '.join(text.split())}"), file=sys.stderr)
    return code


def _settings_text(name: str) -> str:
    """The command's YAML file as its own documentation, and the choices of the groups that it draws on."""
    file = CONF / f"{name}.yaml"
    text = file.read_text(encoding="utf-8").split("  - _self_\n", 1)[1].strip("\n")
    lines = [f"  {line}".rstrip() for line in text.splitlines()]
    groups = [
        f"  {group}={'|'.join(choices_of(group))}  (if not given: {choice}; settings in {CONF / group})"
        for group, choice in groups_of(name).items()
    ]
    parts = [f"settings and their defaults, ??? where there is none ({file}):", *lines]
    return "\n".join(parts + (["", "groups of settings:", *groups] if groups else []))


def _details_text(choice: str) -> str:
    """The settings of one choice of a group, as they are overridden."""
    group, _, name = choice.partition("/")
    lines = (CONF / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    shown = [line if line.startswith("#") else f"{group}.{line}" for line in lines]
    return "\n".join([f"settings of {group}={name} and their defaults:", *(f"  {line}" for line in shown)])


def settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, and a folder with more of them."""
    parser.add_argument("words", nargs="*", metavar="SETTING=VALUE", help="a setting, see below")
    parser.add_argument(
        "--config-dir",
        default=os.environ.get(CONFIG_DIR_VARIABLE, ""),
        metavar="DIR",
        help=f"folder with own groups: DIR/experiment/mine.yaml (if not given: ${CONFIG_DIR_VARIABLE})",
    )


def console() -> Console:
    """Where results for people go; a pipe has no width, so nothing is cut short there.

    It shows text as it stands: an address ([fd00::5]:30304) or what others have named may look like markup.
    """
    from rich.console import Console
    from rich.text import Text

    class Printable(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    return Printable(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False)
