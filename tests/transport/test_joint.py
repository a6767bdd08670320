"""Two connections as one, over socket pairs: what waits, what is flushed, and who ended it."""

import asyncio
import fcntl
import socket
import sys
import termios

import pytest

from swarm_hpc.transport import joint as joints
from swarm_hpc.transport.joint import Joint


class Wires:
    """A joint between two socket pairs; `near` and `far` are what the programs on both sides hold."""

    def __init__(self) -> None:
        (self.near, self._inner), (self.far, self._outer) = socket.socketpair(), socket.socketpair()
        for sock in (self.near, self._inner, self.far, self._outer):
            sock.setblocking(False)
        self._inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.go = asyncio.Event()
        self.gone = asyncio.Event()
        self.joint = Joint(self._connect, lambda joint: self.gone.set())

    async def start(self) -> None:
        """The far connection is made first, as an accepted one."""
        await self._make(lambda: self.joint.far, self._outer)

    async def _connect(self, joint: Joint) -> None:
        await self.go.wait()
        await self._make(lambda: joint.near, self._inner)
        joint.join()

    async def _make(self, protocol, sock) -> None:
        await asyncio.get_running_loop().create_connection(protocol, sock=sock)


@pytest.fixture
async def wires():
    made = Wires()
    await made.start()
    yield made
    made.joint.abort()
    for sock in (made.near, made.far, made._inner):
        sock.close()


async def received(sock, size) -> bytes:
    data = b""
    while len(data) < size and (more := await asyncio.get_running_loop().sock_recv(sock, size - len(data))):
        data += more
    return data


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_what_comes_before_the_other_connection_is_made_waits_for_it(wires):
    wires.joint.far.data_received(b"early ")  # read with the end of the handshake
    wires.far.send(b"later")
    assert wires.joint.far.writer.is_reading() is False
    wires.go.set()
    assert await received(wires.near, 11) == b"early later"


async def test_it_ends_when_the_other_connection_cannot_be_made(wires):
    wires.joint._connecting.cancel()
    assert await received(wires.far, 1) == b""
    await wires.gone.wait()
    assert not wires.joint.joined and wires.joint.ended_by is None


async def test_the_side_that_ended_it_is_known(wires):
    wires.go.set()
    await until(lambda: wires.joint.joined)
    wires.near.shutdown(socket.SHUT_WR)
    assert await received(wires.far, 1) == b""
    await wires.gone.wait()
    assert wires.joint.ended_by is wires.joint.near


async def test_what_is_on_its_way_is_flushed_when_the_sender_ends(wires):
    size = await _fill(wires)
    wires.far.close()
    assert await received(wires.near, size + 1) == bytes(size)
    await wires.gone.wait()


async def test_a_flush_that_nobody_takes_is_given_up(wires, monkeypatch):
    monkeypatch.setattr(joints, "FLUSH_S", 0.05)
    await _fill(wires)
    wires.far.close()
    await wires.gone.wait()


@pytest.mark.slow
async def test_a_slow_reader_is_no_stalled_one(wires, monkeypatch):
    monkeypatch.setattr(joints, "STALL_S", 0.2)
    wires.go.set()
    data = bytes(1 << 20)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(wires.far, data))
    got = 0
    while got < len(data):
        got += len(await received(wires.near, 1 << 16))
        await asyncio.sleep(0.03)  # all of it takes longer than a stall may
    await sending
    assert not wires.joint.over


async def test_a_reader_that_stalls_is_given_up(wires, monkeypatch):
    monkeypatch.setattr(joints, "STALL_S", 0.05)
    wires.go.set()
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(wires.far, bytes(64 << 20)))
    await wires.gone.wait()
    with pytest.raises(OSError, match=r"pipe|reset"):
        await sending


async def _fill(wires) -> int:
    """Send until some of it is in the joint's own buffer, because the kernel's are full; how much."""
    wires.go.set()
    size = 0
    await until(lambda: wires.joint.joined)
    while not wires.joint.near.writer.get_write_buffer_size():
        size += wires.far.send(bytes(1024))
        await until(lambda: not _unread(wires._outer))
    return size


def _unread(sock) -> int:
    """How many bytes the kernel holds for the reader of this socket."""
    answer = fcntl.ioctl(sock, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)
