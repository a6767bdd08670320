"""The shell at a pretended terminal: commands, errors, Ctrl-C, Ctrl-D, history; and stdin where there is none."""

from __future__ import annotations

import asyncio
import io
import os
import signal

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci import shell
from swarm_hpc.swci.script import Console


@pytest.fixture
def console(desk) -> Console:
    return Console(desk.session, io.StringIO(), io.StringIO())


async def typed(console: Console, keys: str, history: str = "") -> int:
    """What the shell comes to when these keys are pressed."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return await shell.run_shell(console, history)


async def test_commands_are_carried_out_until_exit_and_errors_do_not_end_the_shell(console, tmp_path) -> None:
    history = tmp_path / "history"
    keys = "list contexts\n# nothing\n\nlst nodes\npwd\nexit\nnever\n"
    assert await typed(console, keys, str(history)) == 0
    out = console.out.getvalue()
    assert "default,127.0.0.1:30304,YES" in out
    assert "ERROR 'lst nodes' is not a command; did you mean LIST NODES?" in out
    assert str(tmp_path) in out
    assert console.prompt == "SWCI:4 > "
    assert "+lst nodes" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.slow
async def test_ctrl_d_ends_the_shell_and_ctrl_c_only_the_line(console) -> None:
    assert await typed(console, "rubb\x03pwd\n\x04") == 0
    assert "ERROR" not in console.out.getvalue()
    assert console.number == 1


async def test_exit_on_failure_ends_the_shell_with_the_errors_code(console) -> None:
    assert await typed(console, "exit on failure\nlst nodes\npwd\n") == 2


async def test_ctrl_c_ends_the_command_that_runs_and_not_the_shell(console, desk) -> None:
    async def interrupted(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    desk.session.sleep = interrupted
    assert await typed(console, "sleep 5\npwd\nexit\n") == 0
    assert "ERROR interrupted" in console.out.getvalue()
    assert console.number == 3


async def test_a_history_that_cannot_be_kept_is_an_error(console, tmp_path) -> None:
    with pytest.raises(ConfigError, match="history"):
        await typed(console, "exit\n", str(tmp_path / "no" / "history"))


async def test_without_a_terminal_lines_come_from_stdin(console, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("list contexts\nnonsense\npwd\n"))
    assert await shell.run_pipe(console) == 1
    assert console.err.getvalue().startswith("swci: stdin line 2: nonsense: ")
    assert console.number == 3
