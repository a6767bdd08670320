"""Fetching one file by its URI: http, https or a file of this host, within limits."""

from __future__ import annotations

import fnmatch
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote, urlsplit

from swarm_hpc import __version__
from swarm_hpc.errors import ConfigError, DiskFull, NotReachable, SwarmError, TimedOut

_CHUNK_BYTES: Final = 1 << 20
_SILENCE_S: Final = 60.0
"""The longest that a server may say nothing."""
_SCHEMES: Final = ("http", "https", "file")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a download may take; `allowed` are patterns of URIs, None: any."""

    max_bytes: int
    timeout_s: float
    allowed: Sequence[str] | None = None
    proxies: Mapping[str, str] | None = None
    """http, https: URL of the proxy; None: as the environment says."""


def download(uri: str, target: Path, limits: Limits) -> int:
    """Fetch `uri` into the file `target`; its size. ConfigError, NotReachable, TimedOut, DiskFull."""
    split = check_uri(uri, limits.allowed)
    try:
        if split.scheme == "file":
            with Path(unquote(split.path)).open("rb") as source:
                return _copy(source, target, limits, uri, None)
        with _opener(limits).open(
            urllib.request.Request(uri, headers={"User-Agent": f"swarm-hpc/{__version__}"}),  # noqa: S310 - checked
            timeout=min(_SILENCE_S, limits.timeout_s),
        ) as answer:
            length = answer.headers.get("Content-Length", "")
            return _copy(answer, target, limits, uri, int(length) if length.isdecimal() else None)
    except SwarmError:  # ConfigError is a ValueError, too
        raise
    except TimeoutError as exc:
        raise TimedOut(f"{uri}: nothing came for {min(_SILENCE_S, limits.timeout_s):g} s") from exc
    except urllib.error.HTTPError as exc:
        with exc:
            raise NotReachable(f"{uri}: the server answers {exc.code} {exc.reason}") from exc
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as exc:
        raise NotReachable(f"{uri}: cannot be fetched: {getattr(exc, 'reason', None) or exc!r}") from exc
    except OSError as exc:
        if exc.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull(f"{target.parent}: no room for {uri}") from exc
        raise NotReachable(f"{uri}: cannot be fetched: {exc.strerror or exc}") from exc


class _Split:
    __slots__ = ("path", "scheme")

    def __init__(self, scheme: str, path: str) -> None:
        self.scheme, self.path = scheme, path


def check_uri(uri: str, allowed: Sequence[str] | None = None) -> _Split:
    """ConfigError unless it can be fetched, and is one of `allowed`. A password in it is refused: a task is public."""
    try:
        split = urlsplit(uri)
        host, has_password = split.hostname, split.password is not None or split.username is not None
    except ValueError as exc:
        raise ConfigError(f"{uri!r} is no URI: {exc}") from exc
    if split.scheme not in _SCHEMES or not uri.isprintable() or " " in uri:
        raise ConfigError(f"{uri!r}: give a URI that begins with http://, https:// or file:///")
    if has_password:
        raise ConfigError(f"{split.scheme}://{host}: a name or password cannot be part of a task, which all sites read")
    if split.scheme == "file" and (host not in (None, "localhost") or not split.path.startswith("/")):
        raise ConfigError(f"{uri!r}: a file of this host is file:///path")
    if split.scheme != "file" and not host:
        raise ConfigError(f"{uri!r} names no host")
    if allowed is not None and not any(fnmatch.fnmatchcase(uri, one) for one in allowed):
        raise ConfigError(f"{uri}: the policy of this site does not allow it (downloads: {', '.join(allowed)})")
    return _Split(split.scheme, split.path)


def base_name(uri: str) -> str:
    """What a file of that URI is called; `download` where it has no name."""
    name = unquote(urlsplit(uri).path).rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") and name.isprintable() and len(name.encode()) < 200 else "download"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To what could be asked for as well, and never from https to http."""

    def __init__(self, allowed: Sequence[str] | None) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        try:
            if check_uri(newurl, self._allowed).scheme != "https" and req.type == "https":
                raise ConfigError(f"{req.full_url}: the server sends us on to {newurl}, without TLS; that is not taken")
        except ConfigError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    proxies = None if limits.proxies is None else dict(limits.proxies)
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(limits.allowed),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _copy(source: IO[bytes], target: Path, limits: Limits, uri: str, length: int | None) -> int:
    deadline, size = time.monotonic() + limits.timeout_s, 0
    free = shutil.disk_usage(target.parent).free
    if length is not None and length > min(limits.max_bytes, free):
        raise DiskFull(f"{uri}: has {length} bytes; {limits.max_bytes} are allowed, and {free} are free here")
    with target.open("wb") as file:
        while part := source.read(_CHUNK_BYTES):
            size += len(part)
            if size > limits.max_bytes:
                raise DiskFull(f"{uri}: has more than the {limits.max_bytes} bytes that are allowed")
            if time.monotonic() > deadline:
                raise TimedOut(f"{uri}: not done after {limits.timeout_s:g} s; {size} bytes came")
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    if length is not None and size < length:
        raise NotReachable(f"{uri}: the connection ended after {size} of {length} bytes")
    return size
