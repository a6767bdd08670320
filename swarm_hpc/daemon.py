"""What the lives of long-running nodes have in common: the signal that ends them, and work that ends together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def told_to_stop() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on. For the main thread's event loop."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    return stop


async def until_one_ends(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all of it until one ends; the rest is cancelled, and waited for. Raises what that one has raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
