"""A licence server over real TLS, and licences of an owner whose keys are made for the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from swarm_hpc.config import ConnectionConfig, LicenseServerConfig
from swarm_hpc.identity import certs
from swarm_hpc.license import file, node
from swarm_hpc.license.client import LicenseClient
from swarm_hpc.license.desk import install
from swarm_hpc.license.terms import LicenseTerms, SeatRequest


def terms(**changes: object) -> LicenseTerms:
    today = datetime.now(UTC)
    made = LicenseTerms(
        id="lung",
        licensee="Lung consortium",
        contact="ada@lung.example",
        seats=5,
        features=("training",),
        valid_from=today - timedelta(days=1),
        valid_until=today + timedelta(days=100),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def seat(node: str, num_seats: int = 1, *, instance: str = "one", feature: str = "training") -> SeatRequest:
    return SeatRequest(node=node, instance=instance, num_seats=num_seats, feature=feature)


class Owner:
    """Signs licences, and installs them at the server."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.private, self.public = file.make_keys(folder)
        self.key: Ed25519PrivateKey = file.load_private_key(self.private, "")
        self.data_dir = data_dir
        self.sent = folder / "sent.json"

    def sign(self, **changes: object) -> Path:
        self.sent.write_bytes(file.sign(terms(**changes), self.key))
        return self.sent

    def install(self, **changes: object) -> LicenseTerms:
        return install(self.sign(**changes), self.data_dir, self.key.public_key())[0]

    def put(self, **changes: object) -> None:
        """As `install`, but unchecked: a licence that has ended while it lay there."""
        self.data_dir.mkdir(exist_ok=True)
        self.sign(**changes).replace(self.data_dir / "license.json")


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path / "owner", tmp_path / "server")


@pytest.fixture
def server_config(sites, owner: Owner) -> LicenseServerConfig:
    return LicenseServerConfig(
        port=0,
        data_dir=str(owner.data_dir),
        public_key=str(owner.public),
        lease_s=30,
        identity=sites.config("alpha/license/seats"),
    )


@pytest.fixture
async def start(server_config: LicenseServerConfig) -> AsyncIterator[Callable[[], object]]:
    """Starts a server with `server_config` as it is then; it stops with the test."""
    async with AsyncExitStack() as stack:

        async def start_server() -> str:
            return await stack.enter_async_context(node.start(server_config, certs.load(server_config.identity)))

        yield start_server


@pytest.fixture
async def client(sites) -> AsyncIterator[Callable[[str, str], LicenseClient]]:
    """A client with that node's certificate."""
    async with AsyncExitStack() as stack:

        async def connect(name: str, address: str) -> LicenseClient:
            made = LicenseClient(sites.identity(name), address, connection=ConnectionConfig(connect_timeout_s=10))
            return await stack.enter_async_context(made)

        yield connect
