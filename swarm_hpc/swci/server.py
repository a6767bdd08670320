"""The web mode: commands over HTTP, in HPE's form and in ours (docs/protocol.md 5); a session per client.

Commands act with this SWCI's own certificate, so only its own site's swci and ui nodes may give them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import BodyPartReader, web

from swarm_hpc.config import SwciWebConfig
from swarm_hpc.errors import ConfigError, NotAuthorized, ProtocolError, SwarmError, TimedOut
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.swci import commands
from swarm_hpc.swci.result import Result
from swarm_hpc.swci.script import one_line
from swarm_hpc.swci.session import Session
from swarm_hpc.swci.tasks import MAX_FILE_BYTES
from swarm_hpc.transport.server import BODY_TIMEOUT_S, allow, body

log = logging.getLogger(__name__)

MAX_FILES: Final = 1000
"""So many task files can be in the user folder; then old ones have to go."""


class WebApi:
    """The handlers, and the sessions by the name in the client's certificate."""

    def __init__(self, open_session: Callable[[], Session], site: str, config: SwciWebConfig) -> None:
        self._open, self._site, self._config = open_session, site, config
        self._seats: dict[NodeName, _Seat] = {}  # in the order of their last use

    def add_routes(self, app: web.Application) -> None:
        """Serve the API."""
        app.add_routes(
            [
                web.post("/exec", self.exec),
                web.post("/uploadTaskDef", self.upload),
                web.get("/v1/commands", self.list_commands),
                web.post("/v1/commands", self.run_command),
            ]
        )

    async def aclose(self) -> None:
        """End all sessions."""
        while self._seats:
            await self._seats.popitem()[1].session.close()

    async def list_commands(self, request: web.Request) -> web.Response:
        """What can be said, and how."""
        self._client(request)
        listed = [
            {"method": one.name, "usage": one.usage, "help": one.help, "subject": one.subject, "ours": one.ours}
            for one in commands.COMMANDS
        ]
        return web.json_response(listed)

    async def run_command(self, request: web.Request) -> web.Response:
        """`{"command": TEXT}`: lines for people, data for programs; what fails is a problem."""
        peer = self._client(request)
        text = (await body(request)).get("command")
        if not isinstance(text, str):
            raise ProtocolError('the request has no field "command" with the text of one')
        return web.json_response((await self._run(peer, text)).as_json())

    async def exec(self, request: web.Request) -> web.Response:
        """HPE's form: `?cmd=TEXT`, answered by a list of texts; one that begins with ERROR says what failed."""
        peer = self._client(request)
        return await _content(self._exec(peer, request.query.get("cmd", "")))

    async def upload(self, request: web.Request) -> web.Response:
        """HPE's form: the field `file` of a multipart body becomes a file in the session's folder."""
        peer = self._client(request)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                name, data = await _read_upload(request)
        except TimeoutError as exc:
            raise TimedOut(f"{request.path}: the file did not arrive in {BODY_TIMEOUT_S:g} s") from exc
        return await _content(self._save(peer, name, data))

    def _client(self, request: web.Request) -> NodeName:
        peer = allow(request, Kind.SWCI, Kind.UI)
        if peer.site != self._site:
            raise NotAuthorized(f"{peer} may give no commands here: this SWCI acts for site {self._site}")
        return peer

    async def _exec(self, peer: NodeName, text: str) -> list[str]:
        return list((await self._run(peer, text)).lines)

    async def _save(self, peer: NodeName, name: str, data: bytes) -> list[str]:
        folder = (await self._seat(peer)).session.folder
        if len(folder.entries(["-a"])) >= MAX_FILES:
            raise ConfigError(f"{folder.path} has {MAX_FILES} files: remove old ones first")
        folder.save(name, data)
        return [f"File Uploaded : {name}"]

    async def _run(self, peer: NodeName, text: str) -> Result:
        """Carry out one command of that client; what it says while it works goes before the result's lines."""
        seat = await self._seat(peer)
        session = seat.session
        told: list[str] = []

        def tell(text: str, *, end: str = "\n") -> None:
            told.append(text + end)

        log.info("%s: %s", peer, text[:200].encode("unicode_escape").decode())
        has_failed = True
        seat.num_running += 1
        try:
            async with asyncio.timeout(self._config.command_timeout_s):
                result = await commands.run(session, text, tell)
            has_failed = False
        except TimeoutError as exc:
            raise TimedOut(f"the command took longer than {self._config.command_timeout_s:g} s and was ended") from exc
        finally:
            seat.num_running -= 1
            if session.is_over or (has_failed and session.exit_on_failure):
                await self._end(peer, seat)
        lines = [line for line in "".join(told).splitlines() if line]
        return Result(lines=(*lines, *result.lines), data=result.data)

    async def _seat(self, peer: NodeName) -> _Seat:
        """The client's session, a new one perhaps; the one that was idle for the longest time makes room for it."""
        seat = self._seats.pop(peer, None) or _Seat(self._open())
        self._seats[peer] = seat
        if len(self._seats) > self._config.max_sessions:
            idle = [name for name, one in self._seats.items() if not one.num_running and one is not seat]
            if not idle:
                del self._seats[peer]
                raise ConfigError(f"{len(self._seats)} sessions are at work, and there are no more: try again later")
            log.info("the session of %s ends: there are more than %d", idle[0], self._config.max_sessions)
            await self._seats.pop(idle[0]).session.close()
        return seat

    async def _end(self, peer: NodeName, seat: _Seat) -> None:
        if self._seats.get(peer) is seat:
            del self._seats[peer]
        await seat.session.close()


@dataclass(slots=True)
class _Seat:
    session: Session
    num_running: int = 0
    """Commands under way."""


async def _content(work: Awaitable[list[str]]) -> web.Response:
    """HPE's answer: failures are texts in it, too."""
    try:
        texts = await work
    except SwarmError as exc:
        texts = [f"ERROR {one_line(exc)}"]
    return web.json_response({"CONTENT": texts})


async def _read_upload(request: web.Request) -> tuple[str, bytes]:
    """Name and bytes of the field `file`; ProtocolError where there is none."""
    if not request.content_type.startswith("multipart/"):
        raise ProtocolError(f"{request.path}: send the file as multipart/form-data, in the field `file`")
    try:
        reader: Any = await request.multipart()
        while (part := await reader.next()) is not None:
            if isinstance(part, BodyPartReader) and part.name == "file":
                return part.filename or "", await _read_part(part)
    except SwarmError:
        raise
    except (ValueError, AssertionError, LookupError, RuntimeError) as exc:  # what aiohttp says of a broken body
        raise ProtocolError(f"{request.path}: the multipart body is broken: {exc}") from exc
    raise ProtocolError(f"{request.path}: the multipart body has no field `file`")


async def _read_part(part: BodyPartReader) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"a task file has at most {MAX_FILE_BYTES} bytes")
    return bytes(data)
