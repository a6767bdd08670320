"""An SN as a process: start, stop, kill -9 and what is left then."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.config import ConnectionConfig, LedgerConfig, LedgerKind, SnConfig
from swarm_hpc.errors import BlobError, ConfigError, LedgerError, PortInUse
from swarm_hpc.records import CheckIn, NodeRecord, Platform, Progress, RoundState, encode
from swarm_hpc.sn import node
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.gateway import Gateway

MODEL = "ab" * 32
PROGRAM = """
import json, sys
from swarm_hpc import config, logs
from swarm_hpc.sn import node
logs.start("alpha/sn/sn")
node.run(config.load(config.SnConfig, json.loads(sys.argv[1])))
"""


class Process:
    """`node.run` in a process of its own."""

    def __init__(self, config: SnConfig) -> None:
        self.endpoint = Path(config.data_dir) / "endpoint.json"
        self.log = Path(config.data_dir).with_suffix(".log")
        with self.log.open("a") as log:
            self.popen = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(encode(config))], stderr=log)

    async def ready(self) -> dict[str, str | int]:
        """What endpoint.json says once this process has written it."""
        while self.popen.poll() is None:
            if self.endpoint.exists():
                values: dict[str, str | int] = json.loads(self.endpoint.read_text())
                if values["pid"] == self.popen.pid:
                    return values
            await asyncio.sleep(0.02)
        raise AssertionError(f"the SN ended with {self.popen.returncode}: {self.log.read_text()}")

    def end(self, signal_number: int) -> int:
        self.popen.send_signal(signal_number)
        return self.popen.wait(15)


@pytest.fixture
def start_process() -> Iterator[Callable[[SnConfig], Process]]:
    started: list[Process] = []

    def start(config: SnConfig) -> Process:
        started.append(Process(config))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


def client(consortium, name: str, address: object) -> SnClient:
    return SnClient(consortium.identity(name), str(address), connection=ConnectionConfig(connect_timeout_s=60))


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_is_and_ends_cleanly_on_a_signal(consortium, sn_config, start_process, signal_number):
    process = start_process(sn_config)
    endpoint = await process.ready()
    assert endpoint["site"] == "alpha"
    async with client(consortium, "alpha/swci/admin", endpoint["address"]) as swci:
        cursor = (await swci.events(0)).cursor
        waiting = asyncio.create_task(swci.events(cursor, wait_s=30))
        height = (await swci.status()).ledger.height
        assert await asyncio.to_thread(process.end, signal_number) == 0
        waiting.cancel()
        await asyncio.wait([waiting])
    assert not process.endpoint.exists()
    log = process.log.read_text()
    assert f"ready on {endpoint['address']}: site alpha, ledger height {height}" in log
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ledger", "sentinel", "said"),
    [
        ({"join": ["127.0.0.1:1"]}, False, "no member answers yet"),
        ({"geth": "/bin/false", "cometbft": "/bin/false"}, True, "the ledger's programs start again"),
    ],
)
async def test_one_that_still_starts_ends_on_a_signal(sn_config, start_process, ledger, sentinel, said):
    sn_config.ledger, sn_config.sentinel = LedgerConfig(kind=LedgerKind.GETH, **ledger), sentinel
    process = start_process(sn_config)
    async with asyncio.timeout(30):
        while said not in process.log.read_text():
            await asyncio.sleep(0.02)
    assert await asyncio.to_thread(process.end, signal.SIGTERM) == 0
    assert "Traceback" not in process.log.read_text()


@pytest.mark.slow
async def test_nothing_is_lost_by_kill_9_and_clients_bridge_the_outage(consortium, sn_config, start_process, new_spec):
    process = start_process(sn_config)
    address = str((await process.ready())["address"])
    one, two = "alpha/sl/one", "beta/sl/two"
    async with client(consortium, one, address) as first, client(consortium, two, address) as second:
        nodes: dict[str, NodeRecord] = {}
        await first.create_contract(new_spec())
        for name, sl in ((one, first), (two, second)):
            nodes[name], _ = await sl.register(name, "", "instance")
            await sl.join("demo", name, nodes[name].incarnation, Platform.PYTORCH, MODEL)
            await sl.check_in("demo", 1, nodes[name].incarnation, CheckIn(node=name, blob=MODEL, weight=2, loss=0.5))
        await first.claim("demo", 1, one, nodes[one].incarnation)
        before = await first.status(), await first.rounds("demo"), await first.events(0)

        process.end(signal.SIGKILL)
        publishing = asyncio.create_task(first.publish("demo", 1, one, nodes[one].incarnation, "cd" * 32))
        waiting = asyncio.create_task(second.round("demo", 1, after=before[2].cursor, wait_s=30))
        sn_config.port = int(address.rpartition(":")[2])
        again = start_process(sn_config)
        assert (await publishing).state is RoundState.PUBLISHED
        assert (await waiting).contract.spec == new_spec()
        assert (await again.ready())["address"] == address

        after = await second.status()
        assert [each.node for each in after.nodes] == [each.node for each in before[0].nodes]
        assert (after.sites, after.ledger.genesis) == (before[0].sites, before[0].ledger.genesis)
        assert after.ledger.height == before[0].ledger.height + 1
        assert (await second.rounds("demo", 1, 1))[0].check_ins == before[1][0].check_ins
        events = (await second.events(0)).events
        assert events[:-1] == before[2].events
        assert events[-1].name == "Published"
        for name, sl in ((one, first), (two, second)):
            await sl.heartbeat(name, nodes[name].incarnation, Progress())


@pytest.mark.slow
async def test_a_silent_node_no_longer_holds_up_its_round(start_swarm, sn_config):
    sn_config.lease_s = 1.5
    swarm = await start_swarm()
    one, silent = await swarm.joined("alpha/sl/one", "beta/sl/silent", min_peers=1, quorum_wait_s=3600)
    await one.check_in(1)
    view = await one.client.round("demo", 1)
    assert not view.round.closable
    while silent.name in {each.node for each in view.contract.participants if each.active}:
        await one.client.heartbeat(one.name, one.incarnation, Progress())
        view = await one.client.round("demo", 1, after=view.cursor, wait_s=0.1)
    assert view.round.closable
    assert (await one.claim(1)).leader == one.name
    record, _ = await silent.client.register(silent.name, "", "instance after the pause")
    assert record.incarnation == silent.incarnation + 1


async def test_two_sns_cannot_share_a_data_dir(start_swarm, sn_config, consortium):
    await start_swarm()
    with pytest.raises(LedgerError, match="has this ledger open"):
        async with node.start(sn_config, consortium.identity("alpha/sn/sn")):
            pass


async def test_blobs_are_fetched_within_the_times_of_the_settings(sn_config, consortium, monkeypatch):
    used = []
    begin = Gateway.open

    def spy(live, blobs, identity, connection):
        used.append(connection)
        return begin(live, blobs, identity, connection)

    monkeypatch.setattr(Gateway, "open", spy)
    sn_config.connection = ConnectionConfig(connect_timeout_s=3, transfer_timeout_s=7200)
    async with node.start(sn_config, consortium.identity("alpha/sn/sn")):
        assert used == [sn_config.connection]


def test_a_certificate_of_another_kind_is_refused_with_the_remedy(sn_config, consortium):
    sn_config.identity = consortium.config("alpha/sl/one")
    with pytest.raises(ConfigError, match=r"identity\.cert: .* names alpha/sl/one.*certs issue alpha/sn/NAME"):
        node.run(sn_config)


def test_a_port_in_use_is_told_and_leaves_no_endpoint(sn_config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sn_config.port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(sn_config.port)):
            node.run(sn_config)
    assert not (Path(sn_config.data_dir) / "endpoint.json").exists()


def test_a_data_dir_that_cannot_be_made_is_named(sn_config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    sn_config.data_dir = str(tmp_path / "file" / "sn")
    with pytest.raises(ConfigError, match=r"data_dir: .*file/sn"):
        node.run(sn_config)


@pytest.mark.parametrize(
    ("in_the_way", "kind", "error"),
    [("blobs", LedgerKind.EMBEDDED, BlobError), ("blobs.db", LedgerKind.EMBEDDED, BlobError)]
    + [("ledger", kind, ConfigError) for kind in LedgerKind],
)
def test_what_cannot_be_opened_in_the_data_dir_is_named(sn_config, in_the_way, kind, error):
    file = Path(sn_config.data_dir) / in_the_way
    file.parent.mkdir()
    file.write_bytes(b"no such thing" * 1000)
    sn_config.ledger, sn_config.sentinel = LedgerConfig(kind=kind), True
    with pytest.raises(error, match=str(file)):
        node.run(sn_config)


@pytest.mark.parametrize(
    ("advertise", "address"),
    [
        ("", "127.0.0.1:0"),
        ("sn.alpha.example", "sn.alpha.example:{port}"),
        ("sn.alpha.example:443", "sn.alpha.example:443"),
        ("[fd00::1]", "[fd00::1]:{port}"),
        ("fd00::1", "[fd00::1]:{port}"),
        ("[fd00::1]:443", "[fd00::1]:443"),
    ],
)
async def test_the_address_is_the_advertised_one(sn_config, consortium, advertise, address):
    async with node.start(replace(sn_config, advertise=advertise), consortium.identity("alpha/sn/sn")) as found:
        host, _, port = found.rpartition(":")
        expected_host, _, expected_port = address.rpartition(":")
        assert host == expected_host
        assert port == expected_port or (expected_port != "443" and int(port) > 0)


async def test_an_ipv6_address_is_one_that_others_can_use(sn_config, consortium):
    async with (
        node.start(replace(sn_config, host="::1"), consortium.identity("alpha/sn/sn")) as address,
        client(consortium, "alpha/swci/admin", address) as swci,
    ):
        assert (await swci.status()).sites[0].endpoint == address


async def test_the_address_of_no_machine_is_not_told_to_others(sn_config, consortium):
    everywhere = replace(sn_config, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"^host: 0\.0\.0\.0 is no address .*: say it in advertise$"):
        async with node.start(everywhere, consortium.identity("alpha/sn/sn")):
            pass
    async with node.start(replace(everywhere, advertise="127.0.0.1"), consortium.identity("alpha/sn/sn")) as address:
        assert address.startswith("127.0.0.1:")


@pytest.mark.parametrize("advertise", ["https://sn.alpha.example", "sn.alpha.example:port", "sn.alpha.example:99999"])
async def test_what_nobody_could_connect_to_is_not_advertised(sn_config, consortium, advertise):
    with pytest.raises(ConfigError, match=r"advertise: .*is no address"):
        async with node.start(replace(sn_config, advertise=advertise), consortium.identity("alpha/sn/sn")):
            pass
