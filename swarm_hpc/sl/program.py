"""The ML program as a child process of SL: started, waited for, stopped; it never outlives SL."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final

from swarm_hpc.config import ProgramConfig
from swarm_hpc.errors import ConfigError, ProgramFailed
from swarm_hpc.processes import kill_session, read_stat

log = logging.getLogger(__name__)

_TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 8192

# PR_SET_PDEATHSIG is 1. Not in preexec_fn, since SL has threads: an interpreter of its own, which becomes the program.
_DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[3:])
"""


class Program:
    """A running program. `started` makes it and stops it."""

    def __init__(self, process: asyncio.subprocess.Process, config: ProgramConfig) -> None:
        self.pid = process.pid
        self._process = process
        self._config = config

    async def wait(self) -> int:
        """Its exit code; negative: the signal that ended it."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the program and what it has started: SIGTERM, and SIGKILL after stop_timeout_s. May be repeated."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.stop_timeout_s):
                    await self._process.wait()
        await asyncio.to_thread(kill_session, self.pid)
        await self._process.wait()

    def failure(self, code: int) -> ProgramFailed:
        """The error that says how it ended, with the last lines of its log."""
        ending = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        text = f"the ML program {self._config.command[0]} ended with {ending}"
        if not self._config.log:
            return ProgramFailed(f"{text}; its output is above")
        return ProgramFailed(f"{text}; {self._config.log} ends with:\n{last_lines(Path(self._config.log))}")

    def _signal(self, number: signal.Signals) -> None:
        # the group's number stays taken while any of its processes lives
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@asynccontextmanager
async def started(
    config: ProgramConfig, env: Mapping[str, str], *, without: tuple[str, ...] = ()
) -> AsyncIterator[Program]:
    """Start the program with SL's environment, the configured one and `env`; at the end of the block it is stopped.

    `without`: variables of SL's own that begin so are not handed on.

    It has a session of its own and dies with SL, whatever kills that. SIGUSR2, which Slurm gives to all processes
    of a step, is for SL, and does not end it. ConfigError: it cannot be started.
    """
    # the program inherits the environment as it is, which no setting of SL comes from
    own = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    environment = {**own, **config.env, **env}
    words = [*config.launcher, *config.command]
    path = _find(config, words[0], environment.get("PATH"))
    output = _open_log(config.log)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), path, *words),
            cwd=config.cwd,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()
    program = Program(process, config)
    log.info("started %s as process %d", config.command[0], program.pid)
    try:
        yield program
    finally:
        await asyncio.shield(program.stop())


def used_cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that have ended; 0 where it is gone."""
    try:
        words = read_stat(pid)
    except OSError:
        return 0.0
    # user, system and the children's time are fields 14 to 17
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def last_lines(file: Path) -> str:
    """The end of a log."""
    try:
        with file.open("rb") as log_file:
            log_file.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            text = log_file.read().decode(errors="replace")
    except OSError as exc:
        return f"(not readable: {exc.strerror})"
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _find(config: ProgramConfig, command: str, search_path: str | None) -> str:
    """The absolute path of what is to be run; a relative one starts at the program's working directory."""
    cwd = Path(config.cwd).absolute()
    if not cwd.is_dir():
        raise ConfigError(f"program.cwd: {config.cwd} is no folder")
    found = shutil.which(str(cwd / command) if os.sep in command else command, path=search_path)
    if found is None:
        key = "launcher" if config.launcher else "command"
        raise ConfigError(f"program.{key}: {command!r} is no program that can be run")
    return found


def _open_log(name: str) -> IO[bytes] | None:
    if not name:
        return None
    try:
        return Path(name).open("ab")
    except OSError as exc:
        raise ConfigError(f"program.log: cannot write {name}: {exc.strerror}") from exc
