"""Downloads and uploads against a real server that misbehaves."""

import asyncio
import os
import time

import pytest
from aiohttp import web
from blake3 import blake3

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import (
    BlobCorrupt,
    BlobNotFound,
    CertificateUntrusted,
    DiskFull,
    NotAuthorized,
    NotReachable,
    ProtocolError,
    TimedOut,
)
from swarm_hpc.records import Kind
from swarm_hpc.transport import blobs, routes, server, transfer
from swarm_hpc.transport.blobs import BLOCK_BYTES, BlobStore, add_blob_routes
from swarm_hpc.transport.client import expect_kind

DATA = os.urandom(5 * BLOCK_BYTES + 77)
BLOB = blake3(DATA).hexdigest()
RANGES = web.AppKey("ranges", list)
HALF = len(DATA) // 2
PATIENT = ConnectionConfig(connect_timeout_s=3600, transfer_timeout_s=3600)


def anybody(peer, blob):
    pass


async def any_contract(peer, contract, blob):
    pass


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


@web.middleware
async def note_range(request, handler):
    request.app[RANGES].append(request.headers.get("Range"))
    return await handler(request)


def app_with(store, *middlewares):
    app = server.application()
    app[RANGES] = []
    app.middlewares.extend([note_range, *middlewares])
    add_blob_routes(app, store, may_read=anybody, may_write=any_contract)
    return app


def cutting(times, at_byte=HALF):
    """Break the connection after that byte of the answer, so many times."""
    left = [times]

    @web.middleware
    async def cut(request, handler):
        if not left[0] or request.method != "GET":
            return await handler(request)
        left[0] -= 1
        found = request.headers.get("Range", "bytes=0-")
        start = int(found.removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(DATA) - start
        await response.prepare(request)
        await response.write(DATA[start : start + at_byte])
        request.transport.close()
        return response

    return cut


class Ends:
    """A served store, and a node that moves blobs from and to it."""

    def __init__(self, sites, net):
        self.sites, self.net = sites, net
        self.identity = sites.identity("beta/sl/1")

    async def serve(self, app):
        self.address = await self.net.serve(app, self.sites.identity("alpha/sn/sn"))

    async def download(self, blob=BLOB, *, connection=PATIENT, **into):
        expect = expect_kind(Kind.SN)
        return await blobs.download(self.identity, self.address, blob, expect=expect, connection=connection, **into)

    async def upload(self, data, blob=BLOB, *, connection=PATIENT):
        expect = expect_kind(Kind.SN)
        await blobs.upload(self.identity, self.address, blob, data, contract="c", expect=expect, connection=connection)


@pytest.fixture
def ends(sites, net):
    return Ends(sites, net)


async def test_a_download_ends_where_it_is_wanted(ends, store, tmp_path):
    store.put(DATA)
    await ends.serve(app_with(store))
    assert await ends.download() == DATA
    buffer = bytearray(len(DATA))
    assert await ends.download(buffers=[memoryview(bytearray(7)), memoryview(buffer)]) == buffer == DATA
    assert await ends.download(into=tmp_path / "model") is None and (tmp_path / "model").read_bytes() == DATA
    ours = BlobStore(tmp_path / "ours")
    await ends.download(into=ours)
    assert ours.path(BLOB).read_bytes() == DATA


async def test_an_empty_blob_travels_too(ends, store):
    blob = store.put(b"")
    await ends.serve(app_with(store))
    assert await ends.download(blob) == b""


class Pieces:
    """A sink that keeps what it got, and lets the download wait `pause_s` for its third room."""

    def __init__(self, pause_s=0.0):
        self.have = 0
        self.data = b""
        self._pause_s = pause_s
        self._rooms = 0

    def begin(self, size_bytes):
        assert size_bytes == len(DATA)

    def room(self):
        self._rooms += 1
        if self._rooms == 3:
            time.sleep(self._pause_s)
        self._room = memoryview(bytearray(BLOCK_BYTES))
        return self._room

    def took(self, count):
        self.data += self._room[:count]
        self.have += count

    def restart(self):
        raise NotReachable("from the start again")

    def finish(self):
        assert self.data == DATA

    def abort(self):
        pass


@pytest.mark.slow
async def test_a_sink_may_let_a_download_wait_longer_than_bytes_may_take(ends, store):
    store.put(DATA)
    await ends.serve(app_with(store))
    sink = Pieces(pause_s=4.0)
    await ends.download(into=sink, connection=ConnectionConfig(connect_timeout_s=3, transfer_timeout_s=60))
    assert sink.data == DATA


async def test_a_second_node_goes_on_where_the_first_one_stopped(ends, store):
    store.put(DATA)
    sink, app = Pieces(), app_with(store, cutting(times=1000, at_byte=BLOCK_BYTES))
    await ends.serve(app)
    download = asyncio.create_task(ends.download(into=sink))
    async with asyncio.timeout(20):
        while not sink.have:
            await asyncio.sleep(0.01)
    download.cancel()
    await asyncio.wait([download])
    assert (before := sink.have) < len(DATA)
    second = app_with(store)
    await ends.serve(second)
    await ends.download(into=sink)
    assert second[RANGES] == [f"bytes={before}-"]


async def test_a_second_node_that_sends_all_of_it_is_not_taken_to_go_on(ends, store):
    """A proxy before it ignores ranges."""
    store.put(DATA)
    app = server.application()

    async def whole(request):
        return web.Response(body=DATA)

    app.router.add_get("/v1/blobs/{blob}", whole)
    await ends.serve(app)
    sink = Pieces()
    sink.room()[:] = DATA[:BLOCK_BYTES]
    sink.took(BLOCK_BYTES)  # from the first node
    with pytest.raises(NotReachable, match="from the start again"):
        await ends.download(into=sink)


@pytest.mark.parametrize("to", ["file", "memory", "sink"])
async def test_a_download_goes_on_where_it_was_cut(ends, store, tmp_path, to):
    store.put(DATA)
    app = app_with(store, cutting(times=2, at_byte=2 * BLOCK_BYTES))
    await ends.serve(app)
    if to == "file":
        await ends.download(into=tmp_path / "model")
        assert (tmp_path / "model").read_bytes() == DATA
    elif to == "sink":
        await ends.download(into=Pieces())
    else:
        assert await ends.download() == DATA
    first, *later = app[RANGES]
    assert first is None and len(later) == 2
    starts = [int(one.removeprefix("bytes=").removesuffix("-")) for one in later]
    assert 0 < starts[0] < starts[1] < len(DATA)


async def test_a_download_starts_anew_where_ranges_are_ignored(ends, store):
    store.put(DATA)

    @web.middleware
    async def deaf(request, handler):
        request = request.clone(headers={key: value for key, value in request.headers.items() if key != "Range"})
        return await handler(request)

    app = app_with(store, cutting(times=1), deaf)
    await ends.serve(app)
    assert await ends.download() == DATA
    await ends.serve(app_with(store, cutting(times=1), deaf))
    with pytest.raises(NotReachable, match="from the start again"):
        await ends.download(into=Pieces())
    assert len(app[RANGES]) == 2


async def test_a_server_that_names_an_impossible_range_is_refused(ends):
    async def answer(request):
        return web.Response(status=206, headers={"Content-Range": f"bytes 0-1/{'9' * 5000}"})

    app = server.application()
    app.router.add_get("/v1/blobs/{blob}", answer)
    await ends.serve(app)
    with pytest.raises(ProtocolError, match="answered 206"):
        await ends.download()


async def test_a_server_that_sends_other_bytes_is_found_out(ends, store, tmp_path):
    (store.folder / BLOB).write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    await ends.serve(app_with(store))
    with pytest.raises(BlobCorrupt, match=BLOB):
        await ends.download()
    with pytest.raises(BlobCorrupt, match=BLOB):
        await ends.download(into=tmp_path / "model")
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*.part"))


async def test_a_buffer_of_another_size_is_refused(ends, store):
    store.put(DATA)
    await ends.serve(app_with(store))
    with pytest.raises(BlobCorrupt, match="10 or 9 were expected"):
        await ends.download(buffers=[memoryview(bytearray(10)), memoryview(bytearray(9))])
    with pytest.raises(BlobCorrupt, match="at most 10"):
        await ends.download(max_bytes=10)


async def test_an_unknown_blob_is_not_asked_for_again(ends, store):
    app = app_with(store)
    await ends.serve(app)
    with pytest.raises(BlobNotFound, match=BLOB):
        await ends.download()
    assert len(app[RANGES]) == 1


async def test_a_download_to_a_full_disk_says_so(ends, store, tmp_path):
    store.put(DATA)
    await ends.serve(app_with(store))
    with pytest.raises(DiskFull):
        await ends.download(into=BlobStore(tmp_path / "full", min_free_bytes=1 << 60))


@pytest.mark.slow
async def test_a_download_that_takes_too_long_is_timed_out(ends, store):
    store.put(DATA)
    release = asyncio.Event()

    @web.middleware
    async def stall(request, handler):
        response = web.StreamResponse()
        response.content_length = len(DATA)
        await response.prepare(request)
        await response.write(DATA[:BLOCK_BYTES])
        await release.wait()
        return response

    await ends.serve(app_with(store, stall))
    with pytest.raises(TimedOut, match=r"not done within 0\.5 s"):
        await ends.download(connection=ConnectionConfig(connect_timeout_s=30, transfer_timeout_s=0.5))
    release.set()


@pytest.mark.slow
async def test_a_server_that_only_asks_for_patience_is_not_waited_for_longer(ends, store, monkeypatch):
    monkeypatch.setattr(routes, "PATIENCE_S", 0.1)
    release = asyncio.Event()

    async def obtain(peer, blob):
        await release.wait()

    app = server.application()
    add_blob_routes(app, store, may_read=anybody, may_write=None, obtain=obtain)
    await ends.serve(app)
    asyncio.get_running_loop().call_later(10, release.set)
    with pytest.raises(TimedOut, match=r"not done within 0\.5 s"):
        await ends.download(connection=ConnectionConfig(connect_timeout_s=30, transfer_timeout_s=0.5))
    assert not release.is_set()
    release.set()


async def test_nobody_there_is_not_reachable(ends, store):
    await ends.serve(app_with(store))
    ends.address = "127.0.0.1:1"
    with pytest.raises(NotReachable, match=r"127\.0\.0\.1:1"):
        await ends.download(connection=ConnectionConfig(connect_timeout_s=0.2))


@pytest.mark.slow
async def test_a_server_that_keeps_cutting_without_a_byte_is_given_up(ends, store):
    store.put(DATA)
    await ends.serve(app_with(store, cutting(times=1000, at_byte=0)))
    with pytest.raises(NotReachable, match="blob"):
        await ends.download(connection=ConnectionConfig(connect_timeout_s=0.3))


async def test_a_cancelled_download_leaves_no_thread_and_touches_the_buffer_no_more(ends, store):
    store.put(DATA)
    stalled, release = asyncio.Event(), asyncio.Event()

    @web.middleware
    async def stall(request, handler):
        response = web.StreamResponse()
        response.content_length = len(DATA)
        await response.prepare(request)
        stalled.set()
        await release.wait()
        await response.write(DATA)
        return response

    await ends.serve(app_with(store, stall))
    buffer = bytearray(len(DATA))
    task = asyncio.ensure_future(ends.download(buffers=[memoryview(buffer)]))
    await stalled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert not any(buffer)


async def test_a_refusal_is_not_tried_again(ends, store):
    await ends.serve(app_with(store))
    bundle = ends.sites.bundle_of("alpha", "beta", "gamma")
    ends.identity = ends.sites.identity("gamma/sl/1", bundle=bundle)
    with pytest.raises(CertificateUntrusted, match="is gamma's CA in that site's trust bundle"):
        await ends.download()
    with pytest.raises(CertificateUntrusted, match="is gamma's CA in that site's trust bundle"):
        await ends.upload(memoryview(DATA))


@pytest.mark.slow
async def test_a_name_that_the_server_refuses_is_given_up_after_a_few_attempts(ends, store):
    await ends.serve(app_with(store))
    forged = ends.sites.forged("alpha", uris=["spiffe://swarm.test/beta/sl/1"])
    ends.identity = ends.sites.unchecked(forged, "beta/sl/1")
    with pytest.raises(NotAuthorized, match="its log says why"):
        await ends.download()


async def test_a_server_of_another_kind_gets_no_request(ends, store):
    ends.address = await ends.net.serve(app_with(store), ends.sites.identity("alpha/sl/2"))
    with pytest.raises(NotAuthorized, match="alpha/sl/2 answers there, not sn"):
        await ends.download()


async def test_an_upload_from_memory_or_file_arrives(ends, store, tmp_path):
    (tmp_path / "model").write_bytes(DATA)
    await ends.serve(app_with(store))
    await ends.upload(tmp_path / "model")
    assert store.path(BLOB).read_bytes() == DATA
    await ends.upload(memoryview(DATA))
    store.delete(BLOB)
    await ends.upload(memoryview(DATA))
    assert store.path(BLOB).read_bytes() == DATA


async def test_an_upload_of_wrong_bytes_is_corrupt(ends, store):
    await ends.serve(app_with(store))
    with pytest.raises(BlobCorrupt):
        await ends.upload(memoryview(DATA), "0" * 64)
    assert store.blobs() == []


async def test_an_upload_to_a_full_disk_raises_the_servers_error(ends, tmp_path):
    await ends.serve(app_with(BlobStore(tmp_path / "full", min_free_bytes=1 << 60)))
    with pytest.raises(DiskFull, match="min_free_mib"):
        await ends.upload(memoryview(os.urandom(40 * BLOCK_BYTES)))


async def test_an_upload_is_repeated_after_a_cut(ends, store):
    times = [1]

    @web.middleware
    async def cut(request, handler):
        if times[0]:
            times[0] -= 1
            await request.content.readany()
            request.transport.abort()
        return await handler(request)

    await ends.serve(app_with(store, cut))
    await ends.upload(memoryview(DATA))
    assert store.path(BLOB).read_bytes() == DATA


async def test_an_upload_of_a_file_that_is_not_there_names_it(ends, store, tmp_path):
    await ends.serve(app_with(store))
    with pytest.raises(BlobNotFound, match="model"):
        await ends.upload(tmp_path / "model")


@pytest.mark.parametrize("address", ["", "host:port", "host:1/path"])
async def test_an_address_that_is_none_is_named(ends, address):
    ends.address = address
    with pytest.raises(ProtocolError, match="is no address"):
        await ends.download()


@pytest.mark.slow
async def test_a_server_that_dies_in_the_middle_is_given_up_after_the_connect_timeout(ends, store, monkeypatch):
    store.put(DATA)
    await ends.serve(app_with(store, cutting(times=1, at_byte=len(DATA) // 2)))
    opened = transfer.Line.open
    attempts = []

    def open_once(self, timeout_s):
        attempts.append(timeout_s)
        if len(attempts) > 1:
            raise ConnectionRefusedError("it is dead")
        return opened(self, timeout_s)

    monkeypatch.setattr(transfer.Line, "open", open_once)
    with pytest.raises(NotReachable, match="it is dead"):
        await ends.download(connection=ConnectionConfig(connect_timeout_s=0.3, transfer_timeout_s=5))
    assert len(attempts) > 1
