"""One ML program's session: its requests, one after the other, and SL's answers (docs/protocol.md 3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from swarm_hpc.config import SlConfig
from swarm_hpc.errors import ConfigError, Fenced, ProtocolError, SwarmError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.records import Progress
from swarm_hpc.sl.contract import settle, specify
from swarm_hpc.sl.entrance import Entrance, Trains, Wanted
from swarm_hpc.sl.frames import (
    LENGTH_BYTES,
    Answer,
    FinishRequest,
    Leave,
    Ok,
    Opened,
    OpenRequest,
    Request,
    Saved,
    SyncRequest,
)
from swarm_hpc.sl.listener import Connection
from swarm_hpc.sl.program import used_cpu_s

log = logging.getLogger(__name__)

T = TypeVar("T")


class Session:
    """What one program has asked for so far. `serve` answers it until it closes the connection."""

    def __init__(self, config: SlConfig, entrance: Entrance) -> None:
        self.finished = False
        """The program's training came to its end, final model included."""
        self.joined = False
        """It takes part in a training contract."""
        self.saved = False
        """It has saved its state, because it was asked to leave."""
        self.error: SwarmError | None = None
        """The last error that the program was told."""
        self._config = config
        self._entrance = entrance
        self._training: Trains | None = None
        self._contract = ""
        self._arena: Arena | None = None
        self._progress = Progress()
        self._opening = "starting"
        self._working = False
        self._leave_reason = ""
        self._leaving = asyncio.Event()
        self._told_to_leave = False

    async def serve(self, connection: Connection) -> None:
        """Answer requests until the program closes the connection.

        Errors go to the program, which ends or goes on as it likes. Fenced is raised, too: another process took over.
        """
        self._entrance.attend(self._report)
        try:
            while (request := await self._next(connection)) is not None:
                await self._answer(connection, request)
        except ConnectionAbortedError as exc:
            log.warning("%s", exc)
        finally:
            self._entrance.attend(None)
            # other ranks may be merging with it still
            if self._arena is not None and not self._leaving.is_set():
                self._arena.close()

    def ask_to_leave(self, reason: str) -> None:
        """Have the program save its state and end. What it waits for now is given up."""
        self._leave_reason = reason
        self._leaving.set()

    async def _next(self, connection: Connection) -> Request | None:
        try:
            return await self._or_leave(connection, connection.receive(), stops=False)
        except ProtocolError as exc:
            log.error("%s", exc)
            self.error = exc
            await connection.send_error(exc)
            return None

    async def _answer(self, connection: Connection, request: Request) -> None:
        try:
            if isinstance(request, Progress | Saved):
                self._take(request)
                await connection.send(Ok())
                return
            if self._told_to_leave:
                return  # it asked before it had read that
            work = connection.wait_for(self._work(connection, request), lambda: self._reason)
            answer = await self._or_leave(connection, work, stops=True)
            if answer is None:
                return
            fd = self._arena.fd if isinstance(answer, Opened) and self._arena is not None else None
            await connection.send(answer, fd=fd)
        except SwarmError as exc:
            log.error("%s", exc)
            self.error = exc
            await connection.send_error(exc)
            if isinstance(exc, Fenced):
                raise

    def _take(self, request: Progress | Saved) -> None:
        if isinstance(request, Progress):
            self._progress = request
        else:
            self.saved = True

    async def _or_leave(self, connection: Connection, work: Coroutine[Any, Any, T], *, stops: bool) -> T | None:
        """Do some work, and meanwhile tell the program to leave, once that is wanted; then None if the work `stops`."""
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            if not self._told_to_leave:
                await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    if stops:
                        task.cancel()
                        await asyncio.wait({task})
                    self._told_to_leave = True
                    await connection.send(Leave(reason=self._leave_reason))
                    if stops:
                        return None
            return await task
        finally:
            for each in (task, leaving):
                each.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)

    async def _work(self, connection: Connection, request: Request) -> Answer:
        if isinstance(request, OpenRequest):
            return await self._open(connection, request)
        if self._training is None or self.finished:
            raise ProtocolError("channel: sync and finish come after open and before finish")
        self._working = True
        try:
            if isinstance(request, SyncRequest):
                self._note(request)
                return await self._training.sync(request)
            assert isinstance(request, FinishRequest)
            finished = await self._training.finish(request.mode)
            self.finished = True
            return finished
        finally:
            self._working = False

    async def _open(self, connection: Connection, request: OpenRequest) -> Opened:
        if self._training is not None:
            raise ProtocolError("channel: the session is open already")
        if not request.tensors:
            raise ConfigError("the model has no tensors: there is nothing to share")
        config = settle(self._config, request)
        layout = place(request.tensors, request.aliases)
        spec = specify(config, request.platform, layout)
        self._opening = f"entering training contract {spec.name}"
        if self._arena is not None:
            self._arena.close()
        self._arena = await asyncio.to_thread(Arena.create, layout)
        wanted = Wanted(
            config=config,
            spec=spec,
            arena=self._arena,
            used_cpu_s=lambda: used_cpu_s(connection.pid),
            goes_on=request.goes_on,
        )
        entered = await self._entrance.enter(wanted)
        self.joined = True
        self._training, self._contract = entered.training, spec.name
        self._progress = Progress(contract=spec.name, total_epochs=request.total_epochs)
        resumed = ", resumed" if entered.resume else ""
        log.info("in training contract %s at round %d%s", spec.name, entered.round, resumed)
        return Opened(
            layout=layout.header[LENGTH_BYTES:].decode(),
            size_bytes=layout.size_bytes,
            resume=entered.resume,
            contract=spec.name,
            min_peers=spec.min_peers,
            merge_method=spec.merge.method,
            node_weight=config.node_weight,
            round=entered.round,
            created_at=entered.created_at,
        )

    @property
    def _reason(self) -> str:
        return self._training.reason if self._training is not None else self._opening

    def _note(self, request: SyncRequest) -> None:
        known = {
            name: value
            for name in ("epoch", "batch", "loss", "metric")
            if (value := getattr(request, name)) is not None
        }
        self._progress = replace(self._progress, **known)

    def _report(self) -> Progress:
        return replace(self._progress, contract=self._contract, waiting=self._reason if self._working else "")
