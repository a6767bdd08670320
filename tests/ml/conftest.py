"""A stub SL at the other end of the real channel: it answers at once, and keeps what it was asked."""

import contextlib
import socket
import threading

import pytest

from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.records import MergeMethod, Progress
from swarm_hpc.sl import frames


class StubSl:
    """Serves sessions on a Unix socket, one after the other. Merging leaves the arena as it is, unless a test
    replaces `merge`."""

    def __init__(self, path):
        self.path = str(path)
        self.requests = []
        self.arena = None
        self.resume = False
        self.round = 1
        self.created_at = 1_700_000_000
        self.refusal = None
        """Answered to every sync; "break off" ends the session without an answer."""
        self.over_at = None
        """The training is over with this round."""
        self.leave_at = None
        """Instead of answering this sync or finish (counted from 1) the program is told to leave."""
        self.merge = lambda arena: None
        self.num_rounds = 0
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def asked(self, kind):
        return [request for request in self.requests if isinstance(request, kind)]

    def close(self):
        """May be repeated. Fails where the program keeps its session open."""
        if self._listening.fileno() < 0:
            return
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "the program did not close its session"
        if self.arena:
            self.arena.close()

    def ask_to_leave(self):
        """While the program asks for nothing."""
        self._connection.sendall(frames.pack(frames.Leave(reason="time is up")))

    def restart(self, *, round=None, value=None):
        """Be ready for the program's next job: this is the contract's round, and the newest parameters are that."""
        self.leave_at, self.resume = None, value is not None
        self.round = self.num_rounds + 1 if round is None else round
        if value is not None:
            self.arena.array("v")[:] = value

    def _serve(self):
        with contextlib.suppress(OSError):  # no program comes any more
            while True:
                connection, _ = self._listening.accept()
                with connection, connection.makefile("rb") as reader:
                    self._serve_session(connection, reader)

    def _serve_session(self, connection, reader):
        self._connection = connection
        while prefix := reader.read(frames.PREFIX_BYTES):
            request = frames.unpack(reader.read(int.from_bytes(prefix, "big")), frames.REQUESTS)
            self.requests.append(request)
            if self.refusal == "break off":
                return
            frame = frames.pack(self._answer(request))
            if isinstance(request, frames.OpenRequest):
                frame = frame[socket.send_fds(connection, [frame], [self.arena.fd]) :]
            connection.sendall(frame)

    def _answer(self, request):
        if isinstance(request, Progress | frames.Saved):
            return frames.Ok()
        if isinstance(request, frames.OpenRequest):
            return self._open(request)
        if self.refusal is not None:
            return self.refusal
        self.num_rounds += 1
        if self.num_rounds == self.leave_at:
            return frames.Leave(reason="time is up")
        self.merge(self.arena)
        if isinstance(request, frames.FinishRequest):
            return frames.Finished(round=self.num_rounds, merged="ab" * 32)
        over = self.num_rounds == self.over_at
        return frames.Synced(round=self.num_rounds, num_peers=2, training_over=over, late=False)

    def _open(self, request):
        if self.arena is None:
            self.arena = Arena.create(place(request.tensors, request.aliases))
        layout = self.arena.layout
        return frames.Opened(
            layout=layout.header[8:].decode(),
            size_bytes=layout.size_bytes,
            resume=self.resume,
            contract=request.contract or "default",
            min_peers=request.min_peers or 2,
            merge_method=request.merge_method or MergeMethod.MEAN,
            node_weight=request.node_weight or 1,
            round=self.round,
            created_at=self.created_at,
        )


@pytest.fixture
def sl(tmp_path, monkeypatch):
    """A stub SL that the environment points to."""
    stub = StubSl(tmp_path / "sl.sock")
    monkeypatch.setenv("SWARM_SL_SOCKET", stub.path)
    monkeypatch.delenv("SWARM_LOOPBACK", raising=False)
    yield stub
    stub.close()


@pytest.fixture
def loopback(monkeypatch):
    monkeypatch.setenv("SWARM_LOOPBACK", "True")
    monkeypatch.delenv("SWARM_SL_SOCKET", raising=False)
