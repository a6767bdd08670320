"""A leader's memory over many rounds: what it gathers and merges into is there already."""

import asyncio
import tracemalloc

import numpy as np
import pytest

from swarm_hpc.errors import BlobNotFound
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import CheckIn, Merge, MergeMethod
from swarm_hpc.sl.gathering import Gathering
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.transport.blobs import hash_bytes

LAYOUT = place([TensorSpec("weight", "F32", (8 << 20,)), TensorSpec("steps", "I64", ())])
NODES = ("a/sl/1", "b/sl/1", "c/sl/1", "d/sl/1")


class Peers:
    """An exchange with nodes in the same process: blobs are there, or they are not."""

    def __init__(self, blobs):
        self.blobs = blobs

    async def fetch(self, blob, holders, *buffers):
        await asyncio.sleep(0)
        if blob not in self.blobs:
            raise BlobNotFound(f"nobody has {blob}")
        buffer = next(one for one in buffers if len(one) == len(self.blobs[blob]))
        buffer[:] = self.blobs[blob]
        return buffer


@pytest.fixture(scope="module")
def blobs():
    found = {}
    for number, node in enumerate(NODES):
        with Arena.create(LAYOUT) as arena:
            arena.array("weight")[...] = np.random.default_rng(number).standard_normal(8 << 20, np.float32)
            found[node] = bytes(arena.buffer)
    return found


def check_ins_of(blobs):
    return [CheckIn(node=node, blob=hash_bytes(data), weight=1) for node, data in blobs.items()]


@pytest.mark.slow
@pytest.mark.parametrize("method", MergeMethod)
async def test_after_the_first_round_nothing_as_large_as_a_model_is_allocated(blobs, method):
    check_ins = check_ins_of(blobs)
    gathering = Gathering(Peers({hash_bytes(data): data for data in blobs.values()}), LAYOUT.size_bytes)
    spare = memoryview(bytearray(LAYOUT.size_bytes))

    async def round_():
        with gathering.for_a_round():
            await gathering.fetch(check_ins)
            assert not gathering.missing
            return await asyncio.to_thread(merge_blobs, LAYOUT, Merge(method=method), check_ins, gathering.blobs, spare)

    tracemalloc.start()
    try:
        first = await round_()
        for _ in range(3):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            assert await round_() == first
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < LAYOUT.size_bytes / 4
    finally:
        tracemalloc.stop()


async def test_memory_of_a_round_that_was_given_up_is_not_used_again():
    layout = place([TensorSpec("weight", "F32", (4,))])
    with Arena.create(layout) as arena:
        data = bytes(arena.buffer)
    check_in = CheckIn(node="a/sl/1", blob=hash_bytes(data), weight=1)
    gathering = Gathering(Peers({check_in.blob: data}), layout.size_bytes)
    kept = []

    async def round_():
        with gathering.for_a_round():
            await gathering.fetch([check_in])
            [blob] = gathering.blobs.values()
            kept.append(blob.obj)
            if len(kept) == 2:
                raise RuntimeError("as when its program leaves")

    for _ in range(4):
        try:
            await round_()
        except RuntimeError:
            assert not gathering.blobs
    first, second, third, fourth = kept
    assert first is second
    assert third is not second
    assert third is fourth


async def test_a_blob_that_nobody_has_leaves_its_memory_for_the_next_try():
    layout = place([TensorSpec("weight", "F32", (4,))])
    with Arena.create(layout) as arena:
        data = bytes(arena.buffer)
    check_in = CheckIn(node="a/sl/1", blob=hash_bytes(data), weight=1)
    peers = Peers({})
    gathering = Gathering(peers, layout.size_bytes)
    with gathering.for_a_round():
        await gathering.fetch([check_in])
        assert isinstance(gathering.missing[check_in.blob], BlobNotFound)
        peers.blobs[check_in.blob] = data
        await gathering.fetch([check_in])
        assert not gathering.missing
        assert gathering.blobs[check_in.blob] == data


async def test_it_says_whose_parameters_are_here():
    blobs = {node: bytes([number]) * 8 for number, node in enumerate(NODES)}
    blobs["b/sl/1"] = blobs["a/sl/1"]
    gathering, said = Gathering(Peers({hash_bytes(data): data for data in list(blobs.values())[:3]}), 8), []
    with gathering.for_a_round():
        gathering.blobs[hash_bytes(blobs["c/sl/1"])] = blobs["c/sl/1"]
        await gathering.fetch(check_ins_of(blobs), said.append)
    assert said == [
        "1 of 4 peers' parameters are here, missing: a/sl/1, b/sl/1, d/sl/1",
        "3 of 4 peers' parameters are here, missing: d/sl/1",
    ]
