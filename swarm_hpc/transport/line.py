"""A blocking HTTP connection over mutual TLS that another thread can cut: blobs travel on it, each in its thread."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from swarm_hpc.errors import ConfigError, ProtocolError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import NodeName

_HTTPS_PORT: Final = 443
_EVERYWHERE: Final = ("0.0.0.0", "::", "[::]")


def split_address(address: str) -> tuple[str, int]:
    """host and port of `host[:port]`; ProtocolError if it is no address."""
    if not address.isprintable() or " " in address or "@" in address:  # urlsplit drops line ends without a word
        raise ProtocolError(f"{address[:200]!r} is no address: expected host:port")
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ProtocolError(f"{address!r} is no address: {exc}") from exc
    if not host or parts.path or parts.query:
        raise ProtocolError(f"{address!r} is no address: expected host:port")
    return host, _HTTPS_PORT if port is None else port


def with_port(address: str, port: int) -> str:
    """The address of a node that listens on `port`, `host[:port]`, with its port; an IPv6 address may have no brackets.

    ProtocolError if it is no address.
    """
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"
    split_address(address)
    return address if urlsplit(f"//{address}").port is not None else f"{address}:{port}"


def advertised(host: str, advertise: str, port: int, settings: str = "") -> str:
    """The address that others are told: `advertise`, else `host`, with the port where it names none.

    ConfigError names the setting, which is called `settings` and its own name, that is no address, or that of all of
    this host's networks, at which nobody else finds it.
    """
    if not advertise and host in _EVERYWHERE:
        raise ConfigError(
            f"{settings}host: {host} is no address that others could reach this one at: say it in {settings}advertise"
        )
    try:
        return with_port(advertise or host, port)
    except ProtocolError as exc:
        raise ConfigError(f"{settings}{'advertise' if advertise else 'host'}: {exc}") from exc


class Line:
    """One connection at a time to one node. `cut` ends it from another thread, and every later one at once."""

    def __init__(self, identity: Identity, address: str, expect: Callable[[NodeName], None]) -> None:
        self.address = address
        self.shaken = False
        """The handshake of the newest connection succeeded on our side."""
        self.heard = False
        """The other side has answered on it."""
        self._identity, self._expect = identity, expect
        self._host, self._port = split_address(address)
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._http: http.client.HTTPConnection | None = None

    def open(self, timeout_s: float) -> http.client.HTTPConnection:
        """Connect and shake hands; OSError, or Refused. `timeout_s` also limits each later step, see `patient`."""
        self.close()
        self.shaken = self.heard = False
        # made before: wrapping a connection that has ended meanwhile leaves its socket to the garbage collector
        context = self._identity.client_context(self._expect)
        raw = socket.create_connection((self._host, self._port), timeout=timeout_s)
        with self._lock:
            self._socket = raw.dup()  # shutting down the TLS socket itself would pull it from under its reader
        if self._cut.is_set():
            raw.close()
            raise ConnectionAbortedError("cut")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A connection that just ends must be an error: http.client would take it for the end of the answer.
        tls = context.wrap_socket(raw, suppress_ragged_eofs=False, server_hostname=self._host)
        self.shaken = True
        self._http = http.client.HTTPConnection(self._host, self._port)
        self._http.sock = tls
        return self._http

    def patient(self, timeout_s: float) -> None:
        """From now on each read or write may take so long. At least a moment: 0 would mean not to block at all."""
        if self._http is not None and self._http.sock is not None:
            self._http.sock.settimeout(max(timeout_s, 0.001))

    def close(self) -> None:
        """Close the newest connection."""
        if self._http is not None:
            self._http.close()
            self._http = None
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def cut(self) -> None:
        """End whatever the thread waits for; called from another one."""
        self._cut.set()
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, pause_s: float) -> bool:
        """Pause between two attempts; True at once when cut."""
        return self._cut.wait(pause_s)

    @property
    def is_cut(self) -> bool:
        """Whether `cut` was called."""
        return self._cut.is_set()


async def in_thread(line: Line, work: Callable[[], None]) -> None:
    """Run blocking work on that line in a thread of its own. When cancelled, cut the line and wait for the thread.

    Not asyncio.to_thread: some slow transfers would take all of its few threads from everybody else.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="blob") as pool:
        running = asyncio.get_running_loop().run_in_executor(pool, work)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            line.cut()
            await asyncio.wait([running])  # until then it may still write to the caller's buffer
            if not running.cancelled():
                running.exception()
            raise
