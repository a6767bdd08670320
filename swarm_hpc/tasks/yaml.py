"""Strict reading of the YAML files that users write for SWOP and SWCI: every value knows its place in the file.

Scalars stay as they are written: `MAX_EPOCHS: 016` is "016" and `SWARM_LOOPBACK: False` is "False" to who asks for
text. A key that is there twice is taken the last time, with a warning: files of HPE Swarm Learning have such.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL

MAX_BYTES: Final = 128 * 1024
"""The largest file that is read."""
MAX_TEXT: Final = 4096
_MAX_VALUES: Final = 20_000
"""Counted after aliases are followed: a few lines of aliases of aliases may stand for billions of values."""
_MAX_DEPTH: Final = 40
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[\ud800-\udfff]")
_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = {"str", "int", "float", "bool", "null", "timestamp", "value"}


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a file: a scalar as text, None, a list or a map."""

    content: str | list[Value] | dict[str, Value] | None
    kind: str
    """str, int, float, bool, null, seq, map ..."""
    file: str
    path: str
    """Of keys: nodes[0].slnodedef.idx."""
    line: int

    def wrong(self, reason: str) -> ConfigError:
        """The error that says so, with file, line and key."""
        return ConfigError(f"{self.file}:{self.line}: {self.path or 'the file'}: {reason}")

    @property
    def is_null(self) -> bool:
        """Whether there is nothing: `~`, `null`, or no text."""
        return self.content is None

    def text(self, *, least: int = 1, most: int = MAX_TEXT) -> str:
        """A scalar as it is written; of `least` to `most` characters."""
        if not isinstance(self.content, str):
            found = "nothing" if self.content is None else "a list" if self.kind == "seq" else "a map"
            hint = "; quote a text that has `: ` in it" if self.kind == "map" else ""
            raise self.wrong(f"has to be a text, and is {found}{hint}")
        if not least <= len(self.content) <= most:
            raise self.wrong(f"has {len(self.content)} characters; {least} to {most} are allowed")
        return self.content

    def text_or_none(self, *, least: int = 1, most: int = MAX_TEXT) -> str | None:
        """As text(); None for null and for an empty text."""
        return None if self.content is None or self.content == "" else self.text(least=least, most=most)

    def label(self) -> str:
        """A name that can stand on the ledger, in a URL and in a file name."""
        text = self.text()
        if not LABEL.fullmatch(text):
            raise self.wrong(f"{text!r}: use letters, digits, '.', '_', '-', at most 63 characters")
        return text

    def integer(self, least: int, most: int) -> int:
        """A whole number in that range; one in quotes counts."""
        text = self.text(most=20)
        if not re.fullmatch(r"-?[0-9]+", text, re.ASCII) or not least <= int(text) <= most:
            raise self.wrong(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    def choice(self, *names: str) -> str:
        """One of these names, in any case; as it is in `names`."""
        text = self.text()
        for name in names:
            if name.lower() == text.lower():
                return name
        raise self.wrong(f"{text!r} is none of {', '.join(names)}{_meant(text, names)}")

    def boolean(self) -> bool:
        """True or false, in quotes or without."""
        return self.choice("true", "false") == "true"

    def items(self) -> list[Value]:
        """A list's values."""
        if not isinstance(self.content, list):
            raise self.wrong("has to be a list (lines that begin with `- `)")
        return self.content

    def map(self) -> dict[str, Value]:
        """A map's values by key."""
        if not isinstance(self.content, dict):
            raise self.wrong("has to be a map (KEY: VALUE)")
        return self.content

    def fields(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Value]:
        """A map with all of `required`, perhaps some of `optional`, and nothing else."""
        known = (*required, *optional)
        found = self.map()
        for key, value in found.items():
            if key not in known:
                raise value.wrong(f"there is no such key; known here: {', '.join(known)}{_meant(key, known)}")
        for key in required:
            if key not in found:
                raise self.wrong(f"{key} is missing; needed here: {', '.join(required)}")
        return found

    def pairs(self) -> list[tuple[str, Value]]:
        """Of null, a map, or a list of maps, as `[{A: 1}, {B: 2}]`."""
        if self.is_null:
            return []
        if isinstance(self.content, dict):
            return list(self.content.items())
        return [pair for item in self.items() for pair in item.map().items()]

    def variables(self) -> dict[str, str]:
        """Environment variables: null, a map or a list of one-pair maps. Null as a value is an empty variable."""
        found = {}
        for name, value in self.pairs():
            if not _VARIABLE.fullmatch(name):
                raise value.wrong(f"{name!r} is no name of a variable: letters, digits and _, at most 100")
            found[name] = "" if value.is_null else value.text(least=0)
        return found


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read, and what is odd in it."""

    root: Value
    warnings: tuple[str, ...]


def read(file: Path) -> Document:
    """The YAML file. ConfigError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{file}: cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    try:
        return parse(data.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file}: byte {exc.start} is not UTF-8: save the file as UTF-8") from exc


def parse(text: str, file: str) -> Document:
    """The same of a text; errors call it `file`. ConfigError."""
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise ConfigError(f"{file}: is larger than {MAX_BYTES // 1024} KiB; no such file is that long")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"{file}:{line}: is not YAML: {exc.problem or exc.context}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{file}: is nested too deeply") from exc
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError) as exc:  # chr() of an escape that is none
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(exc).split())}") from exc
    if node is None:
        raise ConfigError(f"{file}: is empty")
    reader = _Reader(file)
    return Document(reader.value(node, "", 0), tuple(reader.warnings))


@dataclass(slots=True)
class _Reader:
    file: str
    warnings: list[str] = field(default_factory=list)
    num_values: int = 0

    def value(self, node: yaml.Node, path: str, depth: int) -> Value:
        self.num_values += 1
        place = Value(None, "null", self.file, path, node.start_mark.line + 1)
        if self.num_values > _MAX_VALUES:
            raise place.wrong("the file stands for too many values: write aliases (*name) out")
        if depth > _MAX_DEPTH:
            raise place.wrong("is nested too deeply")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return self._scalar(place, node, kind)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            items = [self.value(one, f"{path}[{at}]", depth + 1) for at, one in enumerate(node.value)]
            return Value(items, kind, self.file, path, place.line)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return Value(self._map(place, node, depth), kind, self.file, path, place.line)
        raise place.wrong(f"the tag {node.tag} cannot be used here: leave it out")

    def _scalar(self, place: Value, node: yaml.ScalarNode, kind: str) -> Value:
        text: str = node.value
        if _CONTROL.search(text):
            raise place.wrong("has a control character")
        return Value(None if kind == "null" else text, kind, self.file, place.path, place.line)

    def _map(self, place: Value, node: yaml.MappingNode, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or _CONTROL.search(key_node.value):
                raise place.wrong("a key has to be a plain text")
            if key_node.tag == f"{_TAG}merge":
                raise place.wrong("the merge key << is not known here: write its content out")
            key: str = key_node.value
            value = self.value(value_node, f"{place.path}.{key}" if place.path else key, depth + 1)
            if key in found:
                self.warnings.append(
                    f"{self.file}:{value.line}: {value.path} is there twice; what is written last counts"
                )
            found[key] = value
        return found


def _meant(word: str, known: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower()[:80], by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


_ESCAPES: Final[Mapping[str, str]] = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escaped(char: str) -> str:
    """A character as it stands within a double-quoted YAML scalar."""
    if known := _ESCAPES.get(char):
        return known
    number = ord(char)
    if char.isprintable():
        return char
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
