"""Tasks and taskrunners through the SN's API: who may do what, and waiting for a change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from swarm_hpc.errors import AlreadyExists, ConfigError, Fenced, NotAuthorized, NotFound, ProtocolError, TaskRefused
from swarm_hpc.records import Kind, TaskState, TaskType
from swarm_hpc.sn.client import SnClient
from swarm_hpc.transport.client import ApiClient, expect_kind

RUNNER = "swarm"
RUNNING, COMPLETE, ERROR = TaskState.RUNNING, TaskState.COMPLETE, TaskState.ERROR


@dataclass
class Swop:
    client: SnClient
    name: str
    incarnation: int

    async def report(self, run: int, state: TaskState, text: str = "", num_done: int = 0):
        return await self.client.report(RUNNER, run, self.name, self.incarnation, state, text, num_done)


async def enrolled(swarm, name: str, num_sl: int = 1) -> Swop:
    client = await swarm.client(name)
    record, _ = await client.register(name, "", f"instance of {name}")
    await client.create_taskrunner(RUNNER)
    await client.enrol(RUNNER, name, record.incarnation, num_sl)
    return Swop(client, name, record.incarnation)


async def operator(swarm, site: str = "alpha") -> SnClient:
    return await swarm.client(f"{site}/swci/operator")


async def make_task(client, name: str = "fetch", kind: TaskType = TaskType.MAKE_SWARM_USER_CONTENT) -> None:
    await client.create_task(name, kind, "Ada", "ROOTTASK", "data")
    await client.append_task_body(name, 1, ["ContentType: BUILDCONTENT", "OpsList: []"])
    await client.finalize_task(name)


async def test_a_task_goes_from_its_author_to_two_sites_and_their_reports_come_back(swarm) -> None:
    one, two = await enrolled(swarm, "alpha/swop/one"), await enrolled(swarm, "beta/swop/two", 2)
    ada = await operator(swarm, "beta")
    await make_task(ada)
    task = await one.client.task("fetch")
    assert (task.site, task.author, task.finalised, len(task.body)) == ("beta", "Ada", True, 2)
    assert [each.name for each in await one.client.tasks()] == ["ROOTTASK", "fetch"]
    runner = await ada.assign(RUNNER, "fetch")
    assert (runner.run, runner.num_peers, runner.state) == (1, 2, RUNNING)
    await one.report(1, RUNNING, "fetching")
    await one.report(1, COMPLETE, "fetched")
    ended = await two.report(1, ERROR, "no room on the disk")
    assert ended.state is ERROR
    assert [peer.text for peer in ended.peers] == ["fetched", "no room on the disk"]
    idle = await ada.reset_taskrunner(RUNNER)
    assert (idle.state, idle.run, idle.task) == (TaskState.IDLE, 0, "")
    (run,) = await ada.task_runs(RUNNER)
    assert (run.state, run.peers) == (ERROR, ended.peers)
    assert await ada.task_runs(RUNNER, 2) == ()
    assert RUNNER in [each.name for each in await ada.taskrunners()]


async def test_a_change_of_a_taskrunner_is_heard_of_at_once_and_nothing_else(swarm) -> None:
    one = await enrolled(swarm, "alpha/swop/one")
    ada = await operator(swarm)
    await make_task(ada)
    seen = await one.client.taskrunner(RUNNER)
    waiting = asyncio.create_task(one.client.taskrunner(RUNNER, seen=seen.version, wait_s=30))
    await ada.create_taskrunner("another")
    await ada.status()
    assert not waiting.done()
    await ada.assign(RUNNER, "fetch")
    assert (await waiting).task == "fetch"
    again = await one.client.taskrunner(RUNNER, seen=seen.version, wait_s=30)
    assert again.task == "fetch", "a change since is answered at once"
    assert await one.client.taskrunner(RUNNER, seen=again.version, wait_s=0.05) == again


async def test_repeats_have_the_effect_of_one(swarm) -> None:
    one, ada = await enrolled(swarm, "alpha/swop/one"), await operator(swarm)
    await make_task(ada)
    await make_task(ada)
    first = await ada.assign(RUNNER, "fetch")
    assert await ada.assign(RUNNER, "fetch", 1) == first
    for call in (
        lambda: one.report(1, RUNNING, "x"),
        lambda: one.report(1, COMPLETE),
        lambda: ada.finalize_task("fetch"),
    ):
        assert await call() == await call()
    await ada.delete_task("nothing")
    with pytest.raises(AlreadyExists):
        await ada.create_task("fetch", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image")


async def test_only_operators_write_tasks_and_assign_them(swarm) -> None:
    one = await enrolled(swarm, "alpha/swop/one")
    await make_task(await operator(swarm))
    for client in (one.client, await swarm.client("alpha/sl/one"), await swarm.client("alpha/ui/ui")):
        for call in (
            client.create_task("x", TaskType.PULL_IMAGE, "Eve", "ROOTTASK", "image"),
            client.append_task_body("fetch", 1, ["x"]),
            client.finalize_task("fetch"),
            client.delete_task("fetch"),
            client.assign(RUNNER, "fetch"),
            client.reset_taskrunner(RUNNER),
            client.declare_contract("x"),
            client.reset_contract("x"),
        ):
            with pytest.raises(NotAuthorized):
                await call
        assert (await client.taskrunner(RUNNER)).run == 0


async def test_a_swop_speaks_for_swop_nodes_of_its_own_site_only(swarm) -> None:
    one, two = await enrolled(swarm, "alpha/swop/one"), await enrolled(swarm, "beta/swop/two")
    ada = await operator(swarm)
    await make_task(ada)
    await ada.assign(RUNNER, "fetch")
    intruder = Swop(one.client, two.name, two.incarnation)
    for call in (
        intruder.report(1, ERROR),
        one.client.enrol(RUNNER, two.name, two.incarnation, 9),
        one.client.enrol(RUNNER, "alpha/sl/sl-1", 1, 9),
        ada.enrol(RUNNER, one.name, one.incarnation, 9),
    ):
        with pytest.raises(NotAuthorized):
            await call
    await one.client.register(one.name, "", "instance of alpha/swop/one")
    with pytest.raises(Fenced):
        await one.report(1, RUNNING)


async def test_what_cannot_be_is_refused_by_name(swarm) -> None:
    one, ada = await enrolled(swarm, "alpha/swop/one"), await operator(swarm)
    await make_task(ada)
    with pytest.raises(NotFound, match="no such taskrunner"):
        await ada.taskrunner("nothing")
    with pytest.raises(NotFound, match="no such task"):
        await ada.task("nothing")
    with pytest.raises(TaskRefused, match="finalised"):
        await ada.append_task_body("fetch", 1, ["other"])
    await ada.assign(RUNNER, "fetch")
    await ada.reset_taskrunner(RUNNER)
    with pytest.raises(TaskRefused, match="run is over"):
        await one.report(1, COMPLETE)
    with pytest.raises(TaskRefused, match="fewer peers"):
        await ada.assign(RUNNER, "fetch", 2)
    for call in (
        ada.create_task("a b", TaskType.PULL_IMAGE, "Ada", "ROOTTASK", "image"),
        ada.create_task("x", TaskType.PULL_IMAGE, "A" * 161, "ROOTTASK", "image"),
        ada.create_taskrunner("a/b"),
        ada.assign(RUNNER, "fetch", -1),
        one.client.enrol(RUNNER, one.name, one.incarnation, -1),
        ada.append_task_body("fetch", -1, ["x"]),
    ):
        with pytest.raises((ConfigError, ProtocolError)):
            await call


@pytest.mark.parametrize(
    "body", [{}, {"name": 1}, {"task": "x", "target": [], "num_peers": 1}, {"first": "x"}, {"lines": 3}]
)
async def test_no_body_of_a_request_brings_the_sn_down(swarm, body) -> None:
    await make_task(await operator(swarm))
    api = ApiClient(
        swarm.consortium.identity("alpha/swci/operator"),
        swarm.address,
        expect=expect_kind(Kind.SN),
        connection=swarm.connection,
    )
    async with api:
        for path in ("tasks", "tasks/fetch/body", "taskrunners", "taskrunners/swarm/assign"):
            with pytest.raises((ProtocolError, NotFound, ConfigError)):
                await api.call("POST", f"/v1/{path}", body=body)


async def test_a_declared_name_is_listed_until_a_node_takes_part_under_it(swarm, new_spec) -> None:
    ada = await operator(swarm)
    await ada.declare_contract("demo")
    await ada.declare_contract("demo")
    assert [one.name for one in await ada.declared_contracts()] == ["demo"]
    with pytest.raises(NotFound):
        await ada.contract("demo")
    await swarm.joined("alpha/sl/one", "beta/sl/two")
    assert await ada.declared_contracts() == ()
