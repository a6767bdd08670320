"""What a command gives back, and the forms of its lines: facts, tables and times, in HPE's style."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from swarm_hpc.records import encode


class Tell(Protocol):
    """Takes what a command says while it works; `end` is empty where the line goes on."""

    def __call__(self, text: str, /, *, end: str = "\n") -> None:
        """Say it at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A command's outcome: lines for people, and a record, a tuple of records or plain values for programs."""

    lines: tuple[str, ...] = ()
    data: object = None

    def as_json(self) -> dict[str, Any]:
        """Lines and data as plain JSON values."""
        return {"lines": list(self.lines), "data": encode(self.data)}


def said(*lines: str, data: object = None) -> Result:
    """A result of those lines."""
    return Result(lines=lines, data=data)


def facts(values: Iterable[tuple[str, object]]) -> tuple[str, ...]:
    """`NAME : value` for each of them; a value of several lines, such as a failed node's last words, in one."""
    return tuple(f"{name} : {_flat(value)}" for name, value in values)


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[str, ...]:
    """Comma-separated lines below a heading; a field with a comma or a quote in it is quoted as in CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows([[_flat(value) for value in row] for row in rows])
    return tuple(text.getvalue().splitlines())


def moment(at: float) -> str:
    """A time of the ledger (s since 1970) as 2026-01-31T12:00:00Z; empty for none (0)."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else ""


def _flat(value: object) -> str:
    """A value in one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(str(value).split())
