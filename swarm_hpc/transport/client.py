"""JSON calls to one node over mutual TLS: repeated while nobody answers; refusals and problems raised at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self

import aiohttp

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import NotAuthorized, NotReachable, ProtocolError, TimedOut
from swarm_hpc.identity.certs import Identity
from swarm_hpc.identity.handshake import refusal
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.transport import document
from swarm_hpc.transport.retry import CONNECT_ATTEMPT_S, Patience, at, dropped_for_good, problem

MAX_ANSWER_BYTES: Final = 64 << 20


def expect_kind(*kinds: Kind, site: str | None = None) -> Callable[[NodeName], None]:
    """An `expect` for clients: the other side is of one of these kinds, and of that site where given."""

    def check(name: NodeName) -> None:
        if name.kind not in kinds or (site is not None and name.site != site):
            wanted = " or ".join(kinds) + (f" of site {site}" if site is not None else "")
            raise NotAuthorized(f"{name} answers there, not {wanted}: is it the right address?")

    return check


class ApiClient:
    """Calls to one address, over a pool of kept connections. Use it with `async with`; it belongs to one event loop."""

    def __init__(
        self,
        identity: Identity,
        address: str,
        *,
        expect: Callable[[NodeName], None],
        connection: ConnectionConfig,
    ) -> None:
        self.address = address
        """host:port; the port is 443 where it is left out."""
        self._identity = identity
        self._expect = expect
        self._config = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        query: Mapping[str, str | int | float] | None = None,
        timeout_s: float = 30.0,
        retry: bool = True,
    ) -> Any:
        """The answer's JSON value. `timeout_s` is for one attempt, the answer included.

        A call without an answer is repeated until connect_timeout_s is over (`retry=False`: never), then NotReachable,
        or TimedOut when the other side took the request and stayed silent. A problem is raised by name at once, a TLS
        refusal as an IdentityError.
        """
        patience = Patience(time.monotonic() + (self._config.connect_timeout_s if retry else 0.0))
        while True:
            sent = SimpleNamespace(fresh=False)
            try:
                return await self._once(method, path, body, query, timeout_s, sent)
            except (NotReachable, TimedOut) as exc:
                dropped = sent.fresh and isinstance(exc, NotReachable)
                if patience.failed(dropped=dropped):
                    raise dropped_for_good(self.address, self._identity.name) from exc
                pause = patience.pause_s(time.monotonic())
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _once(
        self,
        method: str,
        path: str,
        body: object | None,
        query: Mapping[str, str | int | float] | None,
        timeout_s: float,
        sent: SimpleNamespace,
    ) -> Any:
        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_ATTEMPT_S))
        try:
            async with self._connected().request(
                method,
                f"https://{self.address}{path}",
                json=body,
                params=query,
                timeout=limit,
                allow_redirects=False,
                trace_request_ctx=sent,
            ) as answer:
                sent.fresh = False
                text = await _read(answer, self.address)
                return self._value(answer, text)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise self._failure(exc, timeout_s) from exc

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = self._identity.client_context(self._expect)
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(_note_fresh)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # a small answer could unpack to any size
                trace_configs=[trace],
            )
        return self._session

    def _value(self, answer: aiohttp.ClientResponse, text: bytes) -> Any:
        if answer.status >= 300:
            error = problem(self.address, answer.status, answer.headers.get("Content-Type", ""), text)
            raise error or NotReachable(f"{self.address}: a proxy answered {answer.status} for it")
        try:
            return document.parse(text) if text else None
        except ValueError as exc:
            raise ProtocolError(f"{self.address} answered {answer.method} {answer.url.path} with no JSON") from exc

    def _failure(self, exc: BaseException, timeout_s: float) -> Exception:
        refused = refusal(exc)
        if refused is not None:
            return at(self.address, refused)
        if isinstance(exc, aiohttp.ConnectionTimeoutError):
            return NotReachable(f"{self.address}: no connection within {min(timeout_s, CONNECT_ATTEMPT_S):g} s")
        if isinstance(exc, TimeoutError):
            return TimedOut(f"{self.address}: no answer within {timeout_s:g} s")
        if isinstance(exc, aiohttp.InvalidURL):
            return ProtocolError(f"{self.address!r} is no address: expected host:port")
        return NotReachable(f"{self.address}: {exc or type(exc).__name__}")


async def _note_fresh(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    """The handshake of a new connection for this request is over."""
    context.trace_request_ctx.fresh = True


async def _read(answer: aiohttp.ClientResponse, address: str) -> bytes:
    text = bytearray()
    async for chunk in answer.content.iter_any():
        text += chunk
        if len(text) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"{address}: an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(text)
