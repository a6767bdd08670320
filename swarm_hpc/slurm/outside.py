"""An SL node and its program in containers of their own: nobody can start a container from within another one.

So a process on the host, `run`, starts SL's. What SL starts as its program is `main` of this file, which asks the
process on the host to start the real one, hands it signals, and ends as it ended. For SL it is the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from swarm_hpc.errors import ProgramFailed
from swarm_hpc.processes import POLL_S, Process, stop
from swarm_hpc.slurm.container import CHANNEL, OWN, STATE
from swarm_hpc.sockets import address_of

MODULE: Final = "swarm_hpc.slurm.outside"
_SOCKET: Final = "outside.sock"
_TERM: Final = b"T"
_MAX_REQUEST_BYTES: Final = 1 << 20
_CONNECT_S: Final = 10.0
_END_S: Final = 10.0
_FORWARDED: Final = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The two command lines, on the host."""

    sl: Sequence[str]
    program: Sequence[str]
    """May have {channel} and {state} in its words."""
    cwd: Path
    log: Path | None
    """Takes the program's output."""
    folder: Path
    """Where both meet; seen in SL's container, too."""
    env: dict[str, str] = field(default_factory=dict)
    """The program's own variables."""
    without: tuple[str, ...] = ()
    """What begins so is for SL only."""
    pass_fds: tuple[int, ...] = ()
    """What SL inherits besides."""


def launcher(folder: Path) -> list[str]:
    """What SL is given as the launcher of its program."""
    return ["python3", "-m", MODULE, str(folder / _SOCKET), CHANNEL, STATE]


def run(pair: Pair) -> int:
    """Start SL, and its program when it asks for it; SL's exit code, negative: the signal that ended it.

    Signals are handed to SL, which decides what they mean. At the end nothing is left running.
    """
    with _listening(pair.folder / _SOCKET) as listening, _Forward() as forward:
        sl = Process.start("sl", pair.sl, log=None, pass_fds=pair.pass_fds)
        forward.to(sl)
        try:
            _serve(pair, sl, listening)
        finally:
            stop([sl], _END_S)
        assert sl.code is not None
        return sl.code


def _serve(pair: Pair, sl: Process, listening: socket.socket) -> None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(listening, selectors.EVENT_READ)
        program: _Program | None = None
        while sl.code is None:
            for key, _ in selector.select(POLL_S):
                if key.fileobj is listening and program is None:
                    program = stack.enter_context(_Program.accept(pair, listening))
                    selector.register(program.connection, selectors.EVENT_READ)
                elif program is not None and not program.listen():
                    selector.unregister(program.connection)
            if program is not None:
                program.tell()


class _Forward:
    """Signals go to SL while the block runs."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._missed: list[int] = []

    def __enter__(self) -> _Forward:
        self._before = {number: signal.signal(number, self._take) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, process: Process) -> None:
        """From now on; what came before is not lost."""
        self._process = process
        for number in self._missed:
            process.signal(number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._missed.append(number)
        else:
            self._process.signal(number)


class _Program:
    """The real program, and the connection of who stands for it in SL's container."""

    def __init__(self, process: Process, connection: socket.socket) -> None:
        self.connection = connection
        self._process = process
        self._told = False

    @classmethod
    @contextmanager
    def accept(cls, pair: Pair, listening: socket.socket) -> Iterator[_Program]:
        """Start what is asked for; at the end of the block it is ended, and all that it started."""
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(_CONNECT_S)
            asked = json.loads(_read_line(connection))
            filled = [
                word.replace(CHANNEL, str(asked["channel"])).replace(STATE, str(asked["state"]))
                for word in pair.program
            ]
            env = {**pair.env, **asked["env"]}
            process = Process.start("program", filled, log=pair.log, env=env, cwd=pair.cwd, without=pair.without)
            try:
                yield cls(process, connection)
            finally:
                _kill(process)

    def listen(self) -> bool:
        """Do as the one in the container says; False when it has gone, and the program with it."""
        try:
            said = self.connection.recv(64)
        except OSError:
            said = b""
        if _TERM in said and self._process.code is None:
            self._process.signal(signal.SIGTERM)
        if not said:
            _kill(self._process)
        return bool(said)

    def tell(self) -> None:
        """How the program has ended, once it has."""
        code = self._process.code
        if code is not None and not self._told:
            self._told = True
            self._process.kill_all()
            with contextlib.suppress(OSError):
                self.connection.sendall(b"%d\n" % code)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        with address_of(path) as address:
            listening.bind(address)
        path.chmod(0o600)
        listening.listen(1)
        yield listening


def _kill(process: Process) -> None:
    """Without a word: who asks for it has waited long enough."""
    process.kill_all()
    process.popen.wait()


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_REQUEST_BYTES:
        part = connection.recv(65536)
        if not part:
            break
        line += part
    return line


def main(words: Sequence[str]) -> int:
    """Stand for the program in SL's container.

    Words: SOCKET CHANNEL STATE, and the program's own, which the host knows.
    """
    path, channel, state = words[:3]
    env = {name: value for name, value in os.environ.items() if name.startswith(OWN)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with address_of(Path(path)) as address:
                connection.connect(address)
        except OSError as exc:
            raise ProgramFailed(f"nobody starts programs at {path} ({exc.strerror})") from exc
        signal.signal(signal.SIGTERM, lambda *_: connection.sendall(_TERM))
        connection.sendall(json.dumps({"channel": channel, "state": state, "env": env}).encode() + b"\n")
        told = _read_line(connection)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not told:
        raise ProgramFailed("the process on the host that starts the program in its container has ended")
    code = int(told)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL is never handled
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProgramFailed as failure:
        sys.exit(f"swarm-hpc: {failure}")
