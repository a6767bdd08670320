"""A listener that ends in the moment in which somebody connects, step by step of the event loop."""

import asyncio
import contextlib
import gc
import socket

import pytest

from swarm_hpc.transport import server


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
