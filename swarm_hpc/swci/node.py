"""SWCI from start to stop: one command, a script, a shell, or the web mode until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

from swarm_hpc.config import SwciConfig
from swarm_hpc.daemon import told_to_stop
from swarm_hpc.errors import ConfigError
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import Kind
from swarm_hpc.swci import commands
from swarm_hpc.swci.result import Result, Tell
from swarm_hpc.swci.script import Console, each, run_lines
from swarm_hpc.swci.server import WebApi
from swarm_hpc.swci.session import Session, connector
from swarm_hpc.swci.shell import run_pipe, run_shell
from swarm_hpc.transport.server import application, serve

log = logging.getLogger(__name__)


def load_identity(config: SwciConfig) -> Identity:
    """Who this SWCI is. ConfigError where the certificate is of another kind; IdentityErrors of certs.load."""
    return certs.load_as(config.identity, Kind.SWCI, "SWCI")


def open_session(config: SwciConfig, identity: Identity, *, closed: bool = False) -> Session:
    """A new session: use it with `async with`."""
    return Session(config, connector(identity, config.connection), closed=closed)


async def run_command(config: SwciConfig, identity: Identity, text: str, tell: Tell) -> Result:
    """Carry out one command; what fails is raised."""
    async with open_session(config, identity) as session:
        return await commands.run(session, text, tell)


async def run_console(
    config: SwciConfig, identity: Identity, init: Path | None, *, out: TextIO, err: TextIO, interactive: bool
) -> int:
    """The script, if there is one, then the shell; without a terminal, the script or what comes from stdin."""
    lines = _read(init) if init is not None else []
    async with open_session(config, identity) as session:
        console = Console(session, out, err)
        code = 0
        if init is not None:
            code = await run_lines(console, each(lines), str(init), echo=True)
        if session.is_over or (init is not None and not interactive):
            return code
        if not interactive:
            return await run_pipe(console)
        return await run_shell(console, config.history) or code


def run_web(config: SwciConfig, identity: Identity) -> None:
    """Serve commands until SIGTERM or SIGINT."""
    asyncio.run(_run_web(config, identity))


async def _run_web(config: SwciConfig, identity: Identity) -> None:
    stop = told_to_stop()
    async with start_web(config, identity):
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def start_web(config: SwciConfig, identity: Identity) -> AsyncIterator[str]:
    """A serving SWCI as long as the block lasts; yields its address."""
    api = WebApi(lambda: open_session(config, identity, closed=True), identity.name.site, config.web)
    app = application()
    api.add_routes(app)
    async with contextlib.aclosing(api), serve(app, identity, config.web.host, config.web.port) as port:
        address = f"{config.web.host}:{port}"
        log.info("ready on %s", address)
        yield address


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as exc:
        raise ConfigError(f"{file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file}: byte {exc.start} is not UTF-8: save the script as UTF-8") from exc
