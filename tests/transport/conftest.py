"""Servers and clients over real sockets."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.records import Kind
from swarm_hpc.transport import server
from swarm_hpc.transport.client import ApiClient, expect_kind


class Net:
    """Starts servers on free ports of 127.0.0.1 and makes clients; ends them all with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, app, identity, port=0) -> str:
        return f"127.0.0.1:{await self._stack.enter_async_context(server.serve(app, identity, '127.0.0.1', port))}"

    async def client(self, identity, address, *, expect=None, connect_timeout_s=10.0) -> ApiClient:
        client = ApiClient(
            identity,
            address,
            expect=expect or expect_kind(Kind.SN),
            connection=ConnectionConfig(connect_timeout_s=connect_timeout_s),
        )
        return await self._stack.enter_async_context(client)


@pytest.fixture
async def net(monkeypatch):
    monkeypatch.setattr(server, "_STOP_GRACE_S", 0.1)  # some tests leave requests under way
    async with AsyncExitStack() as stack:
        yield Net(stack)
