"""A listener that ends in the moment in which somebody connects, step by step of the event loop."""

import asyncio
import contextlib
import gc
import socket

import psutil
import pytest

from swarm_hpc.transport import door, server
from tests.transport.test_door import plain_context


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", range(6))
async def test_whoever_connects_while_a_server_stops_is_closed(sites, num_steps):
    app = server.application()
    async with server.serve(app, sites.identity("alpha/sn/sn"), "127.0.0.1", 0) as port:
        ours = socket.create_connection(("127.0.0.1", port), timeout=10)
        for _ in range(num_steps):
            await asyncio.sleep(0)
    with ours, contextlib.suppress(ConnectionResetError):
        assert await asyncio.to_thread(ours.recv, 1) == b""
    # a transport that nobody closes says so, which is an error in tests
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("is_quiet", [True, False], ids=["says nothing", "says goodbye"])
async def test_a_server_that_stops_leaves_no_connection_however_slow_its_peer_is(sites, monkeypatch, is_quiet):
    monkeypatch.setattr(door, "GOODBYE_S", 0.2)
    app = server.application()
    context = plain_context(sites.config("beta/sl/sl"))
    context.load_verify_locations(sites.cas["alpha"])

    def connect(port):
        tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10))
        tls.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.recv(1000).startswith(b"HTTP/1.1 404")
        return tls

    async with server.serve(app, sites.identity("alpha/sn/sn"), "127.0.0.1", 0) as port:
        tls = await asyncio.to_thread(connect, port)
        reading = None if is_quiet else asyncio.create_task(asyncio.to_thread(tls.recv, 1))
    left = [one for one in psutil.Process().net_connections("tcp") if one.laddr.port == port]
    with tls:
        assert not left
        if reading is not None:
            assert await reading == b""
