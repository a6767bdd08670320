"""SWCI as a process would run it: the web mode on a real SN, and who may be one."""

from __future__ import annotations

import asyncio

import pytest

from swarm_hpc.config import SwciWebConfig
from swarm_hpc.errors import AlreadyExists, ConfigError, NotFound, TaskRefused
from swarm_hpc.swci import node
from swarm_hpc.swci.client import Swci
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


def test_only_a_certificate_of_kind_swci_makes_a_swci(consortium, tmp_path) -> None:
    with pytest.raises(ConfigError, match="of kind sl; SWCI needs a certificate of kind swci"):
        node.load_identity(swci_config(tmp_path, consortium.config("alpha/sl/one")))
