"""Two connections joined into one: what arrives on either goes out on the other, no faster than it is read there.

They end together: there is no half-open joint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

FLUSH_S: Final = 5.0
"""How long what has arrived may still take to go out once one of the two connections is over."""
STALL_S: Final = 60.0
"""So long one side may take nothing of what is there for it. While it does, nobody would notice the other one's end."""


class Joint:
    """`near` is the connection inside this machine, `far` the one to another site; whichever comes first waits.

    `connect` is run as soon as one of them is made: it makes the other and calls `join`. If it ends without that, all
    is over. `gone` is called once, when both connections are closed and `connect` has ended.
    """

    def __init__(self, connect: Callable[[Joint], Coroutine[Any, Any, None]], gone: Callable[[Joint], None]) -> None:
        self.near, self.far = End(self), End(self)
        self.joined = False
        """Bytes may flow, or have flowed."""
        self.over = False
        """No byte is taken any more."""
        self.ended_by: End | None = None
        """Whose other side ended it; None where this node did."""
        self.reason: Exception | None = None
        self._connect, self._gone = connect, gone
        self._loop = asyncio.get_running_loop()
        self._connecting: asyncio.Task[None] | None = None
        self._num_open = 0
        self._deadline: asyncio.TimerHandle | None = None

    def join(self) -> None:
        """Both connections are made: let the bytes flow."""
        if self.over:
            return
        self.joined = True
        self.near.start()
        self.far.start()

    def abort(self) -> None:
        """End both at once; what is on its way is lost."""
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        for end in (self.near, self.far):
            if end.transport is not None:
                end.transport.abort()
        self._look()

    def made(self, end: End) -> None:
        """One of the connections is made."""
        self._num_open += 1
        if self.over:
            end.writer.abort()
        elif self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(self))
            self._connecting.add_done_callback(self._connected)

    def ended(self, end: End, reason: Exception | None) -> None:
        """One of the connections takes or brings nothing any more: end the other one, too."""
        if self.over:
            return
        self.over = True
        self.ended_by, self.reason = end, reason
        other = end.other.transport
        if other is not None and not other.is_closing():
            other.close()
        # A peer that reads nothing would keep a connection that waits to be flushed for ever.
        self._deadline = self._loop.call_later(FLUSH_S, self.abort)

    def lost(self, end: End, reason: Exception | None) -> None:
        """One of the connections is closed."""
        self.ended(end, reason)
        self._num_open -= 1
        self._look()

    def _connected(self, task: asyncio.Task[None]) -> None:
        if not self.joined:
            self.abort()
        self._look()

    def _look(self) -> None:
        connecting = self._connecting is not None and not self._connecting.done()
        if not self.over or self._num_open or connecting:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        gone, self._gone = self._gone, lambda joint: None
        gone(self)


class End(asyncio.Protocol):
    """One of the two connections of a joint. It reads nothing until they are joined."""

    def __init__(self, joint: Joint) -> None:
        self.transport: asyncio.Transport | None = None
        """The connection, from when it is made until it is closed."""
        self.heard = False
        """A byte has arrived on it."""
        self._joint = joint
        self._early = bytearray()
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def other(self) -> End:
        """The other end of the joint."""
        return self._joint.far if self is self._joint.near else self._joint.near

    @property
    def writer(self) -> asyncio.Transport:
        """The transport of a connection that is made."""
        assert self.transport is not None
        return self.transport

    def start(self) -> None:
        """Read, from now on; first pass on what was read before this end got the connection."""
        self.writer.resume_reading()
        if self._early:
            self.other.writer.write(bytes(self._early))
            self._early.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the other connection. asyncio has set TCP_NODELAY already."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()
        self._joint.made(self)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self.heard = True
        if self._joint.over:
            return
        if self._joint.joined:
            self.other.writer.write(data)
        else:
            self._early += data

    def eof_received(self) -> bool:
        """The other side sends nothing more: end both. asyncio closes this one."""
        self._joint.ended(self, None)
        return False

    def pause_writing(self) -> None:
        """The other side does not read: take nothing more for it."""
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.pause_reading()
        self._expect_progress(self.writer.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The other side reads again."""
        self._expect_nothing()
        other = self.other.transport
        if self._joint.joined and other is not None and not other.is_closing():
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """As eof_received, for a connection that broke."""
        self._expect_nothing()
        self.transport = None  # a closed one may not even be aborted
        self._joint.lost(self, exc)

    def _expect_progress(self, unsent: int) -> None:
        self._stalled = asyncio.get_running_loop().call_later(STALL_S, self._check_progress, unsent)

    def _check_progress(self, before: int) -> None:
        unsent = self.writer.get_write_buffer_size()
        if unsent < before:
            self._expect_progress(unsent)
        else:
            self._joint.abort()

    def _expect_nothing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
