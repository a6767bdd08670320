"""Ends connections that only cost: nobody asks anything on them, or nobody reads the answer.

Stands between the connection and the HTTP protocol, which itself waits for ever for the end of a request's header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

IDLE_S: Final = 75.0
"""So long a connection may be without a request under way, a header that trickles in included."""
STALL_S: Final = 60.0
"""So long a client may leave an answer unread."""
_CHECKS: Final = 4
"""Per time limit."""


class Watch(asyncio.Protocol):
    """Passes everything on to `inner`. `lost` is called once, when the connection is over."""

    def __init__(self, inner: asyncio.Protocol, lost: Callable[[], None]) -> None:
        self._inner, self._lost = inner, lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answering = False
        self._idle_since = self._moved_at = self._loop.time()
        self._unread = 0

    @property
    def busy(self) -> bool:
        """A request is under way."""
        return self._answering

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is under way: how long that may take is its handler's business."""
        self._answering = True
        try:
            yield
        finally:
            self._answering = False
            self._idle_since = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to watch."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._check()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Pass on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to watch."""
        if self._timer is not None:
            self._timer.cancel()
        self._lost()
        self._inner.connection_lost(exc)

    def _check(self) -> None:
        assert self._transport is not None
        now, unread = self._loop.time(), self._transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._moved_at = now
        self._unread = unread
        idle = not self._answering and not unread and now - self._idle_since > IDLE_S
        if idle or now - self._moved_at > STALL_S:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(min(IDLE_S, STALL_S) / _CHECKS, self._check)
