"""One ML program's session: its requests, one after the other, and SL's answers (docs/protocol.md 3)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

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
    Ok,
    Opened,
    OpenRequest,
    Request,
    SyncRequest,
)
from swarm_hpc.sl.listener import Connection
from swarm_hpc.sl.program import used_cpu_s

log = logging.getLogger(__name__)


class Session:
    """What one program has asked for so far. `serve` answers it until it closes the connection."""

    def __init__(self, config: SlConfig, entrance: Entrance) -> None:
        self.finished = False
        """The program's training came to its end, final model included."""
        self.joined = False
        """It takes part in a training contract."""
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
            if self._arena is not None:
                self._arena.close()

    async def _next(self, connection: Connection) -> Request | None:
        try:
            return await connection.receive()
        except ProtocolError as exc:
            log.error("%s", exc)
            self.error = exc
            await connection.send_error(exc)
            return None

    async def _answer(self, connection: Connection, request: Request) -> None:
        try:
            if isinstance(request, Progress):
                self._progress = request
                await connection.send(Ok())
                return
            answer = await connection.wait_for(self._work(connection, request), lambda: self._reason)
            fd = self._arena.fd if isinstance(answer, Opened) and self._arena is not None else None
            await connection.send(answer, fd=fd)
        except SwarmError as exc:
            log.error("%s", exc)
            self.error = exc
            await connection.send_error(exc)
            if isinstance(exc, Fenced):
                raise

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
        wanted = Wanted(config=config, spec=spec, arena=self._arena, used_cpu_s=lambda: used_cpu_s(connection.pid))
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
            merge_method=spec.merge_method,
            node_weight=config.node_weight,
            round=entered.round,
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
