"""Two sites with real certificates, an SN that serves them, and its clients, shared by the tests of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swarm_hpc.config import ConnectionConfig, IdentityConfig, SnConfig, TransferConfig
from swarm_hpc.identity import ca, certs
from swarm_hpc.records import CheckIn, ContractSpec, Merge, NodeName, Platform
from swarm_hpc.sn import node
from swarm_hpc.sn.client import SnClient

MODEL = "ab" * 32


@dataclass
class Consortium:
    """Sites alpha and beta: each its CA, one trust bundle, and certificates on demand."""

    folder: Path

    def config(self, name: str) -> IdentityConfig:
        parsed = NodeName.parse(name)
        site = self.folder / parsed.site
        cert, key = site / f"{parsed.kind}-{parsed.name}.pem", site / f"{parsed.kind}-{parsed.name}-key.pem"
        if not cert.exists():
            assert (cert, key) == ca.issue(site, parsed, site)
        return IdentityConfig(cert=str(cert), key=str(key), bundle=str(self.folder / "bundle.json"))

    def identity(self, name: str) -> certs.Identity:
        return certs.load(self.config(name))


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    folder = tmp_path_factory.mktemp("consortium")
    cas = {site: ca.create_ca(site, "swarm.test", folder / site) for site in ("alpha", "beta")}
    ca.write_bundle(cas, "swarm.test", folder / "bundle.json")
    return Consortium(folder)


@pytest.fixture
def sn_config(consortium: Consortium, tmp_path: Path) -> SnConfig:
    return SnConfig(
        port=0,
        data_dir=str(tmp_path / "sn"),
        identity=consortium.config("alpha/sn/sn"),
        transfer=TransferConfig(min_free_mib=0, keep_rounds=0),
    )


@dataclass
class Swarm:
    """A running SN and the clients that talk to it."""

    address: str
    consortium: Consortium
    stack: AsyncExitStack
    connection: ConnectionConfig

    async def client(self, name: str) -> SnClient:
        """A client with the certificate of that node."""
        identity = self.consortium.identity(name)
        return await self.stack.enter_async_context(SnClient(identity, self.address, connection=self.connection))

    async def sl(self, name: str) -> Sl:
        """A registered SL node."""
        client = await self.client(name)
        record, _ = await client.register(name, "10.0.0.1:30305", f"instance of {name}")
        return Sl(client, name, record.incarnation)

    async def joined(self, *names: str, **settings: Any) -> list[Sl]:
        """Registered SL nodes that have joined the contract `demo`."""
        nodes = [await self.sl(name) for name in names]
        await nodes[0].client.create_contract(spec(**settings))
        for one in nodes:
            await one.client.join("demo", one.name, one.incarnation, Platform.PYTORCH, MODEL)
        return nodes


@dataclass
class Sl:
    """The calls of one SL node in the contract `demo`."""

    client: SnClient
    name: str
    incarnation: int

    async def check_in(self, number: int, blob: str | None = None) -> Any:
        check_in = CheckIn(node=self.name, blob=blob or blob_of(self.name, number), weight=1, loss=0.5)
        return await self.client.check_in("demo", number, self.incarnation, check_in)

    async def claim(self, number: int) -> Any:
        return await self.client.claim("demo", number, self.name, self.incarnation)

    async def drop(self, number: int, absent: str) -> Any:
        return await self.client.drop("demo", number, self.name, self.incarnation, absent)

    async def publish(self, number: int, merged: str = "cd" * 32) -> Any:
        return await self.client.publish("demo", number, self.name, self.incarnation, merged)


def blob_of(name: str, number: int) -> str:
    return f"{name}{number}".encode().hex().ljust(64, "0")[:64]


def spec(**settings: Any) -> ContractSpec:
    values: dict[str, Any] = {
        "name": "demo",
        "platform": Platform.PYTORCH,
        "merge": Merge(),
        "min_peers": 2,
        "quorum_wait_s": 30,
        "leader_timeout_s": 60,
        "model": MODEL,
    }
    return ContractSpec(**(values | settings))


@pytest.fixture
def new_spec() -> Callable[..., ContractSpec]:
    """A contract's settings, but for those given."""
    return spec


@pytest.fixture
def swarm_of(consortium: Consortium) -> Callable[[SnConfig], AbstractAsyncContextManager[Swarm]]:
    """An SN with these settings, for as long as one wants it."""

    @asynccontextmanager
    async def run(config: SnConfig) -> AsyncIterator[Swarm]:
        async with AsyncExitStack() as stack:
            address = await stack.enter_async_context(node.start(config, consortium.identity("alpha/sn/sn")))
            yield Swarm(address, consortium, stack, ConnectionConfig(connect_timeout_s=5))

    return run


@pytest.fixture
async def start_swarm(
    swarm_of: Callable[[SnConfig], AbstractAsyncContextManager[Swarm]], sn_config: SnConfig
) -> AsyncIterator[Callable[[], Awaitable[Swarm]]]:
    """Starts an SN with `sn_config` as it is then; it stops with the test."""
    async with AsyncExitStack() as stack:

        async def start() -> Swarm:
            return await stack.enter_async_context(swarm_of(sn_config))

        yield start


@pytest.fixture
async def swarm(start_swarm: Callable[[], Awaitable[Swarm]]) -> Swarm:
    return await start_swarm()
