"""The blob protocol as a server answers it, byte by byte over a blocking connection."""

import asyncio
import os
import threading

import pytest
from blake3 import blake3

from swarm_hpc.errors import NotAuthorized, NotFound
from swarm_hpc.records import Kind
from swarm_hpc.transport import routes, server
from swarm_hpc.transport.blobs import BLOCK_BYTES, BlobStore, add_blob_routes
from swarm_hpc.transport.client import expect_kind
from swarm_hpc.transport.line import Line

DATA = os.urandom(2 * BLOCK_BYTES + 320) + b"!"
BLOB = blake3(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


def may_read(peer, blob):
    if peer.site != "alpha":
        raise NotAuthorized(f"{peer} is no participant")


async def may_write(peer, contract, blob):
    if contract != "c":
        raise NotFound(f"no contract {contract}")


@pytest.fixture
async def ask(sites, net, store, tmp_path):
    """Send one request as an SL of alpha (or another node); (status, headers, body)."""
    (tmp_path / "shared").mkdir()
    app = server.application()
    add_blob_routes(app, store, may_read=may_read, may_write=may_write, shared_dir=tmp_path / "shared")
    address = await net.serve(app, sites.identity("alpha/sn/sn"))

    def run(identity, method, path, body, headers):
        line = Line(identity, address, expect_kind(Kind.SN))
        try:
            connection = line.open(10)
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            line.close()

    async def ask(method, path, *, body=None, headers=None, name="alpha/sl/1"):
        return await asyncio.to_thread(run, sites.identity(name), method, path, body, headers or {})

    return ask


def files(store):
    return sorted(entry.name for entry in store.folder.iterdir())


async def test_a_blob_is_put_once_and_read_back(ask, store):
    assert (await ask("PUT", f"/v1/blobs/{BLOB}?contract=c", body=DATA))[0] == 201
    assert (await ask("PUT", f"/v1/blobs/{BLOB}?contract=c", body=DATA))[0] == 200
    status, headers, body = await ask("GET", f"/v1/blobs/{BLOB}")
    assert (status, body) == (200, DATA)
    assert headers["Content-Type"] == "application/octet-stream"


async def test_head_tells_the_size_and_sends_nothing(ask, store):
    store.put(DATA)
    status, headers, body = await ask("HEAD", f"/v1/blobs/{BLOB}")
    assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (200, str(len(DATA)), "bytes", b"")


@pytest.mark.parametrize("start", [1, BLOCK_BYTES, len(DATA) - 1])
async def test_a_range_gives_the_rest(ask, store, start):
    store.put(DATA)
    status, headers, body = await ask("GET", f"/v1/blobs/{BLOB}", headers={"Range": f"bytes={start}-"})
    assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
    assert body == DATA[start:]


@pytest.mark.parametrize("odd", ["bytes=0-", "bytes=5-9", "bytes=-5", "lines=1-", "bytes=x-"])
async def test_other_ranges_give_the_whole(ask, store, odd):
    store.put(DATA)
    status, _, body = await ask("GET", f"/v1/blobs/{BLOB}", headers={"Range": odd})
    assert (status, body) == (200, DATA)


async def test_a_range_behind_the_end_is_refused(ask, store):
    store.put(DATA)
    status, _, body = await ask("GET", f"/v1/blobs/{BLOB}", headers={"Range": f"bytes={len(DATA)}-"})
    assert status == 416 and b"ProtocolError" in body


async def test_an_empty_blob_is_a_blob(ask, store):
    blob = blake3(b"").hexdigest()
    assert (await ask("PUT", f"/v1/blobs/{blob}?contract=c", body=b""))[0] == 201
    assert (await ask("GET", f"/v1/blobs/{blob}"))[::2] == (200, b"")


async def test_an_unknown_blob_is_not_found(ask):
    status, _, body = await ask("GET", f"/v1/blobs/{BLOB}")
    assert status == 404 and b"BlobNotFound" in body


async def test_who_may_not_read_gets_nothing(ask, store):
    store.put(DATA)
    status, _, body = await ask("GET", f"/v1/blobs/{BLOB}", name="beta/sl/1")
    assert status == 403 and b"beta/sl/1 is no participant" in body


async def test_a_blob_with_a_wrong_byte_is_corrupt_and_not_kept(ask, store):
    status, _, body = await ask("PUT", f"/v1/blobs/{BLOB}?contract=c", body=DATA[:-1] + b"?")
    assert status == 422 and b"BlobCorrupt" in body
    assert files(store) == []


async def test_a_blob_for_an_unknown_contract_is_refused_before_it_is_stored(ask, store):
    status, _, body = await ask("PUT", f"/v1/blobs/{BLOB}?contract=other", body=DATA)
    assert status == 404 and b"no contract other" in body
    assert files(store) == []


async def test_a_blob_without_contract_is_refused(ask, store):
    status, _, body = await ask("PUT", f"/v1/blobs/{BLOB}", body=DATA)
    assert status == 400 and b"which contract" in body


async def test_a_blob_without_length_is_refused(ask, store):
    status, _, body = await ask("PUT", f"/v1/blobs/{BLOB}?contract=c", body=iter([DATA]))
    assert status == 400 and b"needs a Content-Length" in body


@pytest.mark.parametrize("name", ["x", "0" * 63, "%2e%2e%2f" * 10])
async def test_a_name_that_is_no_hash_is_refused(ask, name):
    status, _, body = await ask("GET", f"/v1/blobs/{name}")
    assert status in (400, 404) and b"ProtocolError" in body


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(sites, net, store):
    """The request announces more than it sends; the store's hidden file must go with it."""
    app = server.application()
    add_blob_routes(app, store, may_read=may_read, may_write=may_write)
    address = await net.serve(app, sites.identity("alpha/sn/sn"))
    line = Line(sites.identity("alpha/sl/1"), address, expect_kind(Kind.SN))

    def half():
        connection = line.open(10)
        connection.putrequest("PUT", f"/v1/blobs/{BLOB}?contract=c")
        connection.putheader("Content-Length", str(len(DATA)))
        connection.endheaders()
        connection.send(DATA[: len(DATA) // 2])

    await asyncio.to_thread(half)
    async with asyncio.timeout(10):
        while not files(store):
            await asyncio.sleep(0.01)
    line.close()
    async with asyncio.timeout(10):
        while files(store):
            await asyncio.sleep(0.01)


async def test_a_request_that_is_cancelled_while_its_file_is_made_leaves_nothing(store, monkeypatch):
    making, cancelled, made = threading.Event(), threading.Event(), threading.Event()
    make = store.writer

    def slowly(*args):
        making.set()
        assert cancelled.wait(10)
        writer = make(*args)
        made.set()
        return writer

    monkeypatch.setattr(store, "writer", slowly)
    receiving = asyncio.create_task(routes._receive(None, store, BLOB, len(DATA)))
    assert await asyncio.to_thread(making.wait, 10)
    receiving.cancel()
    await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert await asyncio.to_thread(made.wait, 10)
    assert not files(store)


async def test_adopting_takes_the_file_from_the_shared_folder(ask, store, tmp_path):
    (tmp_path / "shared" / BLOB).write_bytes(DATA)
    body = b'{"contract": "c"}'
    assert (await ask("POST", f"/v1/blobs/{BLOB}/adopt", body=body))[0] == 201
    assert store.path(BLOB).read_bytes() == DATA and not (tmp_path / "shared" / BLOB).exists()
    assert (await ask("POST", f"/v1/blobs/{BLOB}/adopt", body=body))[0] == 200


async def test_a_store_that_only_serves_takes_nothing(sites, net, store):
    app = server.application()
    add_blob_routes(app, store, may_read=may_read, may_write=None)
    routes = {(route.method, route.resource.canonical) for route in app.router.routes()}
    assert routes == {("GET", "/v1/blobs/{blob}"), ("HEAD", "/v1/blobs/{blob}")}
