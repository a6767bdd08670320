"""The ordinary user's commands: whose they are, what they can do, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from swarm_hpc.processes import Process
from tests.lab.slurm import until
from tests.lab.unprivileged import REPOSITORY, Unprivileged, has_ended, ordinary_user

PATIENCE_S = 30.0
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def test_a_command_is_the_users_own_and_finds_python_and_the_checkout(unprivileged: Unprivileged) -> None:
    program = "import getpass, os, swarm_hpc; print(os.getuid(), getpass.getuser(), os.getcwd(), os.environ['HOME'])"
    done = unprivileged.run(sys.executable, "-c", program, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    uid, *rest = done.stdout.split()
    assert uid != "0"
    assert rest[:2] == [unprivileged.user, str(unprivileged.home)]
    assert unprivileged.run("touch", "mine").returncode == 0


@AS_ROOT
def test_no_program_gives_a_privilege_back_and_what_is_roots_stays_closed(
    unprivileged: Unprivileged, tmp_path: Path
) -> None:
    assert unprivileged.run("grep", "--quiet", "NoNewPrivs:[[:space:]]1", "/proc/self/status").returncode == 0
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    assert unprivileged.run("cat", secret).returncode != 0
    assert unprivileged.run("touch", REPOSITORY / "theirs").returncode != 0


@AS_ROOT
def test_closed_folders_within_closed_folders_are_opened_for_the_user_alone(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "between" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("read me")
    for folder in (outer, inner):
        folder.chmod(0o700)
    with ordinary_user(inner) as one:
        assert one.run("cat", inner / "file").stdout == "read me"
    assert {folder.stat().st_mode & 0o777 for folder in (outer, inner)} == {0o700}


def test_exit_code_and_signals_are_the_commands_own(unprivileged: Unprivileged) -> None:
    assert unprivileged.run("sh", "-c", "exit 7").returncode == 7
    trap = "trap 'echo told; exit 9' USR1; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen([*unprivileged.launcher, "sh", "-c", trap], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=PATIENCE_S)[0] == "told\n"
    assert process.returncode == 9


def test_a_command_dies_with_the_process_that_started_it(unprivileged: Unprivileged, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from swarm_hpc.processes import Process\n"
        "print(Process.start('sleep', sys.argv[2:], log=pathlib.Path(sys.argv[1])).popen.pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log"), *unprivileged.launcher, "sleep", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: psutil.Process(pid).name() == "sleep", "the command to run", PATIENCE_S)
        parent.kill()
    until(lambda: has_ended(pid), "the command to die", PATIENCE_S)


@AS_ROOT
def test_nothing_is_left_at_the_end_not_even_what_has_left_its_parent(tmp_path: Path) -> None:
    with ordinary_user() as one:
        done = one.run("sh", "-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!")
        pid = int(done.stdout)
        assert pid in one.pids()
        process = Process.start("sleep", [*one.launcher, "sleep", "600"], log=tmp_path / "log")
        until(lambda: process.popen.pid in one.pids(), "the command to run", PATIENCE_S)
    assert has_ended(pid)
    assert process.popen.wait(PATIENCE_S) == -signal.SIGKILL
    assert has_ended(one.holder)
    assert not one.home.parent.exists()
