"""WAIT FOR TASKRUNNER, IP and SERVICE: what is said meanwhile, and how each wait ends."""

from __future__ import annotations

import asyncio

import pytest

from swarm_hpc.errors import ConfigError, NotFound, NotReachable, TaskFailed, TimedOut
from swarm_hpc.records import TaskState
from tests.swci.conftest import BUILD_TASK
from tests.swci.fake_sn import DEFAULT_RUNNER

RUNNER = DEFAULT_RUNNER
WAIT = f"wait for taskrunner {RUNNER}"


@pytest.fixture
async def working(desk):
    """A taskrunner at work with two SWOP nodes."""
    (desk.folder / "build.yaml").write_text(BUILD_TASK)
    await desk("create task from build.yaml")
    await desk("finalize task build")
    desk.sn.enrol(RUNNER, "alpha/swop/one")
    desk.sn.enrol(RUNNER, "beta/swop/two")
    await desk(f"assign task build to {RUNNER} with all peers")
    return desk


async def told(desk, number: int) -> None:
    """Come back when the desk has said so many things."""
    while len(desk.told) < number:
        await asyncio.sleep(0)


async def test_the_wait_says_its_limit_gives_signs_of_life_and_ends_with_the_task(working) -> None:
    wait = asyncio.create_task(working(WAIT))
    await told(working, 3)
    working.sn.report(RUNNER, "alpha/swop/one", TaskState.COMPLETE)
    result = await wait
    assert working.told[0] == "WAITING FOR TASKRUNNER TO COMPLETE (at most 120 minutes)\n"
    assert working.told[1] == "#"
    assert result.lines == ("TASK_STATE : COMPLETE",)
    assert result.data.state is TaskState.COMPLETE
    assert (await working(WAIT)).lines == ("TASK_STATE : COMPLETE",), "it has ended already"


async def test_a_failed_task_fails_the_wait_and_says_who_failed_and_why(working) -> None:
    wait = asyncio.create_task(working(WAIT))
    await told(working, 2)
    working.sn.report(RUNNER, "beta/swop/two", TaskState.ERROR, "no room on the disk")
    with pytest.raises(
        TaskFailed, match="task build ended in ERROR at 1 of 2 peers: beta/swop/two: no room on the disk"
    ):
        await wait
    with pytest.raises(TaskFailed):
        await working(WAIT)


async def test_a_reset_fails_the_wait_even_when_the_next_task_is_assigned_at_once(working) -> None:
    wait = asyncio.create_task(working(WAIT))
    await told(working, 2)
    await working(f"reset taskrunner {RUNNER}")
    await working(f"assign task build to {RUNNER} with 1 peers")
    with pytest.raises(TaskFailed, match=r"taken back by a reset of the taskrunner \(run 1\)"):
        await wait


@pytest.mark.parametrize(
    ("variable", "minutes"), [("SWCI_GENERIC_TASK_MAX_WAIT_TIME", "2"), ("SWCI_TASK_MAX_WAIT_TIME", "0.5")]
)
async def test_at_the_limit_the_wait_fails_with_hpes_warning(working, variable, minutes) -> None:
    await working("set context env SWCI_RUN_TASK_MAX_WAIT_TIME 999")
    await working(f"set context env {variable} {minutes}")
    wait = asyncio.create_task(working(WAIT))
    await told(working, 3)
    working.clock[0] += float(minutes) * 60
    with pytest.raises(TimedOut, match=r"Maximum configured SWCI wait time is over.*goes on with task build"):
        await wait
    assert "WARNING - Maximum configured SWCI wait time is over" in working.told[-1]
    assert f"(at most {minutes} minutes)" in working.told[0]


async def test_there_is_nothing_to_wait_for_at_an_idle_taskrunner(desk) -> None:
    assert (await desk(WAIT)).lines == ("TASK_STATE : IDLE",)
    with pytest.raises(NotFound):
        await desk("wait for taskrunner nobody")


@pytest.mark.parametrize("where", ["ip 10.0.0.9 30304 5", "service sn.beta.test 5"])
async def test_an_sn_is_waited_for_until_it_answers(desk, where) -> None:
    desk.sn.down = 3
    assert await desk.lines(f"wait for {where}") == ["API Server is UP!"]
    assert desk.slept == [5.0, 5.0, 5.0]
    desk.sn.down = 5
    with pytest.raises(NotReachable, match="given up after 5 tries"):
        await desk(f"wait for {where}")
    assert len(desk.slept) == 7, "nobody sleeps after the last try"


async def test_the_default_is_360_tries(desk) -> None:
    desk.sn.down = 1000
    with pytest.raises(NotReachable, match="360 tries"):
        await desk("wait for ip 10.0.0.9")
    assert sum(desk.slept) == 359 * 5


@pytest.mark.parametrize("command", ["wait for ip 10.0.0.9 30304 0", "wait for service 'a b'", "wait for ip 1.2 x"])
async def test_what_cannot_be_waited_for_is_refused(desk, command) -> None:
    with pytest.raises(ConfigError):
        await desk(command)
