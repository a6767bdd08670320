"""Differences where a sync fails, a result is lost, or a node comes late: nothing counts twice."""

import asyncio

import numpy as np
import pytest

from swarm_hpc.config import TransferMode
from swarm_hpc.errors import NotReachable, SwarmError, TimedOut
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import MergeMethod, Wire
from swarm_hpc.sl import exchange
from swarm_hpc.sl.gathering import Gathering
from swarm_hpc.sl.participant import Participant
from swarm_hpc.sn.client import SnClient
from swarm_hpc.transport.blobs import BlobStore

pytestmark = pytest.mark.slow

SITES = ("alpha", "beta")
TENSORS = (TensorSpec("weight", "F32", (5000,)),)
ALONE = {"min_peers": 1, "quorum_wait_s": 0}

direct_only = pytest.mark.parametrize("transfer", [TransferMode.DIRECT], indirect=True)
gateway_only = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


@direct_only
@pytest.mark.parametrize("newest_is_left", [True, False])
async def test_lost_results_are_looked_for_once_each(rounded, monkeypatch, newest_is_left):
    monkeypatch.setattr(exchange, "_PEER_CONNECT_TIMEOUT_S", 0.1)
    num_rounds = 5
    swarm = rounded(Wire.INT8, whole_every=1000)
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        for number in range(1, num_rounds + 1):
            for site, program in enumerate(programs):
                program.weight[:] += np.float32(number + site)
            await swarm.sync_all(programs, number, 2)
        async with swarm.client() as client:
            [newest] = await client.rounds("digits", num_rounds, num_rounds)
        for program in programs:
            program.close()
    for site in SITES:
        store = BlobStore(swarm.folder / site / "blobs")
        for blob in store.blobs():
            if not newest_is_left or blob != newest.merged:
                store.delete(blob)
    tried, fetch = [], Participant._fetch_published

    async def note(self, round_, *rest):
        tried.append(round_.number)
        return await fetch(self, round_, *rest)

    monkeypatch.setattr(Participant, "_fetch_published", note)
    async with swarm.node("alpha"):
        program = swarm.program("alpha")
        await program.open(tensors=TENSORS)
        assert not program.session.resume
    assert tried == ([num_rounds, *range(1, num_rounds)] if newest_is_left else [num_rounds])


@direct_only
@pytest.mark.parametrize("wire", [Wire.EXACT, Wire.BF16])
async def test_who_came_later_keeps_what_the_newest_result_is_seen_from(rounded, monkeypatch, wire):
    """The node that was there from the beginning is gone: others, and a restarted one, have all from the second."""
    monkeypatch.setattr(exchange, "_PEER_CONNECT_TIMEOUT_S", 0.1)
    swarm = rounded(wire, whole_every=1000)
    async with swarm.node("beta", **ALONE):
        async with swarm.node("alpha", **ALONE):
            alpha, beta = swarm.program("alpha"), swarm.program("beta")
            await alpha.open(tensors=TENSORS)
            for number in (1, 2):
                assert (await alpha.sync(1.0)).round == number
            await beta.open(tensors=TENSORS)
            assert beta.session.resume and beta.weight[0] == 2
            alpha.close()
        assert (await beta.sync(1.0)).round == 3
        async with swarm.node("gamma", **ALONE):
            gamma = swarm.program("gamma")
            await gamma.open(tensors=TENSORS)
            assert gamma.session.resume and gamma.weight[0] == 3
            gamma.close()
        beta.close()
    async with swarm.node("beta", **ALONE):
        beta = swarm.program("beta")
        await beta.open(tensors=TENSORS)
        assert beta.session.resume and beta.weight[0] == 3


@gateway_only
@pytest.mark.parametrize("wire", Wire)
async def test_two_rounds_with_the_same_blob_are_told_apart(rounded, monkeypatch, wire):
    """Nothing changes in rounds 2 and 4: the leader of 2 does not take what it merged for the result of 4."""
    swarm = rounded(wire, whole_every=1000)
    publish, look, cut_off = SnClient.publish, SnClient.round, []

    async def publish_and_be_cut_off(self, contract, number, node, *rest):
        answer = await publish(self, contract, number, node, *rest)
        if (node, number) == ("alpha/sl/sl", 2):
            cut_off.append(self)
        return answer

    async def look_unless_cut_off(self, *args, **options):
        if self in cut_off:
            raise NotReachable("the SN is away")
        return await look(self, *args, **options)

    monkeypatch.setattr(SnClient, "publish", publish_and_be_cut_off)
    monkeypatch.setattr(SnClient, "round", look_unless_cut_off)
    async with swarm.node("alpha", **ALONE):
        alpha = swarm.program("alpha")
        await alpha.open(tensors=TENSORS)
        assert (await alpha.sync()).round == 1
        with pytest.raises(SwarmError):
            await alpha.sync()
        async with swarm.node("beta", **ALONE):
            beta = swarm.program("beta")
            await beta.open(tensors=TENSORS)
            rounds = [(await beta.sync(add)).round for add in (1.0, 0.0)]
        cut_off.clear()
        assert (await alpha.sync()).round == rounds[-1]
        assert alpha.weight[0] == 1 and bytes(alpha.session.arena.buffer) == bytes(beta.session.arena.buffer)


SMALL, LARGE = np.float32(0.003), np.float32(1)


async def open_with_a_step_left_out(swarm):
    """Two programs after round 2, in which alpha's small step was left out beside a large one."""
    alpha, _ = programs = await swarm.open_two(TENSORS)
    await swarm.sync_all(programs, 1, 2)
    for program in programs:
        program.weight[::1024] += LARGE
    alpha.weight[1] += SMALL
    await swarm.sync_all(programs, 2, 2)
    assert alpha.weight[1] == 0
    return programs


async def check_that_it_counts_once(swarm, programs):
    """After round 3 it is there, and round 4 adds nothing."""
    weight = programs[0].weight
    assert weight[1] == pytest.approx(SMALL / 2, rel=0.02)
    before = float(weight[1])
    await swarm.sync_all(programs, 4, 2)
    assert weight[1] == pytest.approx(before, rel=0.02)


@gateway_only
@pytest.mark.parametrize("merged", [True, False])
async def test_what_a_failed_sync_handed_in_counts_once(rounded, merged):
    """Beside a large step a small one is left out in round 2. Round 3 carries it, but alpha does not see its end."""
    swarm = rounded(Wire.INT8, whole_every=1000)
    rules = {"min_peers": 2, "quorum_wait_s": 0}
    async with swarm.node("alpha", max_wait_s=2, **rules), swarm.node("beta", **rules):
        alpha, beta = programs = await open_with_a_step_left_out(swarm)
        with pytest.raises(SwarmError):
            await alpha.sync()
        if merged:
            await beta.sync()
            assert (await alpha.sync()).late
        else:
            await swarm.sync_all(programs, 3, 2)
        await check_that_it_counts_once(swarm, programs)


@gateway_only
async def test_what_a_failed_sync_handed_in_counts_once_however_many_fail_after_it(rounded, monkeypatch):
    """The same, but the round is claimed for long: alpha has trained on, and asks in vain to have that merged."""
    swarm = rounded(Wire.INT8, whole_every=1000)
    rules = {"min_peers": 2, "quorum_wait_s": 0}
    publish, may_publish = SnClient.publish, asyncio.Event()
    may_publish.set()

    async def wait_and_publish(self, *args):
        await may_publish.wait()
        return await publish(self, *args)

    monkeypatch.setattr(SnClient, "publish", wait_and_publish)
    async with swarm.node("alpha", max_wait_s=2, **rules), swarm.node("beta", **rules):
        alpha, beta = programs = await open_with_a_step_left_out(swarm)
        may_publish.clear()
        with pytest.raises(TimedOut):
            await alpha.sync()
        other = asyncio.create_task(beta.sync())
        async with swarm.client() as sn:
            while not (await sn.round("digits", 3)).round.leader:
                await asyncio.sleep(0.05)
            assert (await sn.round("digits", 3)).round.leader.startswith("beta")
        alpha.weight[2] += LARGE
        with pytest.raises(TimedOut):
            await alpha.sync()
        may_publish.set()
        await other
        assert (await alpha.sync()).late
        await check_that_it_counts_once(swarm, programs)


@gateway_only
@pytest.mark.parametrize("wire", [Wire.EXACT, Wire.INT8])
async def test_merging_again_takes_no_more_memory(rounded, monkeypatch, wire):
    """A leader whose publishing does not get through tries it all anew."""
    swarm = rounded(wire, MergeMethod.GEOMEDIAN)
    publish, make = SnClient.publish, Gathering.__init__
    gatherings, used, failures = [], [], [TimedOut("no answer")] * 3

    def note(self, *sizes):
        make(self, *sizes)
        gatherings.append(self)

    async def fail_at_first(self, contract, number, *rest):
        if number == 2:
            used.append(max(len(gathering._used) for gathering in gatherings))
            if failures:
                raise failures.pop()
        return await publish(self, contract, number, *rest)

    monkeypatch.setattr(Gathering, "__init__", note)
    monkeypatch.setattr(SnClient, "publish", fail_at_first)
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        for _ in range(2):
            await asyncio.gather(*(program.sync() for program in programs))
    assert len(used) == 4 and used[-1] == used[0]
