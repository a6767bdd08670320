"""Words of a Dockerfile's instructions: quotes, backslashes and variables as Docker reads them, written for a shell.

Nothing that a user writes can leave its quotes, begin a section of a definition file (a line's first word with %), or
be taken for an argument of one ({{ NAME }}).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from swarm_hpc.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^\\\"'`${}]*))?\}")
_ARGUMENT: Final = re.compile(r"\{(?=\{)")
_GLOB: Final = frozenset("*?[]")
_IN_DOUBLE_QUOTES: Final = frozenset('"\\$')


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that stand for themselves, or are a pattern where file names are matched."""

    text: str
    is_quoted: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """$NAME, or ${NAME:-word} and ${NAME:+word}."""

    name: str
    operator: str = ""
    word: str = ""


Piece = Text | Variable
Word = tuple[Piece, ...]


def split_words(text: str) -> list[Word]:
    """The words of an instruction's operands. ConfigError (a reason alone) for quotes that do not end."""
    return [tuple(word) for word in _words(text, splits=True)]


def one_word(text: str) -> Word:
    """All of the text as one word, blanks included."""
    return tuple(piece for word in _words(text.strip(), splits=False) for piece in word)


def literal(word: Word) -> str | None:
    """What the word is; None where that depends on a variable."""
    return None if any(isinstance(piece, Variable) for piece in word) else _text_of(word)


def split_pair(word: Word) -> tuple[str, Word] | None:
    """NAME=VALUE; None where there is no `=`, or a variable before it."""
    name = ""
    for at, piece in enumerate(word):
        if isinstance(piece, Variable):
            return None
        before, sign, after = piece.text.partition("=")
        name += before
        if sign:
            rest = (Text(after, piece.is_quoted),) if after else ()
            return name, (*rest, *word[at + 1 :])
    return None


def with_values(word: Word, values: Mapping[str, str]) -> Word:
    """The word with these variables replaced."""
    return tuple(_valued(piece, values) if isinstance(piece, Variable) else piece for piece in word)


def variables(word: Word) -> set[str]:
    """The names of its variables."""
    return {piece.name for piece in word if isinstance(piece, Variable)}


def in_shell(word: Word) -> str:
    """The word in double quotes; its variables are for the shell."""
    inner = "".join(
        re.sub(r'(["\\$`])', r"\\\1", piece.text) if isinstance(piece, Text) else _reference(piece) for piece in word
    )
    return f'"{_ARGUMENT.sub(_BROKEN_DOUBLE, inner)}"'


def pattern_in_shell(word: Word) -> str:
    """The same, where * and the like, outside of quotes, match names of files."""
    parts = []
    for piece in word:
        if isinstance(piece, Variable) or piece.is_quoted:
            parts.append(in_shell((piece,)))
            continue
        # a pattern's characters go on outside of quotes
        runs = re.findall(r"[*?\[\]]+|[^*?\[\]]+", piece.text)
        parts += [run if run[0] in _GLOB else in_shell((Text(run),)) for run in runs]
    return "".join(parts)


def is_pattern(word: Word) -> bool:
    """Whether it may match several files."""
    return any(isinstance(piece, Text) and not piece.is_quoted and not _GLOB.isdisjoint(piece.text) for piece in word)


def quoted(text: str) -> str:
    """A text in single quotes, for a shell in a definition file."""
    return _ARGUMENT.sub(_BROKEN_SINGLE, shlex.quote(text))


_BROKEN_DOUBLE: Final = '{""'
_BROKEN_SINGLE: Final = "{''"


def _text_of(word: Word) -> str:
    return "".join(piece.text for piece in word if isinstance(piece, Text))


def _valued(piece: Variable, values: Mapping[str, str]) -> Piece:
    if piece.name not in values:
        return piece
    value = values[piece.name]
    if piece.operator == "-":
        value = value or piece.word
    elif piece.operator == "+":
        value = piece.word if value else ""
    return Text(value, is_quoted=True)


def _reference(piece: Variable) -> str:
    # empty where there is no such variable, as in Docker; the shell stops at those otherwise (set -u)
    return f"${{{piece.name}:{piece.operator or '-'}{piece.word}}}"


def _words(text: str, *, splits: bool) -> Iterator[list[Piece]]:
    scan = _Scan(text)
    while scan.at < len(text):
        if splits and text[scan.at] in " \t":
            scan.at += 1
            continue
        yield list(_merged(scan.word(splits)))


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of the same sort as one."""
    last: Text | None = None
    for piece in pieces:
        if isinstance(piece, Text) and last is not None and last.is_quoted == piece.is_quoted:
            last = Text(last.text + piece.text, last.is_quoted)
            continue
        if last is not None:
            yield last
        last = piece if isinstance(piece, Text) else None
        if last is None:
            yield piece
    if last is not None:
        yield last


@dataclass(slots=True)
class _Scan:
    text: str
    at: int = 0

    def word(self, splits: bool) -> Iterator[Piece]:
        while self.at < len(self.text):
            char = self.text[self.at]
            if splits and char in " \t":
                return
            if char == "'":
                yield Text(self._until_quote(), is_quoted=True)
            elif char == '"':
                yield from self._in_double_quotes()
            else:
                yield self._piece(quoted=False)

    def _until_quote(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise ConfigError("a ' does not end")
        found = self.text[self.at + 1 : end]
        self.at = end + 1
        return found

    def _in_double_quotes(self) -> Iterator[Piece]:
        self.at += 1
        yield Text("", is_quoted=True)
        while self.at < len(self.text):
            if self.text[self.at] == '"':
                self.at += 1
                return
            yield self._piece(quoted=True)
        raise ConfigError('a " does not end')

    def _piece(self, *, quoted: bool) -> Piece:
        char, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
        if char == "\\" and following and (not quoted or following in _IN_DOUBLE_QUOTES):
            self.at += 2
            return Text(following, is_quoted=True)
        if char == "$" and (following == "{" or NAME.match(following)):
            return self._variable()
        self.at += 1
        return Text(char, is_quoted=quoted)

    def _variable(self) -> Variable:
        self.at += 1
        if plain := NAME.match(self.text, self.at):
            self.at = plain.end()
            return Variable(plain[0])
        braced = _BRACED.match(self.text, self.at)
        if braced is None:
            raise ConfigError("known are $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} with a plain word")
        self.at = braced.end()
        return Variable(braced[1], braced[2] or "", braced[3] or "")
