"""The Python client and HPE's class, blocking, against a web mode whose SN is a fake."""

from __future__ import annotations

import asyncio
import inspect
import logging

import pytest

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import (
    CertificateUntrusted,
    ConfigError,
    NotAuthorized,
    NotFound,
    NotReachable,
    ProtocolError,
    TimedOut,
)
from swarm_hpc.records import TaskState
from swarm_hpc.swci import compat, topology
from swarm_hpc.swci.client import Swci
from swarm_hpc.swci.commands import COMMANDS
from tests.swci.conftest import BUILD_TASK
from tests.swci.fake_sn import DEFAULT_RUNNER
from tests.swci.test_server import start_web, web  # noqa: F401 - fixtures


@pytest.fixture
def swci(web, consortium) -> Swci:  # noqa: F811
    return Swci(web.address, identity=consortium.config("alpha/swci/ada"), connect_timeout_s=0.2)


@pytest.fixture
def hpe(web, consortium) -> compat.Swci:  # noqa: F811
    files = consortium.config("alpha/swci/ada")
    host, _, port = web.address.rpartition(":")
    logger = logging.getLogger("hpe")
    return compat.Swci(host, int(port), files.cert, files.key, files.bundle, logger, logging.CRITICAL)


async def test_a_method_returns_data_and_raises_our_errors(swci, web) -> None:  # noqa: F811
    (web.folder / "my build.yaml").write_text(BUILD_TASK)
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")

    def script() -> None:
        assert swci.create_task_from("my build.yaml")["name"] == "build"
        assert swci.finalize_task("build")["finalised"] is True
        assert swci.assign_task("build", DEFAULT_RUNNER, 1)["state"] == "RUNNING"
        assert swci.get_taskrunner_peer_status(DEFAULT_RUNNER, "0")["node"] == "alpha/swop/one"
        assert swci.run("pwd").lines == (str(web.folder),)
        assert swci.help()[0] == "ADMIT SITE"
        with pytest.raises(NotFound, match="no such task"):
            swci.get_task_info("nothing")
        with pytest.raises(ConfigError, match="use letters"):
            swci.create_contract("a/b %2e \u00e9")
        with pytest.raises(ConfigError, match="WITH ALL PEERS"):
            swci.assign_task("build", DEFAULT_RUNNER, 0)

    await asyncio.to_thread(script)


async def test_lines_of_a_body_arrive_as_they_are(swci) -> None:
    lines = ["  - \"x\" 'y' %2f #z", "", " \u00e9\u4e2d\\", "{a: [1, 2]}"]

    def script() -> object:
        swci.create_task("PULL_IMAGE", "fetch", 'Ada "L" O\'N', "ROOTTASK", "")
        for number, line in enumerate(lines, 1):
            swci.append_task_body("fetch", number, line)
        return swci.get_task_body("fetch")

    assert await asyncio.to_thread(script) == lines


async def test_every_command_is_a_method_with_its_help(swci) -> None:
    for command in COMMANDS:
        method = getattr(Swci, command.name)
        assert " ".join(command.usage.split()) in " ".join(method.__doc__.split())
        assert set(inspect.signature(method).parameters) == {"self", *(one.name for one in command.arguments)}


async def test_nobody_a_stranger_and_a_refusal_are_told_apart(web, consortium, tmp_path) -> None:  # noqa: F811
    def ask(address: str, node: str, **settings) -> None:
        identity = consortium.identity(node)
        Swci(address, identity=identity, connect_timeout_s=0.1, **settings).pwd()

    for address, node, error in (
        ("127.0.0.1:9", "alpha/swci/ada", NotReachable),
        (web.address, "beta/swci/eve", NotAuthorized),
        (web.address, "alpha/sl/one", NotAuthorized),
        ("127.0.0.1:x", "alpha/swci/ada", ProtocolError),
    ):
        with pytest.raises(error):
            await asyncio.to_thread(ask, address, node)
    with pytest.raises(NotAuthorized, match="of site beta"):
        await asyncio.to_thread(ask, web.address, "alpha/swci/ada", site="beta")
    with pytest.raises(TimedOut):
        client = Swci(web.address, identity=consortium.identity("alpha/swci/ada"), answer_timeout_s=0.05)
        await asyncio.to_thread(client.sleep, 1000)
    with pytest.raises(CertificateUntrusted):
        await asyncio.to_thread(stranger(consortium, tmp_path, web.address).pwd)


def stranger(consortium, tmp_path, address: str) -> Swci:
    """A client that trusts beta alone."""
    from swarm_hpc.identity import ca

    bundle = tmp_path / "beta.json"
    ca.write_bundle({"beta": consortium.folder / "beta" / "ca.pem"}, "swarm.test", bundle)
    files = consortium.config("beta/swci/eve")
    files = IdentityConfig(cert=files.cert, key=files.key, bundle=str(bundle))
    return Swci(address, identity=files, connect_timeout_s=0.1)


async def test_hpes_class_registers_and_executes_a_task(hpe, web, tmp_path) -> None:  # noqa: F811
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "build.yaml"
    file.write_text(BUILD_TASK)
    loop = asyncio.get_running_loop()

    def script() -> None:
        assert hpe.registerTask(str(file)) == ["Task Registered : build", "TASK FINALIZED : build"]
        assert "FINALIZED : YES" in hpe.getTaskInfo("build")
        loop.call_soon_threadsafe(loop.create_task, finish())
        status = hpe.executeTask("build", pollWaitInSec=0.01)
        assert "TASK_STATE : COMPLETE" in status
        assert hpe.isTaskDone(DEFAULT_RUNNER)
        assert "TASK_STATE : IDLE" in hpe.getTaskRunnerStatus(DEFAULT_RUNNER)
        assert hpe.getErrors() == []

    async def finish() -> None:
        while (await web.sn.taskrunner(DEFAULT_RUNNER)).state is not TaskState.RUNNING:
            await asyncio.sleep(0)
        web.sn.report(DEFAULT_RUNNER, "alpha/swop/one", TaskState.COMPLETE)

    await asyncio.to_thread(script)


@pytest.mark.parametrize("is_assigned_anew", [False, True])
async def test_a_task_that_somebody_takes_back_was_not_executed(hpe, web, is_assigned_anew) -> None:  # noqa: F811
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")
    (web.folder / "build.yaml").write_text(BUILD_TASK)
    loop = asyncio.get_running_loop()

    def script() -> None:
        assert hpe.createTaskFrom("build.yaml") and hpe.finalizeTask("build")
        loop.call_soon_threadsafe(loop.create_task, take_back())
        assert hpe.executeTask("build", pollWaitInSec=0.01) == []
        assert "task build was taken back" in hpe.getErrors()[0]

    async def take_back() -> None:
        while web.sn.calls.count("taskrunner") < 3:
            await asyncio.sleep(0)
        await web.sn.reset_taskrunner(DEFAULT_RUNNER)
        if is_assigned_anew:
            await web.sn.assign(DEFAULT_RUNNER, "build")
            web.sn.report(DEFAULT_RUNNER, "alpha/swop/one", TaskState.COMPLETE)

    await asyncio.to_thread(script)
    anew = TaskState.COMPLETE if is_assigned_anew else TaskState.IDLE
    assert (await web.sn.taskrunner(DEFAULT_RUNNER)).state is anew, "the other's run is not reset"


async def test_hpes_class_returns_nothing_on_an_error_and_keeps_it(hpe, web) -> None:  # noqa: F811
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")

    def script() -> None:
        assert hpe.getTaskInfo("nothing") == []
        assert hpe.getErrors() == ["ERROR task nothing: no such task"]
        assert hpe.pwd()
        assert hpe.getErrors() == []
        assert hpe.registerTask("/no/such.yaml") == []
        assert hpe.executeTask("nothing") == []
        assert hpe.createContext("x") == []
        assert "give ip or service" in hpe.getErrors()[0]
        assert hpe.cd("nowhere") == []
        assert not hpe.isTaskDone("nobody")

    await asyncio.to_thread(script)


async def test_hpes_class_has_all_the_rest(hpe, web) -> None:  # noqa: F811
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")
    web.sn.train("done", "alpha/sl/one", completed=True)

    def script() -> None:
        assert hpe.createContext("o", "10.0.0.2") == ["API Server is UP!", "CONTEXT CREATED : o"]
        assert hpe.createContext("s", service="sn.beta.test")[1] == "CONTEXT CREATED : s"
        assert hpe.switchContext("o") == ["DEFAULT CONTEXT SET TO : o"]
        assert "CONTEXT : o" in hpe.getContextInfo("o")
        assert len(hpe.listContexts()) == 4
        assert hpe.createTrainingContract("new") == ["CONTRACT CREATED : new"]
        assert "STATE : UNINITIALIZED" in hpe.getTrainingContractInfo("new")
        assert "STATE : COMPLETED" in hpe.getTrainingContractStatus("done")
        assert len(hpe.getTrainingContractPerformanceData("done")) == 2
        assert hpe.resetTrainingContract("done")[1] == "ARCHIVED AS : done.1"
        assert len(hpe.listTrainingContracts()) == 4
        assert "PEERS : 1" in hpe.getTaskRunnerInfo(DEFAULT_RUNNER)
        assert "SWOP_UID : alpha/swop/one" in hpe.getTaskRunnerPeerStatus(DEFAULT_RUNNER, 0)
        assert len(hpe.listTaskRunners()) == 2
        assert len(hpe.listTasks()) == 2
        assert hpe.getTaskBody("ROOTTASK") == []
        assert hpe.deleteTask("ROOTTASK") == []
        assert "stays" in hpe.getErrors()[0]
        assert hpe.ls("-a") == []
        assert hpe.getErrors() == []
        assert hpe.sleep(0) == []
        assert hpe.cd(".") == hpe.pwd()
        hpe.setLogLevel(logging.CRITICAL)

    await asyncio.to_thread(script)


async def test_hpes_class_remembers_until_something_changes(hpe, web) -> None:  # noqa: F811
    def script() -> None:
        for _ in range(3):
            hpe.listTasks()
        assert web.sn.calls.count("tasks") == 1
        hpe.createTrainingContract("new")
        hpe.listTasks()
        hpe.clearCache()
        hpe.listTasks()
        assert web.sn.calls.count("tasks") == 3
        for _ in range(2):
            hpe.getTaskRunnerStatus(DEFAULT_RUNNER)
        assert web.sn.calls.count("taskrunner") == 2, "a status is never remembered"

    await asyncio.to_thread(script)


def test_hpes_class_says_what_it_needs() -> None:
    with pytest.raises(RuntimeError, match="swciIp"):
        compat.Swci("")
    with pytest.raises(RuntimeError, match="port"):
        compat.Swci("127.0.0.1", "30306")
    with pytest.raises(ConfigError, match="mutual TLS"):
        compat.Swci("127.0.0.1")


async def test_the_topology_is_drawn_or_refused_with_a_reason(hpe, web, tmp_path, monkeypatch) -> None:  # noqa: F811
    web.sn.enrol(DEFAULT_RUNNER, "alpha/swop/one")
    drawn = []
    file = str(tmp_path / "nodes.png")
    monkeypatch.setattr(topology, "draw", lambda *args: drawn.append(args))

    def script() -> None:
        assert hpe.plotTopology(attrs=["Port"], file=file) == [file]
        assert hpe.plotTopology(attrs=["Weight"]) == []
        assert "no column Weight" in hpe.getErrors()[0]

    await asyncio.to_thread(script)
    ((nodes, colours, attributes, _),) = drawn
    assert [one["Type"] for one in nodes] == ["SENTINEL", "SN", "SWOP"]
    assert (colours["SWOP"], attributes) == ("#33FF33", ["Port"])


NODES = [
    {"Type": "SENTINEL", "HostIP": "a", "UUID": "1", "ParentUUID": ""},
    {"Type": "SL", "HostIP": "b", "UUID": "2", "ParentUUID": "1"},
]
COLOURS = {"SN": "#ADD8E6", "SWOP": "#33FF33", "SL": "#FFCCCB"}


@pytest.mark.slow
def test_a_topology_is_a_png(tmp_path) -> None:
    topology.draw(NODES, COLOURS, ["UUID"], tmp_path / "nodes.png")
    assert (tmp_path / "nodes.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'swarm-hpc\[ui\]'"):
        topology.draw(NODES, COLOURS, [], tmp_path / "nodes.png")
