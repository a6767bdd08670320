"""What is licensed, and what the licence server and those who ask it tell each other: the values alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import AwareDatetime, ConfigDict, Field, with_config

from swarm_hpc.records import LABEL

TRAINING: Final = "training"
"""The feature that SL nodes need."""
MAX_SEATS: Final = 1_000_000

_Label = Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]
_Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
"""Stands in logs and messages, so it is one line."""
_Count = Annotated[int, Field(ge=1, le=MAX_SEATS)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseTerms:
    """What the consortium's owner has licensed."""

    id: _Label
    """Name of the licence, such as lung-2027."""
    licensee: _Text
    contact: _Text = ""
    """Whom to ask for more seats."""
    seats: _Count
    """How many nodes, or ranks of MPI jobs, may train at the same time."""
    features: tuple[_Label, ...]
    """What may be done: training."""
    valid_from: AwareDatetime
    valid_until: AwareDatetime

    def problem(self, today: datetime) -> str:
        """Why nothing is licensed on that day, and what to do; empty where it is."""
        if today < self.valid_from:
            return f"licence {self.id} is not valid before {day(self.valid_from)}; check the clock here, or wait"
        if today >= self.valid_until:
            return f"licence {self.id} ended on {day(self.valid_until)}; {self.ask('a new one')}"
        return ""

    def warning(self, today: datetime, warn_days: float) -> str:
        """That the licence ends soon; empty where it does not, or has."""
        left = self.valid_until - today
        if self.problem(today) or left > timedelta(days=warn_days):
            return ""
        hours = left.total_seconds() / 3600
        how_long = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
        return f"licence {self.id} ends on {day(self.valid_until)}, in {how_long}; {self.ask('a new one')}"

    def ask(self, wish: str) -> str:
        """`ask WHO for a new one`."""
        return f"ask {self.contact or 'the owner of the consortium'} for {wish}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatRequest:
    """A node asks for seats. The same node and instance again means the same seats."""

    node: Annotated[str, Field(max_length=200)]
    instance: _Label
    """The random ID of the node's state folder."""
    num_seats: _Count = 1
    feature: _Label = TRAINING


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatHolder:
    """Who has seats, as the status shows it."""

    node: str
    num_seats: int
    since: datetime
    last_heard_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseStatus:
    """What `GET /v1/license` answers."""

    terms: LicenseTerms | None
    problem: str
    """Why no seat is given out at all; empty while the licence holds."""
    warning: str
    """That the licence ends soon; empty where it does not."""
    used: int
    holders: tuple[SeatHolder, ...]


def day(at: datetime) -> str:
    """A moment as people read it, in UTC."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
