"""A node that trains on a seat: it takes one before it registers, keeps it, and leaves in order when it loses it."""

import asyncio
import json
import logging
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.config import (
    ConnectionConfig,
    IdentityConfig,
    LicenseConfig,
    LicenseKind,
    LicenseServerConfig,
    TransferMode,
)
from swarm_hpc.errors import Fenced, LicenseError, NotReachable
from swarm_hpc.identity import ca, certs
from swarm_hpc.license import node as license_node
from swarm_hpc.license.client import LicenseClient, hold_seat
from swarm_hpc.records import FinishMode, Kind, NodeName
from swarm_hpc.sl.node import live
from tests.license.conftest import Owner, seat
from tests.sl.test_departure import OPENS, SAVES

pytestmark = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


class Seats:
    """A licence server with one seat; every node of the swarm needs one."""

    def __init__(self, swarm, folder: Path) -> None:
        self.swarm = swarm
        self.owner = Owner(folder / "owner", folder / "server")
        self.owner.install(seats=1)
        own = swarm.identities["alpha"]
        home = Path(own.cert).parent
        cert, key = ca.issue(home / "ca", NodeName("alpha", Kind.LICENSE, "seats"), home)
        self.config = LicenseServerConfig(
            port=0,
            data_dir=str(self.owner.data_dir),
            public_key=str(self.owner.public),
            lease_s=1.0,
            identity=IdentityConfig(cert=str(cert), key=str(key), bundle=own.bundle),
        )
        self.address = ""
        swarm.tweak = lambda config: replace(config, license=self.wanted())

    def wanted(self, **changes) -> LicenseConfig:
        return LicenseConfig(**{"kind": LicenseKind.SERVER, "server": self.address} | changes)

    @asynccontextmanager
    async def serving(self):
        async with license_node.start(self.config, certs.load(self.config.identity)) as self.address:
            self.config.port = int(self.address.rpartition(":")[2])
            yield

    async def holders(self) -> list[str]:
        identity = certs.load(self.swarm.identities["gamma"])
        async with LicenseClient(identity, self.address, connection=ConnectionConfig()) as client:
            return [one.node for one in (await client.status()).holders]


@pytest.fixture
async def seats(swarm, tmp_path):
    made = Seats(swarm, tmp_path)
    async with made.serving():
        yield made


async def test_a_node_has_a_seat_while_it_trains_and_the_next_one_is_refused_before_it_registers(swarm, seats):
    async with swarm.node("alpha", min_peers=1) as life:
        alpha = swarm.program("alpha")
        await alpha.open(1.0)
        assert await seats.holders() == ["alpha/sl/sl"]
        with pytest.raises(LicenseError, match=r"1 of 1 seats are taken \(by alpha/sl/sl\)"):
            await live(swarm.config("beta"))
        async with swarm.client() as sn:
            assert [one.node.name for one in await sn.nodes()] == ["alpha/sl/sl"]
        await alpha.finish(FinishMode.INACTIVE)
        alpha.close()
        await life
    assert await seats.holders() == []


async def test_a_node_may_wait_for_a_seat(swarm, seats, caplog, monkeypatch):
    monkeypatch.setattr("swarm_hpc.license.client._ASK_AGAIN_S", 0.1)
    caplog.set_level(logging.INFO, "swarm_hpc.license")
    swarm.tweak = lambda config: replace(config, license=seats.wanted(wait_s=60))
    async with AsyncExitStack() as first:
        await first.enter_async_context(swarm.node("alpha"))
        while await seats.holders() != ["alpha/sl/sl"]:
            await asyncio.sleep(0.01)
        async with swarm.node("beta"):
            while "no seat yet, asking again" not in caplog.text:
                await asyncio.sleep(0.01)
            await first.aclose()
            while await seats.holders() != ["beta/sl/sl"]:
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_node_that_loses_its_seat_has_its_program_save_and_ends_with_the_reason(swarm, seats, caplog):
    caplog.set_level(logging.INFO, "swarm_hpc")
    life = asyncio.create_task(live(swarm.config("alpha", command=[sys.executable, "-c", OPENS + SAVES])))
    async with swarm.client() as sn:
        while not await sn.contracts():  # its program has a session
            await asyncio.sleep(0.02)
    (seats.owner.data_dir / "license.json").unlink()
    async with asyncio.timeout(60):
        with pytest.raises(LicenseError, match=r"lost the seat: .*the licence server has no licence"):
            await life
    assert "the ML program has saved its state" in caplog.text


@pytest.mark.slow
async def test_a_seat_that_was_taken_for_lost_is_taken_again(swarm, seats):
    async with swarm.node("alpha") as life:
        while await seats.holders() != ["alpha/sl/sl"]:
            await asyncio.sleep(0.02)
        identity = certs.load(swarm.identities["alpha"])
        instance = (swarm.folder / "alpha" / "instance").read_text().strip()
        async with LicenseClient(identity, seats.address, connection=ConnectionConfig()) as client:
            await client.release(seat("alpha/sl/sl", instance=instance))
        while await seats.holders() != ["alpha/sl/sl"]:
            await asyncio.sleep(0.02)
        assert not life.done()


@pytest.mark.slow
async def test_a_node_that_was_started_again_keeps_the_seat_when_the_process_before_it_ends(swarm, tmp_path):
    seats = Seats(swarm, tmp_path)
    seats.config.lease_s = 600
    async with seats.serving(), swarm.node("alpha") as first, swarm.client() as sn:
        while not await sn.nodes():
            await asyncio.sleep(0.01)
        async with swarm.node("alpha") as second:
            with pytest.raises(Fenced):
                await first
            assert await seats.holders() == ["alpha/sl/sl"]
            with pytest.raises(LicenseError, match=r"1 of 1 seats are taken \(by alpha/sl/sl\)"):
                await live(swarm.config("beta"))
            assert not second.done()


@pytest.mark.slow
async def test_a_server_that_is_away_is_waited_for_as_long_as_grace_s(swarm, tmp_path):
    seats = Seats(swarm, tmp_path)
    identity, lost = certs.load(swarm.identities["alpha"]), asyncio.Queue()
    connection = ConnectionConfig(connect_timeout_s=0.2)

    def holding(grace_s: float, server: str = ""):
        config = seats.wanted(grace_s=grace_s, server=server or seats.address)
        return hold_seat(config, identity, seat("alpha/sl/sl"), connection, on_lost=lost.put_nowait)

    async with AsyncExitStack() as stack:
        async with seats.serving():
            await stack.enter_async_context(holding(600))
        async with seats.serving():
            assert await seats.holders() == ["alpha/sl/sl"]
        assert json.loads((seats.owner.data_dir / "seats.json").read_text())[0]["node"] == "alpha/sl/sl"
        assert lost.empty()
        await stack.aclose()
        async with seats.serving():
            await stack.enter_async_context(holding(0.1))
        assert "was not reached for" in str(await asyncio.wait_for(lost.get(), 30))
        with pytest.raises(NotReachable):
            async with holding(600):
                pass
