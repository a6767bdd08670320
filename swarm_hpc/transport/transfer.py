"""Moves one blob to or from a node: blocking, in 1 MiB steps, verified while it arrives, taken up again after a cut."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import BlobCorrupt, BlobError, BlobNotFound, NotReachable, ProtocolError, TimedOut
from swarm_hpc.identity.certs import Identity
from swarm_hpc.identity.handshake import refusal
from swarm_hpc.records import NodeName
from swarm_hpc.transport.line import Line, in_thread
from swarm_hpc.transport.retry import CONNECT_ATTEMPT_S, Patience, at, dropped_for_good, problem
from swarm_hpc.transport.store import BLOCK_BYTES, BlobStore, BlobWriter, blob_name, hasher

# no longer numbers: int() refuses those of some thousand digits with a ValueError
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_PROBLEM_BYTES: Final = 1 << 20
_BUFFERED_BYTES: Final = 16 << 20
"""So much may seem sent although the other side has read none of it: sockets' buffers."""

Expect = Callable[[NodeName], None]


async def download(
    identity: Identity,
    address: str,
    blob: str,
    *,
    expect: Expect,
    connection: ConnectionConfig,
    into: Path | BlobStore | Sink | None = None,
    buffers: Sequence[memoryview] = (),
    max_bytes: int | None = None,
) -> memoryview | None:
    """Fetch a blob: into a file or store (verified, or not at all), a sink, or memory, which is returned.

    That is the one of `buffers` that has the blob's size, or where there are none, new memory.

    Goes on where it stopped after a cut, as long as bytes arrive within connect_timeout_s of each other and the whole
    takes at most transfer_timeout_s. Raises BlobNotFound, BlobCorrupt, DiskFull, NotReachable, TimedOut, IdentityError.
    When it is cancelled or fails, the buffers hold anything. `max_bytes` limits what a peer may make us allocate.
    """
    blob_name(blob)
    sink: Sink
    if into is None:
        sink = _Memory(blob, buffers, max_bytes)
    else:
        sink = _File(blob, into) if isinstance(into, Path | BlobStore) else into
    line = Line(identity, address, expect)
    await in_thread(line, _Download(line, connection, blob, sink).run)
    return sink.view if isinstance(sink, _Memory) else None


async def upload(
    identity: Identity,
    address: str,
    blob: str,
    data: memoryview | Path,
    *,
    contract: str,
    expect: Expect,
    connection: ConnectionConfig,
) -> None:
    """Put a blob, from memory or a file, for a contract. Repeated from the start after a cut; limits as in `download`.

    The other side verifies it: BlobCorrupt if the bytes are not the blob's. DiskFull, NotAuthorized, NotFound come from
    there too.
    """
    path = f"/v1/blobs/{blob_name(blob)}?contract={quote(contract, safe='')}"
    line = Line(identity, address, expect)
    await in_thread(line, _Upload(line, connection, path, data).run)


class _Transfer:
    """Attempts until one succeeds. Runs in its own thread; every wait ends when the line is cut."""

    def __init__(self, line: Line, connection: ConnectionConfig, what: str) -> None:
        self._line, self._config, self._what = line, connection, what
        self._deadline = 0.0

    def run(self) -> None:
        now = time.monotonic()
        self._deadline = now + self._config.transfer_timeout_s
        patience = Patience(self._until(now))
        # Steps see the deadline only between blocks, and «100 Continue» may come for ever before an answer.
        late = threading.Timer(min(self._config.transfer_timeout_s, threading.TIMEOUT_MAX), self._line.cut)
        late.start()
        try:
            while not self._try(patience):
                pass
            self.finish()
        finally:
            late.cancel()
            late.join()
            self._line.close()
            self.abort()

    def attempt(self, connection: http.client.HTTPConnection) -> None:
        """Move all that is left to move; OSError or HTTPException when the connection fails."""
        raise NotImplementedError

    def moved(self) -> bool:
        """Whether the last attempt got the blob any further, for sure; asked once per attempt, connected or not."""
        raise NotImplementedError

    def finish(self) -> None:
        """Everything has arrived."""

    def abort(self) -> None:
        """Clean up; called in any case, after finish too."""

    def step(self) -> None:
        """Before each block: renew the time that it may take."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(f"{self._line.address}: {self._what}: not done within {self._config.transfer_timeout_s:g} s")
        self._line.patient(min(left, self._config.connect_timeout_s))

    def _try(self, patience: Patience) -> bool:
        try:
            left = max(self._deadline - time.monotonic(), 0.001)
            self.attempt(self._line.open(min(left, self._config.connect_timeout_s, CONNECT_ATTEMPT_S)))
        except (OSError, http.client.HTTPException) as exc:
            self._give_up_or_wait(exc, patience)
            return False
        return True

    def _give_up_or_wait(self, exc: Exception, patience: Patience) -> None:
        address, now = self._line.address, time.monotonic()
        refused = refusal(exc)
        if refused is not None:
            raise at(address, refused) from exc
        if self.moved():
            patience.progressed(self._until(now))
        elif patience.failed(dropped=self._line.shaken and not self._line.heard):
            raise dropped_for_good(address, "this node") from exc
        self.step()
        pause = patience.pause_s(now)
        if pause is None or self._line.wait(pause):
            raise NotReachable(f"{address}: {self._what}: {exc or type(exc).__name__}") from exc

    def _until(self, now: float) -> float:
        return min(self._deadline, now + self._config.connect_timeout_s)


class _Download(_Transfer):
    def __init__(self, line: Line, connection: ConnectionConfig, blob: str, sink: Sink) -> None:
        super().__init__(line, connection, f"blob {blob[:16]}")
        self._path, self._sink = f"/v1/blobs/{blob}", sink
        self._size_bytes: int | None = None
        self._before = 0

    def attempt(self, connection: http.client.HTTPConnection) -> None:
        self._before = have = self._sink.have
        self.step()
        connection.request("GET", self._path, headers={"Range": f"bytes={have}-"} if have else {})
        answer = connection.getresponse()
        self._line.heard = True
        size_bytes = self._begin(answer, have)
        while self._sink.have < size_bytes:
            self.step()
            count = answer.readinto(self._sink.room())
            if not count:
                raise ConnectionResetError(f"cut after {self._sink.have} of {size_bytes} bytes")
            self._sink.took(count)

    def moved(self) -> bool:
        # An attempt that cannot even connect must not count the bytes of the one before it: a dead peer would be
        # given a new deadline again and again.
        before, self._before = self._before, self._sink.have
        return self._sink.have > before

    def finish(self) -> None:
        self._sink.finish()

    def abort(self) -> None:
        self._sink.abort()

    def _begin(self, answer: http.client.HTTPResponse, have: int) -> int:
        size_bytes = self._announced(answer, have)
        if self._size_bytes is None:
            self._size_bytes = size_bytes
            self._sink.begin(size_bytes)
        elif self._size_bytes != size_bytes:
            raise BlobCorrupt(f"{self._line.address}: {self._what} changed its size while it was fetched")
        if have and answer.status == 200:  # something in between ignores ranges
            self._sink.restart()
        return size_bytes

    def _announced(self, answer: http.client.HTTPResponse, have: int) -> int:
        """The size of the whole blob, if this answer goes on from byte `have`, or starts anew."""
        if answer.status == 200 and answer.length is not None:
            return answer.length
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status == 206 and found and int(found[1]) == have and int(found[2]) == int(found[3]) - 1:
            return int(found[3])
        raise _problem(self._line.address, answer)


class _Upload(_Transfer):
    def __init__(self, line: Line, connection: ConnectionConfig, path: str, data: memoryview | Path) -> None:
        super().__init__(line, connection, f"upload of {path.split('/')[-1][:16]}")
        self._path, self._data = path, data
        self._sent = 0

    def attempt(self, connection: http.client.HTTPConnection) -> None:
        self._sent = 0
        self.step()
        size_bytes = _size(self._data)
        connection.putrequest("PUT", self._path)
        connection.putheader("Content-Length", str(size_bytes))
        connection.endheaders()
        try:
            for block in _blocks(self._data):
                self.step()
                connection.send(block)
                self._sent += len(block)
        except OSError as exc:
            self._answer_instead(connection, exc)
            raise
        self._finish(connection.getresponse())

    def moved(self) -> bool:
        sent, self._sent = self._sent, 0
        return sent > _BUFFERED_BYTES

    def _finish(self, answer: http.client.HTTPResponse) -> None:
        self._line.heard = True
        if answer.status not in (200, 201):
            raise _problem(self._line.address, answer)

    def _answer_instead(self, connection: http.client.HTTPConnection, exc: OSError) -> None:
        """A server that will not have the blob says why and closes: its answer counts, not the broken pipe."""
        try:
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as second:
            if refusal(second) is not None:
                raise
            raise exc from second
        self._finish(answer)
        raise ProtocolError(f"{self._line.address} answered before {self._what} was over") from exc


class Sink(Protocol):
    """Where a download goes. `have` bytes are there, and it is called from the download's thread only."""

    have: int

    def begin(self, size_bytes: int) -> None:
        """The blob has this size; said by each node that it is fetched from."""

    def room(self) -> memoryview:
        """Where the next bytes go, at least one. May wait, which the download's deadlines do not see."""

    def took(self, count: int) -> None:
        """So many bytes are in the latest room."""

    def restart(self) -> None:
        """All bytes come once more."""

    def finish(self) -> None:
        """All bytes are there. BlobCorrupt: they are not the blob."""

    def abort(self) -> None:
        """It is over, well or not."""


class HashingSink:
    """What sinks in memory have in common: `room` puts the memory into `latest`, and its bytes are hashed here."""

    def __init__(self, blob: str) -> None:
        self.blob = blob
        self.have = 0
        self.latest = memoryview(b"")
        self._hash = hasher()

    def took(self, count: int) -> None:
        """As `Sink`."""
        self._hash.update(self.latest[:count])
        self.have += count

    def restart(self) -> None:
        """As `Sink`."""
        self.have, self._hash = 0, hasher()

    def finish(self) -> None:
        """As `Sink`."""
        if (found := self._hash.hexdigest()) != self.blob:
            raise BlobCorrupt(f"blob {self.blob}: the bytes that arrived have the hash {found}")

    def abort(self) -> None:
        """As `Sink`; the memory is the caller's."""


class _Memory(HashingSink):
    def __init__(self, blob: str, buffers: Sequence[memoryview], max_bytes: int | None) -> None:
        super().__init__(blob)
        self.view = memoryview(b"")
        self._max_bytes = max_bytes
        self._by_size = {view.nbytes: view.cast("B") for view in buffers}

    def begin(self, size_bytes: int) -> None:
        if self._by_size and size_bytes not in self._by_size:
            expected = " or ".join(map(str, self._by_size))
            raise BlobCorrupt(f"blob {self.blob} has {size_bytes} bytes, {expected} were expected")
        if self._max_bytes is not None and size_bytes > self._max_bytes:
            raise BlobCorrupt(f"blob {self.blob} has {size_bytes} bytes, at most {self._max_bytes} were expected")
        self.view = self._by_size[size_bytes] if self._by_size else memoryview(bytearray(size_bytes))

    def room(self) -> memoryview:
        self.latest = self.view[self.have : self.have + BLOCK_BYTES]
        return self.latest


class _File:
    def __init__(self, blob: str, into: Path | BlobStore) -> None:
        self.have = 0
        self._blob, self._into = blob, into
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._writer: BlobWriter | None = None

    def begin(self, size_bytes: int) -> None:
        if isinstance(self._into, BlobStore):
            self._writer = self._into.writer(self._blob, size_bytes)
        else:
            self._writer = BlobWriter(self._into, self._blob, size_bytes)

    def room(self) -> memoryview:
        return self._block

    def took(self, count: int) -> None:
        assert self._writer is not None
        self._writer.write(self._block[:count])
        self.have += count

    def restart(self) -> None:
        assert self._writer is not None
        self._writer.restart()
        self.have = 0

    def finish(self) -> None:
        assert self._writer is not None
        self._writer.commit()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()


def _problem(address: str, answer: http.client.HTTPResponse) -> Exception:
    """The error an answer stands for; ConnectionError, which is tried again, when a proxy answers for a lost server."""
    text = answer.read(_PROBLEM_BYTES)
    error = problem(address, answer.status, answer.headers.get("Content-Type", ""), text)
    if error is None or isinstance(error, NotReachable):  # a node that is starting says so
        return ConnectionError(str(error or f"a proxy answered {answer.status}"))
    return error


def _size(data: memoryview | Path) -> int:
    if isinstance(data, memoryview):
        return data.nbytes
    try:
        return data.stat().st_size
    except OSError as exc:
        raise BlobNotFound(f"{data}: {exc.strerror}") from exc


def _blocks(data: memoryview | Path) -> Iterator[memoryview]:
    if isinstance(data, memoryview):
        view = data.cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            yield view[start : start + BLOCK_BYTES]
        return
    block = memoryview(bytearray(BLOCK_BYTES))
    with _opened(data) as file:
        while count := file.readinto(block):
            yield block[:count]


def _opened(path: Path) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as exc:
        raise BlobError(f"{path}: {exc.strerror}") from exc
