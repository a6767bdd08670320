"""A licence server and its clients over real TLS."""

from __future__ import annotations

import asyncio
import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import ConfigError, DiskFull, LicenseError, NotAuthorized, ProtocolError
from swarm_hpc.license import node
from swarm_hpc.license.desk import Desk
from swarm_hpc.records import Kind
from swarm_hpc.transport.client import ApiClient, expect_kind
from tests.license.conftest import seat

A, B = "alpha/sl/a", "beta/sl/b"


async def test_of_eight_nodes_five_train_and_a_seat_that_is_given_back_is_free(start, client, owner) -> None:
    owner.install()
    address = await start()
    alpha, beta = await client(A, address), await client(B, address)
    for number in range(5):
        assert await alpha.acquire(seat(f"alpha/sl/{number}")) == 30
    for number in range(3):
        with pytest.raises(LicenseError, match=r"5 of 5 seats are taken \(by alpha/sl/0, .*ask ada@lung.example"):
            await beta.acquire(seat(f"beta/sl/{number}"))
    await alpha.release(seat("alpha/sl/3"))
    await alpha.release(seat("alpha/sl/3"))
    await beta.acquire(seat(B))
    status = await (await client("beta/swci/me", address)).status()
    assert [one.node for one in status.holders] == ["alpha/sl/0", "alpha/sl/1", "alpha/sl/2", "alpha/sl/4", B]
    assert (status.used, status.problem, status.warning) == (5, "", "")


@pytest.mark.slow
async def test_a_silent_node_s_seat_is_free_within_the_lease(start, client, owner, server_config) -> None:
    owner.install(seats=1)
    server_config.lease_s = 0.5
    address = await start()
    alpha, beta = await client(A, address), await client(B, address)
    await alpha.acquire(seat(A))
    with pytest.raises(LicenseError):
        await beta.acquire(seat(B))
    async with asyncio.timeout(20):
        while (await beta.status()).used:
            await asyncio.sleep(0.05)
    await beta.acquire(seat(B))
    with pytest.raises(LicenseError, match="alpha/sl/a has no seat"):
        await alpha.renew(seat(A))


async def test_a_restart_of_the_server_forgets_nobody(client, owner, server_config, sites) -> None:
    owner.install(seats=1)
    identity = sites.identity("alpha/license/seats")
    async with node.start(server_config, identity) as address:
        await (await client(A, address)).acquire(seat(A))
        before = await (await client(A, address)).status()
        with pytest.raises(ConfigError, match="belongs to a licence server that runs"):
            async with node.start(server_config, identity):
                pass
    async with node.start(server_config, identity) as address:
        alpha, beta = await client(A, address), await client(B, address)
        with pytest.raises(LicenseError, match="1 of 1 seats"):
            await beta.acquire(seat(B))
        await alpha.renew(seat(A))
        assert (await beta.status()).holders[0].since == before.holders[0].since


async def test_a_licence_that_is_installed_while_the_server_runs_counts(start, client, owner) -> None:
    address = await start()
    alpha = await client(A, address)
    with pytest.raises(LicenseError, match=r"has no licence .*`swarm-hpc license install FILE"):
        await alpha.acquire(seat(A))
    owner.install(seats=1)
    await alpha.acquire(seat(A))
    owner.install(seats=3)
    await alpha.acquire(seat(A, 3))
    (owner.data_dir / "license.json").write_text("{}")
    with pytest.raises(LicenseError, match=r"license\.json: is no licence"):
        await alpha.renew(seat(A, 3))
    assert "is no licence" in (await alpha.status()).problem


async def test_a_licence_that_could_not_be_read_counts_as_soon_as_it_can(start, client, owner, monkeypatch) -> None:
    owner.install(seats=1)
    open_file = Path.open

    def refused(path: Path, *how: Any, **more: Any) -> IO[Any]:
        if path == owner.data_dir / "license.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        alpha = await client(A, await start())
        for _ in range(2):
            with pytest.raises(LicenseError, match=r"license\.json: cannot be read \(Permission denied\)"):
                await alpha.acquire(seat(A))
    await alpha.acquire(seat(A))
    await alpha.renew(seat(A))


async def test_a_licence_that_has_ended_renews_nothing_and_its_end_is_warned_of(start, client, owner, caplog) -> None:
    soon = datetime.now(UTC) + timedelta(days=3, minutes=1)
    owner.install(valid_until=soon)
    address = await start()
    alpha = await client(A, address)
    await alpha.acquire(seat(A))
    assert "in 3 days; ask ada@lung.example for a new one" in (await alpha.status()).warning
    assert "in 3 days" in caplog.text
    owner.put(valid_until=datetime.now(UTC) - timedelta(seconds=1))
    for refused in (alpha.renew, alpha.acquire):
        with pytest.raises(LicenseError, match="gives out and renews no seats: licence lung ended on"):
            await refused(seat(A))
    status = await alpha.status()
    assert status.terms is not None
    assert "ended on" in status.problem


def test_the_log_says_at_once_that_the_licence_has_ended_though_its_end_was_told_today(owner, caplog) -> None:
    now = datetime.now(UTC)
    owner.install(valid_until=now + timedelta(hours=3))
    desk = Desk.open(owner.data_dir, owner.key.public_key(), lease_s=60, warn_days=14)
    desk.warn()
    owner.put(valid_until=now - timedelta(seconds=1))
    for _ in range(3):
        desk.warn()
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [text.partition(" on ")[0] for text in warnings] == ["licence lung ends", "licence lung ended"]


async def test_nodes_ask_for_seats_of_their_own_site_only(start, client, owner) -> None:
    owner.install()
    address = await start()
    with pytest.raises(NotAuthorized, match="of site beta only, not for alpha/sl/a"):
        await (await client(B, address)).acquire(seat(A))
    with pytest.raises(NotAuthorized, match="not for beta/sn/sn"):
        await (await client(B, address)).release(seat("beta/sn/sn"))
    for reader in ("alpha/swci/me", "alpha/sn/sn", "alpha/ui/ui"):
        asks = await client(reader, address)
        assert (await asks.status()).used == 0
        with pytest.raises(NotAuthorized):
            await asks.acquire(seat(reader))
    with pytest.raises(NotAuthorized):
        await (await client("alpha/license/other", address)).status()
    with pytest.raises(ConfigError, match="not a node name"):
        await (await client(A, address)).acquire(seat("a"))


@pytest.mark.parametrize(
    "asked", [{}, {"node": A}, {"node": A, "instance": "i", "num_seats": 0}, {"node": A, "instance": "a b"}]
)
async def test_a_request_that_is_none_is_refused(start, sites, owner, asked) -> None:
    owner.install()
    address = await start()
    connection = ConnectionConfig(connect_timeout_s=5)
    async with ApiClient(sites.identity(A), address, expect=expect_kind(Kind.LICENSE), connection=connection) as api:
        with pytest.raises(ProtocolError, match="SeatRequest"):
            await api.call("POST", "/v1/seats", body=asked)


async def test_a_seat_that_cannot_be_kept_on_disk_is_not_promised(start, client, owner, monkeypatch) -> None:
    owner.install()
    address = await start()
    alpha = await client(A, address)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("swarm_hpc.license.desk.write", full)
        for _ in range(2):
            with pytest.raises(DiskFull, match=r"cannot write .*seats\.json \(No space left on device\)"):
                await alpha.acquire(seat(A))
    await alpha.acquire(seat(A))
    assert A in (owner.data_dir / "seats.json").read_text()


async def test_a_server_needs_the_owner_s_key(server_config, sites) -> None:
    server_config.public_key = ""
    with pytest.raises(ConfigError, match="public_key: no value"):
        async with node.start(server_config, sites.identity("alpha/license/seats")):
            pass
    server_config.identity = sites.config("alpha/sn/sn")
    with pytest.raises(ConfigError, match="certs issue alpha/license/NAME"):
        node.run(server_config)


async def test_a_server_says_an_address_of_ipv6_as_others_can_use_it(start, client, owner, server_config) -> None:
    owner.install()
    server_config.host = "::1"
    assert (await (await client(A, await start())).status()).used == 0


async def test_a_folder_that_cannot_be_locked_is_told_as_such(server_config, sites, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    with pytest.raises(ConfigError, match=r"data_dir: .* cannot be locked \(Function not implemented\): put it on"):
        async with node.start(server_config, sites.identity("alpha/license/seats")):
            pass


async def test_seats_that_cannot_be_read_are_told_with_the_remedy(server_config, sites, owner) -> None:
    owner.data_dir.mkdir()
    (owner.data_dir / "seats.json").write_text("[{}]")
    with pytest.raises(ConfigError, match=r"seats\.json cannot be read"):
        async with node.start(server_config, sites.identity("alpha/license/seats")):
            pass
