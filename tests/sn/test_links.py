"""Whom CometBFT is told to dial, and when; whose connections end."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from swarm_hpc.records import SiteRecord
from swarm_hpc.sn import links as links_file
from swarm_hpc.sn.links import Links, Peers

OWN_ID = "50" * 20
LOW, HIGH = "10" * 20, "90" * 20


def site(name: str, p2p_id: str, **changes) -> SiteRecord:
    record = SiteRecord(
        name=name,
        account="0x0",
        endpoint=f"{name}.test:30304",
        ca_fingerprint="",
        consensus_key="",
        p2p_id=p2p_id,
        active=True,
        joined_at=0,
        announced=1,
    )
    return replace(record, **changes)


OWN = site("own", OWN_ID)


@dataclass
class Consensus:
    """What links.py asks of the consensus, as a test says it is."""

    sites: Sequence[SiteRecord]
    here: set[str] = field(default_factory=set)
    dialled: list[str] = field(default_factory=list)
    noted: frozenset[str] = frozenset()
    friends: frozenset[str] = frozenset()

    @property
    def keys(self):
        return SimpleNamespace(p2p_id=lambda: OWN_ID)

    @property
    def comet(self):
        return SimpleNamespace(dial=self.dialled.extend)

    def connected(self):
        return frozenset(self.here)

    def note_connected(self, p2p_ids):
        self.noted = frozenset(p2p_ids)

    def befriend(self, p2p_ids):
        self.friends = frozenset(p2p_ids)


class Tunnels:
    def __init__(self) -> None:
        self.open: list[str] = []
        self.ended: list[str] = []

    async def local_port(self, name: str) -> int:
        return 4000 + len(name)

    def connections(self) -> list[str]:
        return list(self.open)

    def cut(self, name: str) -> None:
        self.open.remove(name)
        self.ended.append(name)


class Site:
    """One site's links, and a clock."""

    def __init__(self, folder, monkeypatch, *others: SiteRecord) -> None:
        self.now = 1000.0
        monkeypatch.setattr(links_file, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.consensus, self.tunnels = Consensus([OWN, *others]), Tunnels()
        self.peers = Peers(folder / "peers.json")
        self.links = Links(self.consensus, self.tunnels, "own", self.peers)

    async def look(self, after_s: float = 1.0) -> list[str]:
        """One look; whom CometBFT was told to dial."""
        self.now += after_s
        self.consensus.dialled.clear()
        await self.links._look()
        return [name.partition("@")[0] for name in self.consensus.dialled]


@pytest.fixture
def start(tmp_path, monkeypatch):
    return lambda *others: Site(tmp_path, monkeypatch, *others)


async def test_the_site_with_the_lower_id_dials_and_the_other_waits_for_it(start):
    here = start(site("low", LOW), site("high", HIGH))
    assert await here.look() == [HIGH]
    assert here.consensus.noted == frozenset()


async def test_a_site_is_dialled_through_its_tunnel(start):
    here = start(site("high", HIGH))
    await here.look()
    assert here.consensus.dialled == [f"{HIGH}@127.0.0.1:4004"]


async def test_a_site_whose_dialling_does_not_come_is_dialled_after_a_while(start):
    here = start(site("low", LOW))
    assert [bool(await here.look()) for _ in range(11)] == [False] * 9 + [True, False]


async def test_a_missing_site_is_dialled_again_and_again_and_never_given_up(start):
    here = start(site("high", HIGH))
    dialled = [bool(await here.look()) for _ in range(9)]
    assert dialled == [True, False, False, False] * 2 + [True]
    assert await here.look(after_s=100_000) == [HIGH]


async def test_a_connected_site_is_left_alone_until_it_is_missing_again(start):
    here = start(site("high", HIGH))
    here.consensus.here = {HIGH}
    assert await here.look() == []
    assert here.links.last_seen_s() == {"high": 0.0}
    assert here.links.silent_s() == {}
    here.consensus.here = set()
    assert await here.look() == [HIGH]
    here.now += 5
    assert here.links.last_seen_s() == {"high": 6.0}
    assert here.links.silent_s() == {"high": 5.0}
    here.consensus.here = {HIGH}
    await here.look()
    assert here.links.last_seen_s() == {"high": 0.0}


async def test_a_site_that_was_never_seen_is_silent_but_has_no_last_time(start):
    here = start(site("high", HIGH))
    await here.look()
    here.now += 3
    assert here.links.last_seen_s() == {}
    assert here.links.silent_s() == {"high": 3.0}
    assert here.links.unreached() == ["high.test:30304"]


@pytest.mark.parametrize("change", [{"active": False}, {"p2p_id": ""}, {"endpoint": ""}])
async def test_who_cannot_be_a_peer_is_not_dialled(start, change):
    here = start(replace(site("high", HIGH), **change))
    assert await here.look() == []
    assert not here.links.is_member("high")
    assert here.links.address_of("high") is None


async def test_the_connections_of_a_site_that_is_no_member_any_more_end(start):
    here = start(site("high", HIGH, active=False), site("low", LOW))
    here.tunnels.open = ["high", "low"]
    await here.look()
    assert here.tunnels.ended == ["high"]


async def test_a_site_that_was_voted_out_connects_to_nobody(start):
    here = start(site("high", HIGH))
    here.consensus.sites = [replace(OWN, active=False), site("high", HIGH)]
    assert await here.look() == []
    assert not here.links.is_member("high")


async def test_a_joining_site_connects_to_those_it_was_told_of_until_it_has_the_blocks_itself(start):
    here = start()
    here.consensus.sites = []
    here.links.introduce([site("high", HIGH), site("gone", LOW, active=False), replace(OWN, announced=0)])
    assert here.consensus.friends == {HIGH, OWN_ID}
    assert await here.look() == [HIGH]
    assert here.links.address_of("high") == "high.test:30304"
    # an old block, from before its admission: what it was told is newer
    here.consensus.sites = [site("high", HIGH, active=False)]
    assert here.links.is_member("high")
    # its own admission is here: from now on the ledger alone counts
    here.consensus.sites = [OWN, site("high", HIGH, active=False)]
    assert not here.links.is_member("high")


async def test_an_address_that_has_changed_is_used_and_kept_for_the_next_start(start):
    here = start(site("high", HIGH))
    await here.look()
    assert here.peers.load() == {"high": "high.test:30304"}
    here.consensus.sites = [OWN, site("high", HIGH, endpoint="new.test:443")]
    await here.look()
    assert here.links.address_of("high") == "new.test:443"
    assert here.peers.load() == {"high": "new.test:443"}


async def test_a_full_disk_does_not_end_the_dialling(start, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(links_file, "write", full)
    monkeypatch.setattr(links_file, "LOOK_S", 0.01)
    here = start(site("high", HIGH))
    keeping = asyncio.create_task(here.links.keep())
    async with asyncio.timeout(10):
        while not here.consensus.dialled and not keeping.done():
            await asyncio.sleep(0.01)
    assert here.consensus.dialled
    assert "peers.json: the other sites' addresses could not be written: No space left on device" in caplog.text
    keeping.cancel()
    await asyncio.wait([keeping])
