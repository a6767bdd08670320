"""HTTP/1.1 over mutual TLS: an application whose errors are problem+json, who asks, and a server's life.

`serve` is for a node with one application; `listen` for one that is on its port before its application is ready.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from swarm_hpc.errors import (
    ConfigError,
    NotAuthorized,
    NotReachable,
    PortInUse,
    ProtocolError,
    SwarmError,
    TimedOut,
)
from swarm_hpc.identity.certs import Identity, peer_name
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.transport import document
from swarm_hpc.transport.door import Doorkeeper
from swarm_hpc.transport.listening import stop
from swarm_hpc.transport.tunnel import Tunnels
from swarm_hpc.transport.watch import Watch

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES: Final = 1 << 20
"""Largest JSON body; blobs are streamed and have no limit here."""
BODY_TIMEOUT_S: Final = 30.0
"""How long a client may take to send a JSON body."""
_STOP_GRACE_S: Final = 2.0
"""How long requests under way may still take once the server stops; long-polls are cut, and asked again."""
_READ_BUFFER_BYTES: Final = 1 << 20


def application(*, max_body_bytes: int = MAX_BODY_BYTES) -> web.Application:
    """An application that answers every SwarmError as problem+json under its own name, anything else as 500."""
    return web.Application(middlewares=[_problems], client_max_size=max_body_bytes)


def peer(request: web.Request) -> NodeName:
    """Who asks: the name that was checked in the handshake."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    if tls is None:
        raise NotAuthorized("the connection is closed, or has no TLS")
    return peer_name(tls)


def allow(request: web.Request, *kinds: Kind) -> NodeName:
    """The peer, if it is of one of these kinds; else NotAuthorized."""
    name = peer(request)
    if name.kind not in kinds:
        raise NotAuthorized(f"{name} may not {request.method} {request.path}: that is for {', '.join(kinds)}")
    return name


async def body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object, {} for an empty body; ProtocolError if it is anything else."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            text = await request.read()
    except TimeoutError as exc:
        raise TimedOut(f"{request.method} {request.path}: the body did not arrive in {BODY_TIMEOUT_S:g} s") from exc
    if not text:
        return {}
    try:
        values = document.parse(text)
    except ValueError as exc:
        raise ProtocolError(f"{request.method} {request.path}: the body is no JSON: {exc}") from exc
    if not isinstance(values, dict):
        raise ProtocolError(f"{request.method} {request.path}: the body is no JSON object")
    return values


class Reception:
    """Whoever connects is served by the newest application; where there is none, told what the node is doing."""

    def __init__(self) -> None:
        self.port = 0
        """Where it listens."""
        self.status = "starting"
        """What callers are told that «this node is» while no application answers, such as `starting: block 7 of 20`."""
        self._runners: list[web.AppRunner] = []

    @asynccontextmanager
    async def answer(self, app: web.Application) -> AsyncIterator[None]:
        """New connections are served by `app` until the block ends, then again by the one before it.

        Connections that are open already stay for the request under way, if there is one, and are closed after it: the
        client comes back on a new one.
        """
        runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            shutdown_timeout=_STOP_GRACE_S,
            read_bufsize=_READ_BUFFER_BYTES,
            handler_cancellation=True,  # a long-poll whose client left must not go on
            auto_decompress=False,  # nobody compresses here, and 1 MiB can unpack to 1 GiB
        )
        await runner.setup()
        replaced, self._runners = self._runners, [*self._runners, runner]
        try:
            for other in replaced:
                _send_away(other)
            yield
        finally:
            self._runners = [other for other in self._runners if other is not runner]
            await runner.cleanup()

    def protocol(self) -> asyncio.Protocol:
        """The newest application's HTTP protocol, for one connection."""
        server = self._runners[-1].server
        assert server is not None
        return server()


@asynccontextmanager
async def serve(app: web.Application, identity: Identity, host: str, port: int) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port (a free one for 0). PortInUse, or ConfigError for a foreign host.

    Any node of any site in the trust bundle may connect; handlers authorise (`allow`).
    """
    reception = Reception()
    async with _open(reception, app, Doorkeeper(identity, reception.protocol), host, port):
        yield reception.port


@asynccontextmanager
async def listen(
    identity: Identity, host: str, port: int, *, tunnel: Tunnels | None = None
) -> AsyncIterator[Reception]:
    """Be on the port until the block ends, as `serve`; yields the Reception, whose `answer` blocks serve applications.

    Outside of these every request is answered with NotReachable, which clients take for a node that is not there yet.
    `tunnel` takes the connections with ALPN swarm-p2p; whoever made it closes it.
    """
    reception = Reception()
    async with _open(reception, _lobby(reception), Doorkeeper(identity, reception.protocol, tunnel), host, port):
        yield reception


@asynccontextmanager
async def _open(
    reception: Reception, app: web.Application, keeper: Doorkeeper, host: str, port: int
) -> AsyncIterator[None]:
    """Listen, with `app` as the first application; at the end no connection is left."""
    try:
        async with reception.answer(app):
            server = await _listen(keeper, host, port)
            try:
                reception.port = server.sockets[0].getsockname()[1]
                yield
            finally:
                await stop(server)
                await keeper.close()
    finally:
        await keeper.drain()


def _send_away(runner: web.AppRunner) -> None:
    """Close a runner's connections: at once, or after the request under way."""
    assert runner.server is not None
    for connection in runner.server.connections:
        watch = connection.transport.get_protocol() if connection.transport is not None else None
        if isinstance(watch, Watch) and watch.busy:
            connection.close()
        else:
            connection.force_close()  # an idle one would only become deaf by close()


def _lobby(reception: Reception) -> web.Application:
    """Answers whatever is asked with what the node is doing, once per connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        text = f"this node is {reception.status}"
        response = _problem(NotReachable.__name__, NotReachable.http_status, text)
        response.force_close()
        return response

    app = application()
    app.router.add_route("*", "/{anything:.*}", answer)
    return app


async def _listen(keeper: Doorkeeper, host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(keeper, host, port)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} belongs to another process: stop it, or choose another port"
            ) from exc
        raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from exc


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    watch = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(watch, Watch):
        return await _answer(request, handler)  # the connection is gone already
    with watch.answering():
        return await _answer(request, handler)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SwarmError as exc:
        return _problem(type(exc).__name__, exc.http_status, str(exc))
    except web.HTTPException as exc:  # aiohttp's own: no such route, body too large
        if exc.status < 400:
            raise
        return _problem(ProtocolError.__name__, exc.status, f"{request.method} {request.path}: {exc.reason}")
    except ConnectionError:
        raise  # the peer went away: aiohttp ends the connection without a word
    except Exception:  # a daemon outlives a bug in one handler
        log.exception("%s %s of %s failed", request.method, request.rel_url.raw_path, _who(request))
        return _problem(SwarmError.__name__, 500, "internal error: see the log of the node that was asked")


def _who(request: web.Request) -> str:
    try:
        return str(peer(request))
    except NotAuthorized:
        return f"{request.remote}, which is gone"


def _problem(title: str, status: int, detail: str) -> web.Response:
    values = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return web.json_response(values, status=status, content_type="application/problem+json")
