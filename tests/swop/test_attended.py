"""Commands under attendants: real processes, run once whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm_hpc.processes import last_lines
from swarm_hpc.swop import attended
from swarm_hpc.swop.executor import Failure, Standing
from swarm_hpc.swop.part import SlotState

COUNTED = ["sh", "-c", 'echo run >> "$COUNT"; eval "$THEN"']
PATIENCE_S = 60.0


class Slot:
    """A folder, and a command in it that counts how often it runs."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "slot"
        self.count = root / "count"

    def start(self, then: str = "true") -> str:
        return attended.start(self.folder, COUNTED, env={"COUNT": str(self.count), "THEN": then}, cwd=self.folder)

    @property
    def runs(self) -> int:
        return len(self.count.read_text().splitlines()) if self.count.exists() else 0

    def end(self) -> Standing:
        until(lambda: attended.poll(self.folder).state.is_over)
        return attended.poll(self.folder)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    one = Slot(tmp_path)
    yield one
    attended.cancel(one.folder)


def test_a_command_runs_once_however_often_it_is_started(slot: Slot) -> None:
    assert slot.start() == slot.start()
    assert slot.end() == Standing(SlotState.DONE, "done")
    slot.start()
    assert slot.runs == 1


@pytest.mark.slow
@pytest.mark.parametrize(("then", "why"), [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9 (SIGKILL)")])
def test_how_a_command_failed_is_told(slot: Slot, then: str, why: str) -> None:
    slot.start(then)
    assert slot.end() == Standing(SlotState.FAILED, why)


@pytest.mark.slow
def test_what_was_cancelled_has_ended_and_what_was_not_started_never_starts(slot: Slot, tmp_path: Path) -> None:
    slot.start("sleep 1000")
    until(lambda: slot.runs == 1)
    attended.cancel(slot.folder)
    assert attended.poll(slot.folder).state is SlotState.FAILED
    other = Slot(tmp_path / "other")
    attended.cancel(other.folder)
    other.start()
    assert (attended.poll(other.folder).state, other.runs) == (SlotState.FAILED, 0)


def test_a_killed_attendant_takes_its_command_along_and_is_told_as_lost(slot: Slot) -> None:
    pid = int(slot.start("sleep 1000"))
    until(lambda: slot.runs == 1)
    os.kill(pid, signal.SIGKILL)
    assert slot.end().why.startswith("its process was lost")


@pytest.mark.slow
def test_a_command_outlives_who_started_it(slot: Slot) -> None:
    words = f"""
import os, signal
from pathlib import Path
from swarm_hpc.swop import attended
env = {{"COUNT": {str(slot.count)!r}, "THEN": "until test -e go; do sleep 0.05; done"}}
attended.start(Path({str(slot.folder)!r}), {COUNTED!r}, env=env, cwd=Path({str(slot.folder)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", words], timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL
    assert attended.poll(slot.folder).state is SlotState.STARTED
    (slot.folder / "go").touch()
    assert (slot.end().state, slot.runs) == (SlotState.DONE, 1)


@pytest.mark.slow
def test_a_program_that_is_not_there_fails_with_its_name(slot: Slot) -> None:
    attended.start(slot.folder, ["/no/such/program"], env={}, cwd=slot.folder)
    assert slot.end().why == "exit code 127"
    assert "/no/such/program" in last_lines(slot.folder / attended.LOG, 1)[0]


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("swarm-hpc: sn:30304: nobody answers\nsrun: error: task 0\n", Failure("sn:30304: nobody answers", False)),
        (
            "swarm-hpc: the ML program x ended with exit code 1; /ml.log ends with: secret\n",
            Failure("its program ended with exit code 1"),
        ),
        (
            "swarm-hpc: the ML program x ended before its training was finished\n",
            Failure("the ML program x ended before its training was finished", False),
        ),
        ("no word of ours\n", Failure()),
    ],
)
def test_an_sl_says_why_it_failed_and_nothing_of_what_its_program_wrote(
    tmp_path: Path, said: str, failure: Failure
) -> None:
    (tmp_path / "log").write_text(said)
    assert attended.failure(tmp_path / "log") == failure
