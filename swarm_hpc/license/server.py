"""What a licence server answers: the rows of docs/protocol.md 2.4, and who may ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from swarm_hpc.errors import ConfigError, NotAuthorized
from swarm_hpc.license.desk import Desk
from swarm_hpc.license.terms import SeatRequest
from swarm_hpc.records import Kind, NodeName, decode, encode
from swarm_hpc.transport.server import allow, body

ACTORS: Final = (Kind.SL, Kind.SWOP)
READERS: Final = (*ACTORS, Kind.SN, Kind.SWCI, Kind.UI)


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseApi:
    """The handlers of one licence server."""

    desk: Desk

    def add_routes(self, app: web.Application) -> None:
        """Serve the API."""
        app.add_routes(
            [
                web.get("/v1/license", self.get_status),
                web.post("/v1/seats", self.acquire),
                web.post("/v1/seats/heartbeat", self.renew),
                web.post("/v1/seats/release", self.release),
            ]
        )

    async def get_status(self, request: web.Request) -> web.Response:
        """Terms, and who has seats."""
        allow(request, *READERS)
        return web.json_response(encode(self.desk.status()))

    async def acquire(self, request: web.Request) -> web.Response:
        """Take seats."""
        self.desk.acquire(await _asked(request))
        return self._lease()

    async def renew(self, request: web.Request) -> web.Response:
        """Keep them."""
        self.desk.renew(await _asked(request))
        return self._lease()

    async def release(self, request: web.Request) -> web.Response:
        """Give them back."""
        self.desk.release(await _asked(request))
        return web.json_response({})

    def _lease(self) -> web.Response:
        return web.json_response({"lease_s": self.desk.lease_s})


async def _asked(request: web.Request) -> SeatRequest:
    """What is asked for, by a node of the peer's own site."""
    peer = allow(request, *ACTORS)
    asked = decode(SeatRequest, await body(request))
    try:
        node = NodeName.parse(asked.node)
    except ValueError as exc:
        raise ConfigError(f"node: {exc}") from exc
    if node.site != peer.site or node.kind not in ACTORS:
        kinds = " or ".join(ACTORS)
        raise NotAuthorized(f"{peer} may ask for seats of {kinds} nodes of site {peer.site} only, not for {node}")
    return asked
