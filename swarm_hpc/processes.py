"""Processes that never outlive us: own group each, ended when we end, and killed by the kernel when we are killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from swarm_hpc.errors import ProgramFailed, TimedOut

_PR_SET_PDEATHSIG: Final = 1
_END_BYTES: Final = 65536
_KILLED_S: Final = 30.0
"""How long we wait for killed processes to be gone; one that the kernel holds in a device's wait may stay longer."""
_SCAN_S: Final = 0.01
POLL_S: Final = 0.1
"""How often a wait looks whether a process has ended."""


@dataclass(slots=True)
class Process:
    """One child process, with its output in a log file. Whoever starts it stops it."""

    name: str
    log: Path | None
    """File with its output; None: it goes where ours does."""
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None,
        env: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start `command` in a session of its own; output is added to `log` (None: passed through), `env` to our own
        environment, but for variables that begin with one of `without`.

        Call from a thread that lives as long as the child may: the kernel kills the child when that thread ends.
        ProgramFailed when there is no such program.
        """
        own = {key: value for key, value in os.environ.items() if not key.startswith(without)}  # handed on, not read
        with ExitStack() as stack:
            output = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(log.open("ab"))
            try:
                popen = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if output else None,
                    env={**own, **(env or {})},
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=pass_fds,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as exc:
                raise ProgramFailed(f"{name}: cannot start {command[0]}: {exc.strerror}") from exc
        return cls(name, log, popen)

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs; negative: the signal that ended it."""
        return self.popen.poll()

    def tail(self, num_lines: int = 3) -> str:
        """The last lines of the log that say anything, on one line."""
        if self.log is None:
            return "its output is above"
        return " | ".join(last_lines(self.log, num_lines)) or "it wrote nothing"

    def check(self) -> None:
        """ProgramFailed, with the end of the log, if it has ended other than by finishing its work."""
        code = self.code
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            said = self.tail().rpartition("swarm-hpc: ")[2]  # our own commands end with what is wrong
            where = f" (log: {self.log})" if self.log else ""
            raise ProgramFailed(f"{self.name} {how}: {said}{where}")

    def signal(self, number: int) -> None:
        """Send a signal to the process itself; no-op when it has ended."""
        self.popen.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL for the process and all it started. Returns when they are gone, at the latest after 30 s."""
        _end(_sessions_of([self]))


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec so that a killed parent takes it along."""
    # Looked up before the fork: another thread of ours may hold the loader's lock at that moment.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl: nobody would tell us
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def last_lines(file: Path, num_lines: int) -> list[str]:
    """The last lines of a log that say anything; none where there is no file."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, os.SEEK_END)
            opened.seek(max(0, opened.tell() - _END_BYTES))
            lines = opened.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-num_lines:] if num_lines > 0 else []


@dataclass(frozen=True, slots=True)
class _Entry:
    """One process of this host, as /proc/PID/stat has it (proc(5))."""

    pid: int
    is_alive: bool
    parent: int
    session: int
    began: int
    """In clock ticks since boot: tells processes apart that have had the same number."""

    @classmethod
    def read(cls, pid: int) -> _Entry:
        words = read_stat(pid)
        return cls(pid, words[0] not in "ZX", int(words[1]), int(words[3]), int(words[19]))

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            os.kill(self.pid, signal.SIGKILL)


def _entries() -> list[_Entry]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(_Entry.read(int(folder.name)))
    return found


def read_stat(pid: int) -> list[str]:
    """What /proc/PID/stat (proc(5)) has behind the command, from the state on, its third field. OSError: it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()  # the command in parentheses may hold anything, in any bytes


def kill_session(leader: int) -> None:
    """SIGKILL for all processes of the session that this process has begun, groups of their own included: Apptainer's
    squashfuse_ll has one. Returns when they are gone, at the latest after 30 s."""
    began = next((entry.began for entry in _entries() if entry.pid == leader), 0)
    _end({leader: began})


def _sessions_of(processes: Sequence[Process]) -> dict[int, int]:
    """The sessions of the processes and of all that they started: which process began each, and when (0: it is over).

    What was started by a process that has ended is found only in a session that is known.
    """
    entries = _entries()
    began = {entry.pid: entry.began for entry in entries}
    # a process that was waited for is not there; one that has its number is somebody else's
    sessions = {one.popen.pid for one in processes if one.popen.returncode is None or one.popen.pid not in began}
    more = sessions
    while more:
        members = {entry.pid for entry in entries if entry.session in more}
        more = {entry.session for entry in entries if entry.parent in members} - sessions
        sessions |= more
    return {leader: began.get(leader, 0) for leader in sessions}


def _end(sessions: Mapping[int, int]) -> None:
    """SIGKILL for all processes of the sessions, until they are gone or 30 s have passed."""
    deadline = time.monotonic() + _KILLED_S
    while True:
        entries = _entries()
        taken = {entry.pid for entry in entries if entry.began != sessions.get(entry.pid, entry.began)}
        left = [entry for entry in entries if entry.is_alive and entry.session in sessions.keys() - taken]
        for entry in left:
            entry.kill()
        if not left or time.monotonic() > deadline:
            return
        time.sleep(_SCAN_S)


def wait(processes: Sequence[Process], timeout_s: float, *, every: Callable[[], None] | None = None) -> None:
    """Until all have ended well, calling `every` in between.

    ProgramFailed as soon as one ends with an error; TimedOut names those that still run.
    """
    deadline = time.monotonic() + timeout_s
    while running := [process for process in processes if process.code is None]:
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            names = ", ".join(process.name for process in running)
            raise TimedOut(f"{names} did not end within {timeout_s:g} s; last: {running[0].tail(1)}")
        if every:
            every()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].popen.wait(POLL_S)
    for process in processes:
        process.check()


def stop(processes: Sequence[Process], grace_s: float) -> None:
    """End all of them and what they started, in sessions of their own, too: SIGTERM, after `grace_s` SIGKILL.

    Returns when none is left, at the latest 30 s after the SIGKILL.
    """
    sessions = _sessions_of(processes)
    for process in processes:
        if process.code is None:
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)  # one that is stopped would not hear it
    deadline = time.monotonic() + grace_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, deadline - time.monotonic()))
    _end(_sessions_of(processes) | sessions)  # also what a process left behind
    for process in processes:
        process.popen.poll()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, by KeyboardInterrupt; a second one does not disturb the ending.

    A SIGHUP that was ignored before stays so: we were started by nohup.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
