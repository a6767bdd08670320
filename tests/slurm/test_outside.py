"""An SL and its program side by side: a stand-in for SL starts the program as it is told, without containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from swarm_hpc.processes import Process
from swarm_hpc.slurm import outside
from swarm_hpc.slurm.outside import Pair

# Starts its program in a process group, as SL does, and ends as that ends.
SL = """
import os, signal, subprocess, sys
os.environ["SWARM_SL_SOCKET"] = "/s/channel/ml.sock"
child = subprocess.Popen(sys.argv[1:], process_group=0)
signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
signal.signal(signal.SIGUSR2, lambda *_: child.kill())
print("up", flush=True)
code = child.wait()
print("ended", code, flush=True)
sys.exit(code if code >= 0 else 100 - code)
"""


def pair(folder: Path, program: str, **changes: object) -> Pair:
    stand_in = [sys.executable, *outside.launcher(folder)[1:]]
    filled = [word.replace("{channel}", "/s/channel").replace("{state}", "/s/state") for word in stand_in]
    fields = {
        "sl": [sys.executable, "-c", SL, *filled, "program"],
        "program": [sys.executable, "-c", textwrap.dedent(program), "{channel}", "{state}"],
        "cwd": folder,
        "log": folder / "ml.log",
        "folder": folder,
    }
    return Pair(**{**fields, **changes})


@pytest.mark.slow
def test_the_program_gets_what_sl_says_and_its_exit_code_goes_back(tmp_path: Path) -> None:
    code = """
        import os, sys
        print(sys.argv[1:], os.getcwd(), os.environ["SWARM_SL_SOCKET"], os.environ["A"], "PMI_RANK" in os.environ)
        raise SystemExit(7)
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PMI_RANK", "0")
        assert outside.run(pair(tmp_path, code, env={"A": "1"}, without=("PMI_",))) == 7
    said = (tmp_path / "ml.log").read_text()
    assert said == f"['/s/channel', '/s/state'] {tmp_path} /s/channel/ml.sock 1 False\n"


@pytest.mark.slow
def test_a_program_that_a_signal_ends_is_seen_to_end_so(tmp_path: Path) -> None:
    assert outside.run(pair(tmp_path, "import os; os.kill(os.getpid(), 9)")) == 100 + signal.SIGKILL


def after(file: Path, action: object) -> threading.Thread:
    """Do something once the file is there."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        action()  # type: ignore[operator]

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


WAITS = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path("told").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, leave)
pathlib.Path("up").touch()
time.sleep(600)
"""


@pytest.mark.slow
def test_a_signal_goes_to_sl_which_hands_it_to_the_program(tmp_path: Path) -> None:
    after(tmp_path / "up", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert outside.run(pair(tmp_path, WAITS)) == 3
    assert (tmp_path / "told").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_program_whose_stand_in_is_killed_is_ended(tmp_path: Path) -> None:
    after(tmp_path / "up", lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert outside.run(pair(tmp_path, WAITS)) == 100 + signal.SIGKILL
    assert not (tmp_path / "told").exists()
    assert not [
        one for one in psutil.Process().children(recursive=True) if "time.sleep(600)" in " ".join(one.cmdline())
    ]


@pytest.mark.slow
def test_an_sl_that_ends_takes_its_program_along(tmp_path: Path) -> None:
    gone = SL.replace('print("ended"', 'os._exit(5); print("ended"').replace(
        "child.wait()", "sys.stdin.read() or wait()"
    )
    wait = "def wait():\n    import pathlib, time\n    while not pathlib.Path(sys.argv[-1]).exists(): time.sleep(.01)\n"
    words = pair(tmp_path, WAITS)
    sl = [*words.sl[:2], wait + gone, *words.sl[3:-1], str(tmp_path / "up")]
    assert outside.run(pair(tmp_path, WAITS, sl=sl)) == 5
    assert not [
        one for one in psutil.Process().children(recursive=True) if "time.sleep(600)" in " ".join(one.cmdline())
    ]


def test_an_sl_that_never_starts_a_program_ends_by_itself(tmp_path: Path) -> None:
    assert outside.run(pair(tmp_path, WAITS, sl=["/bin/sh", "-c", "exit 4"])) == 4
    assert not (tmp_path / "up").exists()


@pytest.mark.slow
def test_nothing_outlives_the_process_on_the_host(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    words = pair(tmp_path, WAITS)
    script.write_text(
        "from pathlib import Path\nfrom swarm_hpc.slurm import outside\n"
        f"outside.run(outside.Pair(sl={words.sl!r}, program={words.program!r}, cwd=Path({str(tmp_path)!r}), "
        f"log=None, folder=Path({str(tmp_path)!r})))\n"
    )
    host = Process.start("host", [sys.executable, str(script)], log=tmp_path / "host.log")
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline, host.tail()
        time.sleep(0.01)
    started = psutil.Process(host.popen.pid).children(recursive=True)
    assert len(started) == 3
    host.signal(signal.SIGKILL)
    host.popen.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_a_stand_in_without_anybody_outside_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", outside.MODULE, str(tmp_path / "none.sock"), "c", "s", "program"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "none.sock" in done.stderr
