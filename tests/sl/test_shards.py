"""Rounds that all nodes merge together, a shard each."""

import asyncio

import numpy as np
import pytest

from swarm_hpc.config import MergeConfig, TransferMode
from swarm_hpc.kernels.plain import BLOCK
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, MergeMethod, MergePlan
from swarm_hpc.sl import shards
from swarm_hpc.sl.verify import verify_rounds

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


async def open_all(swarm, tensors=TENSORS, sites=SITES):
    programs = [swarm.program(site) for site in sites]
    for number, program in enumerate(programs):
        await program.open(tensors=tensors)
        program.weight[:] = np.random.default_rng(number).standard_normal(program.weight.size, np.float32)
    return programs


async def verified(swarm, num_rounds):
    """All rounds are what their check-ins merge to."""
    async with swarm.client() as client:
        contract = await client.contract("digits")
        rounds = await client.rounds("digits")
        blobs = {}
        for blob in {contract.spec.model, *(r.merged for r in rounds), *(c.blob for r in rounds for c in r.check_ins)}:
            if blob:
                blobs[blob] = await client.download(blob)
        report = verify_rounds(contract.spec, rounds, blobs.__getitem__)
        assert (report.rounds_checked, report.mismatches, report.skipped) == (num_rounds, (), ())


@pytest.mark.parametrize("method", [MergeMethod.MEAN, MergeMethod.GEOMEDIAN])
async def test_the_result_is_that_of_a_leader(sharded, watched, method, transfer):
    swarm = sharded(method)
    async with swarm.node("alpha", min_peers=3), swarm.node("beta", min_peers=3), swarm.node("gamma", min_peers=3):
        programs = await open_all(swarm)
        for _ in range(2):
            answers = await asyncio.gather(*(program.sync(add=0.5) for program in programs))
            assert [(answer.num_peers, answer.late) for answer in answers] == [(3, False)] * 3
            assert len({bytes(program.session.arena.buffer) for program in programs}) == 1
        assert sorted(watched) == sorted((f"{site}/sl/sl", number) for site in SITES for number in (1, 2))
        await asyncio.gather(*(program.finish(FinishMode.INACTIVE) for program in programs))
        if transfer is TransferMode.GATEWAY:
            await verified(swarm, 2)
