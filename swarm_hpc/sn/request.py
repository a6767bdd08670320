"""What a request to an SN says: its fields and query, checked, and the node that the peer acts for."""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

from aiohttp import web

from swarm_hpc.errors import ConfigError, NotAuthorized, NotFound, ProtocolError
from swarm_hpc.records import LABEL, Kind, NodeName, decode, encode
from swarm_hpc.sn.client_tasks import MAX_WAIT_S
from swarm_hpc.transport.server import allow

T = TypeVar("T")

ACTORS: Final = (Kind.SL, Kind.SWOP)
READERS: Final = (*ACTORS, Kind.SN, Kind.SWCI, Kind.UI)


def acting(request: web.Request, said: dict[str, Any], key: str) -> NodeName:
    """The node that the peer acts for: one of the peer's own site."""
    peer = allow(request, *ACTORS)
    try:
        node = NodeName.parse(take(said, key, str))
    except ValueError as exc:
        raise ConfigError(f"{key}: {exc}") from exc
    if node.site != peer.site:
        raise NotAuthorized(f"{peer} may act for nodes of site {peer.site} only, not for {node}")
    if node.kind not in ACTORS:
        raise NotAuthorized(f"{peer} may act for nodes of kind {' or '.join(ACTORS)} only, not for {node}")
    return node


def take(said: dict[str, Any], key: str, cls: type[T]) -> T:
    """A field of the body, as that class; ProtocolError."""
    if key not in said:
        raise ProtocolError(f"the request has no field {key!r}")
    try:
        return decode(cls, said[key])
    except ProtocolError as exc:
        raise ProtocolError(f"{key}: {exc}") from exc


def named(request: web.Request, key: str, what: str) -> str:
    """A name in the path; NotFound where nothing can be called so."""
    name = request.match_info[key]
    if not LABEL.fullmatch(name):
        raise NotFound(f"no {what} can be called {name[:80]!r}")
    return name


def whole_number(request: web.Request, key: str, default: int) -> int:
    """A whole number of the query; ProtocolError."""
    return whole(request.query.get(key, str(default)), key)


def whole(text: str, what: str) -> int:
    """The text as a whole number from 0 on; ProtocolError says what it should be."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ProtocolError(f"{what}: {text!r} is not a whole number")
    return int(text)


def waiting_time(request: web.Request) -> float:
    """How long the peer lets itself be kept waiting, in seconds: at most MAX_WAIT_S; ProtocolError."""
    text = request.query.get("wait_s", "0")
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = math.nan
    if not wait_s >= 0:
        raise ProtocolError(f"wait_s: {text!r} is not a number of seconds")
    return min(wait_s, MAX_WAIT_S)


def answer(record: object) -> web.Response:
    """A record as the answer."""
    return web.json_response(encode(record))
