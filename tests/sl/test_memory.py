"""What whole rounds allocate: after the first ones, nothing as large as a model, on the way from program to program."""

import asyncio
import tracemalloc
from functools import partial

import pytest

from swarm_hpc.config import MergeConfig
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import MergeMethod, MergePlan, Wire
from swarm_hpc.sl import participant
from swarm_hpc.sl.streaming import Stream

SITES = ("alpha", "beta", "gamma")
LEADERS = {f"{site}/sl/sl" for site in SITES}
NUM_PARAMETERS = 8 << 20
TENSORS = (TensorSpec("weight", "F32", (NUM_PARAMETERS,)), TensorSpec("steps", "I64", ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "merge",
    [
        MergeConfig(),
        MergeConfig(method=MergeMethod.GEOMEDIAN),
        MergeConfig(method=MergeMethod.GEOMEDIAN, plan=MergePlan.SHARDED),
        MergeConfig(wire=Wire.INT8, whole_every=2),
    ],
    ids=str,
)
async def test_later_rounds_allocate_nothing_as_large_as_a_model(swarm, merge, monkeypatch):
    """Program, SL nodes and SN are in this process, which counts what Python and numpy get from the system."""
    # whoever leads for the first time gets memory for two chunks of each peer's parameters: little for so small a model
    monkeypatch.setattr(participant, "Stream", partial(Stream, chunk_bytes=1 << 18))

    def tweak(config):
        config.merge = merge
        return config

    swarm.tweak = tweak
    rules = {"min_peers": 3}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        programs = [swarm.program(site) for site in SITES]
        for number, program in enumerate(programs):
            await program.open(tensors=TENSORS)
            program.weight[::2] = number

        async def train():
            for number, program in enumerate(programs):
                program.weight[:1000] += number
            answers = await asyncio.gather(*(program.sync() for program in programs))
            assert [answer.num_peers for answer in answers] == [3, 3, 3]

        tracemalloc.start()
        try:
            await train()
            if merge.plan is MergePlan.LEADER:
                # whoever leads for the first time gets memory for its peers' parameters or chunks of them: let all lead
                async with swarm.client() as client:
                    while {r.leader for r in await client.rounds("digits") if r.leader} != LEADERS:
                        await train()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(2):
                await train()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # transfers have some 2 MiB each under way, at seven ends in this process
    assert peak - before < NUM_PARAMETERS * 4
    assert after - before < NUM_PARAMETERS * 4 / 8
