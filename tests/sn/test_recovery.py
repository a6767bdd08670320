"""How a site follows the others into a new epoch; that they agree on one is tested in tests/system/geth."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace

from swarm_hpc.sn import recovery as recovery_file
from swarm_hpc.sn.recovery import Recovery


async def test_a_full_disk_does_not_end_the_following(tmp_path, consortium, monkeypatch):
    monkeypatch.setattr(recovery_file, "LOOK_S", 0.01)
    links = SimpleNamespace(unreached=lambda: ["beta.test:1"])
    restart = asyncio.Event()
    recovery = Recovery(tmp_path, SimpleNamespace(), links, consortium.identity("alpha/sn/sn"), restart)
    attempts = []

    async def follow(address: str) -> None:
        attempts.append(address)
        if len(attempts) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        restart.set()

    monkeypatch.setattr(recovery, "_follow", follow)
    following = asyncio.create_task(recovery.follow())
    async with asyncio.timeout(10):
        while not restart.is_set() and not following.done():
            await asyncio.sleep(0.01)
    assert restart.is_set()
    following.cancel()
    await asyncio.wait([following])
