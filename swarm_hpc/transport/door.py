"""One accepted connection until its TLS handshake is over: refused and logged once, or handed to HTTP or a tunnel.

The server accepts in plain TCP and starts TLS itself, so that it knows the address of whom it refuses, and each
connection is secured with the newest certificate.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import WeakSet

from swarm_hpc.identity.certs import Identity, peer_name
from swarm_hpc.identity.handshake import P2P, refusal
from swarm_hpc.records import NodeName
from swarm_hpc.transport.tunnel import Tunnels
from swarm_hpc.transport.watch import Watch

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 15.0
"""How long a peer has for its handshake; a lost one must not hold a connection for ever."""
GOODBYE_S: Final = 2.0
"""How long a stopping server waits for its peers' part in the end of TLS."""
_POLL_S: Final = 0.01
MAX_HANDSHAKES: Final = 256
"""So many at once: whoever is beyond is cut off before a byte, since nobody knows yet who it is."""
MAX_CONNECTIONS_PER_SITE: Final = 512
"""One site's nodes cannot take all file descriptors from the others."""


class Doorkeeper:
    """Makes a Door for each connection, and ends those that are still in their handshake when the server stops."""

    def __init__(
        self, identity: Identity, indoors: Callable[[], asyncio.Protocol], tunnels: Tunnels | None = None
    ) -> None:
        self.identity = identity
        self.indoors = indoors
        """Makes the HTTP protocol that takes over after the handshake."""
        self.tunnels = tunnels
        """Take over where the client asks for swarm-p2p; without them such a connection is closed."""
        self._entering: set[asyncio.Task[None]] = set()
        self._accepted: WeakSet[asyncio.Transport] = WeakSet()
        self._closed = False
        self._inside: Counter[str] = Counter()

    def __call__(self) -> asyncio.Protocol:
        """A Door: this is the protocol factory of the listening socket."""
        return Door(self)

    def let_in(self, door: Door, transport: asyncio.Transport) -> None:
        """Start the handshake of one connection."""
        self._accepted.add(transport)
        if self._closed:  # accepted at the moment when the server stopped
            transport.abort()
            return
        if len(self._entering) >= MAX_HANDSHAKES:
            log.warning("refused %s: %d handshakes are under way", _address(transport), MAX_HANDSHAKES)
            transport.abort()
            return
        task = asyncio.get_running_loop().create_task(door.enter(transport))
        self._entering.add(task)
        task.add_done_callback(partial(self._entered, transport))

    def forget(self, transport: asyncio.Transport) -> None:
        """Somebody else closes this connection."""
        self._accepted.discard(transport)

    def _entered(self, transport: asyncio.Transport, task: asyncio.Task[None]) -> None:
        self._entering.discard(task)
        if task.cancelled():
            transport.abort()  # one that was cancelled before it began has not closed it

    def successor(self, tls: ssl.SSLObject) -> asyncio.Protocol | None:
        """What takes over a connection whose peer is checked; None, and logged, where nothing does."""
        name = peer_name(tls)
        if tls.selected_alpn_protocol() != P2P:
            lost = self._count(name)
            return Watch(self.indoors(), lost) if lost is not None else None
        if self.tunnels is None:
            log.info("refused a tunnel from %s: there are none here", name)
            return None
        if not self.tunnels.admits(name):
            return None
        lost = self._count(name)
        return self.tunnels.inbound(name, lost) if lost is not None else None

    def _count(self, name: NodeName) -> Callable[[], None] | None:
        """Count a connection; to be called when it is over. None where its site has too many."""
        if self._inside[name.site] >= MAX_CONNECTIONS_PER_SITE:
            log.warning("refused %s: site %s has %d connections", name, name.site, MAX_CONNECTIONS_PER_SITE)
            return None
        self._inside[name.site] += 1
        return lambda: self._inside.subtract([name.site])

    async def drain(self) -> None:
        """Wait until all connections are closed: TLS says goodbye, and its peer may be slow to. Nobody is waited for
        longer than GOODBYE_S."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GOODBYE_S
        while open_ := [one for one in self._accepted if not one.is_closing()]:
            if loop.time() >= deadline:
                for one in open_:
                    one.abort()
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(0)  # a transport that is closing gives up its socket in the loop's next step

    async def close(self) -> None:
        """End all handshakes that are under way, and let nobody in any more."""
        self._closed = True
        entering = tuple(self._entering)
        for task in entering:
            task.cancel()
        await asyncio.gather(*entering, return_exceptions=True)


class Door(asyncio.Protocol):
    """Holds back what a peer sends between its handshake and the moment the next protocol is ready."""

    def __init__(self, keeper: Doorkeeper) -> None:
        self._keeper = keeper
        self._early = bytearray()
        self._entering = False
        self._left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake: nothing is read before."""
        assert isinstance(transport, asyncio.Transport)
        self._keeper.let_in(self, transport)
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """The first request may arrive together with the end of the handshake."""
        self._early += data

    def eof_received(self) -> bool:
        """The peer left before it was let in."""
        self._left = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """As eof_received, for a connection that broke."""
        self._left = True

    async def enter(self, transport: asyncio.Transport) -> None:
        """Shake hands, then put the protocol that the client asked for in this one's place."""
        address = _address(transport)
        context = self._keeper.identity.server_context(_anyone)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except OSError as exc:  # SSLError is one
            _log_failure(address, context.refused or refusal(exc), exc)
            return
        if self._left or secured is None or secured.is_closing():
            if secured is not None:
                secured.close()
            return
        protocol = self._keeper.successor(secured.get_extra_info("ssl_object"))
        if protocol is None:
            secured.close()
            return
        if not isinstance(protocol, Watch):
            self._keeper.forget(transport)  # the tunnels'
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(bytes(self._early))


def _anyone(name: NodeName) -> None:
    """Any node of any site in the bundle may connect: what it may ask for is the handlers' business."""


def _address(transport: asyncio.Transport) -> str:
    address = transport.get_extra_info("peername")
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "an unknown address"


def _log_failure(address: str, error: Exception | None, exc: OSError) -> None:
    if error is not None:
        log.warning("refused %s: %s: %s", address, type(error).__name__, error)
    elif isinstance(exc, ConnectionAbortedError):
        log.warning("refused %s: no TLS handshake within %g s", address, HANDSHAKE_TIMEOUT_S)
    elif isinstance(exc, ConnectionError):
        # A port check, or a client that does not accept our own certificate: it says why in its own log.
        log.info("%s closed the connection during the TLS handshake", address)
    else:
        log.warning("refused %s: no TLS handshake: %s", address, exc)
