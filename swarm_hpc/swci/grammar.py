"""How a command is defined, once: its words, its arguments and what it does.

Parser, completion, HELP, the web mode, the Python client and docs/swci.md all come from that. A pattern is
`WORDS {argument} [part that may be left out]`; an argument's type, and whether it may be left out, are those of the
function's parameter of that name, and the help is its docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final, TypeVar, get_args

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL
from swarm_hpc.swci.result import Result

Run = Callable[..., Awaitable[Result]]
R = TypeVar("R", bound=Run)

_PIECE: Final = re.compile(r"\{(\w+)\}|([A-Z]+)|(\[)|(\])")
_PLAIN: Final = re.compile(r"[^\s\"'\\#]+")


class Rest(str):
    """A last argument that takes the rest of the line as it stands, spaces included."""

    __slots__ = ()


class Label(str):
    """A name that can stand on the ledger, and in a URL."""

    __slots__ = ()


class Flag(StrEnum):
    """A switch's two words."""

    ON = "ON"
    OFF = "OFF"


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the command itself, in any case."""

    text: str


@dataclass(frozen=True, slots=True)
class Argument:
    """What the user fills in."""

    name: str
    type: type
    required: bool

    @property
    def is_rest(self) -> bool:
        """Whether it takes the rest of the line."""
        return self.type is Rest

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it can be; empty: anything of its type."""
        return tuple(self.type) if issubclass(self.type, StrEnum) else ()

    @property
    def kind(self) -> str:
        """How help calls its type."""
        if self.is_rest:
            return "rest of the line"
        if self.choices:
            return " or ".join(self.choices) if len(self.choices) < 3 else "one of " + ", ".join(self.choices)
        return {str: "string", Label: "name", int: "integer", float: "number"}[self.type]

    def value(self, text: str) -> object:
        """The text as this argument's type; ConfigError."""
        if self.choices:
            return self._choice(text)
        if self.type is Label and not LABEL.fullmatch(text):
            raise ConfigError(f"{self.name}: {text[:80]!r}: use letters, digits, '.', '_', '-', at most 63")
        try:
            return self.type(text) if self.type in (int, float) else text
        except ValueError as exc:
            what = "a whole number" if self.type is int else "a number"
            raise ConfigError(f"{self.name}: {text!r} is not {what}") from exc

    def _choice(self, text: str) -> object:
        for choice in self.choices:
            if choice.upper() == text.upper():
                return self.type(choice)
        raise ConfigError(f"{self.name}: {text!r} is not one of {', '.join(self.choices)}")


@dataclass(frozen=True, slots=True)
class Maybe:
    """A part that may be left out."""

    parts: tuple[Part, ...]


Part = Word | Argument | Maybe


@dataclass(frozen=True)
class Command:
    """One command. `run` takes the session, then the arguments by name; also `tell`, where it has such a parameter."""

    pattern: str
    run: Run
    subject: str
    ours: bool
    """Not one of HPE's."""

    @property
    def name(self) -> str:
        """Name of its method in the Python client."""
        return self.run.__name__

    @property
    def help(self) -> str:
        """What it does, in a sentence or two."""
        return " ".join((self.run.__doc__ or "").split())

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The pattern, taken apart."""
        return _parse_pattern(self.pattern, self.parameters)

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of `run` that are arguments of the command."""
        found = inspect.signature(self.run, eval_str=True).parameters
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
        return {name: one for name, one in found.items() if name != "session" and one.kind in kinds}

    @cached_property
    def tells(self) -> bool:
        """Whether it says something while it works."""
        return "tell" in inspect.signature(self.run).parameters

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """In the order of the pattern."""
        return tuple(_arguments(self.parts))

    @cached_property
    def head(self) -> tuple[str, ...]:
        """The words that it begins with, and is called by: ASSIGN TASK."""
        words: list[str] = []
        for part in self.parts:
            if not isinstance(part, Word):
                break
            words.append(part.text)
        return tuple(words)

    @cached_property
    def usage(self) -> str:
        """The pattern as HELP shows it: CREATE CONTRACT <contract : string>."""
        return " ".join(_usage(part) for part in self.parts)

    def text(self, **values: object) -> str:
        """The command with these arguments filled in, as the parser takes it. ConfigError for one that is missing, that
        it does not have, or that cannot be left out before another one that is given."""
        if unknown := sorted(set(values) - {one.name for one in self.arguments}):
            raise ConfigError(f"{' '.join(self.head)} has no argument {unknown[0]!r}: {self.usage}")
        given = {name: value for name, value in values.items() if value is not None}
        for one in self.arguments:
            if one.required and one.name not in given:
                raise ConfigError(f"{one.name} is missing: {self.usage}")
        return " ".join(_filled(self.parts, given))


class Subject:
    """A group of commands with a title; `command` adds one. The files of commands have one each."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.commands: list[Command] = []

    def command(self, pattern: str, *, ours: bool = False) -> Callable[[R], R]:
        """Define a command: the function stays as it is."""

        def add(run: R) -> R:
            self.commands.append(Command(pattern, run, self.title, ours))
            return run

        return add


def quote(text: str) -> str:
    """One argument in a command's text: as it stands, or in quotes where that is needed."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _parse_pattern(pattern: str, parameters: Mapping[str, inspect.Parameter]) -> tuple[Part, ...]:
    stack: list[list[Part]] = [[]]
    for argument, word, opens, _ in _PIECE.findall(pattern):
        if argument:
            stack[-1].append(_argument(argument, parameters[argument]))
        elif word:
            stack[-1].append(Word(word))
        elif opens:
            stack.append([])
        else:
            part = Maybe(tuple(stack.pop()))
            stack[-1].append(part)
    (parts,) = stack
    assert {one.name for one in _arguments(parts)} == set(parameters), f"{pattern}: other arguments than its function"
    return tuple(parts)


def _argument(name: str, parameter: inspect.Parameter) -> Argument:
    required = parameter.default is inspect.Parameter.empty
    types = [one for one in get_args(parameter.annotation) if one is not type(None)] or [parameter.annotation]
    return Argument(name, types[0], required)


def _arguments(parts: Sequence[Part]) -> list[Argument]:
    found: list[Argument] = []
    for part in parts:
        if isinstance(part, Maybe):
            found += _arguments(part.parts)
        elif isinstance(part, Argument):
            found.append(part)
    return found


def _usage(part: Part) -> str:
    if isinstance(part, Word):
        return part.text
    if isinstance(part, Argument):
        return f"<{part.name} : {part.kind}>"
    return "[" + " ".join(_usage(one) for one in part.parts) + "]"


def _filled(parts: Sequence[Part], values: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for part in parts:
        if isinstance(part, Word):
            words.append(part.text)
        elif isinstance(part, Maybe):
            if any(one.name in values for one in _arguments(part.parts)):
                words += _filled(part.parts, values)
        elif part.name not in values:
            raise ConfigError(f"{part.name} is missing")
        else:
            text = str(values[part.name])
            words.append(text if part.is_rest else quote(text))
    return words
