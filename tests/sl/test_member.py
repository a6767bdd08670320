"""A node's membership while its own calls overtake each other."""

import asyncio
from types import SimpleNamespace

import pytest

from swarm_hpc.errors import ConfigError, Fenced, NotFound, NotReachable
from swarm_hpc.sl.member import Member, load_instance


class Sn:
    """Knows one node. The first heartbeat is on its way until the node has stood back."""

    def __init__(self):
        self.incarnation, self.active = 0, False
        self.sent, self.may_arrive, self.arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.at_leave = None

    async def register(self, name, endpoint, instance):
        if self.at_leave is not None:
            await self.at_leave.wait()
        self.incarnation, self.active = self.incarnation + 1, True
        return SimpleNamespace(incarnation=self.incarnation), 0.03

    async def heartbeat(self, name, incarnation, progress):
        if not self.sent.is_set():
            self.sent.set()
            await self.may_arrive.wait()
        elif incarnation == self.incarnation and self.active:
            self.arrived.set()
        if incarnation < self.incarnation:
            raise Fenced(f"incarnation {incarnation} was replaced by {self.incarnation}")
        if not self.active:
            raise NotFound("the node is away")
        return 0.03

    async def leave(self, name, incarnation):
        self.active = False


@pytest.fixture
async def alive():
    """A registered member whose first heartbeat is on its way, its SN, and the task that keeps it alive."""
    sn = Sn()
    member = Member(sn, "alpha/sl/sl", "", "instance")
    await member.register()
    task = asyncio.create_task(member.keep_alive())
    await sn.sent.wait()
    yield member, sn, task
    task.cancel()
    await asyncio.wait({task})


async def test_a_heartbeat_that_the_nodes_own_return_overtook_ends_nothing(alive):
    member, sn, task = alive
    await member.stand_back()
    sn.may_arrive.set()
    await asyncio.wait({task, asyncio.create_task(sn.arrived.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done() and member.incarnation == 2


async def test_a_heartbeat_in_the_middle_of_standing_back_does_not_bring_the_node_back_into_its_rounds(alive):
    member, sn, task = alive
    rejoined = []

    async def rejoin():
        rejoined.append(member.incarnation)

    member.rejoin = rejoin
    sn.at_leave = asyncio.Event()
    standing = asyncio.create_task(member.stand_back())
    while sn.active:
        await asyncio.sleep(0)
    sn.may_arrive.set()
    await asyncio.sleep(0)
    sn.at_leave.set()
    await standing
    await sn.arrived.wait()
    assert not task.done() and (member.incarnation, rejoined) == (2, [])


async def test_a_node_that_was_taken_for_lost_tries_to_get_back_into_its_contract_until_it_is(alive):
    member, sn, task = alive
    tries, back = [], asyncio.Event()

    async def rejoin():
        tries.append(member.incarnation)
        if len(tries) < 3:
            raise NotReachable("the SN restarts")
        back.set()

    member.rejoin = rejoin
    sn.active = False
    sn.may_arrive.set()
    async with asyncio.timeout(5):
        await back.wait()
    sn.arrived.clear()
    await sn.arrived.wait()
    assert not task.done() and tries == [2, 2, 2]


async def test_a_node_that_another_process_has_replaced_stops(alive):
    _, sn, task = alive
    sn.incarnation = 2
    sn.may_arrive.set()
    with pytest.raises(Fenced):
        await task


def test_a_state_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^state_dir: .*/file/state: Not a directory"):
        load_instance(tmp_path / "file" / "state")


def test_a_state_folder_keeps_its_instance(tmp_path):
    assert load_instance(tmp_path / "state") == load_instance(tmp_path / "state")
