"""The ML program as a child process."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from swarm_hpc.config import ProgramConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.sl.program import last_lines, started, used_cpu_s


def python(code, log, **fields):
    return ProgramConfig(command=[sys.executable, "-c", textwrap.dedent(code)], log=str(log), **fields)


async def lines_of(log, count):
    while len(lines := log.read_text().splitlines() if log.exists() else []) < count:
        await asyncio.sleep(0.01)
    return lines


async def gone(pid):
    """Wait until the process has ended (a zombie has: nobody here is its parent)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.01)


async def test_a_program_gets_its_environment_folder_and_log(tmp_path):
    log = tmp_path / "ml.log"
    code = "import os; print(os.environ['A'], os.environ['SWARM_SL_SOCKET'], os.getcwd()); raise SystemExit(7)"
    config = python(code, log, env={"A": "1"}, cwd=str(tmp_path))
    async with started(config, {"SWARM_SL_SOCKET": "/s"}) as program:
        assert await program.wait() == 7
    assert log.read_text() == f"1 /s {tmp_path}\n"
    assert "exit code 7" in str(program.failure(7)) and f"1 /s {tmp_path}" in str(program.failure(7))


async def test_a_launcher_starts_the_program_and_errors_are_the_program_s(tmp_path):
    log = tmp_path / "ml.log"
    config = python("raise SystemExit(3)", log, launcher=["/usr/bin/env", "A=1"])
    async with started(config, {}) as program:
        assert await program.wait() == 3
    assert f"the ML program {sys.executable} ended" in str(program.failure(3))
    with pytest.raises(ConfigError, match=r"program\.launcher: 'no-such-thing'"):
        async with started(python("", log, launcher=["no-such-thing"]), {}):
            pass


async def test_a_program_that_does_not_listen_is_killed_with_its_children(tmp_path):
    log = tmp_path / "ml.log"
    code = """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
    """
    async with started(python(code, log, stop_timeout_s=0.2), {}) as program:
        lines = await lines_of(log, 2)
    assert await program.wait() == -signal.SIGKILL
    [child] = [int(line) for line in lines if line.isdigit()]
    while (
        Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):
        await asyncio.sleep(0.01)


async def test_a_program_does_not_outlive_an_sl_that_is_killed(tmp_path):
    log = tmp_path / "ml.log"
    code = f"""
        import asyncio, sys
        from swarm_hpc.config import ProgramConfig
        from swarm_hpc.sl.program import started
        async def main():
            command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
            async with started(ProgramConfig(command=command, log={str(log)!r}), {{}}) as program:
                await program.wait()
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as sl:
        [pid] = await lines_of(log, 1)
        sl.kill()
    while (
        Path(f"/proc/{pid}/stat").exists()
        and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": ["no-such-program"]}, "program.command: 'no-such-program'"),
        ({"command": ["true"], "cwd": "/no/such/folder"}, "program.cwd: /no/such/folder"),
        ({"command": ["true"], "log": "/no/such/folder/ml.log"}, "program.log"),
    ],
)
async def test_a_program_that_cannot_be_started_is_a_settings_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        async with started(ProgramConfig(**changes), {}):
            pass


def test_cpu_time_is_read_from_the_kernel_and_0_for_a_process_that_is_gone():
    assert used_cpu_s(os.getpid()) > 0
    assert used_cpu_s(2**22 + 1) == 0


def test_the_cpu_time_of_a_program_whose_name_is_not_utf_8_is_known():
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b'l\\xe4ufer', 0, 0, 0)"  # PR_SET_NAME, in Latin-1
    command = [sys.executable, "-S", "-c", f"{name}; print('ready', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert used_cpu_s(process.pid) >= 0
        process.kill()


def test_the_last_lines_of_a_log_are_enough(tmp_path):
    log = tmp_path / "ml.log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert last_lines(log).splitlines()[-1] == "line 999" and len(last_lines(log).splitlines()) < 50
    assert "not readable" in last_lines(tmp_path / "none.log")
