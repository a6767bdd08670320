"""What the fake SN has in common with a real one: commands that a script consists of, and how each is refused."""

from __future__ import annotations

import pytest

from swarm_hpc.errors import ConfigError, NotFound, SwarmError, TaskRefused
from tests.swci.conftest import BUILD_TASK


async def test_a_task_is_written_fixed_and_assigned_to_nobody(either) -> None:
    (either.folder / "build.yaml").write_text(BUILD_TASK)
    assert await either.lines("create task from build.yaml") == ["Task Registered : build"]
    assert await either.lines("finalize task build") == ["TASK FINALIZED : build"]
    body = await either.lines("get task body build")
    assert body[0] == "BuildContext: ~"
    assert "FINALIZED : YES" in await either.lines("get task info build")
    assert "build,MAKE_USER_CONTAINER,Ada,YES,ROOTTASK,alpha" in await either.lines("list tasks")
    with pytest.raises(TaskRefused, match="a finalised task stays"):
        await either("delete task build")
    with pytest.raises(TaskRefused, match="fewer peers are enrolled"):
        await either("assign task build to defaulttaskbb.taskdb.sml.hpe with 1 peers")


async def test_a_task_is_written_line_by_line(either) -> None:
    await either("create task PULL_IMAGE fetch 'Ada Lovelace' ROOTTASK tools")
    for number, line in enumerate(["Tag: latest", "RepoName: tools", "OrgAndReg: docker.io/lib", "Auth: null"], 1):
        await either(f"append task body fetch {number} {line}")
    await either("append task body fetch 1 Tag: '1.0'")
    assert (await either.lines("get task body fetch"))[0] == "Tag: '1.0'"
    with pytest.raises(ConfigError, match="without gaps"):
        await either("append task body fetch 9 X: y")
    await either("finalize task fetch")
    with pytest.raises(TaskRefused, match="finalised"):
        await either("append task body fetch 1 Tag: other")


async def test_an_unfinished_task_is_deleted_and_its_name_is_free(either) -> None:
    await either("create task PULL_IMAGE fetch Ada ROOTTASK tools")
    assert await either.lines("delete task fetch") == ["TASK DELETED : fetch"]
    with pytest.raises(NotFound):
        await either("delete task fetch")


async def test_contracts_are_declared_and_listed(either) -> None:
    assert await either.lines("create contract digits") == ["CONTRACT CREATED : digits"]
    await either("create contract digits")
    assert "digits,UNINITIALIZED,0,0," in await either.lines("list contracts")
    assert "STATE : UNINITIALIZED" in await either.lines("get contract status digits")
    for command in ("perfdata digits", "reset contract digits", "get contract info nothing", "list rounds nothing"):
        with pytest.raises(NotFound):
            await either(command)


async def test_taskrunners_are_made_and_stay_empty(either) -> None:
    assert await either.lines("create taskrunner mine") == ["TASKRUNNER CREATED : mine"]
    assert "mine,IDLE,Empty,0,0" in await either.lines("list taskrunners")
    status = await either.lines("get taskrunner status mine")
    assert "TASK : Empty" in status
    assert "TASK_STATE : IDLE" in status
    assert await either.lines("wait for taskrunner mine") == ["TASK_STATE : IDLE"]
    assert await either.lines("reset taskrunner mine") == ["TASKRUNNER RESET : mine"]
    assert await either.lines("list runs mine") == ["Run,Task,State,Peers,Target,Assigned,Ended"]
    for command in ("get taskrunner info nobody", "list taskrunner peers nobody", "get run mine 1", "list runs nobody"):
        with pytest.raises(NotFound):
            await either(command)


async def test_the_network_is_seen(either) -> None:
    heading, *rows = await either.lines("list nodes")
    assert heading == "Type,HostIP,Port,ContainerName,UUID,ParentUUID,i-am-alive"
    assert rows[0].startswith("SENTINEL,")
    assert any(line.startswith("alpha,MEMBER,") for line in await either.lines("list sites"))
    assert "SITE : alpha" in await either.lines("get network status")
    assert "NODE : alpha/sn/sn" in await either.lines("get context info")
    with pytest.raises(SwarmError, match="nowhere"):
        await either("admit site nowhere")


@pytest.mark.parametrize("name", ["%2e%2e", "a/b", "..", "é", "x" * 100, "a b", 'q"uote', "?x=1#y", "%"])
async def test_odd_names_are_refused_by_name_and_reach_nothing_else(either, name: str) -> None:
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for command in ("get task info", "get taskrunner status", "get contract info", "create contract", "reset contract"):
        with pytest.raises((NotFound, ConfigError)):
            await either(f"{command} {quoted}")
