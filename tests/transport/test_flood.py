"""A site that is let in cannot take the server from the others: silent, slow, greedy and vanishing clients."""

import asyncio
import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from swarm_hpc.errors import ProtocolError
from swarm_hpc.records import Kind
from swarm_hpc.transport import door, routes, server, watch
from swarm_hpc.transport.blobs import BlobStore, add_blob_routes, hash_bytes
from swarm_hpc.transport.client import expect_kind


@pytest.fixture
async def app():
    async def echo(request):
        return web.json_response(await server.body(request))

    app = server.application()
    app.router.add_post("/v1/thing", echo)
    return app


@pytest.fixture
async def connect(sites):
    """Opens raw TLS connections of beta's SL."""
    writers = []

    async def run(address, name="beta/sl/sl-1"):
        host, port = address.split(":")
        context = sites.identity(name).client_context(expect_kind(Kind.SN))
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writers.append(writer)
        return reader, writer

    yield run
    for writer in writers:
        writer.transport.abort()


def request(method, path, length, *headers):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]).encode()


async def ended(reader) -> bytes:
    """All that the server sends until it ends the connection."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_a_connection_without_a_request_is_ended(sites, net, app, connect, monkeypatch):
    monkeypatch.setattr(watch, "IDLE_S", 0.2)
    address = await net.serve(app, sites.identity("alpha/sn/sn"))
    silent, _ = await connect(address)
    trickling, writer = await connect(address)
    writer.write(b"POST /v1/thing HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert await ended(silent) == b""
    assert await ended(trickling) == b""


@pytest.mark.slow
async def test_a_request_under_way_is_no_idle_connection(sites, net, monkeypatch):
    monkeypatch.setattr(watch, "IDLE_S", 0.05)

    async def slow(request):
        await asyncio.sleep(0.3)  # several checks long
        return web.json_response("done")

    app = server.application()
    app.router.add_post("/v1/thing", slow)
    client = await net.client(sites.identity("alpha/sl/1"), await net.serve(app, sites.identity("alpha/sn/sn")))
    assert await client.call("POST", "/v1/thing", retry=False) == "done"


async def test_a_body_that_does_not_come_is_given_up(sites, net, app, connect, monkeypatch):
    monkeypatch.setattr(server, "BODY_TIMEOUT_S", 0.1)
    reader, writer = await connect(await net.serve(app, sites.identity("alpha/sn/sn")))
    writer.write(request("POST", "/v1/thing", 100) + b'{"x": ')
    assert b'"title": "TimedOut"' in await reader.readuntil(b"}")


async def test_a_blob_that_stops_arriving_is_given_up_and_leaves_nothing(sites, net, tmp_path, connect, monkeypatch):
    monkeypatch.setattr(routes, "STALL_S", 0.1)
    store, blob = BlobStore(tmp_path / "blobs"), hash_bytes(b"x" * 1000)
    app = blob_app(store)
    reader, writer = await connect(await net.serve(app, sites.identity("alpha/sn/sn")))
    writer.write(request("PUT", f"/v1/blobs/{blob}?contract=c", 1000) + b"x" * 10)
    assert b'"title": "TimedOut"' in await reader.readuntil(b"}")
    assert list(store.folder.iterdir()) == []


@pytest.mark.slow
async def test_an_answer_that_nobody_reads_is_given_up(sites, net, tmp_path, connect, monkeypatch):
    monkeypatch.setattr(watch, "STALL_S", 0.2)
    store = BlobStore(tmp_path / "blobs")
    blob = store.put(bytes(64 << 20))  # more than all buffers between the two hold
    _, writer = await connect(await net.serve(blob_app(store), sites.identity("alpha/sn/sn")))
    writer.transport.pause_reading()
    writer.write(request("GET", f"/v1/blobs/{blob}", 0))
    while _open_files(store.folder / blob) == 0:
        await asyncio.sleep(0.01)
    while _open_files(store.folder / blob):
        await asyncio.sleep(0.01)


async def test_a_site_has_so_many_connections_and_leaves_room_for_others(sites, net, app, connect, monkeypatch):
    monkeypatch.setattr(door, "MAX_CONNECTIONS_PER_SITE", 2)
    address = await net.serve(app, sites.identity("alpha/sn/sn"))
    kept = [await connect(address, f"beta/sl/{number}") for number in range(2)]
    reader, _ = await connect(address, "beta/sl/2")
    assert await ended(reader) == b""
    other = await net.client(sites.identity("alpha/sl/1"), address)
    assert await other.call("POST", "/v1/thing", body={"x": 1}) == {"x": 1}
    kept[0][1].close()
    await kept[0][1].wait_closed()
    client = await net.client(sites.identity("beta/sl/3"), address)
    assert await client.call("POST", "/v1/thing", body={}) == {}, "a place that became free is given again"


async def test_only_so_many_handshakes_are_under_way_at_once(sites, net, app, monkeypatch):
    monkeypatch.setattr(door, "MAX_HANDSHAKES", 1)
    host, port = (await net.serve(app, sites.identity("alpha/sn/sn"))).split(":")
    _, first = await asyncio.open_connection(host, int(port))
    second, writer = await asyncio.open_connection(host, int(port))
    assert await ended(second) == b""
    for one in (first, writer):
        one.close()


async def test_a_client_that_leaves_cancels_its_request(sites, net):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def poll(request):
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    app = server.application()
    app.router.add_get("/v1/thing", poll)
    client = await net.client(sites.identity("alpha/sl/1"), await net.serve(app, sites.identity("alpha/sn/sn")))
    asking = asyncio.create_task(client.call("GET", "/v1/thing"))
    await entered.wait()
    asking.cancel()
    await client.close()
    await cancelled.wait()


async def test_nothing_is_unpacked_on_the_way_in(sites, net, app, connect):
    reader, writer = await connect(await net.serve(app, sites.identity("alpha/sn/sn")))
    packed = gzip.compress(json.dumps({"x": "y" * 100_000}).encode())
    writer.write(request("POST", "/v1/thing", len(packed), "Content-Encoding: gzip") + packed)
    assert b"the body is no JSON" in await reader.readuntil(b"}")


async def test_nothing_is_unpacked_on_the_way_out(sites, net):
    async def packed(request):
        return web.Response(body=gzip.compress(b'"x"'), headers={"Content-Encoding": "gzip"})

    app = server.application()
    app.router.add_get("/v1/thing", packed)
    client = await net.client(sites.identity("alpha/sl/1"), await net.serve(app, sites.identity("alpha/sn/sn")))
    with pytest.raises(ProtocolError, match="no JSON"):
        await client.call("GET", "/v1/thing")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"x": ' * 10_000, b'{"x": NaN}', b'{"x": ' + b"9" * 10_000 + b"}"])
async def test_json_that_is_meant_to_hurt_is_refused(sites, net, app, connect, text):
    reader, writer = await connect(await net.serve(app, sites.identity("alpha/sn/sn")))
    writer.write(request("POST", "/v1/thing", len(text)) + text)
    assert b'"title": "ProtocolError"' in await reader.readuntil(b"}")


async def test_a_blob_larger_than_it_may_be_is_refused_before_it_arrives(sites, net, tmp_path, connect):
    async def may_write(peer, contract, blob):
        return 100

    app = server.application()
    add_blob_routes(app, BlobStore(tmp_path / "blobs"), may_read=anybody, may_write=may_write)
    reader, writer = await connect(await net.serve(app, sites.identity("alpha/sn/sn")))
    writer.write(request("PUT", f"/v1/blobs/{'ab' * 32}?contract=c", 101))
    assert b"at most 100 are taken" in await reader.readuntil(b"}")


def anybody(peer, blob):
    pass


def blob_app(store):
    async def any_contract(peer, contract, blob):
        return None

    app = server.application()
    add_blob_routes(app, store, may_read=anybody, may_write=any_contract)
    return app


def _open_files(path) -> int:
    """How many descriptors of this process are of that file."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(fd.readlink())
    return links.count(path)
