"""Who has seats, as a table: a node keeps its seats as long as it is heard of within the lease. No clock: callers
pass `now`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from swarm_hpc.errors import LicenseError
from swarm_hpc.license.terms import LicenseTerms, SeatHolder, SeatRequest

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What outlives a restart of the server."""

    node: str
    instance: str
    num_seats: int
    since: datetime


@dataclass(slots=True)
class _Lease:
    seat: Seat
    heard_at: float


@dataclass(slots=True, kw_only=True)
class Seats:
    """The seats that are taken. `now` is any clock in seconds that never runs backwards."""

    lease_s: float
    _leases: dict[tuple[str, str], _Lease] = field(default_factory=dict)

    def restart(self, seats: Iterable[Seat], now: float) -> None:
        """A fresh lease for all who had seats: what a server does when it starts."""
        self._leases = {(seat.node, seat.instance): _Lease(seat, now) for seat in seats}

    @property
    def taken(self) -> tuple[Seat, ...]:
        """All seats, in the order in which they were taken."""
        return tuple(lease.seat for lease in self._leases.values())

    @property
    def used(self) -> int:
        """How many are taken."""
        return sum(lease.seat.num_seats for lease in self._leases.values())

    def acquire(self, asked: SeatRequest, terms: LicenseTerms, now: float, today: datetime) -> bool:
        """Take seats, or keep those that this instance has: then False. LicenseError: not licensed, or not so many."""
        if asked.feature not in terms.features:
            licensed = ", ".join(terms.features) or "nothing"
            raise LicenseError(
                f"{asked.node}: licence {terms.id} is for {licensed}, not for {asked.feature}; {terms.ask('it')}"
            )
        self.expire(now)
        key = (asked.node, asked.instance)
        mine = self._leases.get(key)
        if mine is not None and mine.seat.num_seats == asked.num_seats:
            mine.heard_at = max(mine.heard_at, now)
            return False
        own = 0 if mine is None else mine.seat.num_seats
        if self.used - own + asked.num_seats > terms.seats:
            raise LicenseError(self._refusal(asked, terms))
        since = today if mine is None else mine.seat.since
        seat = Seat(node=asked.node, instance=asked.instance, num_seats=asked.num_seats, since=since)
        self._leases[key] = _Lease(seat, now)
        return True

    def renew(self, node: str, instance: str, now: float) -> None:
        """The node was heard of. LicenseError: its seats were given up."""
        lease = self._leases.get((node, instance))
        if lease is None:
            raise LicenseError(
                f"{node} has no seat: it was not heard of for {self.lease_s:g} s, or gave it back; ask for one again"
            )
        lease.heard_at = max(lease.heard_at, now)

    def release(self, node: str, instance: str) -> bool:
        """Give the seats back; False where there are none."""
        return self._leases.pop((node, instance), None) is not None

    def expire(self, now: float) -> tuple[Seat, ...]:
        """Free the seats of nodes whose lease is over, and say which."""
        over = [key for key, lease in self._leases.items() if now >= lease.heard_at + self.lease_s]
        return tuple(self._leases.pop(key).seat for key in over)

    def holders(self, now: float) -> tuple[SeatHolder, ...]:
        """For the status."""
        return tuple(
            SeatHolder(
                node=lease.seat.node,
                num_seats=lease.seat.num_seats,
                since=lease.seat.since,
                last_heard_s=max(0.0, now - lease.heard_at),
            )
            for lease in self._leases.values()
        )

    def _refusal(self, asked: SeatRequest, terms: LicenseTerms) -> str:
        nodes = [lease.seat.node for lease in self._leases.values()]
        more = [f"{len(nodes) - _SHOWN} more"] if len(nodes) > _SHOWN else []
        by = f" (by {', '.join(nodes[:_SHOWN] + more)})" if nodes else ""
        wants = f", and {asked.node} asks for {asked.num_seats}" if asked.num_seats > 1 else ""
        remedy = "" if asked.num_seats > terms.seats else "wait until one is free, or "
        return f"{self.used} of {terms.seats} seats are taken{by}{wants}; {remedy}{terms.ask('more')}"
