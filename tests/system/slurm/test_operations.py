"""Operators at work: an init script of SWCI drives a SWOP at each of two Slurm clusters to a finished training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from swarm_hpc.cli.settings import EXAMPLES
from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import NotFound
from swarm_hpc.identity import ca
from swarm_hpc.local.swarm import ONE_THREAD, START_S, sl_name
from swarm_hpc.processes import Process, stop
from swarm_hpc.records import ContractState, Kind, NodeName
from swarm_hpc.swci.client import Swci
from tests.lab.slurm import _free_ports, until
from tests.system.slurm.conftest import COMMAND_S, SITES, Network
from tests.system.slurm.test_digits import deal

pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

RUNNER = "hospitals"
EPOCHS = 4
SWCI = (sys.executable, "-c", "import sys; from swarm_hpc.cli.swci import main; sys.exit(main())")
"""`swci`, which may not be installed in PATH."""


@dataclass
class Operations:
    """A network with a SWOP at each site, and what its operators write."""

    net: Network
    data: Path
    usr_dir: Path

    def write(self, **settings: dict[str, str]) -> None:
        """Task files, and a profile per site; `settings` are further variables of a site's program."""
        archive = self.usr_dir / "program.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(EXAMPLES / "digits" / "train.py", "train.py")
        for file, task in (("program.yaml", program_task(archive)), ("training.yaml", training_task())):
            (self.usr_dir / file).write_text(yaml.safe_dump(task, sort_keys=False))
        for site in SITES:
            identity = self.net.folder.identity(sl_name(site))
            profile = profile_of(self.data / site, identity, settings.get(site, {}))
            (self.usr_dir / f"swop-{site}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))

    def words(self, name: NodeName) -> list[str]:
        """How a node says who it is, and where its SN is."""
        identity = asdict(self.net.folder.identity(name))
        return [f"sn={self.net.client(name.site).sn}", *(f"identity.{key}={value}" for key, value in identity.items())]

    def start_swop(self, site: str) -> Process:
        """`swarm-hpc swop` on the site's login node."""
        name = swop_name(site)
        words = [
            f"profile={self.usr_dir}/swop-{site}.yaml",
            f"name={name}",
            f"site={site}",
            "executor=slurm",
            "follow.poll_s=0.5",
            "round.min_peers=2",
            "round.contract=digits",
            f"state_dir={self.net.folder.root}/{site}-swop",
            "--config-dir",
            str(self.net.profiles),
        ]
        cluster = self.net.slurm[site]
        command = [sys.executable, "-m", "swarm_hpc.cli", "swop", *self.words(name), *words]
        log = self.net.folder.log(f"swop-{site}")
        return Process.start(f"swop-{site}", command, log=log, env={**cluster.env, **ONE_THREAD})

    def swci(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`swci WORDS` as the operator of alpha."""
        return subprocess.run(
            [*SWCI, *self.words(operator("alpha")), *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
        )

    def ask(self, command: str) -> Any:
        """What a single command answers to machines."""
        done = self.swci("-c", command, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["data"]

    def run_script(self, *lines: str) -> subprocess.CompletedProcess[str]:
        script = self.usr_dir / "swci-init"
        script.write_text("\n".join(lines) + "\n")
        return self.swci("--init", str(script))

    def result(self, site: str) -> float:
        return float(json.loads((self.data / site / "out" / "result.json").read_text())["value"])

    def logs(self) -> str:
        files = [*self.net.folder.root.glob("logs/swop-*.log"), *self.net.folder.root.glob("*-swop/runs/*/*/*log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in files)


def swop_name(site: str) -> NodeName:
    return NodeName(site, Kind.SWOP, "swop-1")


def operator(site: str) -> NodeName:
    return NodeName(site, Kind.SWCI, "operator")


def program_task(archive: Path) -> dict[str, Any]:
    body = {
        "ContentType": "BUILDCONTENT",
        "OpsList": [{"Operation": "EXTRACT", "Target": archive.as_uri(), "Options": []}],
    }
    return {
        "Name": "program",
        "TaskType": "MAKE_SWARM_USER_CONTENT",
        "Author": "Ada",
        "Prereq": "ROOTTASK",
        "Outcome": "digits-program",
        "Body": body,
    }


def training_task() -> dict[str, Any]:
    body = {
        "Command": "model/train.py",
        "Entrypoint": "python3",
        "WorkingDir": "/tmp/digits",
        "Envvars": [{"DATA_DIR": "/tmp/digits"}, {"SCRATCH_DIR": "/tmp/digits/out"}, {"MAX_EPOCHS": EPOCHS}],
        "PrivateContent": "/tmp/digits",
        "SharedContent": [{"Src": "digits-program", "Tgt": "/tmp/digits/model", "MType": "VOLUME"}],
    }
    return {
        "Name": "training",
        "TaskType": "RUN_SWARM",
        "Author": "Ada",
        "Prereq": "program",
        "Outcome": "digits",
        "Body": body,
    }


def profile_of(data: Path, identity: IdentityConfig, env: dict[str, str]) -> dict[str, Any]:
    files = {"KEY": identity.key, "CERT": identity.cert, "CACERT": identity.bundle}
    node = {
        "idx": 0,
        "identity": [{"attribute": {"aType": kind, "mType": "BIND", "src": src}} for kind, src in files.items()],
        "slhostname": None,
        "privatedata": {"src": str(data), "mType": "BIND"},
        "slenvvars": None,
        "usrenvvars": [{name: value} for name, value in env.items()] or None,
        "usrhostname": None,
    }
    return {
        "groupname": "consortium",
        "taskrunner": RUNNER,
        "policyuri": None,
        "network": "none",
        "resourcemgr": {"mgrtype": "DOCKER", "accessinfo": {"accesstype": "FROMENV"}},
        "apls": {"locator": {"host": "none", "port": None}},
        "apisrv": {"locator": {"host": None, "port": None, "service": None}},
        "envvars": None,
        "nodes": [{"slnodedef": node}],
    }


@pytest.fixture
def operations(network: Callable[..., Network], tmp_path: Path) -> Operations:
    """Certificates of SWOPs and operators, data and task files; no SWOP runs yet."""
    net = network()
    for site in SITES:
        for name in (swop_name(site), operator(site)):
            ca.issue(net.folder.ca(site), name, net.folder.certs(site))
    one = Operations(net, tmp_path / "data", tmp_path / "usr")
    one.usr_dir.mkdir()
    deal(one.data)
    one.write()
    return one


@contextmanager
def swops(one: Operations) -> Iterator[dict[str, Process]]:
    """Both sites' SWOPs, enrolled."""
    running = {site: one.start_swop(site) for site in SITES}
    try:
        until(lambda: is_enrolled(one, running), "two SWOPs", START_S)
        yield running
    finally:
        stop(list(running.values()), 20.0)


def is_enrolled(one: Operations, running: dict[str, Process]) -> bool:
    for process in running.values():
        process.check()
    found = one.swci("-c", f"list taskrunner peers {RUNNER}", "--json")
    return found.returncode == 0 and len(json.loads(found.stdout)["data"]) == len(SITES)


def whole_script(one: Operations) -> list[str]:
    """From an empty network to a trained model: some 35 commands."""
    host, _, port = one.net.client("alpha").sn.rpartition(":")
    return [
        "# All that an operator does.",
        "EXIT ON FAILURE",
        f"wait for ip {host} {port} 10",
        f"create context lab with ip {host} {port}",
        "switch context lab",
        "get context info",
        "get context version",
        "list contexts",
        "list nodes",
        f"cd {one.usr_dir}",
        "ls",
        "",
        "create contract digits",
        "list contracts",
        "Create Task From program.yaml",
        "get task info program",
        "get task body program",
        "finalize task program",
        f"create taskrunner {RUNNER}",
        f"get taskrunner info {RUNNER}",
        f"reset taskrunner {RUNNER}",
        f"assign task program to {RUNNER} with 2 peers",
        f"WAIT FOR TASKRUNNER {RUNNER}",
        f"get taskrunner peer status {RUNNER} 0",
        "create task from training.yaml",
        "get task body training",
        "finalize task training",
        "list tasks",
        f"reset taskrunner {RUNNER}",
        f"assign task training to {RUNNER} with 2 peers",
        f"get taskrunner status {RUNNER}",
        f"wait for taskrunner {RUNNER}",
        f"get taskrunner peer status {RUNNER} 1",
        f"reset taskrunner {RUNNER}",
        f"reset taskrunner {RUNNER}",
        "list contracts",
        "get contract status digits",
        "perfdata digits",
        "reset contract digits",
        "list taskrunners",
        "exit",
    ]


def test_a_script_of_forty_lines_takes_two_sites_to_a_finished_training(operations: Operations) -> None:
    with swops(operations):
        done = operations.run_script(*whole_script(operations))
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}\n{operations.logs()}"
    assert done.stdout.count("TASK_STATE : COMPLETE") >= 2
    assert operations.result("alpha") == operations.result("beta") > 0.9
    assert len([one for one in operations.net.rounds("digits.1") if len(one.check_ins) == 2]) >= EPOCHS
    for site in SITES:
        assert not operations.net.slurm[site].processes_of()

    # everything is started anew, and the past is still there
    operations.net.swarm.kill("sn", 9)
    operations.net.swarm.processes["sn"].popen.wait()
    operations.net.swarm.start_sn()
    runs = operations.ask(f"list runs {RUNNER}")
    assert [(run["task"], run["state"]) for run in runs] == [("program", "COMPLETE"), ("training", "COMPLETE")]
    assert sorted(peer["node"] for peer in runs[1]["peers"]) == [str(swop_name(site)) for site in SITES]
    found = operations.ask("list contracts")
    states = {one["spec"]["name"]: one["state"] for one in found["contracts"]}
    assert states == {"digits.1": ContractState.COMPLETED}
    assert [one["name"] for one in found["declared"]] == ["digits"]
    assert len(operations.ask("list rounds digits.1")) >= EPOCHS


@contextmanager
def web_mode(one: Operations) -> Iterator[Swci]:
    """`swci --web` at alpha, and a client of it."""
    port = _free_ports(1)[0]
    words = [*one.words(operator("alpha")), "--web", f"web.port={port}", f"usr_dir={one.usr_dir}"]
    log = one.net.folder.log("swci")
    process = Process.start("swci", [*SWCI, *words], log=log, env=ONE_THREAD)
    try:
        yield Swci(f"127.0.0.1:{port}", identity=one.net.folder.identity(operator("alpha")), connect_timeout_s=START_S)
    finally:
        stop([process], 20.0)


def test_the_same_commands_over_http_come_to_the_same_end(operations: Operations) -> None:
    with swops(operations), web_mode(operations) as swci:
        for line in whole_script(operations):
            # the session's folder is usr_dir already, and it does not leave it
            if not line or line.startswith("#") or line == "exit":
                continue
            said = swci.wire.post(f"/exec?cmd={quote(line)}", b"", "application/json")["CONTENT"]
            assert not any(text.startswith("ERROR") for text in said), f"{line}: {said}\n{operations.logs()}"
    assert operations.result("alpha") == operations.result("beta") > 0.9


def test_a_python_program_trains_with_one_method_per_command(operations: Operations) -> None:
    with swops(operations), web_mode(operations) as swci:
        swci.create_contract("digits")
        for task, file in (("program", "program.yaml"), ("training", "training.yaml")):
            swci.create_task_from(file)
            swci.finalize_task(task)
            swci.assign_task(task, RUNNER, 2)
            assert swci.wait_for_taskrunner(RUNNER)["state"] == "COMPLETE", operations.logs()
            swci.reset_taskrunner(RUNNER)
        with pytest.raises(NotFound, match="no such task"):
            swci.get_task_info("nothing")
        assert [run["task"] for run in swci.list_runs(RUNNER)] == ["program", "training"]
    assert operations.result("alpha") == operations.result("beta") > 0.9


def test_where_one_site_fails_the_script_says_which_one_at_which_task_and_why(operations: Operations) -> None:
    operations.write(beta={"MAX_EPOCHS": "many"})
    with swops(operations):
        done = operations.run_script(*whole_script(operations))
        # the other site waits for its peer, until its operator takes the task back
        runner = operations.ask(f"get taskrunner status {RUNNER}")
        assert operations.swci("-c", f"reset taskrunner {RUNNER}").returncode == 0
        for site in SITES:
            until(lambda site=site: not operations.net.slurm[site].processes_of(), f"no job left at {site}", 60)
    assert done.returncode == 1, f"{done.stdout[-3000:]}\n{done.stderr}\n{operations.logs()}"
    failure = done.stderr.splitlines()[-1]
    for word in ("wait for taskrunner", "task training", "beta/swop/swop-1", "ValueError", "'many'"):
        assert word in failure, f"{failure}\n{operations.logs()}"
    assert "still at work: alpha/swop/swop-1" in failure
    assert (runner["state"], runner["reachable"]) == ("RUNNING", False)
