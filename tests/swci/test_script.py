"""Scripts: comments, echo, what a failure does with and without EXIT ON FAILURE, and exit codes."""

from __future__ import annotations

import io

import pytest

from swarm_hpc.records import TaskState, TaskType
from swarm_hpc.swci.script import Console, each, run_lines

MARKED = ["# begins\n", "\n", "list contexts\n", "  # indented\n"]


@pytest.fixture
def console(desk) -> Console:
    return Console(desk.session, io.StringIO(), io.StringIO())


async def run(console: Console, *lines: str, echo: bool = False) -> int:
    return await run_lines(console, each(lines), "train.swci", echo=echo)


async def test_comments_and_empty_lines_are_passed_over(console) -> None:
    assert await run(console, *MARKED, echo=True) == 0
    assert console.out.getvalue().splitlines()[0] == "SWCI:0 > list contexts"
    assert console.number == 1


async def test_a_script_goes_on_after_a_failure_and_its_exit_code_tells(console) -> None:
    assert await run(console, "create context a with ip 10.0.0.1", "get task info nothing", "switch context a") == 1
    assert console.err.getvalue() == ("swci: train.swci line 2: get task info nothing: task nothing: no such task\n")
    assert "ERROR task nothing: no such task" in console.out.getvalue()
    assert console.session.current == "a"


@pytest.mark.parametrize(
    ("failing", "code"), [("lst nodes", 2), ("get task info nothing", 1), ("wait for ip 10.0.0.1 30304 1", 4)]
)
async def test_exit_on_failure_stops_at_the_failing_line_with_its_exit_code(console, desk, failing, code) -> None:
    desk.sn.down = 1 if "wait" in failing else 0
    assert await run(console, "# first", "exit on failure", failing, "create context a with ip 10.0.0.1") == code
    assert console.err.getvalue().startswith(f"swci: train.swci line 3: {failing}: ")
    assert list(console.session.contexts) == ["default"]
    assert console.session.is_over


async def test_exit_on_failure_can_be_turned_off_again(console) -> None:
    assert await run(console, "exit on failure on", "EXIT ON FAILURE OFF", "nonsense", "pwd") == 1
    assert not console.session.is_over


async def test_exit_ends_the_script(console) -> None:
    assert await run(console, "exit", "nonsense") == 0
    assert console.err.getvalue() == ""


async def test_a_bug_in_a_command_is_an_error_and_not_the_end(console, desk, monkeypatch) -> None:
    async def broken():
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(desk.sn, "tasks", broken)
    assert await run(console, "list tasks", "pwd") == 1
    assert "ERROR ZeroDivisionError: oh (a bug" in console.out.getvalue()


async def test_what_another_site_has_written_does_not_steer_the_terminal(console, desk) -> None:
    await desk.sn.create_taskrunner("trainers")
    desk.sn.enrol("trainers", "beta/swop/two", 1)
    await desk.sn.create_task("build", TaskType.RUN_SWARM, "eve\x1b[2J", "ROOTTASK", "x")
    await desk.sn.append_task_body("build", 1, ["\x1b]0;owned\x07a\tb\x9b8m"])
    await desk.sn.finalize_task("build")
    await desk.sn.assign("trainers", "build")
    desk.sn.report("trainers", "beta/swop/two", TaskState.ERROR, "no room\x1b[8m")
    lines = "list tasks", "get task body build", "get taskrunner peer status trainers 0", "wait for taskrunner trainers"
    assert await run(console, *lines) == 1
    out, err = console.out.getvalue(), console.err.getvalue()
    assert all(part in out for part in ("eve\\x1b[2J", "\\x1b]0;owned\\x07a\tb\\x9b8m", "no room\\x1b[8m"))
    assert err.endswith("beta/swop/two: no room\\x1b[8m\n")
    assert {one for one in out + err if not one.isprintable()} == {"\n", "\t"}
