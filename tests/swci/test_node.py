"""SWCI as a process would run it: the web mode on a real SN, and who may be one."""

from __future__ import annotations

import asyncio

import pytest

from swarm_hpc.config import SwciWebConfig
from swarm_hpc.errors import AlreadyExists, ConfigError, NotFound, TaskFailed, TaskRefused
from swarm_hpc.records import TaskState
from swarm_hpc.swci import commands, node
from swarm_hpc.swci.client import Swci
from swarm_hpc.swci.session import Session, connector
from tests.swci.conftest import BUILD_TASK, swci_config


async def test_a_program_runs_a_task_through_a_real_sn(start_swarm, tmp_path) -> None:
    swarm = await start_swarm()
    identity = swarm.consortium.config("alpha/swci/web")
    config = swci_config(tmp_path, identity, sn=swarm.address, web=SwciWebConfig(port=0))
    (tmp_path / "build.yaml").write_text(BUILD_TASK)

    def script(address: str) -> None:
        swci = Swci(address, identity=swarm.consortium.config("alpha/swci/ada"), site="alpha")
        swci.create_task_from("build.yaml")
        swci.finalize_task("build")
        swci.create_taskrunner("trainers")
        with pytest.raises(TaskRefused, match="fewer peers are enrolled"):
            swci.assign_task("build", "trainers", 1)
        with pytest.raises(AlreadyExists):
            swci.create_task("PULL_IMAGE", "build", "Eve", "ROOTTASK", "other")
        assert swci.get_taskrunner_status("trainers")["state"] == "IDLE"
        assert [one["type"] for one in swci.list_nodes()] == ["SENTINEL"]
        swci.create_contract("digits")
        assert [one["name"] for one in swci.list_contracts()["declared"]] == ["digits"]
        with pytest.raises(NotFound):
            swci.perfdata("digits")

    async with node.start_web(config, node.load_identity(config)) as address:
        await asyncio.to_thread(script, address)


@pytest.mark.parametrize("state", [TaskState.COMPLETE, TaskState.ERROR])
async def test_a_wait_ends_with_the_report_of_a_real_swop(start_swarm, tmp_path, state) -> None:
    swarm = await start_swarm()
    (tmp_path / "build.yaml").write_text(BUILD_TASK)
    swop = await swarm.client("alpha/swop/one")
    record, _ = await swop.register("alpha/swop/one", "", "its instance")
    await swop.create_taskrunner("trainers")
    await swop.enrol("trainers", "alpha/swop/one", record.incarnation, 1)
    config = swci_config(tmp_path, sn=swarm.address)
    told: asyncio.Queue[str] = asyncio.Queue()

    def tell(text: str, /, *, end: str = "\n") -> None:
        told.put_nowait(text)

    async with Session(config, connector(swarm.consortium.identity("alpha/swci/ada"), swarm.connection)) as session:
        for command in ("create task from build.yaml", "finalize task build"):
            await commands.run(session, command, tell)
        await commands.run(session, "assign task build to trainers target 'its instance'", tell)
        waiting = asyncio.create_task(commands.run(session, "wait for taskrunner trainers", tell))
        await told.get()
        await swop.report("trainers", 1, "alpha/swop/one", record.incarnation, TaskState.RUNNING)
        await swop.report("trainers", 1, "alpha/swop/one", record.incarnation, state, "no room on the disk")
        if state is TaskState.COMPLETE:
            assert (await waiting).lines == ("TASK_STATE : COMPLETE",)
        else:
            with pytest.raises(TaskFailed, match="at 1 of 1 peers: alpha/swop/one: no room on the disk"):
                await waiting


def test_only_a_certificate_of_kind_swci_makes_a_swci(consortium, tmp_path) -> None:
    with pytest.raises(ConfigError, match="of kind sl; SWCI needs a certificate of kind swci"):
        node.load_identity(swci_config(tmp_path, consortium.config("alpha/sl/one")))
