"""How sites agree on a new epoch and follow the others into it; with real networks in tests/system/geth."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import asdict
from types import SimpleNamespace

from swarm_hpc.records import RecoveryStatus
from swarm_hpc.sn import epochs
from swarm_hpc.sn import recovery as recovery_file
from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.epochs import Epoch
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


class Asked:
    """A client of another site's SN, which hears of our approval."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery

    async def __aenter__(self) -> Asked:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def approvals(self, epoch: Epoch) -> object:
        await asyncio.sleep(0.05)  # on its way, while the other operator's command comes
        found = await self._recovery.hear(epochs.parse(asdict(epoch)))
        return asdict(found) if found is not None else None


async def test_operators_who_agree_at_the_same_moment_do_not_wait_for_one_another(tmp_path, consortium, monkeypatch):
    sites = ("alpha", "beta")
    keys = {site: ConsensusKeys.load(tmp_path / site) for site in sites}
    proposal = Epoch(
        number=2,
        previous="ab" * 32,
        height=7,
        head="0x" + "cd" * 32,
        block=7,
        timestamp=7000,
        without=("gamma",),
        validators={site: keys[site].consensus_key() for site in sites},
        standing="{}",
    )
    made: dict[str, Recovery] = {}
    restarts = {site: asyncio.Event() for site in sites}
    written: list[str] = []
    for site in sites:
        made[site] = Recovery(
            tmp_path,
            SimpleNamespace(keys=keys[site], epochs=()),
            SimpleNamespace(address_of=lambda name: name),
            consortium.identity(f"{site}/sn/sn"),
            restarts[site],
        )
        monkeypatch.setattr(made[site], "_propose", lambda without: proposal)
        monkeypatch.setattr(made[site], "_client", lambda address: Asked(made[address]))
        monkeypatch.setattr(made[site], "_write", lambda found, at=site: written.append(at))
    async with asyncio.timeout(10):
        answers: list[RecoveryStatus] = await asyncio.gather(*(made[site].approve(["gamma"]) for site in sites))
    assert any(not answer.missing for answer in answers)
    assert all(restart.is_set() for restart in restarts.values())
    assert sorted(written) == ["alpha", "beta"]
