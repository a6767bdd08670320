"""The only way other parts talk to a licence server, and how a node holds its seat from start to end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from swarm_hpc.config import ConnectionConfig, IdentityConfig, LicenseConfig, LicenseKind
from swarm_hpc.errors import Fenced, LicenseError, SwarmError, TransportError
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.license.terms import LicenseStatus, SeatRequest
from swarm_hpc.records import Kind, decode, encode
from swarm_hpc.transport.client import ApiClient, expect_kind

log = logging.getLogger(__name__)

_BEATS_PER_LEASE: Final = 3
_ASK_AGAIN_S: Final = 5.0
_RELEASE_TIMEOUT_S: Final = 5.0
"""Giving a seat back is a courtesy: the lease ends by itself."""


@dataclass(frozen=True, slots=True)
class _Lease:
    lease_s: float


class LicenseClient:
    """Calls to a licence server; closes with `async with`. Errors and repeats as of any ApiClient."""

    def __init__(self, identity: Identity, address: str, *, connection: ConnectionConfig) -> None:
        self._api = ApiClient(identity, address, expect=expect_kind(Kind.LICENSE), connection=connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._api.close()

    async def status(self) -> LicenseStatus:
        """Terms, and who has seats."""
        return decode(LicenseStatus, await self._api.call("GET", "/v1/license"))

    async def acquire(self, seat: SeatRequest) -> float:
        """Take seats; the lease in seconds. LicenseError: none is left, or the licence does not hold."""
        return await self._lease("/v1/seats", seat)

    async def renew(self, seat: SeatRequest, *, timeout_s: float = 30.0) -> float:
        """A heartbeat; the lease in seconds. LicenseError: the seat is gone, or the licence has ended.

        Not repeated: the next heartbeat is.
        """
        return await self._lease("/v1/seats/heartbeat", seat, timeout_s=timeout_s, retry=False)

    async def release(self, seat: SeatRequest) -> None:
        """Give the seats back."""
        await self._api.call("POST", "/v1/seats/release", body=encode(seat))

    async def _lease(self, path: str, seat: SeatRequest, **how: Any) -> float:
        return decode(_Lease, await self._api.call("POST", path, body=encode(seat), **how)).lease_s


def ask_status(identity: IdentityConfig, server: str, *, timeout_s: float = 10.0) -> LicenseStatus:
    """What a licence server says of itself. NotReachable, TimedOut, IdentityError."""

    async def ask() -> LicenseStatus:
        connection = ConnectionConfig(connect_timeout_s=timeout_s)
        async with LicenseClient(certs.load(identity), server, connection=connection) as client:
            return await client.status()

    return asyncio.run(ask())


@asynccontextmanager
async def hold_seat(
    config: LicenseConfig,
    identity: Identity,
    seat: SeatRequest,
    connection: ConnectionConfig,
    *,
    on_lost: Callable[[LicenseError], None],
) -> AsyncIterator[None]:
    """Have the seats as long as the block lasts; with license=none, nothing.

    LicenseError, NotReachable, TimedOut: there is none to be had. `on_lost` is called, once, when the seats are lost
    during the block: the server has refused them for a whole lease, or was not reached for grace_s. They are given back
    at the end of the block, but where it ends by Fenced: a process with the same state folder has them then.
    """
    if config.kind is LicenseKind.NONE:
        yield
        return
    async with LicenseClient(identity, config.server, connection=connection) as client:
        lease_s = await _acquire(client, seat, config.wait_s)
        log.info("has %d seats of the licence server %s", seat.num_seats, config.server)
        keeping = asyncio.create_task(_keep(client, seat, lease_s, config.grace_s, on_lost))
        is_ours = True
        try:
            yield
        except Fenced:
            is_ours = False
            raise
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            if is_ours:
                await _release(client, seat)


async def _acquire(client: LicenseClient, seat: SeatRequest, wait_s: float) -> float:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return await client.acquire(seat)
        except LicenseError as exc:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            log.info("no seat yet, asking again for %.0f s: %s", left_s, exc)
            await asyncio.sleep(min(left_s, _ASK_AGAIN_S))


async def _keep(
    client: LicenseClient, seat: SeatRequest, lease_s: float, grace_s: float, on_lost: Callable[[LicenseError], None]
) -> None:
    try:
        await _beat(client, seat, lease_s, grace_s)
    except LicenseError as exc:
        on_lost(exc)
    except Exception as exc:  # else a bug here would let the node train on without a seat
        log.exception("the seat can no longer be kept")
        on_lost(LicenseError(f"the seat can no longer be kept: {type(exc).__name__}: {exc}"))


async def _beat(client: LicenseClient, seat: SeatRequest, lease_s: float, grace_s: float) -> NoReturn:
    """Heartbeats until the seats are lost: LicenseError."""
    answered_at = time.monotonic()
    refused_at: float | None = None  # the first refusal since the last yes: silence in between takes nothing back
    while True:
        await asyncio.sleep(lease_s / _BEATS_PER_LEASE)
        try:
            lease_s = await _renew(client, seat, lease_s)
            answered_at, refused_at = time.monotonic(), None
        except TransportError as exc:
            silent_s = time.monotonic() - answered_at
            log.warning("the licence server has not answered for %.0f s of %g: %s", silent_s, grace_s, exc)
            if silent_s >= grace_s:
                raise LicenseError(
                    f"the licence server was not reached for {silent_s:.0f} s (license.grace_s): {exc}"
                ) from exc
        except SwarmError as exc:
            answered_at = time.monotonic()
            refused_at = answered_at if refused_at is None else refused_at
            left_s = refused_at + lease_s - answered_at
            log.warning("no seat: %s; this node ends in %.0f s", exc, max(0.0, left_s))
            if left_s <= 0:
                raise LicenseError(f"lost the seat: {exc}") from exc


async def _renew(client: LicenseClient, seat: SeatRequest, lease_s: float) -> float:
    """A heartbeat, or a new seat for the one that is gone."""
    try:
        return await client.renew(seat, timeout_s=max(1.0, lease_s / _BEATS_PER_LEASE))
    except LicenseError:
        return await client.acquire(seat)


async def _release(client: LicenseClient, seat: SeatRequest) -> None:
    try:
        async with asyncio.timeout(_RELEASE_TIMEOUT_S):
            await client.release(seat)
    except (SwarmError, TimeoutError) as exc:
        log.info("did not give the seat back: %s", exc or "no answer in time")
