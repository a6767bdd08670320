"""What lies between sites, as a port per site that can be cut: connections are told apart by who makes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

_CHUNK: Final = 1 << 16
_START_S: Final = 10.0


class Relays:
    """A listening port in front of each site's own. One thread; `close` ends it.

    `owner` names the site whose SN has a connection from a local port. A cut is either loud (connections are reset and
    refused) or silent (packets are lost: connections stay and nothing passes, until it heals).
    """

    def __init__(self, targets: Mapping[str, int], owner: Callable[[int], str | None]) -> None:
        self._targets, self._owner = targets, owner
        self._ports: dict[str, int] = {}
        self._cuts: dict[frozenset[str], bool] = {}
        self._tasks: dict[asyncio.Task[None], frozenset[str]] = {}
        self._healed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        # A daemon, so that tests come to an end where `close` is not reached or fails.
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._thread.start()
        self._do(self._listen())

    def port(self, site: str) -> int:
        """Where the others reach that site."""
        return self._ports[site]

    def cut(self, these: Iterable[str], those: Iterable[str], *, silently: bool = False) -> None:
        """No connection between any of these and any of those from now on."""
        self._do(self._cut([frozenset((a, b)) for a in these for b in those], silently))

    def isolate(self, site: str, *, silently: bool = False) -> None:
        """Cut one site off from all others."""
        self.cut([site], [other for other in self._targets if other != site], silently=silently)

    def heal(self) -> None:
        """Everything passes again."""
        self._do(self._heal())

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _listen(self) -> None:
        self._servers = []
        for site in self._targets:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: str = site) -> None:
                task = self._loop.create_task(self._carry(site, reader, writer))
                self._tasks[task] = frozenset()
                task.add_done_callback(self._tasks.pop)

            server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_CHUNK)
            self._servers.append(server)
            self._ports[site] = server.sockets[0].getsockname()[1]

    async def _cut(self, pairs: list[frozenset[str]], silently: bool) -> None:
        self._cuts.update((pair, silently) for pair in pairs)
        if not silently:
            for task, pair in self._tasks.items():
                if pair in pairs:
                    task.cancel()

    async def _heal(self) -> None:
        self._cuts.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _carry(self, site: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("peername")[1]
        far: asyncio.StreamWriter | None = None
        try:
            caller = await asyncio.to_thread(self._owner, port)
            if caller is None:
                return
            pair = frozenset((caller, site))
            task = asyncio.current_task()
            assert task is not None
            self._tasks[task] = pair
            if self._cuts.get(pair) is False:
                return
            await self._pass(pair)
            answers, far = await asyncio.open_connection("127.0.0.1", self._targets[site], limit=_CHUNK)
            await _first_of(self._pump(pair, reader, far), self._pump(pair, answers, writer))
        except (OSError, asyncio.CancelledError):
            return  # cut, or one end is gone: so is the other one
        finally:
            for one in (writer, far):
                if one is not None:
                    one.transport.abort()

    async def _pump(self, pair: frozenset[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._pass(pair)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()
        await asyncio.sleep(1.0)  # what the other direction still has to say

    async def _pass(self, pair: frozenset[str]) -> None:
        """Wait while nothing passes between the two."""
        while pair in self._cuts:
            await self._healed.wait()


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
