"""SL's end of the channel to its ML program (docs/protocol.md 3): the socket, frames, and `waiting` while SL works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from swarm_hpc.errors import ConfigError, ProtocolError, SwarmError
from swarm_hpc.sl.frames import (
    PREFIX_BYTES,
    REQUESTS,
    WAITING_EVERY_S,
    Answer,
    Failure,
    Request,
    Waiting,
    check_length,
    pack,
    unpack,
)
from swarm_hpc.sockets import address_of

log = logging.getLogger(__name__)

_CREDENTIALS: Final = struct.Struct("3i")
_SOCKET: Final = "ml.sock"
_SEND_TIMEOUT_S: Final = 60.0
"""A program that takes nothing off its socket for this long is stuck."""


class Connection:
    """One program's connection. `close` it when its session is over."""

    def __init__(self, connection: socket.socket, *, waiting_every_s: float = WAITING_EVERY_S) -> None:
        """Take over a connected socket."""
        self._socket = connection
        self._waiting_every_s = waiting_every_s
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid: int = _CREDENTIALS.unpack(credentials)[0]
        """Process ID of the program, as the kernel says."""

    async def receive(self) -> Request | None:
        """The program's next request; None when it has closed the connection. ProtocolError on anything odd."""
        prefix = await self._read(PREFIX_BYTES)
        if prefix is None:
            return None
        payload = await self._read(check_length(int.from_bytes(prefix, "big")))
        if payload is None:
            raise ProtocolError("channel: the program closed the connection in the middle of a frame")
        request: Request = unpack(payload, REQUESTS)
        return request

    async def send(self, answer: Answer, *, fd: int | None = None) -> None:
        """Answer, with a file descriptor if there is one. ConnectionAbortedError: the program is gone."""
        frame = pack(answer)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                if fd is not None:
                    frame = frame[await self._send_fd(frame[:PREFIX_BYTES], fd) :]
                await loop.sock_sendall(self._socket, frame)
        except OSError as exc:
            raise ConnectionAbortedError(
                f"the ML program is gone: {exc.strerror or 'it does not read its socket'}"
            ) from exc

    async def send_error(self, error: SwarmError) -> None:
        """Hand an error to the program, if it still listens."""
        with contextlib.suppress(ConnectionAbortedError):
            await self.send(Failure(name=type(error).__name__, detail=str(error)))

    async def refuse(self, error: SwarmError) -> None:
        """Answer the program's first request with an error, whatever it is."""
        # not before it has asked: the error would get lost when its request meets a closed socket
        with contextlib.suppress(ProtocolError, TimeoutError):
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await self.receive()
        await self.send_error(error)

    async def wait_for(self, work: Coroutine[Any, Any, Answer], reason: Callable[[], str]) -> Answer:
        """Do the work that leads to an answer, and tell the program about every 5 s why it waits.

        A program that has gone in the meantime cancels the work: ConnectionAbortedError.
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self._waiting_every_s)
                if done:
                    return task.result()
                await self.send(Waiting(reason=reason()))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    @property
    def is_over(self) -> bool:
        """The program has closed it, whether or not everything before that was read."""
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLHUP is always told
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection. May be repeated."""
        self._socket.close()

    async def _read(self, size_bytes: int) -> bytearray | None:
        """That many bytes, or None where the other side closed before the first."""
        loop = asyncio.get_running_loop()
        payload = bytearray(size_bytes)
        view = memoryview(payload)
        while view:
            try:
                count = await loop.sock_recv_into(self._socket, view)
            except ConnectionError:
                return None
            if not count:
                if len(view) == size_bytes:
                    return None
                raise ProtocolError("channel: the program closed the connection in the middle of a frame")
            view = view[count:]
        return payload

    async def _send_fd(self, data: bytes, fd: int) -> int:
        while True:
            try:
                return socket.send_fds(self._socket, [data], [fd])
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._socket)


class Listener:
    """The socket that a program connects to."""

    def __init__(self, listening: socket.socket, path: Path) -> None:
        """Take over a listening socket; `listen` makes one."""
        self.path = path
        """What the program finds in SWARM_SL_SOCKET."""
        self._socket = listening

    async def accept(self) -> Connection:
        """The next program that connects."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        return Connection(connection)


@contextmanager
def listen(state_dir: Path) -> Iterator[Listener]:
    """Listen in a folder for this user only, `channel_dir(state_dir)`. ConfigError: that cannot be."""
    folder = channel_dir(state_dir)
    path = folder / _SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            path.unlink(missing_ok=True)
            with address_of(path) as address:
                listening.bind(address)
        except OSError as exc:
            raise ConfigError(f"state_dir: no socket can be made in {folder}: {exc.strerror or exc}") from exc
        listening.listen()
        inode = path.stat().st_ino
        try:
            yield Listener(listening, path)
        finally:
            # a newer process of this node may have put its own socket there
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()


def channel_dir(state_dir: Path) -> Path:
    """Where the socket of a node with that state folder is; absolute."""
    return state_dir.absolute() / "channel"
