"""Merging while blobs arrive: the bits of a merge of whole blobs, two chunks of each peer in memory, no thread left."""

import asyncio
import threading
import tracemalloc

import numpy as np
import pytest

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, MergeError, ModelMismatch, NotReachable
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import CheckIn, Merge, MergeMethod
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.sl.streaming import Stream, can_stream
from swarm_hpc.transport.blobs import hash_bytes

METHODS = tuple(method for method in MergeMethod if can_stream(Merge(method=method)))
MIXED = place(
    [
        TensorSpec("double", "F64", (301,)),
        TensorSpec("weight", "F32", (1000, 3)),
        TensorSpec("half", "F16", (77,)),
        TensorSpec("brain", "BF16", (129,)),
        TensorSpec("steps", "I64", ()),
        TensorSpec("mask", "BOOL", (5,)),
    ]
)
PLAIN = place([TensorSpec("weight", "F32", (10_000,))])


class Peers:
    """An exchange whose blobs come from threads, in pieces of any size."""

    def __init__(self, blobs):
        self.blobs = {hash_bytes(data): data for data in blobs}
        self.instead = {}
        """Blob -> what is sent under its name, or raised."""
        self.held = {}
        """Blob -> a byte, and an event that it waits for."""
        self.sinks = {}

    async def stream(self, blob, holders, sink):
        self.sinks[blob] = sink
        stop = threading.Event()
        sending = asyncio.get_running_loop().run_in_executor(None, self._send, blob, sink, stop)
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([sending])
            sending.exception()
            raise

    def _send(self, blob, sink, stop):
        data = self.instead.get(blob, self.blobs[blob])
        if isinstance(data, Exception):
            raise data
        random = np.random.default_rng(1)
        until, gate = self.held.get(blob, (len(data), threading.Event()))
        sink.begin(len(data))
        while sink.have < len(data):
            while sink.have == until and not gate.wait(0.01):
                if stop.is_set():
                    raise NotReachable("cut")
            room = sink.room()
            left = until - sink.have if sink.have < until else len(data)
            count = min(len(room), int(random.integers(1, 900)), left)
            room[:count] = data[sink.have : sink.have + count]
            sink.took(count)
        sink.finish()
        sink.abort()


def blob(layout, seed):
    random = np.random.default_rng(seed)
    with Arena.create(layout) as arena:
        for placed in layout.tensors:
            values = arena.array(placed.spec.name)
            if placed.spec.dtype == "BOOL":
                values[...] = random.integers(0, 2, values.shape)
            else:
                values[...] = (random.standard_normal(values.shape) * 10).astype(values.dtype)
        return bytes(arena.buffer)


def check_in(number, data, weight=1):
    return CheckIn(node=f"site{number}/sl/1", blob=hash_bytes(data), weight=weight)


def three():
    """Peers with blobs of PLAIN, and their check-ins."""
    blobs = [blob(PLAIN, seed) for seed in range(3)]
    return Peers(blobs), [check_in(number, data) for number, data in enumerate(blobs)]


async def merged(stream, check_ins, own=(), tell=lambda text: None):
    out = bytearray(stream.layout.size_bytes)
    name = await stream.merge(check_ins, {hash_bytes(data): data for data in own}, memoryview(out), tell)
    assert name == hash_bytes(out)
    return bytes(out)


def stream_of(peers, layout=PLAIN, method=MergeMethod.MEAN, chunk_bytes=4000):
    return Stream(peers, layout, Merge(method=method), chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [64, 1000, 5000, 1 << 20])
@pytest.mark.parametrize("method", METHODS)
async def test_the_bits_are_those_of_a_merge_of_whole_blobs(method, chunk_bytes):
    blobs = [blob(MIXED, seed) for seed in range(5)]
    check_ins = [check_in(number, data, weight=number) for number, data in enumerate(blobs)]
    check_ins += [check_in(7, blobs[2]), check_in(8, blobs[0])]  # two nodes with the same parameters; the own ones too
    expected = bytearray(MIXED.size_bytes)
    merge_blobs(MIXED, Merge(method=method), check_ins, {hash_bytes(b): b for b in blobs}, memoryview(expected))
    stream = stream_of(Peers(blobs[1:]), MIXED, method, chunk_bytes)
    for order in (check_ins, check_ins[::-1]):
        assert await merged(stream, order, own=blobs[:1]) == expected
    assert stream.merge_s > 0


async def test_alone_with_the_own_parameters_nothing_is_fetched():
    own = blob(PLAIN, 1)
    assert await merged(stream_of(Peers([])), [check_in(0, own)], own=[own]) == own


async def test_without_check_ins_there_is_nothing_to_merge():
    with pytest.raises(MergeError, match="without check-ins"):
        await merged(stream_of(Peers([])), [])


async def test_who_is_ahead_waits_for_the_slowest_and_nobody_has_more_than_two_chunks():
    peers, check_ins = three()
    stream, said, gate = stream_of(peers), [], threading.Event()
    peers.held[check_ins[1].blob] = (stream.chunks[0].stop - 1, gate)
    merging = asyncio.create_task(merged(stream, check_ins, tell=said.append))
    ahead = [check_ins[0].blob, check_ins[2].blob]
    async with asyncio.timeout(20):
        while len(peers.sinks) < 3 or any(peers.sinks[one].have < stream.chunks[1].stop for one in ahead):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert [peers.sinks[one].have for one in ahead] == [stream.chunks[1].stop] * 2
        gate.set()
        await merging
    assert "0 % of 3 peers' parameters are merged, missing: site1/sl/1" in said
    assert max(len(sink.slots) for sink in peers.sinks.values()) == 2


@pytest.mark.parametrize("error", [BlobNotFound("nobody"), NotReachable("away")])
async def test_what_cannot_be_had_now_is_named_and_the_next_try_can_go_well(error):
    peers, check_ins = three()
    peers.instead[check_ins[1].blob] = error
    stream = stream_of(peers)
    with pytest.raises(type(error)):
        await merged(stream, check_ins)
    assert stream.missing == {check_ins[1].blob: error}
    peers.sinks.clear()
    with pytest.raises(type(error)):
        await merged(stream, check_ins)
    assert peers.sinks.keys() == {check_ins[1].blob}  # nothing of the others is fetched again before it is there
    peers.instead.clear()
    await merged(stream, check_ins)
    assert not stream.missing


async def test_other_bytes_than_the_hash_says_name_the_node():
    peers, check_ins = three()
    data = peers.blobs[check_ins[2].blob]
    peers.instead[check_ins[2].blob] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(BlobCorrupt, match=r"site2/sl/1: .*have the hash"):
        await merged(stream_of(peers), check_ins)


async def test_a_blob_of_another_size_names_the_node():
    peers, check_ins = three()
    peers.instead[check_ins[0].blob] = b"no blob"
    with pytest.raises(BlobCorrupt, match=r"site0/sl/1: .*has 7 bytes, .* were expected"):
        await merged(stream_of(peers), check_ins)


@pytest.mark.parametrize("chunk_bytes", [4000, 1 << 20])
async def test_another_model_of_the_same_size_names_the_node_and_the_tensor(chunk_bytes):
    other = blob(place([TensorSpec("height", "F32", (10_000,))]), 1)
    good = blob(PLAIN, 1)
    assert len(other) == len(good)
    with pytest.raises(ModelMismatch, match=r"site1/sl/1: tensor 'height' is extra"):
        await merged(stream_of(Peers([good, other]), chunk_bytes=chunk_bytes), [check_in(0, good), check_in(1, other)])


async def test_what_has_no_header_names_the_node():
    good, other = blob(PLAIN, 1), bytes(PLAIN.size_bytes)
    with pytest.raises(BlobCorrupt, match="site1/sl/1: no blob"):
        await merged(stream_of(Peers([good, other])), [check_in(0, good), check_in(1, other)])


async def test_a_merge_that_is_cancelled_leaves_no_thread_and_its_memory_is_used_again():
    peers, check_ins = three()
    stream, gate = stream_of(peers), threading.Event()
    peers.held[check_ins[0].blob] = (PLAIN.size_bytes - 1, gate)
    before = set(threading.enumerate())
    merging = asyncio.create_task(merged(stream, check_ins))
    async with asyncio.timeout(20):
        while len(peers.sinks) < 3 or peers.sinks[check_ins[0].blob].have < PLAIN.size_bytes - 1:
            await asyncio.sleep(0.01)
        merging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await merging
    memory = {id(slot) for sink in peers.sinks.values() for slot in sink.slots}
    assert len(memory) == 6
    gate.set()
    # the event loop's own pool keeps its threads: they are idle, so that the next merge finds them
    await merged(stream, check_ins)
    assert {id(slot) for sink in peers.sinks.values() for slot in sink.slots} == memory
    assert all("asyncio" in thread.name for thread in set(threading.enumerate()) - before)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
async def test_a_merge_allocates_two_chunks_per_peer_and_the_next_one_nothing(method):
    layout = place([TensorSpec("weight", "F32", (8 << 20,))])
    blobs = [blob(layout, seed) for seed in range(4)]
    check_ins = [check_in(number, data) for number, data in enumerate(blobs)]
    own = {hash_bytes(blobs[0]): blobs[0]}
    peers = Peers(blobs)
    stream = Stream(peers, layout, Merge(method=method), chunk_bytes=1 << 20)
    out = memoryview(bytearray(layout.size_bytes))

    def send(blob, sink, stop):
        data = peers.blobs[blob]
        sink.begin(len(data))
        while sink.have < len(data):
            room = sink.room()
            room[:] = memoryview(data)[sink.have : sink.have + len(room)]
            sink.took(len(room))
        sink.finish()

    peers._send = send
    tracemalloc.start()
    try:
        for limit in (3 * 2 + 2, 2):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            await stream.merge(check_ins, own, out, lambda text: None)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < limit << 20
    finally:
        tracemalloc.stop()
