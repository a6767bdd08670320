"""From a line that was typed to the command that is meant. Pure: no session, no node.

A line is words with white space in between. A word in double or single quotes may hold spaces or nothing at all; in
double quotes a backslash keeps a quote or a backslash from its meaning. Whole lines that begin with # are comments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci.grammar import Argument, Command, Maybe, Part, Word

MAX_TEXT: Final = 8192
"""Characters of a command: more is a mistake, or mischief."""
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a line."""

    text: str
    end: int
    """Where the line goes on after it."""
    is_quoted: bool = False
    problem: str = ""
    """What is wrong with its quotes: it is the rest of the line, and no argument."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command with its arguments. Those that were left out are not there."""

    command: Command
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Match:
    command: Command
    texts: Mapping[str, str]
    num_words: int


def is_comment(line: str) -> bool:
    """Whether the line says nothing: empty, or a comment."""
    text = line.strip()
    return not text or text.startswith("#")


def parse(text: str, commands: Sequence[Command]) -> Call:
    """The command that the text is. ConfigError, with what may have been meant, where it is none."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"a command has at most {MAX_TEXT} characters, this one has {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError("a command is text; this one has half a character in it") from exc
    tokens = tuple(tokenize(text))
    if not tokens:
        raise ConfigError("there is no command; HELP lists them")
    found = [match for command in commands for match in _matches(command, text, tokens)]
    if not found:
        raise ConfigError(tokens[-1].problem or _explain(tokens, commands))
    # The one with the most words of its own: in WITH ALL PEERS, ALL is no number.
    best = max(found, key=lambda match: match.num_words)
    arguments = {one.name: one for one in best.command.arguments}
    try:
        values = {name: arguments[name].value(given) for name, given in best.texts.items()}
    except ConfigError as exc:
        raise ConfigError(f"{exc}: {best.command.usage}") from exc
    return Call(best.command, values)


def tokenize(text: str) -> Iterator[Token]:
    """The words of a line."""
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return
        token = _quoted(text, at) if text[at] in "\"'" else _bare(text, at)
        yield token
        at = token.end


def _bare(text: str, start: int) -> Token:
    at = start
    while at < len(text) and not text[at].isspace():
        at += 1
    return Token(text[start:at], at)


def _quoted(text: str, start: int) -> Token:
    mark, kept, at = text[start], [], start + 1
    while at < len(text) and text[at] != mark:
        if mark == '"' and text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
            at += 1
        kept.append(text[at])
        at += 1
    if at == len(text):
        problem = f"the quote {mark} before {_short(text[start + 1 :])} does not end"
        return Token(text[start:], len(text), problem=problem)
    if at + 1 < len(text) and not text[at + 1].isspace():
        problem = f"after the quote that ends {_short(text[start : at + 1])} there has to be a space"
        return Token(text[start:], len(text), problem=problem)
    return Token("".join(kept), at + 1, is_quoted=True)


def _matches(command: Command, text: str, tokens: tuple[Token, ...]) -> Iterator[_Match]:
    for texts, num_words in _fit(command.parts, text, tokens, 0):
        yield _Match(command, texts, num_words)


def _fit(
    parts: tuple[Part, ...], text: str, tokens: tuple[Token, ...], at: int
) -> Iterator[tuple[dict[str, str], int]]:
    """Every way in which the tokens from number `at` on, all of them, are these parts."""
    if not parts:
        if at == len(tokens):
            yield {}, 0
        return
    part, rest = parts[0], parts[1:]
    if isinstance(part, Maybe):
        yield from _fit((*part.parts, *rest), text, tokens, at)
        yield from _fit(rest, text, tokens, at)
    elif isinstance(part, Argument) and part.is_rest:
        start = tokens[at - 1].end
        if start < len(text):  # exactly one space, or the like, separates it: what follows counts
            yield {part.name: text[start + 1 :]}, 0
    elif at < len(tokens) and not tokens[at].problem:
        is_word = isinstance(part, Word)
        if isinstance(part, Word) and (tokens[at].is_quoted or tokens[at].text.upper() != part.text):
            return
        for texts, num_words in _fit(rest, text, tokens, at + 1):
            if isinstance(part, Argument):
                texts = {part.name: tokens[at].text, **texts}
            yield texts, num_words + is_word


def _explain(tokens: Sequence[Token], commands: Sequence[Command]) -> str:
    """Why no command fits, and which is the nearest."""
    words = ["" if token.is_quoted else token.text.upper() for token in tokens]
    begun = [one for one in commands if list(one.head) == words[: len(one.head)]]
    if begun:
        most = max(len(one.head) for one in begun)
        usages = [one.usage for one in begun if len(one.head) == most]
        return f"{' '.join(words[:most])} is written as {', or '.join(usages)}"
    typed = " ".join(token.text for token in tokens)
    near = nearest(words, commands)
    hint = f"; did you mean {near.usage}?" if near else "; HELP lists the commands"
    return f"{_short(typed)} is not a command{hint}"


def nearest(words: Sequence[str], commands: Sequence[Command]) -> Command | None:
    """The command whose words come closest to those at the beginning of a line; None where none is near."""
    best, best_ratio = None, 0.6
    for command in commands:
        head = " ".join(command.head)
        typed = " ".join(words[: len(command.head)])[:_SHOWN].upper()
        ratio = difflib.SequenceMatcher(None, head, typed, autojunk=False).ratio()
        if ratio > best_ratio:
            best, best_ratio = command, ratio
    return best


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
