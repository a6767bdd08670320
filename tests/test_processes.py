"""Children that never outlive us."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from swarm_hpc import processes
from swarm_hpc.errors import ProgramFailed, TimedOut
from swarm_hpc.processes import Process

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)",
]
PARENT = [
    sys.executable,
    "-S",
    "-c",
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']);"
    "print(child.pid, flush=True); time.sleep(600)",
]

ODD_NAME = [
    sys.executable,
    "-S",
    "-c",
    "import ctypes, time; ctypes.CDLL(None).prctl(15, b'l\\xe4ufer', 0, 0, 0);"  # PR_SET_NAME, in Latin-1
    "print('ready', flush=True); time.sleep(600)",
]

OUTSIDER = [sys.executable, "-S", "-c", "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"]


@pytest.fixture
def start(tmp_path):
    started = []

    def start(command, name="one", **options):
        started.append(Process.start(name, command, log=tmp_path / f"{name}.log", **options))
        return started[-1]

    yield start
    processes.stop(started, grace_s=0)


def first_line(process):
    deadline = time.monotonic() + 20
    while not process.log.read_text().endswith("\n"):
        assert time.monotonic() < deadline, "it never wrote a line"
        time.sleep(0.01)
    return process.log.read_text().splitlines()[0]


def gone(pid):
    """Whether the process is dead, or a zombie that whoever adopted it has yet to collect."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def await_gone(pid):
    deadline = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_output_goes_to_the_log_and_the_environment_is_added_to(start):
    program = "import os; print(os.environ['COLOUR'], 'PATH' in os.environ)"
    process = start([sys.executable, "-S", "-c", program], env={"COLOUR": "blue"})
    processes.wait([process], 20)
    assert process.tail() == "blue True"


def test_a_failure_ends_the_wait_and_shows_the_end_of_the_log(start):
    good = start(SLEEPER, "good")
    bad = start([sys.executable, "-S", "-c", "raise SystemExit('no data')"], "bad")
    with pytest.raises(ProgramFailed, match=r"bad ended with exit code 1: no data \(log: .*bad\.log\)"):
        processes.wait([good, bad], 20)
    assert good.code is None


def test_a_killed_process_is_reported_by_its_signal(start):
    process = start(SLEEPER)
    process.signal(signal.SIGKILL)
    with pytest.raises(ProgramFailed, match="was ended by SIGKILL"):
        processes.wait([process], 20)


def test_a_wait_that_is_over_names_who_still_runs(start):
    with pytest.raises(TimedOut, match="one did not end within 0 s"):
        processes.wait([start(SLEEPER)], 0)


def test_an_unknown_program_is_named(start):
    with pytest.raises(ProgramFailed, match="no-such-program"):
        start(["no-such-program"])


@pytest.mark.slow
def test_stop_ends_grandchildren_and_who_ignores_sigterm(start):
    stubborn, parent = start(STUBBORN, "stubborn"), start(PARENT, "parent")
    assert first_line(stubborn) == "ready"
    grandchild = int(first_line(parent))
    processes.stop([stubborn, parent], grace_s=0.2)
    assert stubborn.code == -signal.SIGKILL
    assert parent.code == -signal.SIGTERM
    assert gone(grandchild)


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_when_stop_returns_no_session_that_was_begun_below_is_left(start, handler):
    program = f"import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.{handler})"
    process = start([sys.executable, "-S", "-c", f"{program}; subprocess.Popen({OUTSIDER!r}); time.sleep(600)"])
    outsider = int(first_line(process))
    assert not gone(outsider)
    processes.stop([process], grace_s=0.2)
    assert gone(outsider)


def test_stop_reaches_a_process_that_is_suspended(start):
    process = start(SLEEPER)
    process.signal(signal.SIGSTOP)
    processes.stop([process], grace_s=20)
    assert process.code == -signal.SIGTERM


def test_stop_does_not_wait_for_ever_for_what_the_kernel_does_not_let_go(start, monkeypatch):
    stubborn = start(STUBBORN)
    assert first_line(stubborn) == "ready"
    monkeypatch.setattr(processes, "_KILLED_S", 0.1)
    monkeypatch.setattr(processes._Entry, "kill", lambda self: None)
    stopping = threading.Thread(target=processes.stop, args=([stubborn], 0), daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
    assert stubborn.code is None


def test_stop_minds_no_process_whose_name_is_not_utf_8(start):
    odd, process = start(ODD_NAME, "odd"), start(SLEEPER)
    assert first_line(odd) == "ready"
    try:
        processes.stop([process], grace_s=20)
        assert process.code == -signal.SIGTERM
    finally:
        odd.popen.kill()
        odd.popen.wait()


@pytest.mark.parametrize(("nohup", "expected"), [([], "interrupted"), (["nohup"], "went on")])
def test_a_lost_terminal_ends_us_unless_we_were_started_by_nohup(nohup, expected):
    program = (
        "import signal; from swarm_hpc import processes\n"
        "try:\n"
        "    with processes.interruptible():\n"
        "        signal.raise_signal(signal.SIGHUP)\n"
        "    print('went on')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run(
        [*nohup, sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.stdout == f"{expected}\n", done.stderr


def test_children_die_when_their_supervisor_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from swarm_hpc.processes import Process;"
        f"child = Process.start('child', {SLEEPER!r}, log=Path({str(tmp_path / 'child.log')!r}));"
        "print(child.popen.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        assert not gone(child)
        os.kill(supervisor.pid, signal.SIGKILL)
    await_gone(child)
