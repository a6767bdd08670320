"""Who is alive, as a table: a node lives as long as it was heard of within its lease. No clock: callers pass `now`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from swarm_hpc.errors import Fenced, NotFound
from swarm_hpc.records import NodeRecord, Progress


@dataclass(slots=True)
class _Lease:
    incarnation: int
    heard_at: float
    progress: Progress


@dataclass(slots=True, kw_only=True)
class Leases:
    """The leases that one SN has granted. `now` is any clock in seconds that never runs backwards."""

    lease_s: float
    _leases: dict[str, _Lease] = field(default_factory=dict)

    def restart(self, nodes: Iterable[NodeRecord], now: float) -> None:
        """A fresh lease for every node that the ledger calls active: what an SN does when it starts."""
        for node in nodes:
            if node.active:
                self.grant(node.name, node.incarnation, now)

    def grant(self, name: str, incarnation: int, now: float) -> None:
        """Start a lease for that incarnation; it takes the place of an earlier one."""
        self._leases[name] = _Lease(incarnation, now, Progress())

    def alive(self, name: str, now: float) -> bool:
        """Whether the node has a lease that is not over."""
        return self.left_s(name, now) > 0

    def left_s(self, name: str, now: float) -> float:
        """Seconds until the lease is over; 0 without one."""
        lease = self._leases.get(name)
        return 0.0 if lease is None else max(0.0, lease.heard_at + self.lease_s - now)

    def last_seen_s(self, name: str, now: float) -> float | None:
        """Seconds since the node was last heard of; None where it has no lease."""
        lease = self._leases.get(name)
        return None if lease is None else max(0.0, now - lease.heard_at)

    def progress(self, name: str) -> Progress:
        """What the node last said about its program; nothing where it has no lease."""
        lease = self._leases.get(name)
        return Progress() if lease is None else lease.progress

    def renew(self, name: str, incarnation: int, now: float, progress: Progress | None = None) -> None:
        """The node was heard of. Also counts after the lease's end, as long as nobody has called the node away.

        Fenced: a later incarnation holds the lease. NotFound: the node is away.
        """
        lease = self._held(name, incarnation)
        lease.heard_at = max(lease.heard_at, now)
        if progress is not None:
            lease.progress = progress

    def expired(self, now: float) -> tuple[str, ...]:
        """The nodes whose lease is over, by name."""
        return tuple(sorted(name for name in self._leases if not self.alive(name, now)))

    def drop(self, name: str) -> None:
        """End the lease, if there is one."""
        self._leases.pop(name, None)

    def _held(self, name: str, incarnation: int) -> _Lease:
        lease = self._leases.get(name)
        if lease is None or incarnation > lease.incarnation:
            raise NotFound(f"{name} is away: it has no lease at this SN; register and join again")
        if incarnation < lease.incarnation:
            raise Fenced(
                f"{name}: incarnation {incarnation} was replaced by {lease.incarnation}: "
                "another process runs as this node now; stop this one"
            )
        return lease
