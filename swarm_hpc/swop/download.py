"""Fetching one file by its URI: http, https or a file of this host, within limits."""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import os
import shutil
import stat
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from swarm_hpc import __version__
from swarm_hpc.errors import ConfigError, DiskFull, NotReachable, TimedOut
from swarm_hpc.tasks.uri import FILE, Uri, parse_uri

_CHUNK_BYTES: Final = 1 << 20
_SILENCE_S: Final = 60.0
"""The longest that a server may say nothing."""
_MAX_REDIRECTIONS: Final = 10
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_HEADERS: Final = {"User-Agent": f"swarm-hpc/{__version__}", "Accept-Encoding": "identity"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a download may take."""

    max_bytes: int
    timeout_s: float
    """For all of it, redirections included."""
    allowed: Sequence[str] | None = None
    """Patterns of URIs; None: any."""
    paths: Sequence[str] | None = None
    """Folders, resolved, below which file:// may read; None: anywhere."""


def download(uri: str, target: Path, limits: Limits) -> int:
    """Fetch `uri` into the file `target`; its size. ConfigError, NotReachable, TimedOut, DiskFull."""
    found = _checked(uri, limits)
    try:
        if found.scheme == FILE:
            return _copy_file(found, target, limits)
        return asyncio.run(_fetch(found, target, limits))
    except TimeoutError as exc:  # ahead of OSError, which it is, too
        raise TimedOut(f"{uri}: not done after {limits.timeout_s:g} s, or nothing came for {_SILENCE_S:g} s") from exc
    except aiohttp.ClientResponseError as exc:  # its own text has the URL of the proxy
        raise NotReachable(f"{uri}: cannot be fetched: {exc.status} {exc.message}") from exc
    except (aiohttp.ClientError, ValueError) as exc:
        if isinstance(exc, ConfigError):
            raise
        raise NotReachable(f"{uri}: cannot be fetched: {exc}") from exc
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise DiskFull(f"{target.parent}: no room for {uri}") from exc
        raise NotReachable(f"{uri}: cannot be fetched: {exc.strerror or exc}") from exc


def _checked(uri: str, limits: Limits) -> Uri:
    found = parse_uri(uri)
    if limits.allowed is not None and not any(fnmatch.fnmatchcase(uri, one) for one in limits.allowed):
        raise ConfigError(f"{uri}: the policy of this site does not allow it (downloads: {', '.join(limits.allowed)})")
    return found


def _copy_file(uri: Uri, target: Path, limits: Limits) -> int:
    # a pipe would keep us waiting for somebody to write to it
    with open(os.open(uri.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise ConfigError(f"{uri.text}: is no file")
        # links are followed by now: nobody can put another one there after the check
        real = Path(os.path.realpath(f"/proc/self/fd/{source.fileno()}"))
        if limits.paths is not None and not any(real.is_relative_to(one) for one in limits.paths):
            raise ConfigError(f"{uri.text}: the policy of this site does not allow it (paths)")
        with _Sink(uri, target, limits, os.fstat(source.fileno()).st_size) as sink:
            while part := source.read(_CHUNK_BYTES):
                sink.take(part)
            return sink.size


async def _fetch(uri: Uri, target: Path, limits: Limits) -> int:
    quiet = min(_SILENCE_S, limits.timeout_s)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=quiet, sock_read=quiet)
    # without trust_env, which would hand out the passwords of the user's .netrc
    async with (
        asyncio.timeout(limits.timeout_s),
        aiohttp.ClientSession(timeout=timeout, auto_decompress=False, headers=_HEADERS) as session,
        _answer(session, uri, limits) as answer,
    ):
        with _Sink(uri, target, limits, answer.content_length) as sink:
            try:
                async for part in answer.content.iter_chunked(_CHUNK_BYTES):
                    sink.take(part)
            except aiohttp.ClientPayloadError as exc:
                told = "" if answer.content_length is None else f" of {answer.content_length}"
                raise NotReachable(f"{uri.text}: the connection ended after {sink.size}{told} bytes") from exc
            return sink.size


@asynccontextmanager
async def _answer(session: aiohttp.ClientSession, uri: Uri, limits: Limits) -> AsyncIterator[aiohttp.ClientResponse]:
    """What the server has at `uri`, or where it sends us on to."""
    for _ in range(_MAX_REDIRECTIONS + 1):
        url = URL(uri.text, encoded=uri.text.isascii())  # as it is written: signed ones allow no change
        proxy, login = _proxy_of(uri)
        async with session.get(url, allow_redirects=False, proxy=proxy, proxy_auth=login) as answer:
            if answer.status == 200:
                yield answer
                return
            if answer.status not in (301, 302, 303, 307, 308) or "Location" not in answer.headers:
                raise NotReachable(f"{uri.text}: the server answers {answer.status} {answer.reason}")
            uri = _sent_on(uri, str(url.join(URL(answer.headers["Location"], encoded=True))), limits)
    raise NotReachable(f"{uri.text}: the server sends us on and on")


def _sent_on(uri: Uri, location: str, limits: Limits) -> Uri:
    """To what could be asked for as well, never from https to http, and to no file of ours."""
    found = _checked(location, limits)
    if found.scheme == FILE or (uri.scheme == "https" and found.scheme != "https"):
        raise ConfigError(
            f"{uri.text}: the server sends us on to {found.scheme}://{found.host}, which is not allowed from there"
        )
    return found


def _proxy_of(uri: Uri) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """The proxy for it, as the environment says, without the login that it asks for, because errors name it."""
    proxy = urllib.request.getproxies().get(uri.scheme)
    if not proxy or urllib.request.proxy_bypass(uri.host):
        return None, None
    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    login = None if url.user is None else aiohttp.BasicAuth(url.user, url.password or "")
    return url.with_user(None), login


class _Sink:
    """The file that a download goes to, and how much of what is allowed it has taken. Closed, it is on disk."""

    def __init__(self, uri: Uri, target: Path, limits: Limits, length: int | None) -> None:
        free = shutil.disk_usage(target.parent).free
        if length is not None and length > min(limits.max_bytes, free):
            raise DiskFull(f"{uri.text}: has {length} bytes; {limits.max_bytes} are allowed, and {free} are free here")
        self._uri = uri
        self._limits = limits
        self._deadline = time.monotonic() + limits.timeout_s
        self._file = target.open("wb")
        self.size = 0

    def take(self, part: bytes) -> None:
        """One more part. DiskFull, TimedOut."""
        self.size += len(part)
        if self.size > self._limits.max_bytes:
            raise DiskFull(f"{self._uri.text}: has more than the {self._limits.max_bytes} bytes that are allowed")
        if time.monotonic() > self._deadline:
            raise TimedOut(f"{self._uri.text}: not done after {self._limits.timeout_s:g} s; {self.size} bytes came")
        self._file.write(part)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            if error[0] is None:
                self._file.flush()
                os.fsync(self._file.fileno())
