"""The end of a listener: asyncio's own `Server.close` loses a connection that was accepted in the same moment."""

from __future__ import annotations

import asyncio


async def stop(server: asyncio.Server) -> None:
    """Close a server; whoever was accepted before has its protocol, and is closed by whoever closes that.

    CPython 3.11 gives an accepted socket its transport one step of the loop later. A server that was closed in between
    refuses it, and the socket stays open for nobody.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    await asyncio.sleep(0)
    server.close()
