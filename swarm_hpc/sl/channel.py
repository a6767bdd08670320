"""The ML program's end of the channel to its SL node (docs/protocol.md 3): blocking, light, for any framework."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from swarm_hpc.errors import NotReachable, ProtocolError, TimedOut, by_name
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import parse
from swarm_hpc.records import FinishMode, MergeMethod, Progress
from swarm_hpc.sl.frames import (
    ANSWERS,
    LENGTH_BYTES,
    PREFIX_BYTES,
    SILENCE_S,
    Failure,
    Finished,
    FinishRequest,
    Leave,
    Ok,
    Opened,
    OpenRequest,
    Request,
    Saved,
    Synced,
    SyncRequest,
    Waiting,
    check_length,
    finite,
    pack,
    unpack,
)
from swarm_hpc.sockets import address_of

__all__ = ["Finished", "LeaveAsked", "MlChannel", "OpenRequest", "Session", "Synced"]

log = logging.getLogger(__name__)

A = TypeVar("A")

_RETRY_S: Final = 0.1
"""Between two tries to connect: the socket appears when SL is ready."""


class LeaveAsked(Exception):
    """SL wants the program to save its state and to end; it does not answer the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What SL agreed to. `arena` belongs to the channel, which closes it."""

    arena: Arena
    resume: bool
    """The arena already holds the contract's latest merged parameters: load them and skip the first sync."""
    contract: str
    min_peers: int
    merge_method: MergeMethod
    node_weight: int
    round: int
    """The number of the contract's current round."""
    created_at: int
    """When the contract was created, seconds since 1970; one that was reset and is used anew has another time."""


class MlChannel:
    """One session with SL. Use it as a context manager, or call `close`; for one thread at a time.

    Every request waits as long as SL says that it still works (`on_waiting`); TimedOut after `timeout_s` of silence.
    What SL refuses is raised as the error of errors.py that it names. NotReachable: SL has ended. LeaveAsked, by open,
    sync and finish: the program is to save its state, to call `saved`, and to end.
    """

    def __init__(self, connection: socket.socket, *, timeout_s: float = SILENCE_S) -> None:
        """Take over a connected socket; `connect` makes one."""
        self.on_waiting: Callable[[str], None] = _log_waiting
        """Called with the reason, about every 5 s, while SL works on an answer."""
        self._socket = connection
        self._timeout_s = timeout_s
        self._arena: Arena | None = None
        self._leave: Leave | None = None
        self._pid = os.getpid()
        connection.settimeout(timeout_s)

    @classmethod
    def connect(cls, socket_path: str, *, timeout_s: float = SILENCE_S) -> Self:
        """Connect to the SL node whose socket that is (SWARM_SL_SOCKET).

        NotReachable where none has come up within `timeout_s`, which is also how long later silence is borne.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with address_of(Path(socket_path)) as address:
                    connection.connect(address)
            except OSError as exc:
                connection.close()
                if time.monotonic() >= deadline:
                    reason = exc.strerror or exc
                    raise NotReachable(
                        f"no SL node at {socket_path}: {reason}; start `swarm-hpc sl`, or correct SWARM_SL_SOCKET"
                    ) from exc
                time.sleep(_RETRY_S)
            else:
                return cls(connection, timeout_s=timeout_s)

    def open(self, request: OpenRequest) -> Session:
        """Take part in a training contract.

        ConfigError (ContractMismatch, ModelMismatch, ...) where the settings or the model do not fit.
        """
        assert self._arena is None, "one session per channel"
        answer, fd = self._exchange(request, Opened)
        if fd is None:
            raise ProtocolError("channel: SL opened the session without an arena")
        self._arena = _attach(fd, answer)
        return Session(
            arena=self._arena,
            resume=answer.resume,
            contract=answer.contract,
            min_peers=answer.min_peers,
            merge_method=answer.merge_method,
            node_weight=answer.node_weight,
            round=answer.round,
            created_at=answer.created_at,
        )

    def sync(self, *, loss: float | None = None, metric: float | None = None, epoch: int = 0, batch: int = 0) -> Synced:
        """Merge the parameters in the arena with those of the peers; afterwards the arena holds the merged ones.

        A loss or metric that is not finite is reported as unknown.
        """
        return self._ask(
            SyncRequest(loss=finite(loss), metric=finite(metric), epoch=epoch, batch=batch),
            Synced,
        )

    def progress(self, progress: Progress) -> None:
        """Tell the monitor how far the program is; no round, no wait."""
        self._ask(progress, Ok)

    def finish(self, mode: FinishMode) -> Finished:
        """Sync for the last time (unless `inactive`), and wait until the contract is completed.

        The arena then holds the final model.
        """
        return self._ask(FinishRequest(mode=mode), Finished)

    def leave_reason(self) -> str | None:
        """Why the program is to save its state and to end; None as long as it is not. Costs one look at the socket."""
        if self._leave is None and self._has_news():
            with self._translated():
                answer, _ = self._receive()
            if not isinstance(answer, Leave):
                raise ProtocolError(f"channel: SL sent {type(answer).__name__} that nobody asked for")
            self._leave = answer
        return self._leave.reason if self._leave is not None else None

    def saved(self) -> None:
        """Tell SL that the state is saved: the program now ends."""
        self._ask(Saved(), Ok)

    def close(self) -> None:
        """End the session and give the arena back. May be repeated."""
        if os.getpid() == self._pid:
            # what the program has forked meanwhile has the socket, too, and SL would wait for the end of that
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._arena is not None:
            self._arena.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Request, expected: type[A]) -> A:
        answer, fd = self._exchange(request, expected)
        if fd is not None:
            os.close(fd)
            raise ProtocolError("channel: SL sent a file descriptor that nobody asked for")
        return answer

    def _exchange(self, request: Request, expected: type[A]) -> tuple[A, int | None]:
        """Send a request and wait for its answer, and the file descriptor that came with it."""
        is_short = isinstance(request, Progress | Saved)
        with self._translated():
            if not (self._leave is None or is_short):
                raise LeaveAsked(self._leave.reason)
            self._socket.sendall(pack(request))
            while True:
                answer, fd = self._receive()
                if isinstance(answer, expected):
                    return answer, fd
                if fd is not None:
                    os.close(fd)
                match answer:
                    case Failure():
                        raise by_name(answer.name)(answer.detail)
                    case Leave():
                        self._leave = answer
                        if not is_short:
                            raise LeaveAsked(answer.reason)
                    case Waiting():
                        self.on_waiting(answer.reason)
                    case _:
                        kind = type(answer).__name__
                        raise ProtocolError(f"channel: SL answered {kind} instead of {expected.__name__}")

    def _has_news(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the socket as what they mean."""
        try:
            yield
        # a TimeoutError is an OSError, too
        except TimeoutError as exc:
            raise TimedOut(f"SL is gone: nothing heard from it for {self._timeout_s:.0f} s; see its log") from exc
        except OSError as exc:
            raise NotReachable(f"SL is gone ({exc.strerror or exc}); see its log") from exc

    def _receive(self) -> tuple[Any, int | None]:
        """The next frame. The descriptor comes with the frame's first bytes."""
        prefix, fds = b"", []
        while len(prefix) < PREFIX_BYTES:
            data, new, _, _ = socket.recv_fds(self._socket, PREFIX_BYTES - len(prefix), 1, socket.MSG_CMSG_CLOEXEC)
            fds += new
            if not data:
                break
            prefix += data
        try:
            if len(prefix) < PREFIX_BYTES:
                raise ConnectionResetError("it closed the connection")
            answer = unpack(self._read(check_length(int.from_bytes(prefix, "big"))), ANSWERS)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return answer, fds[0] if fds else None

    def _read(self, size_bytes: int) -> bytearray:
        payload = bytearray(size_bytes)
        view = memoryview(payload)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError("it closed the connection")
            view = view[count:]
        return payload


def _attach(fd: int, answer: Opened) -> Arena:
    text = answer.layout.encode()
    try:
        layout = parse(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        if layout.size_bytes != answer.size_bytes:
            raise ProtocolError(f"channel: an arena of {answer.size_bytes} bytes for a model of {layout.size_bytes}")
    except BaseException:
        os.close(fd)
        raise
    return Arena.attach(fd, layout)


def _log_waiting(reason: str) -> None:
    log.info("%s", reason)
