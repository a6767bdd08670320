"""A licence server from start to stop: identity, licence, seats, API, and a clean end on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from swarm_hpc.config import LicenseServerConfig
from swarm_hpc.daemon import told_to_stop
from swarm_hpc.errors import ConfigError
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.license.desk import Desk
from swarm_hpc.license.file import load_public_key
from swarm_hpc.license.server import LicenseApi
from swarm_hpc.records import Kind
from swarm_hpc.transport.line import with_port
from swarm_hpc.transport.server import application, serve

log = logging.getLogger(__name__)

_CHECKS_PER_LEASE: Final = 5
_LOCK_FILE: Final = "lock"


def run(config: LicenseServerConfig) -> None:
    """Be the licence server until SIGTERM or SIGINT. Whatever prevents the start is raised as a SwarmError.

    Without a valid licence it runs all the same, and refuses: one that is installed later counts from then on.
    """
    identity = certs.load_as(config.identity, Kind.LICENSE, "a licence server")
    asyncio.run(_run(config, identity))


async def _run(config: LicenseServerConfig, identity: Identity) -> None:
    stop = told_to_stop()
    async with start(config, identity):
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def start(config: LicenseServerConfig, identity: Identity) -> AsyncIterator[str]:
    """A serving licence server as long as the block lasts; yields host:port where it listens."""
    if not config.public_key:
        raise ConfigError("public_key: no value; it is the owner's license-public.pem, from `swarm-hpc license keys`")
    key = load_public_key(Path(config.public_key))
    data_dir = Path(config.data_dir)
    with _owned(data_dir):
        desk = Desk.open(data_dir, key, lease_s=config.lease_s, warn_days=config.warn_days)
        app = application()
        LicenseApi(desk=desk).add_routes(app)
        async with serve(app, identity, config.host, config.port) as port, _watch(desk):
            address = with_port(config.host or "localhost", port)
            log.info("ready on %s: %d seats are taken", address, desk.seats.used)
            yield address


@contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    """Nobody else's as long as the block lasts: two servers would give out every seat twice."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"data_dir: {data_dir}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(f"data_dir: {data_dir} belongs to a licence server that runs; stop it first") from exc
        except OSError as exc:
            raise ConfigError(
                f"data_dir: {data_dir} cannot be locked ({exc.strerror}): put it on a file system that knows locks, "
                "such as a local disk"
            ) from exc
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def _watch(desk: Desk) -> AsyncIterator[None]:
    """Free the seats of silent nodes, and warn of the licence's end, as long as the block lasts."""

    async def watch() -> None:
        while True:
            try:
                desk.expire()
                desk.warn()
            except Exception:  # the outermost loop of a daemon
                log.exception("the seats could not be checked; trying again")
            await asyncio.sleep(desk.lease_s / _CHECKS_PER_LEASE)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
