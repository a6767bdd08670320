"""This node on the ledger: registered under an incarnation, kept alive by heartbeats, back after a loss."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from swarm_hpc.errors import ConfigError, Fenced, LedgerHalted, NotFound, SwarmError, TransportError
from swarm_hpc.records import Progress
from swarm_hpc.sn.client import SnClient

R = TypeVar("R")

log = logging.getLogger(__name__)

_BEATS_PER_LEASE: Final = 3
_LEAVE_TIMEOUT_S: Final = 5.0
"""Leaving is a courtesy: the lease ends by itself."""


class Member:
    """The node's membership. Its owner runs `keep_alive` beside everything else."""

    def __init__(self, sn: SnClient, name: str, endpoint: str, instance: str) -> None:
        self.name = name
        self.incarnation = 0
        self.report: Callable[[], Progress] = Progress
        """What each heartbeat says about the program."""
        self.rejoin: Callable[[], Awaitable[None]] | None = None
        """Called after the node had been away and is registered again."""
        self._sn = sn
        self._endpoint = endpoint
        self._instance = instance
        self._lease_s = 0.0
        self._left_out = False
        """Away in the training contract, although it is registered, and not for its own will."""
        self._registering = asyncio.Lock()

    async def register(self) -> None:
        """Take the name. DuplicateNode: another process has it."""
        record, self._lease_s = await self._sn.register(self.name, self._endpoint, self._instance)
        self.incarnation = record.incarnation
        log.info("registered as incarnation %d, lease %.0f s", self.incarnation, self._lease_s)

    async def keep_alive(self) -> NoReturn:
        """Send heartbeats for ever. Fenced or DuplicateNode: another process has taken over, and this one must stop."""
        while True:
            await asyncio.sleep(self._lease_s / _BEATS_PER_LEASE)
            incarnation = self.incarnation
            try:
                self._lease_s = await self._sn.heartbeat(self.name, incarnation, self.report())
            except (NotFound, Fenced) as exc:
                if await self._has_registered_since(incarnation):
                    continue
                if isinstance(exc, Fenced):
                    raise
                await self._return()
            except (TransportError, LedgerHalted) as exc:
                log.warning("no heartbeat: %s", exc)
            else:
                if self._left_out:
                    await self._rejoin()

    async def call(self, request: Callable[[int], Awaitable[R]]) -> R:
        """Make a request with the current incarnation; again where this node itself has raised it meanwhile."""
        while True:
            incarnation = self.incarnation
            try:
                return await request(incarnation)
            except Fenced:
                if not await self._has_registered_since(incarnation):
                    raise

    async def stand_back(self) -> None:
        """Be away in every contract, until it checks in or joins again, but alive and registered.

        Does nothing, with a warning, while the SN cannot be reached. Fenced or DuplicateNode: as for `keep_alive`.
        """
        self._left_out = False
        async with self._registering:
            try:
                await self._sn.leave(self.name, self.incarnation)
                await self.register()
            except TransportError as exc:
                log.warning("could not step back from the rounds: %s", exc)

    async def leave(self) -> None:
        """End the lease, so that no round waits for this node. Never fails: the lease ends by itself."""
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self._sn.leave(self.name, self.incarnation)
        except (SwarmError, TimeoutError) as exc:
            log.info("did not leave properly: %s", exc or "no answer in time")

    async def _has_registered_since(self, incarnation: int) -> bool:
        """Whether this process itself has left that incarnation behind; one that it is about to leave counts."""
        async with self._registering:
            return self.incarnation != incarnation

    async def _return(self) -> None:
        log.warning("the SN took this node for lost; registering again")
        self._left_out = True
        try:
            async with self._registering:
                await self.register()
        except (TransportError, LedgerHalted) as exc:
            log.warning("not registered again yet: %s", exc)
        else:
            await self._rejoin()

    async def _rejoin(self) -> None:
        try:
            if self.rejoin is not None:
                await self.rejoin()
        except (TransportError, LedgerHalted) as exc:
            log.warning("not back in the training contract yet: %s", exc)
        else:
            self._left_out = False


def load_instance(state_dir: Path) -> str:
    """The random ID of this node's state folder, made on first use: a restart with it takes over at once.

    ConfigError: the folder cannot be used.
    """
    file = state_dir / "instance"
    try:
        return file.read_text(encoding="ascii").strip() if file.exists() else _make_instance(file)
    except OSError as exc:
        raise ConfigError(f"state_dir: {exc.filename or state_dir}: {exc.strerror or exc}") from exc


def _make_instance(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    instance = uuid.uuid4().hex
    beside = file.with_suffix(f".{instance}")
    beside.write_text(instance + "\n", encoding="ascii")
    beside.rename(file)
    return instance
