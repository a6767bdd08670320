"""What an application answers, who asks, and where it listens."""

import asyncio
import logging
import socket

import pytest
from aiohttp import web

from swarm_hpc import errors
from swarm_hpc.errors import (
    ConfigError,
    NotAuthorized,
    NotReachable,
    PortInUse,
    ProtocolError,
    RoundClosed,
    SwarmError,
)
from swarm_hpc.records import Kind
from swarm_hpc.transport import server
from swarm_hpc.transport.client import expect_kind


def app_with(handler, method="POST"):
    app = server.application(max_body_bytes=1000)
    app.router.add_route(method, "/v1/thing", handler)
    return app


async def echo(request):
    return web.json_response({"peer": str(server.peer(request)), "body": await server.body(request)})


async def test_a_handler_knows_its_peer_and_gets_the_body(sites, net):
    address = await net.serve(app_with(echo), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("beta/sl/sl-1"), address)
    answer = await client.call("POST", "/v1/thing", body={"x": [1, 2.5, None]})
    assert answer == {"peer": "beta/sl/sl-1", "body": {"x": [1, 2.5, None]}}


@pytest.mark.parametrize("error", [RoundClosed, errors.DiskFull, errors.ModelMismatch, errors.Fenced])
async def test_an_error_crosses_the_wire_by_name(sites, net, error):
    async def fail(request):
        raise error("contract c: round 7 is over")

    address = await net.serve(app_with(fail), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("alpha/sl/sl-1"), address)
    with pytest.raises(error, match="contract c: round 7 is over") as caught:
        await client.call("POST", "/v1/thing")
    assert type(caught.value) is error


async def test_a_bug_in_a_handler_is_logged_with_traceback_and_told_without(sites, net, caplog):
    async def broken(request):
        raise KeyError("inner secret")

    address = await net.serve(app_with(broken), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("alpha/sl/sl-1"), address)
    with pytest.raises(SwarmError, match="internal error: see the log") as caught:
        await client.call("POST", "/v1/thing")
    assert "secret" not in str(caught.value)
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert record.exc_info and "alpha/sl/sl-1" in record.getMessage()


async def test_only_the_allowed_kinds_get_through(sites, net):
    async def audit(request):
        server.allow(request, Kind.SN, Kind.SWCI)
        return web.json_response(True)

    address = await net.serve(app_with(audit), sites.identity("alpha/sn/sn"))
    swci = await net.client(sites.identity("beta/swci/cli"), address)
    sl = await net.client(sites.identity("beta/sl/sl-1"), address)
    assert await swci.call("POST", "/v1/thing") is True
    with pytest.raises(NotAuthorized, match="beta/sl/sl-1 may not POST /v1/thing: that is for sn, swci"):
        await sl.call("POST", "/v1/thing")


@pytest.mark.parametrize("body", [[1], "text", 3])
async def test_a_body_that_is_no_object_is_a_protocol_error(sites, net, body):
    address = await net.serve(app_with(echo), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("alpha/sl/sl-1"), address)
    with pytest.raises(ProtocolError, match="the body is no JSON object"):
        await client.call("POST", "/v1/thing", body=body)


async def test_a_body_that_is_too_large_is_refused(sites, net):
    address = await net.serve(app_with(echo), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("alpha/sl/sl-1"), address)
    with pytest.raises(ProtocolError, match="Too Large"):
        await client.call("POST", "/v1/thing", body={"x": "y" * 2000})


async def test_an_unknown_path_is_a_protocol_error(sites, net):
    address = await net.serve(app_with(echo), sites.identity("alpha/sn/sn"))
    client = await net.client(sites.identity("alpha/sl/sl-1"), address)
    with pytest.raises(ProtocolError, match="GET /v1/other: Not Found"):
        await client.call("GET", "/v1/other")


async def test_a_port_in_use_is_named(sites):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 belongs to another process"):
            async with server.serve(server.application(), sites.identity("alpha/sn/sn"), "127.0.0.1", port):
                raise AssertionError("it must not serve")


async def test_a_host_that_is_not_this_machine_is_a_config_error(sites):
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        async with server.serve(server.application(), sites.identity("alpha/sn/sn"), "192.0.2.1", 0):
            raise AssertionError("it must not serve")


async def test_the_port_is_free_again_after_the_block_even_with_a_request_under_way(sites, net):
    entered = asyncio.Event()

    async def hang(request):
        entered.set()
        await asyncio.sleep(3600)

    identity = sites.identity("alpha/sn/sn")
    async with server.serve(app_with(hang), identity, "127.0.0.1", 0) as port:
        client = await net.client(sites.identity("alpha/sl/sl-1"), f"127.0.0.1:{port}")
        waiting = asyncio.ensure_future(client.call("POST", "/v1/thing", retry=False))
        await entered.wait()
    with pytest.raises(errors.TransportError):
        await waiting
    async with server.serve(app_with(echo), identity, "127.0.0.1", port):
        assert (await client.call("POST", "/v1/thing"))["peer"] == "alpha/sl/sl-1"


def app_that_says(text):
    async def answer(request):
        return web.json_response(text)

    return app_with(answer, "GET")


async def once(client):
    return await client.call("GET", "/v1/thing", retry=False)


@pytest.fixture
async def reception(sites):
    async with server.listen(sites.identity("alpha/sn/sn"), "127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def client(sites, net, reception):
    return await net.client(sites.identity("beta/sl/sl-1"), f"127.0.0.1:{reception.port}")


async def test_a_node_that_is_starting_says_so_to_whatever_is_asked(reception, client):
    for method, path in (("GET", "/"), ("POST", "/v1/nodes"), ("GET", "/v1/status")):
        with pytest.raises(NotReachable, match="this node is starting"):
            await client.call(method, path, body={"x": 1} if method == "POST" else None, retry=False)
    reception.status = "starting: block 7 of 20"
    with pytest.raises(NotReachable, match="this node is starting: block 7 of 20"):
        await once(client)


async def test_a_call_to_a_node_that_is_starting_is_repeated_until_it_serves(reception, client):
    asked = asyncio.Event()

    class Status(str):
        def __format__(self, spec):
            asked.set()
            return str(self)

    reception.status = Status("starting")
    calling = asyncio.create_task(client.call("GET", "/v1/thing"))
    await asked.wait()
    async with reception.answer(app_that_says("ready")):
        assert await calling == "ready"


async def test_applications_replace_each_other_and_come_back(reception, client):
    async with reception.answer(app_that_says("lobby")):
        assert await once(client) == "lobby"
        async with reception.answer(app_that_says("real")):
            assert await client.call("GET", "/v1/thing") == "real", "on a connection that the lobby had kept"
            assert await once(client) == "real"
        assert await client.call("GET", "/v1/thing") == "lobby"
    with pytest.raises(NotReachable, match="this node is starting"):
        await client.call("GET", "/v1/thing", retry=False)


async def test_a_kept_connection_of_a_replaced_application_is_closed_and_another_ones_is_not(reception, sites):
    context = sites.identity("beta/sl/sl-1").client_context(expect_kind(Kind.SN))

    async def ask(reader, writer):
        writer.write(b"GET /v1/thing HTTP/1.1\r\nHost: x\r\n\r\n")
        return await reader.readuntil(b'"')

    async with reception.answer(app_that_says("lobby")):
        reader, writer = await asyncio.open_connection("127.0.0.1", reception.port, ssl=context)
        await ask(reader, writer)
        await reader.readuntil(b'"')
        async with reception.answer(app_that_says("real")):
            assert await reader.read() == b""
            kept = await asyncio.open_connection("127.0.0.1", reception.port, ssl=context)
            for _ in range(2):
                await ask(*kept)
                assert await kept[0].readuntil(b'"') == b'real"'
        assert await kept[0].read() == b""
    for one in (writer, kept[1]):
        one.transport.abort()


async def test_a_request_under_way_is_still_answered_by_the_application_that_took_it(reception, client):
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(request):
        entered.set()
        await release.wait()
        return web.json_response("lobby")

    async with reception.answer(app_with(slow, "GET")):
        asking = asyncio.create_task(once(client))
        await entered.wait()
        async with reception.answer(app_that_says("real")):
            assert await client.call("GET", "/v1/thing") == "real"
            release.set()
            assert await asking == "lobby"
            assert await client.call("GET", "/v1/thing") == "real"


async def test_what_a_node_with_a_reception_is_called_by_is_checked_as_ever(sites, net, reception):
    stranger = sites.unchecked(sites.config("gamma/sl/sl-1"), "gamma/sl/sl-1")
    client = await net.client(stranger, f"127.0.0.1:{reception.port}")
    with pytest.raises(errors.IdentityError):
        await once(client)
