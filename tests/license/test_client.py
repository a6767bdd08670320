"""How a node keeps its seat when the licence server answers now and then."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from swarm_hpc.config import ConnectionConfig, LicenseConfig, LicenseKind
from swarm_hpc.errors import LicenseError, NotReachable
from swarm_hpc.license.client import LicenseClient, hold_seat
from tests.license.conftest import seat

A = "alpha/sl/a"


@pytest.mark.slow
async def test_refusals_between_silences_end_a_node_as_well(start, sites, owner, server_config, monkeypatch) -> None:
    owner.install()
    server_config.lease_s = 0.3
    config = LicenseConfig(kind=LicenseKind.SERVER, server=await start(), grace_s=600)
    lost: asyncio.Queue[LicenseError] = asyncio.Queue()
    beats = count()

    async def now_and_then(*_: object, **__: object) -> float:
        if next(beats) % 2:
            raise NotReachable("away")
        raise LicenseError("5 of 5 seats are taken")

    async with hold_seat(config, sites.identity(A), seat(A), ConnectionConfig(), on_lost=lost.put_nowait):
        with monkeypatch.context() as patched:
            patched.setattr("swarm_hpc.license.client._renew", now_and_then)
            assert str(await asyncio.wait_for(lost.get(), 30)) == "lost the seat: 5 of 5 seats are taken"
    async with LicenseClient(sites.identity(A), config.server, connection=ConnectionConfig()) as client:
        assert (await client.status()).used == 0
