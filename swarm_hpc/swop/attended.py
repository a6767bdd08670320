"""Commands that outlive SWOP: each under an attendant (attendant.py), and found again by its folder.

The folder holds `order.json`, what to run; `claim`, the attendant that runs it, made once and for ever; `log`; and
`end`, how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swarm_hpc import processes
from swarm_hpc.durable import write
from swarm_hpc.errors import ProgramFailed, TimedOut
from swarm_hpc.swop.executor import Failure, Standing
from swarm_hpc.swop.part import SlotState

MODULE: Final = "swarm_hpc.swop.attendant"
ORDER: Final = "order.json"
CLAIM: Final = "claim"
END: Final = "end"
LOG: Final = "log"
START_S: Final = 60.0
"""How long an attendant has to claim its folder."""
GRACE_S: Final = 40.0
"""How long a command has to end when it is told to: an ML program saves its state."""
_MARGIN_S: Final = 5.0
_NOBODY: Final = "0 0"
"""A claim that keeps every attendant away."""
_END_LINES: Final = 50
_OURS: Final = "swarm-hpc: "
_PROGRAM_ENDED: Final = re.compile(rf"{_OURS}the ML program \S+ ended with ([\w ]+); ")
"""The last word of an SL whose program has failed; the end of the program's log follows."""


def start(folder: Path, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> str:
    """Run the command, unless one was run in that folder already; the attendant's process ID.

    TimedOut: no attendant came up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / CLAIM
    if not claim.exists():
        _write(folder / ORDER, {"command": list(command), "env": dict(env), "cwd": str(cwd)})
        _start_attendant(folder)
    deadline = time.monotonic() + START_S
    while not claim.exists():
        if time.monotonic() > deadline:
            raise TimedOut(f"{folder}: no process came up within {START_S:g} s; see {folder / LOG}")
        time.sleep(processes.POLL_S / 2)
    return claim.read_text(encoding="ascii").split()[0]


def poll(folder: Path) -> Standing:
    """How the command stands."""
    ended = _read_end(folder)
    if ended is None and not _is_alive(folder):
        ended = _read_end(folder)  # it may have ended in between
        if ended is None:
            return Standing(SlotState.FAILED, "its process was lost: was this host restarted, or is it another one?")
    if ended is None:
        return Standing(SlotState.STARTED, "running")
    if ended == 0:
        return Standing(SlotState.DONE, "done")
    named = f"signal {-ended} ({signal.Signals(-ended).name})" if ended < 0 else f"exit code {ended}"
    return Standing(SlotState.FAILED, named)


def cancel(folder: Path) -> None:
    """End the command and all that it has started, or keep it from ever starting. Returns when nothing is left."""
    folder.mkdir(parents=True, exist_ok=True)
    if claim(folder, _NOBODY):
        return
    deadline = time.monotonic() + GRACE_S + _MARGIN_S
    pid = _attendant(folder)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while _is_alive(folder) and time.monotonic() < deadline:
        time.sleep(processes.POLL_S / 2)
    if (pid := _attendant(folder)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the kernel takes the command along


def failure(log: Path) -> Failure:
    """What a `swarm-hpc sl` said at its end."""
    said = next((line for line in reversed(processes.last_lines(log, _END_LINES)) if line.startswith(_OURS)), "")
    if ended := _PROGRAM_ENDED.match(said):
        return Failure(f"its program ended with {ended[1]}")
    return Failure(said.removeprefix(_OURS), is_programs=not said)


def claim(folder: Path, who: str) -> bool:
    """Take the folder for `who`; False: somebody has it. The claim appears with its content, or not at all."""
    beside = folder / f"{CLAIM}.{os.getpid()}"
    beside.write_text(who, encoding="ascii")
    try:
        os.link(beside, folder / CLAIM)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


def started_at(pid: int) -> str:
    """When the process began, in the kernel's own count; empty: there is none. Tells a process from a later one with
    its ID."""
    try:
        words = processes.read_stat(pid)
    except OSError:
        return ""
    return "" if words[0] in ("Z", "X") else f"{words[19]}"


def write_end(folder: Path, code: int) -> None:
    """How the command ended; negative: the signal."""
    _write(folder / END, {"code": code})


def _start_attendant(folder: Path) -> None:
    """As a daemon of its own: it outlives us, and is nobody's zombie."""
    with (folder / LOG).open("ab") as log:
        try:
            subprocess.run(
                [sys.executable, "-m", MODULE, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=True,
                timeout=START_S,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise ProgramFailed(f"{folder}: cannot start {MODULE}: {exc}; see {folder / LOG}") from exc


def _attendant(folder: Path) -> int | None:
    """Process ID of the attendant, if it is alive."""
    try:
        pid, began = (folder / CLAIM).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(pid) if int(pid) > 0 and started_at(int(pid)) == began else None


def _is_alive(folder: Path) -> bool:
    return _attendant(folder) is not None


def _read_end(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / END).read_text(encoding="utf-8"))["code"])
    except FileNotFoundError:
        return None


def _write(file: Path, value: dict[str, Any]) -> None:
    write(file, json.dumps(value).encode(), mode=0o600)
