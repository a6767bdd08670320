"""Rounds that all nodes merge together, a shard each."""

import asyncio
import logging

import numpy as np
import pytest

from swarm_hpc.config import MergeConfig, TransferMode
from swarm_hpc.errors import BlobNotFound, ContractMismatch
from swarm_hpc.kernels.plain import BLOCK
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, MergeMethod, MergePlan
from swarm_hpc.sl import shards

pytestmark = pytest.mark.slow

SITES = ("alpha", "beta", "gamma")
TENSORS = (TensorSpec("weight", "F32", (2 * BLOCK + 5,)), TensorSpec("steps", "I64", ()))


@pytest.fixture
def sharded(swarm):
    """The swarm, whose nodes ask for merges in shards."""

    def ask(method=MergeMethod.MEAN, **fields):
        def tweak(config):
            config.merge = MergeConfig(method=method, plan=MergePlan.SHARDED, **fields)
            return config

        swarm.tweak = tweak
        return swarm

    return ask


@pytest.fixture
def watched(monkeypatch):
    """The rounds that were merged in shards, by node."""
    found = []
    merge = shards.ShardedMerge.merge

    async def watch(self, round_, *args, **kwargs):
        merged = await merge(self, round_, *args, **kwargs)
        found.append((self.member.name, round_.number))
        return merged

    monkeypatch.setattr(shards.ShardedMerge, "merge", watch)
    return found


@pytest.mark.parametrize("method", [MergeMethod.MEAN, MergeMethod.GEOMEDIAN])
async def test_the_result_is_that_of_a_leader(sharded, watched, method, transfer):
    swarm = sharded(method)
    async with swarm.node("alpha", min_peers=3), swarm.node("beta", min_peers=3), swarm.node("gamma", min_peers=3):
        programs = await swarm.open_all(TENSORS)
        for number in (1, 2):
            await swarm.sync_all(programs, number, 3)
        assert sorted(watched) == sorted((f"{site}/sl/sl", number) for site in SITES for number in (1, 2))
        await asyncio.gather(*(program.finish(FinishMode.INACTIVE) for program in programs))
        if transfer is TransferMode.GATEWAY:
            await swarm.verify(2)


def work_of(monkeypatch, site, step):
    """Replaces a step of the work of one site's node: `step(work)` is awaited instead of its merge, once."""
    merge, done = shards._Work._merge, []

    async def instead(self, *args):
        if self._node.member.name.startswith(site) and not done:
            done.append(True)
            await step(self)
        await merge(self, *args)

    monkeypatch.setattr(shards._Work, "_merge", instead)


async def fail(_work):
    raise BlobNotFound("a piece is gone")


async def hang(_work):
    await asyncio.Event().wait()


@pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)
@pytest.mark.parametrize(
    ("step", "leader_timeout_s", "said"),
    [(fail, 60, "beta/sl/sl gave up"), (hang, 4, "not done within 2 s: 2 of 3 merged shards are here, missing: beta")],
    ids=["fails", "hangs"],
)
@pytest.mark.parametrize("method", [MergeMethod.MEAN, MergeMethod.KRUM])
async def test_where_a_shard_does_not_come_the_leader_merges_alone(
    sharded, watched, monkeypatch, caplog, step, leader_timeout_s, said, method
):
    """And the next round is merged in shards again."""
    caplog.set_level(logging.WARNING)
    swarm = sharded(method, num_byzantine=0)
    rules = {"min_peers": 3, "leader_timeout_s": leader_timeout_s}
    work_of(monkeypatch, "beta", step)
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        programs = await swarm.open_all(TENSORS)
        await swarm.sync_all(programs, 1, 3)
        assert watched == []
        if method is MergeMethod.MEAN:
            assert said in caplog.text
        await swarm.sync_all(programs, 2, 3)
        assert len(watched) == 3
        await swarm.verify(2)


@pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)
@pytest.mark.parametrize("method", [MergeMethod.GEOMEDIAN, MergeMethod.KRUM])
@pytest.mark.parametrize(
    "stated", [(np.inf, -np.inf, 0, 0), (1.7e308, 1.7e308, 0, 0), (-1, 0, 0, 0)], ids=["inf", "huge", "negative"]
)
async def test_a_peer_that_states_impossible_sums_ends_nobody(sharded, watched, monkeypatch, method, stated):
    """Of squares, too, which are asked for because its sums are not finite: the leader merges alone."""
    swarm = sharded(method, num_byzantine=0)
    exchange, sums = shards._Work._exchange, []

    async def lie(self, numbers):
        if self._node.member.name.startswith("alpha") and numbers.ndim == 2:
            sums.append(numbers.copy())
            numbers[1:] = stated if len(sums) > 1 else np.nan
        return await exchange(self, numbers)

    monkeypatch.setattr(shards._Work, "_exchange", lie)
    rules = {"min_peers": 3}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        programs = await swarm.open_all(TENSORS)
        await swarm.sync_all(programs, 1, 3)
        assert (watched, len(sums)) == ([], 2)
        await swarm.verify(1)


@pytest.mark.parametrize("stops", ["in the merge", "before it publishes"])
async def test_a_round_goes_on_without_a_node_that_was_lost_while_it_was_merged(sharded, monkeypatch, stops, transfer):
    """Its parameters count: it had checked in. Whoever is left has them, or the round goes on without them."""
    swarm = sharded()
    rules = {"min_peers": 2, "leader_timeout_s": 6}
    lost = asyncio.Queue()
    run = shards._Work.run

    async def stop_leader(self, *args):
        leads = self._round.leader == self._node.member.name
        if stops == "before it publishes":
            found = await run(self, *args)
        if leads and lost.empty():
            lost.put_nowait(self._round.leader.partition("/")[0])
            await asyncio.Event().wait()
        return found if stops == "before it publishes" else await run(self, *args)

    async with swarm.node("alpha", **rules) as a, swarm.node("beta", **rules) as b, swarm.node("gamma", **rules) as c:
        programs = await swarm.open_all(TENSORS)
        monkeypatch.setattr(shards._Work, "run", stop_leader)
        syncs = dict(zip(SITES, [asyncio.create_task(program.sync()) for program in programs], strict=True))
        site = await lost.get()
        lost.put_nowait(site)
        await asyncio.sleep(1 if stops == "before it publishes" else 0)
        dict(zip(SITES, (a, b, c), strict=True))[site].cancel()
        left = [one for one in SITES if one != site]
        answers = [await syncs[one] for one in left]
        # a direct node takes its parameters along where nobody has fetched them
        counts = {3} if transfer is TransferMode.GATEWAY or stops == "before it publishes" else {2, 3}
        assert {answer.num_peers for answer in answers} <= counts
        await asyncio.wait({syncs[site]})
        await swarm.sync_all([program for one, program in zip(SITES, programs, strict=True) if one != site], 2, 2)


async def test_a_late_node_gets_the_whole_result(sharded, watched):
    swarm = sharded()
    rules = {"quorum_wait_s": 0}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        alpha, beta, gamma = await swarm.open_all(TENSORS)
        await swarm.sync_all([alpha, beta], 1, 2)
        late = await gamma.sync()
        assert (late.round, late.late, late.num_peers) == (1, True, 2)
        assert bytes(gamma.session.arena.buffer) == bytes(alpha.session.arena.buffer)
        assert sorted(watched) == [("alpha/sl/sl", 1), ("beta/sl/sl", 1)]


@pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)
async def test_a_node_with_another_plan_is_refused(sharded, swarm):
    async with swarm.node("alpha"):
        await swarm.program("alpha").open()
        sharded()
        async with swarm.node("beta"):
            with pytest.raises(ContractMismatch, match=r"merge\.plan leader; this node asks for sharded"):
                await swarm.program("beta").open()


def test_memory_is_the_same_in_each_round():
    merge = shards.ShardedMerge(None, None, None, None, None, None)
    first = merge.room([100, 7, 0, 64])
    assert [len(one) for one in first] == [100, 7, 0, 64]
    first[0][:], first[1][:] = b"a" * 100, b"b" * 7
    again = merge.room([100, 7])
    assert (bytes(again[0]), bytes(again[1])) == (b"a" * 100, b"b" * 7)
    assert again[0].obj is first[0].obj
