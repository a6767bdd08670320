"""ABCI's wire over a real Unix socket, as CometBFT speaks it."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm_hpc.errors import LedgerError, SwarmError
from swarm_hpc.sn import abci_pb2 as wire
from swarm_hpc.sn.abci_server import AbciServer

PATIENCE_S = 30.0


class Told:
    """An application of four requests."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def echo(self, request: wire.RequestEcho) -> wire.ResponseEcho:
        return wire.ResponseEcho(message=request.message)

    def flush(self, _request: wire.Empty) -> wire.Empty:
        return wire.Empty()

    def commit(self, _request: wire.Empty) -> wire.Empty:
        raise LedgerError("no room on the disk")

    def info(self, _request: wire.Empty) -> wire.ResponseInfo:
        raise OSError("the socket is gone")

    def release(self) -> None:
        self.released.set()


def framed(request: wire.Request) -> bytes:
    body = request.SerializeToString()
    size, prefix = len(body), b""
    while size > 0x7F:
        prefix += bytes([size & 0x7F | 0x80])
        size >>= 7
    return prefix + bytes([size]) + body


def echo(text: str) -> bytes:
    return framed(wire.Request(echo=wire.RequestEcho(message=text)))


FLUSH = framed(wire.Request(flush=wire.Empty()))
COMMIT = framed(wire.Request(commit=wire.Empty()))


class Connection:
    """One of CometBFT's."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> wire.Response:
        size = shift = 0
        while (byte := self.file.read(1)[0]) > 0x7F:
            size |= (byte & 0x7F) << shift
            shift += 7
        return wire.Response.FromString(self.file.read(size | byte << shift))

    def is_over(self) -> bool:
        """Whether the server has ended it, without another byte."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def application() -> Told:
    return Told()


@pytest.fixture
def server(application: Told) -> Iterator[AbciServer]:
    folder = Path(tempfile.mkdtemp(prefix="abci-"))
    with AbciServer(folder / "abci.sock", application) as running:
        running.path = folder / "abci.sock"
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def connect(server: AbciServer) -> Iterator[Callable[[], Connection]]:
    made: list[Connection] = []

    def new() -> Connection:
        made.append(Connection(server.path))
        return made[-1]

    yield new
    for one in made:
        one.close()


def test_several_messages_in_one_packet_are_answered_in_order(connect):
    comet = connect()
    comet.say(echo("one") + echo("two") + FLUSH)
    assert [comet.hear().echo.message for _ in range(2)] == ["one", "two"]
    assert comet.hear().WhichOneof("value") == "flush"


def test_a_message_may_come_in_pieces(connect):
    comet = connect()
    whole = echo("piece by piece")
    for at in range(len(whole)):
        comet.say(whole[at : at + 1])
    assert comet.hear().echo.message == "piece by piece"


@pytest.mark.parametrize("size", [100, 127, 128, 16_383, 16_384, 3_000_000])
def test_lengths_of_one_byte_and_of_several_come_through(connect, size):
    comet = connect()
    text = "x" * size
    threading.Thread(target=comet.say, args=(echo(text),)).start()  # more than the socket's buffers hold
    assert comet.hear().echo.message == text


def test_connections_are_answered_side_by_side(connect):
    first, second = connect(), connect()
    second.say(echo("two"))
    assert second.hear().echo.message == "two"
    first.say(echo("one"))
    assert first.hear().echo.message == "one"


def test_a_failure_of_the_application_ends_all_connections_and_is_told(connect, server):
    first, second = connect(), connect()
    for comet in (first, second):
        comet.say(FLUSH)
        comet.hear()
    assert server.fault is None
    first.say(COMMIT)
    assert first.is_over()
    assert second.is_over()
    assert isinstance(server.fault, LedgerError)
    assert str(server.fault) == "no room on the disk"


def test_after_a_failure_a_new_connection_is_ended_at_once(connect):
    first = connect()
    first.say(COMMIT)
    assert first.is_over()
    assert connect().is_over()


def test_an_error_of_the_system_is_a_failure_of_the_application_not_of_the_connection(connect, server):
    comet = connect()
    comet.say(framed(wire.Request(info=wire.Empty())))
    assert comet.is_over()
    assert isinstance(server.fault, SwarmError)
    assert str(server.fault) == "info: the socket is gone"


def test_a_request_that_nobody_knows_is_a_failure(connect, server):
    comet = connect()
    comet.say(framed(wire.Request(extend_vote=wire.Empty())))
    assert comet.is_over()
    assert "extend_vote" in str(server.fault)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 6, b"\xff\xff\xff\xff\x0f", b"\x03\xff\xff\xff", b"\x80\x80\x80\x80\x80\x80\x01"],
    ids=["no length", "4 GiB", "no message", "a length in seven bytes"],
)
def test_what_is_no_message_ends_its_own_connection_only(connect, server, data):
    wrong, right = connect(), connect()
    wrong.say(data)
    assert wrong.is_over()
    right.say(FLUSH)
    assert right.hear().WhichOneof("value") == "flush"
    assert server.fault is None


def test_a_connection_that_ends_in_the_middle_of_a_message_is_no_failure(connect, server, application):
    comet = connect()
    comet.say(echo("cut short")[:4])
    comet.socket.shutdown(socket.SHUT_WR)
    assert comet.is_over()
    assert server.fault is None
    assert application.released.wait(PATIENCE_S)


def test_the_end_of_the_server_ends_its_connections(application):
    folder = Path(tempfile.mkdtemp(prefix="abci-"))
    with AbciServer(folder / "s", application):
        comet = Connection(folder / "s")
        comet.say(FLUSH)
        comet.hear()
    assert comet.is_over()
    comet.close()
    shutil.rmtree(folder)


def test_a_socket_that_a_killed_process_left_is_taken_over(application):
    folder = Path(tempfile.mkdtemp(prefix="abci-"))
    for _ in range(2):
        with AbciServer(folder / "s", application):
            comet = Connection(folder / "s")
            comet.say(echo("here"))
            assert comet.hear().echo.message == "here"
            comet.close()
    shutil.rmtree(folder)
