"""When to try again: pauses that double up to a deadline, and the difference between a restart and a refusal."""

from __future__ import annotations

import random
from typing import Final

from swarm_hpc.errors import IdentityError, NotAuthorized, ProtocolError, SwarmError, by_name
from swarm_hpc.transport import document

CONNECT_ATTEMPT_S: Final = 10.0
"""How long one attempt to connect may take: packets to a host behind a firewall are just lost."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
DROPS: Final = 5
"""So many connections in a row that end right after their handshake, without an answer, are taken as a refusal."""


class Patience:
    """The attempts at one call. Times are of the caller's monotonic clock, in seconds."""

    def __init__(self, until: float) -> None:
        self.until = until
        self._next_s = FIRST_PAUSE_S
        self._drops = 0

    def pause_s(self, now: float) -> float | None:
        """How long to wait before the next attempt; None when there shall be none. Doubles from call to call."""
        left = self.until - now
        if left <= 0:
            return None
        pause = self._next_s * random.uniform(0.5, 1.0)  # jitter, so that peers do not come back all at once
        self._next_s = min(self._next_s * 2, LONGEST_PAUSE_S)
        return min(pause, left)

    def progressed(self, until: float) -> None:
        """The other side is there: start anew, with a new deadline."""
        self.until = until
        self._next_s = FIRST_PAUSE_S
        self._drops = 0

    def failed(self, *, dropped: bool) -> bool:
        """Note a failed attempt; True when the other side drops us again and again although it is there.

        `dropped`: the handshake succeeded on our side, then the connection ended without one byte. That is how a TLS
        1.3 client sees a server that refuses its name after the handshake, but also one that is killed at that moment.
        The killed one does not answer the next attempt at all, and the count starts anew.
        """
        self._drops = self._drops + 1 if dropped else 0
        return self._drops >= DROPS


def dropped_for_good(address: str, ours: object) -> NotAuthorized:
    """The error for a server that has dropped us DROPS times."""
    return NotAuthorized(
        f"{address} closed {DROPS} connections right after the TLS handshake: it refuses {ours}, and its log says why"
    )


def at(address: str, error: IdentityError) -> IdentityError:
    """The same error, with the address of the other side in front."""
    return type(error)(f"{address}: {error}")


def problem(address: str, status: int, content_type: str, text: bytes) -> SwarmError | None:
    """The exception that an answer stands for; None when a proxy answers for a lost server (502, 503, 504)."""
    if content_type.partition(";")[0].strip() == "application/problem+json":
        try:
            values = document.parse(text)
            return by_name(str(values["title"]))(str(values["detail"]))
        except (ValueError, KeyError, TypeError):
            return ProtocolError(f"{address} answered {status} with a broken problem document")
    if status in (502, 503, 504):
        return None
    return ProtocolError(f"{address} answered {status}, and not as a swarm node does: is it the right address?")
