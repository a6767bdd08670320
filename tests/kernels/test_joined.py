"""A merge in shards is the merge of the whole: the same bits, by every method, however many peers share it."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from threading import Barrier

import numpy as np
import pytest

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.joined import Joined
from swarm_hpc.kernels.plain import BLOCK, Measure
from swarm_hpc.kernels.plan import TensorSpec, place, shards, values
from swarm_hpc.records import Merge, MergeMethod

LAYOUT = place(
    [
        TensorSpec("wide", "F64", (BLOCK + 7,)),
        TensorSpec("large", "F32", (3 * BLOCK + 4099,)),
        *(TensorSpec(dtype, dtype, (1237,)) for dtype in ("F16", "BF16", "I64", "U8", "BOOL")),
    ]
)
SMALL = place([TensorSpec("weight", "F32", (5,)), TensorSpec("steps", "I64", ())])
COUNTERS = place([TensorSpec("steps", "I64", (9,))])

MERGES = (
    Merge(),
    Merge(method=MergeMethod.COORDMEDIAN),
    Merge(method=MergeMethod.GEOMEDIAN),
    Merge(method=MergeMethod.TRIMMEDMEAN, trim=0.2),
    Merge(method=MergeMethod.KRUM, num_byzantine=1),
    Merge(method=MergeMethod.MULTIKRUM, num_byzantine=1),
    Merge(method=MergeMethod.CENTREDCLIP),
)


class Exchange:
    """Peers in threads: each hands its numbers over and gets everybody's."""

    def __init__(self, num_peers):
        self.given = [None] * num_peers
        self.calls = 0
        self._barrier = Barrier(num_peers, timeout=60)

    def of(self, peer):
        def exchange(numbers):
            self.given[peer] = numbers
            self._barrier.wait()
            found = list(self.given)
            if peer == 0:
                self.calls += 1
            self._barrier.wait()
            return found

        return exchange


def models(layout, num_peers, spread=1.0):
    found = []
    for peer in range(num_peers):
        rng = np.random.default_rng(peer)
        data = bytearray(layout.size_bytes)
        data[: len(layout.header)] = layout.header
        for placed in layout.tensors:
            array = np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], data, placed.start)
            drawn = rng.standard_normal(placed.spec.shape) * spread
            array[...] = np.abs(drawn * 50) % 2 if placed.spec.dtype in ("I64", "U8", "BOOL") else drawn
        found.append(data)
    return found


def large(data, size, layout=LAYOUT):
    [start] = [placed.start for placed in layout.tensors if placed.spec.dtype == "F32"]
    return np.ndarray(size, np.float32, data, start)


def in_shards(layout, merge, blobs, weights, count=None):
    """As peers do it, each with its shard of all blobs; the result, and how often numbers were exchanged."""
    cuts = shards(layout, count or len(blobs), cpu.grain(merge))
    out = bytearray(layout.size_bytes)
    out[: len(layout.header)] = layout.header
    exchange = Exchange(len(cuts))

    def work(peer):
        shard = cuts[peer]
        pieces = [bytes(blob[shard.start : shard.stop]) for blob in blobs]
        target = memoryview(out)[shard.start : shard.stop]
        joined = exchange.of(peer)
        cpu.merge_shard(layout, merge, shard, pieces, weights, target, joined=lambda own: Joined(own, joined))

    with ThreadPoolExecutor(len(cuts)) as pool:
        for done in [pool.submit(work, peer) for peer in range(len(cuts))]:
            done.result()
    return out, exchange.calls


def whole(layout, merge, blobs, weights):
    out = bytearray(layout.size_bytes)
    cpu.merge(layout, merge, blobs, weights, memoryview(out))
    return out


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: merge.method)
@pytest.mark.parametrize("layout", [LAYOUT, SMALL, COUNTERS], ids=["large", "small", "counters"])
def test_shards_make_the_whole(merge, layout):
    weights = [1.0, 7.0, 2.0, 5.0]
    blobs = models(layout, 4)
    found, calls = in_shards(layout, merge, blobs, weights)
    assert found == whole(layout, merge, blobs, weights)
    distances = merge.method in (
        MergeMethod.GEOMEDIAN,
        MergeMethod.KRUM,
        MergeMethod.MULTIKRUM,
        MergeMethod.CENTREDCLIP,
    )
    assert calls == int(distances and layout is not COUNTERS)


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES[2:], ids=lambda merge: merge.method)
def test_peers_that_are_broken_or_far_away_are_found_by_all_shards(merge):
    """What is wrong lies in one shard, and every other one must know of it; far peers take sums in float64."""
    blobs = models(LAYOUT, 6, spread=1e-3)
    large(blobs[4], 3)[:] = math.nan, math.inf, -math.inf
    large(blobs[5], 3)[:] = 1e30
    weights = [1.0] * 6
    found, calls = in_shards(LAYOUT, merge, blobs, weights)
    assert found == whole(LAYOUT, merge, blobs, weights)
    if merge.method is not MergeMethod.TRIMMEDMEAN:
        assert calls >= 3


def test_a_shard_may_be_empty_and_there_may_be_more_shards_than_models():
    blobs = models(SMALL, 2)
    for merge in (Merge(), Merge(method=MergeMethod.GEOMEDIAN)):
        found, _ = in_shards(SMALL, merge, blobs, [1.0, 2.0], count=9)
        assert found == whole(SMALL, merge, blobs, [1.0, 2.0])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 256])
@pytest.mark.parametrize("grain", [cpu.LINE, BLOCK])
def test_shards_follow_each_other_and_are_of_about_one_size(count, grain):
    cuts = shards(LAYOUT, count, grain)
    all_values = values(LAYOUT)
    assert (cuts[0].start, cuts[-1].stop) == (all_values.start, all_values.stop)
    assert all(one.stop == next_.start for one, next_ in pairwise(cuts))
    fair = all_values.size_bytes / count
    assert max(shard.size_bytes for shard in cuts) <= fair + grain * 8


def test_numbers_of_a_shard_that_lie_too_far_apart_are_refused():
    layout = place([TensorSpec("wide", "F64", (5 * BLOCK,))])
    blobs = [bytearray(layout.header) + bytes(layout.size_bytes - len(layout.header)) for _ in range(2)]
    array = np.ndarray(5 * BLOCK, np.float64, blobs[1], len(layout.header))
    array[::BLOCK] = [2.0**-400, 2.0**-200, 1.0, 2.0**200, 2.0**400]
    with pytest.raises(MergeError, match="too far apart"):
        in_shards(layout, Merge(method=MergeMethod.GEOMEDIAN), blobs, [1.0, 1.0], count=1)


@pytest.mark.parametrize(
    "stated",
    [(math.inf, -math.inf), (1.7e308, 1.7e308), (math.nan, 0.0), (-1.0, 0.0)],
    ids=["inf", "huge", "nan", "negative"],
)
def test_numbers_that_no_peer_can_have_end_nothing_but_the_merge(stated):
    """They are NaN, as a shard's own that are too large, unless all values are known to be in bounds."""
    joined = Joined(cpu.Pieces([]), lambda own: [own, np.broadcast_to([*stated, 0.0, 0.0], own.shape)])
    for measure in (Measure.GRAM, Measure.PRODUCTS):
        [[total]] = joined.sums([0], measure)
        assert total == -1.0 or math.isnan(total)
    with pytest.raises(MergeError, match="cannot be sums of squares"):
        joined.sums([0], Measure.SQUARES)


def test_the_parts_of_a_sum_are_all_of_it():
    rng = random.Random(4)
    for _ in range(200):
        numbers = [rng.uniform(-1, 1) * 2.0 ** rng.randint(-60, 60) for _ in range(rng.randint(0, 40))]
        parts = cpu.exact_parts(numbers)
        assert sum(map(Fraction, parts), Fraction()) == sum(map(Fraction, numbers), Fraction())
        assert len(parts) <= 5
    assert math.isnan(*cpu.exact_parts([1.0, math.nan]))
    assert math.isnan(*cpu.exact_parts([1.0, math.inf]))
    assert math.isnan(*cpu.exact_parts([2.0**1001, -(2.0**1001)]))
