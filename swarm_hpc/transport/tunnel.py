"""CometBFT's p2p between sites, inside the SNs' own mutual TLS: its connections lead to loopback ports of this SN.

Outbound: a loopback listener per site, whose connections are carried to that site's SN with ALPN swarm-p2p. Inbound:
such connections of other sites' SNs are carried to this site's CometBFT. What CometBFT says there is its own business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Final, Self

from swarm_hpc.errors import NotAuthorized, NotReachable, ProtocolError, SwarmError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.identity.handshake import P2P, refusal
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.transport.client import expect_kind
from swarm_hpc.transport.joint import FLUSH_S, Joint
from swarm_hpc.transport.line import split_address
from swarm_hpc.transport.listening import stop
from swarm_hpc.transport.retry import at

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
"""How long a connection to another site may take, handshake included: CometBFT tries again by itself."""
QUIET_S: Final = 60.0
"""So long nothing more is logged about a site after something was."""


class Tunnels:
    """All tunnels of one SN. Use it with `async with`; it belongs to one event loop.

    `address_of` is asked for each connection: where a site's SN is now, None if it is no member. `admit` raises
    NotAuthorized for an SN whose connections are not taken. `target` is where this site's CometBFT listens, None while
    it does not run.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        address_of: Callable[[str], str | None],
        admit: Callable[[NodeName], None],
        target: Callable[[], tuple[str, int] | None],
    ) -> None:
        self._identity = identity
        self._address_of, self._admit, self._target = address_of, admit, target
        self._listeners: dict[str, asyncio.Server] = {}
        self._opening = asyncio.Lock()
        self._outbound: dict[Joint, str] = {}
        self._inbound: dict[Joint, str] = {}
        self._failures: dict[str, str] = {}
        self._notices_out, self._notices_in = _Notices(), _Notices()
        self._none_left = asyncio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def local_port(self, site: str) -> int:
        """The port of 127.0.0.1 that leads to that site's SN; the same one as long as the tunnels are open."""
        async with self._opening:
            assert not self._closed
            if site not in self._listeners:
                make = partial(self._accepted, site)
                self._listeners[site] = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        port: int = self._listeners[site].sockets[0].getsockname()[1]
        return port

    def admits(self, name: NodeName) -> bool:
        """Whether that node's inbound tunnels are taken; a refusal is logged."""
        try:
            if name.kind is not Kind.SN:
                raise NotAuthorized("tunnels are for nodes of kind sn")
            self._admit(name)
        except SwarmError as exc:
            self._notices_in.say(name.site, f"refused a tunnel from {name}: {exc}")
            return False
        return True

    def inbound(self, name: NodeName, lost: Callable[[], None]) -> asyncio.Protocol:
        """The protocol for a TLS connection of a node that is admitted; `lost` is called when all of it is closed."""

        def gone(joint: Joint) -> None:
            self._forget(self._inbound, joint)
            lost()

        joint = Joint(self._reach_in, gone)
        self._keep(self._inbound, joint, name.site)
        return joint.far

    def failure(self, site: str) -> str | None:
        """Why the newest connection to that site failed; None if it did not, or one is there."""
        alive = any(joint.far.heard and not joint.over for joint, to in self._outbound.items() if to == site)
        return None if alive else self._failures.get(site)

    def connections(self) -> Mapping[str, int]:
        """How many connections each site has with this one now, in both directions; sites without any are left out."""
        joints = (*self._outbound.items(), *self._inbound.items())
        return Counter(site for joint, site in joints if joint.joined and not joint.over)

    def cut(self, site: str) -> None:
        """End all connections from and to that site. `admit` and `address_of` decide about new ones."""
        for joint, where in (*self._outbound.items(), *self._inbound.items()):
            if where == site:
                joint.abort()

    async def close(self) -> None:
        """End all connections and listeners, and wait until they are closed."""
        self._closed = True
        async with self._opening:
            for listener in self._listeners.values():
                await stop(listener)
        for joint in (*self._outbound, *self._inbound):
            joint.abort()
        if self._outbound or self._inbound:
            self._none_left.clear()
            async with asyncio.timeout(FLUSH_S):
                await self._none_left.wait()

    def _accepted(self, site: str) -> asyncio.Protocol:
        joint = Joint(partial(self._reach_out, site), partial(self._sent, site))
        self._keep(self._outbound, joint, site)
        return joint.near

    def _keep(self, joints: dict[Joint, str], joint: Joint, site: str) -> None:
        joints[joint] = site
        if self._closed:
            joint.abort()

    def _forget(self, joints: dict[Joint, str], joint: Joint) -> None:
        joints.pop(joint, None)
        if not self._outbound and not self._inbound:
            self._none_left.set()

    def _sent(self, site: str, joint: Joint) -> None:
        """An outbound connection is closed."""
        self._forget(self._outbound, joint)
        if joint.far.heard:
            self._failures.pop(site, None)
        elif joint.ended_by is joint.far:
            self._failed(site, _turned_away(self._address_of(site) or site, joint.reason, self._identity.name))

    def _failed(self, site: str, reason: str) -> None:
        self._failures[site] = reason
        self._notices_out.say(site, f"no tunnel to site {site}: {reason}")

    async def _reach_out(self, site: str, joint: Joint) -> None:
        """Connect to a site's SN for a connection of our CometBFT."""
        address = self._address_of(site)
        try:
            if address is None:
                raise NotReachable(f"{site} has no address: it is no member")
            async with asyncio.timeout(CONNECT_S):
                await self._connect(site, address, joint)
        except (SwarmError, OSError) as exc:
            self._failed(site, _reason(address or site, exc))
            return
        joint.join()

    async def _connect(self, site: str, address: str, joint: Joint) -> None:
        host, port = split_address(address)
        context = self._identity.client_context(expect_kind(Kind.SN, site=site), alpn=P2P)
        secured, _ = await asyncio.get_running_loop().create_connection(
            lambda: joint.far, host, port, ssl=context, server_hostname=host, ssl_handshake_timeout=CONNECT_S
        )
        if secured.get_extra_info("ssl_object").selected_alpn_protocol() != P2P:
            raise ProtocolError(f"{address} does not know {P2P}: an older version, or a proxy that ends TLS itself")

    async def _reach_in(self, joint: Joint) -> None:
        """Connect to our CometBFT for a connection of another site's."""
        target, site = self._target(), self._inbound[joint]
        if target is None:
            self._notices_in.say(site, f"closed a tunnel from site {site}: CometBFT is not running here", logging.INFO)
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().create_connection(lambda: joint.near, *target)
        except OSError as exc:
            self._notices_in.say(site, f"closed a tunnel from site {site}: {_reason(f'{target[0]}:{target[1]}', exc)}")
            return
        joint.join()


class _Notices:
    """What is wrong with each site, logged once in QUIET_S at most."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}

    def say(self, site: str, text: str, level: int = logging.WARNING) -> None:
        """Log it, unless something about the site was logged just now."""
        now = asyncio.get_running_loop().time()
        if now - self._said_at.get(site, -QUIET_S) >= QUIET_S:
            self._said_at[site] = now
            log.log(level, "%s", text)


def _reason(address: str, exc: Exception) -> str:
    """Why there is no connection to `address`."""
    refused = refusal(exc)
    if refused is not None:
        return str(at(address, refused))
    if isinstance(exc, SwarmError):
        return str(exc)
    if isinstance(exc, TimeoutError):
        return f"{address}: no connection within {CONNECT_S:g} s"
    if isinstance(exc, OSError) and exc.errno and not isinstance(exc, ssl.SSLError | socket.gaierror):
        return f"{address}: {os.strerror(exc.errno)}"  # asyncio's own text leaves that out
    return f"{address}: {exc or type(exc).__name__}"


def _turned_away(address: str, reason: Exception | None, ours: NodeName) -> str:
    """Why the other side ended a connection before a byte of it came."""
    if reason is not None:
        return _reason(address, reason)
    return (
        f"{address} closed the connection right after the TLS handshake: its CometBFT is not running, or it does not "
        f"take {ours} for a member's SN; its log says which"
    )
