"""The blob protocol's server side (protocol.md 2.2), the same in SN and in SL's file server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from io import FileIO
from pathlib import Path
from typing import Any, Final

from aiohttp import HttpVersion11, StreamReader, web

from swarm_hpc.errors import BlobCorrupt, ConfigError, ProtocolError, TimedOut
from swarm_hpc.records import NodeName
from swarm_hpc.transport.server import body, peer
from swarm_hpc.transport.store import BLOCK_BYTES, BlobStore, blob_name

log = logging.getLogger(__name__)

_RANGE: Final = re.compile(r"bytes=(\d{1,18})-")

MayRead = Callable[[NodeName, str], None]
MayWrite = Callable[[NodeName, str, str], Awaitable[int | None]]
Obtain = Callable[[NodeName, str], Coroutine[Any, Any, None]]

STALL_S: Final = 60.0
"""The longest pause between two pieces of a blob that is put."""
PATIENCE_S: Final = 2.0
"""While a blob is obtained, its reader hears so often that it is worth waiting."""


def add_blob_routes(
    app: web.Application,
    store: BlobStore,
    *,
    may_read: MayRead,
    may_write: MayWrite | None,
    shared_dir: Path | None = None,
    obtain: Obtain | None = None,
) -> None:
    """Serve the store's blobs; take new ones unless `may_write` is None; adopt from `shared_dir` where there is one.

    may_read(peer, blob) and may_write(peer, contract, blob) raise NotAuthorized or NotFound. may_write is asked before
    a byte of the blob is read; it answers how many bytes the blob may have, None without a limit. obtain(peer, blob) is
    awaited before may_read is asked: it may bring the blob into the store, and takes as long as that takes.
    """
    app.router.add_get("/v1/blobs/{blob}", _Reader(store, may_read, obtain).get)
    if may_write is not None:
        taker = _Taker(store, may_write, shared_dir)
        app.router.add_put("/v1/blobs/{blob}", taker.put)
        app.router.add_post("/v1/blobs/{blob}/adopt", taker.adopt)


class _Reader:
    def __init__(self, store: BlobStore, may_read: MayRead, obtain: Obtain | None) -> None:
        self._store, self._may_read, self._obtain = store, may_read, obtain

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD. Not aiohttp's FileResponse: over TLS it copies each block many times on its way."""
        blob, name = blob_name(request.match_info["blob"]), peer(request)
        if self._obtain is not None:
            await _while_it_waits(request, self._obtain(name, blob))
        self._may_read(name, blob)
        with self._store.path(blob).open("rb", buffering=0) as file:
            return await _send(request, file)


class _Taker:
    def __init__(self, store: BlobStore, may_write: MayWrite, shared_dir: Path | None) -> None:
        self._store, self._may_write, self._shared_dir = store, may_write, shared_dir

    async def put(self, request: web.Request) -> web.StreamResponse:
        blob = blob_name(request.match_info["blob"])
        most_bytes = await self._may_write(peer(request), _contract(request.query.get("contract")), blob)
        if request.content_length is None:
            raise ProtocolError(f"PUT {request.path}: needs a Content-Length")
        if most_bytes is not None and request.content_length > most_bytes:
            raise BlobCorrupt(f"blob {blob}: {request.content_length} bytes; at most {most_bytes} are taken")
        if self._store.has(blob):
            await _discard(request.content)
            return web.json_response({}, status=200)
        await _receive(request.content, self._store, blob, request.content_length)
        return web.json_response({}, status=201)

    async def adopt(self, request: web.Request) -> web.StreamResponse:
        blob = blob_name(request.match_info["blob"])
        await self._may_write(peer(request), _contract((await body(request)).get("contract")), blob)
        if self._shared_dir is None:
            raise ConfigError("this node has no shared_dir: put the blob instead")
        known = self._store.has(blob)
        await asyncio.to_thread(self._store.adopt, self._shared_dir / blob, blob)
        return web.json_response({}, status=200 if known else 201)


async def _while_it_waits(request: web.Request, work: Coroutine[Any, Any, None]) -> None:
    """Await the work; meanwhile the client is told to wait, because silence would look like a lost server to it."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=PATIENCE_S))[0]:
            if request.version >= HttpVersion11:
                # Any number of them may come before the answer, asked for or not (RFC 9110, 15.2).
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the answer itself has not begun
    finally:
        task.cancel()
    await task


async def _send(request: web.Request, file: FileIO) -> web.StreamResponse:
    size_bytes = os.fstat(file.fileno()).st_size
    start = _first_byte(request, size_bytes)
    response = web.StreamResponse(status=206 if start else 200, headers={"Accept-Ranges": "bytes"})
    response.content_type = "application/octet-stream"
    response.content_length = size_bytes - start
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{size_bytes - 1}/{size_bytes}"
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    for offset in range(start, size_bytes, BLOCK_BYTES):
        # A new block each time: asyncio may still hold the last one. A view, because asyncio cuts off what TLS has
        # taken, record by record, which would copy the rest of bytes each time.
        block = await asyncio.to_thread(_read, file, offset, min(BLOCK_BYTES, size_bytes - offset))
        await response.write(memoryview(block))
    return response


def _read(file: FileIO, offset: int, count: int) -> bytes:
    try:
        block = os.pread(file.fileno(), count, offset)
    except OSError as exc:
        block, reason = b"", str(exc)
    else:
        reason = "the file is shorter than it was"
    if len(block) != count:
        log.error("%s at byte %d: %s", file.name, offset, reason)
        # The answer is half way out: all that can be done is to cut it, and a ConnectionError does.
        raise ConnectionAbortedError(reason)
    return block


def _first_byte(request: web.Request, size_bytes: int) -> int:
    """Where to start. Ranges other than `bytes=a-` are answered with the whole blob, as RFC 9110 allows."""
    found = _RANGE.fullmatch(request.headers.get("Range", ""))
    start = int(found[1]) if found else 0
    if start and start >= size_bytes:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size_bytes}"})
    return start


def _contract(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ProtocolError("the request does not say which contract the blob belongs to")
    return text


async def _receive(content: StreamReader, store: BlobStore, blob: str, size_bytes: int) -> None:
    opening = asyncio.create_task(asyncio.to_thread(store.writer, blob, size_bytes))
    try:
        writer = await asyncio.shield(opening)
        async for block in _blocks(content):
            await asyncio.to_thread(writer.write, block)
        await asyncio.to_thread(writer.commit)
    except BaseException:
        # In a thread: where this was cancelled, another one may still be writing, or even making the writer's file.
        await asyncio.wait([opening])
        if opening.exception() is None:
            await asyncio.to_thread(opening.result().abort)
        raise


async def _blocks(content: StreamReader) -> AsyncIterator[bytearray]:
    """What arrives, in blocks of about 1 MiB: a thread hop for each small piece would cost more than the piece."""
    block = bytearray()
    async for piece in _pieces(content):
        block += piece
        if len(block) >= BLOCK_BYTES:
            yield block
            block = bytearray()
    if block:
        yield block


async def _discard(content: StreamReader) -> None:
    """Read to the end, so that the client can send it all and then reads our answer on the same connection."""
    async for _ in _pieces(content):
        pass


async def _pieces(content: StreamReader) -> AsyncIterator[bytes]:
    """What arrives, as it arrives; TimedOut where nothing does."""
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                piece = await content.readany()
        except TimeoutError as exc:
            raise TimedOut(f"the blob stopped arriving: nothing came for {STALL_S:g} s") from exc
        if not piece:
            return
        yield piece
