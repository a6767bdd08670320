"""An SN from start to stop: identity, ledger, API, the watch over leases, and a clean end on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import LedgerKind, SnConfig
from swarm_hpc.daemon import told_to_stop
from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import Kind
from swarm_hpc.sn.admission import Applications
from swarm_hpc.sn.blobs import ContractBlobs
from swarm_hpc.sn.gateway import Gateway
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership
from swarm_hpc.sn.server import SnApi
from swarm_hpc.sn.shared import SharedLedger
from swarm_hpc.transport.line import advertised
from swarm_hpc.transport.server import application, listen

log = logging.getLogger(__name__)

ENDPOINT_FILE: Final = "endpoint.json"
"""In data_dir, while the SN is ready: its address, site and pid, as JSON."""
_CHECKS_PER_LEASE: Final = 5


def run(config: SnConfig) -> None:
    """Be a site's SN until SIGTERM or SIGINT. Whatever prevents the start is raised as a SwarmError.

    When it is ready, data_dir/endpoint.json names its address, site and pid; the file goes at the end.
    """
    identity = certs.load_as(config.identity, Kind.SN, "an SN")
    asyncio.run(_run(config, identity))


async def _run(config: SnConfig, identity: Identity) -> None:
    stop = told_to_stop()
    _raise_file_limit()
    while not stop.is_set():
        turn = Turn()
        await _until(stop, _serve(config, identity, turn))
        config = replace(config, port=turn.port)  # everybody knows this SN by the port that it was given


async def _serve(config: SnConfig, identity: Identity, turn: Turn) -> None:
    async with start(config, identity, turn) as address:
        with _endpoint_file(Path(config.data_dir) / ENDPOINT_FILE, address, identity):
            await turn.over.wait()
            log.info("starting again in a new epoch of the network")


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or end it at `stop`: also an SN that still starts, as long as it takes to be admitted."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        log.info("stopping")
        working.cancel()
    with suppress(asyncio.CancelledError):
        await working


@dataclass(slots=True)
class Turn:
    """One start of an SN until its end, or until it has to start anew."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it should be ended and started again: its network has gone on in a new epoch."""
    port: int = 0
    """Where it listens."""


@asynccontextmanager
async def start(config: SnConfig, identity: Identity, turn: Turn | None = None) -> AsyncIterator[str]:
    """A serving SN as long as the block lasts; yields the address under which other nodes reach it."""
    turn = turn or Turn()
    started_at = time.monotonic()
    data_dir = Path(config.data_dir)
    site = identity.name.site
    with _data_dir(data_dir):
        (data_dir / ENDPOINT_FILE).unlink(missing_ok=True)  # of a run that was killed
    is_shared = config.ledger.kind is LedgerKind.GETH
    shared = SharedLedger(config.ledger, data_dir / "ledger", identity, turn.over) if is_shared else None
    async with AsyncExitStack() as stack:
        tunnels = await stack.enter_async_context(shared.tunnels) if shared is not None else None
        reception = await stack.enter_async_context(listen(identity, config.host, config.port, tunnel=tunnels))
        turn.port = reception.port
        address = advertised(config.host, config.advertise, reception.port)
        if shared is not None:
            with _data_dir(data_dir):
                ledger = await stack.enter_async_context(shared.open(address, reception, sentinel=config.sentinel))
        else:
            ledger = stack.enter_context(await _embedded(config, data_dir, identity, address))
        live = LiveLedger(ledger)
        stack.callback(live.close)
        membership = Membership(live, lease_s=config.lease_s, endpoint=address, bundle=identity.bundle)
        await membership.restart()
        blobs = await stack.enter_async_context(ContractBlobs.open(live, data_dir / "blobs", config.transfer))
        await stack.enter_async_context(Gateway.open(live, blobs, identity, config.connection))
        app = application()
        api = SnApi(
            name=identity.name,
            live=live,
            membership=membership,
            applications=Applications(live, identity.bundle, config.ledger.admission),
            shared=shared,
            started_at=started_at,
        )
        api.add_routes(app)
        blobs.add_routes(app)
        if shared is not None:
            await stack.enter_async_context(shared.keep(live, membership, address))
        else:
            await membership.announce(address)
        stack.push_async_callback(live.stop)  # what was asked while the server ended
        await stack.enter_async_context(reception.answer(app))
        # First the waits, then the server: it would wait for the answers to them.
        stack.push_async_callback(live.stop)
        await stack.enter_async_context(_watch(membership, config.lease_s))
        height = (await live.read(lambda ledger: ledger.status())).height
        log.info("ready on %s: site %s, ledger height %d", address, site, height)
        if shared is not None:
            log.info("a site joins this network with: %s", shared.invitation(address))
        yield address


async def _embedded(config: SnConfig, data_dir: Path, identity: Identity, address: str) -> Ledger:
    site = identity.name.site
    founder = Founder(site=site, endpoint=address, ca_fingerprint=identity.bundle.fingerprint(site))
    with _data_dir(data_dir):
        return await asyncio.to_thread(Ledger.open, config.ledger, data_dir / "ledger", found=founder)


@asynccontextmanager
async def _watch(membership: Membership, lease_s: float) -> AsyncIterator[None]:
    """Mark silent nodes away as long as the block lasts."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(lease_s / _CHECKS_PER_LEASE)
            try:
                await membership.end_expired()
            except Exception:  # the outermost loop of a daemon
                log.exception("the leases could not be checked; trying again")

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _raise_file_limit() -> None:
    """As many connections as the system allows: the usual soft limit of 1024 is for programs that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _endpoint_file(path: Path, address: str, identity: Identity) -> Iterator[None]:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps({"address": address, "site": identity.name.site, "pid": os.getpid()}) + "\n")
    beside.rename(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _data_dir(path: Path) -> Iterator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as exc:
        if isinstance(exc, SwarmError):
            raise
        raise ConfigError(f"data_dir: {exc.filename or path}: {exc.strerror or exc}") from exc
