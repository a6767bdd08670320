"""Merges on the CPU against the reference, over dtypes, numbers of peers, odd sizes and odd values."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import cpu, mixture, reference
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.plain import CHUNK, _middle
from swarm_hpc.kernels.plan import Layout, TensorSpec, parse, place
from swarm_hpc.kernels.weights import QUANTA
from swarm_hpc.records import Merge, MergeMethod
from tests.kernels.drawn import weights_of

METHODS = {
    "mean": {},
    "coord_median": {},
    "geometric_median": {},
    "trimmed_mean": {"trim": 0.3},
    "krum": {"num_byzantine": 0},
    "multi_krum": {"num_byzantine": 0, "num_selected": 2},
    "centred_clipping": {"radius": 0.5, "iterations": 3},
}
"""Names of functions, and their parameters."""
MERGES = (
    Merge(method=MergeMethod.MEAN),
    Merge(method=MergeMethod.COORDMEDIAN),
    Merge(method=MergeMethod.GEOMEDIAN),
    Merge(method=MergeMethod.TRIMMEDMEAN, trim=0.3),
    Merge(method=MergeMethod.KRUM, num_byzantine=0),
    Merge(method=MergeMethod.MULTIKRUM, num_byzantine=0, num_selected=2),
    Merge(method=MergeMethod.CENTREDCLIP, clip_radius=0.5, clip_iterations=3),
)
"""The same, as a contract has them."""
LEAST_PEERS = {name: merge.least_peers for name, merge in zip(METHODS, MERGES, strict=True)}
FLOATS = {"F64": 1e-8, "F32": 1e-6, "F16": 1.5e-3, "BF16": 1.2e-2}
"""How far a result may be off in each dtype, relative to the largest value."""
NUM_PEERS = (1, 2, 3, 4, 7, 8, 17)
SIZES = (1, 3, 1001)
SETTINGS = {"smoothing", "tolerance", "max_iterations"}


def peers(num_peers: int, size: int, dtype: str = "F32", seed: int = 0) -> list[np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((num_peers, size))
    return [row.astype(DTYPES[dtype]) for row in values]


def merged(method: str, rows: list[np.ndarray], weights: list[float]) -> np.ndarray:
    out = np.full_like(rows[0], 77)
    getattr(cpu, method)(rows, weights, out, **METHODS[method])
    return out


def expected(method: str, rows: list[np.ndarray], weights: list[float]) -> np.ndarray:
    stack = torch.from_numpy(np.stack(rows).astype(np.float64))
    weight = torch.tensor(weights, dtype=torch.float64)
    return getattr(reference, method)(stack, weight, **METHODS[method]).numpy()


def assert_close(found: np.ndarray, wanted: np.ndarray, dtype: str, scale: float = 4.0) -> None:
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=FLOATS[dtype], atol=FLOATS[dtype] * scale)


@pytest.mark.parametrize("kind", ["equal", "unequal", "one zero"])
@pytest.mark.parametrize("num_peers", NUM_PEERS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_it_agrees_with_the_reference(method, dtype, num_peers, kind):
    weights = weights_of(num_peers, kind)
    if sum(weight > 0 for weight in weights) < LEAST_PEERS[method]:
        with pytest.raises(MergeError, match="needs at least"):
            merged(method, peers(num_peers, 3), weights)
        return
    # on a line, several peers may be in the middle, and clipping starts at the one that rounding chooses
    for size in SIZES[method == "centred_clipping" :]:
        rows = peers(num_peers, size, dtype)
        assert_close(merged(method, rows, weights), expected(method, rows, weights), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_it_agrees_with_the_reference_beyond_one_block(method):
    rows = peers(3, cpu.BLOCK + CHUNK + 17)
    for weights in ([1, 1, 1], [3, 2, 4]):
        assert_close(merged(method, rows, weights), expected(method, rows, weights), "F32")


@pytest.mark.parametrize("num_peers", range(1, 34))
def test_the_sorting_network_finds_the_middle_of_every_order_of_zeros_and_ones(num_peers):
    # the zero-one principle: a network that sorts these sorts everything
    chance = np.random.default_rng(num_peers)
    bits = (
        np.array(list(itertools.product([0.0, 1.0], repeat=num_peers))).T.copy()
        if num_peers <= 10
        else chance.integers(0, 2, (num_peers, 2000)).astype(float)
    )
    wanted = np.median(bits, axis=0)
    lower, upper = _middle([*bits, np.empty(bits.shape[1])])
    assert np.array_equal((lower + upper) / 2, wanted)


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e30, -1e30, math.inf, -math.inf, math.nan])


@given(
    st.lists(st.tuples(values, values, st.integers(0, 3)), min_size=1, max_size=9).filter(
        lambda drawn: any(weight for *_, weight in drawn)
    )
)
def test_the_median_agrees_on_ties_zeros_infinities_and_nan(drawn):
    rows = [np.array(row[:2], np.float32) for row in drawn]
    weights = [float(row[2]) for row in drawn]
    found, wanted = merged("coord_median", rows, weights), expected("coord_median", rows, weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.signbit(found[found == 0]).any()


@given(
    st.lists(st.tuples(values, values, st.integers(0, 3)), min_size=1, max_size=9).filter(
        lambda drawn: any(weight for *_, weight in drawn)
    )
)
def test_the_mean_agrees_on_infinities_and_nan(drawn):
    rows = [np.array(row[:2], np.float32) for row in drawn]
    weights = [float(row[2]) for row in drawn]
    np.testing.assert_allclose(merged("mean", rows, weights), expected("mean", rows, weights), rtol=1e-5, atol=1e24)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_nan_has_the_same_bits(dtype):
    rows = peers(2, 4, dtype)
    patterns = {"F64": 0xFFF0000000000123, "F32": 0xFF800123, "F16": 0xFC12, "BF16": 0xFF92}
    width = rows[0].dtype.itemsize
    rows[1].view(f"u{width}")[0] = patterns[dtype]
    rows[0][1], rows[1][1] = math.inf, -math.inf
    found = merged("mean", rows, [1, 1])
    canonical = np.array([math.nan], rows[0].dtype).tobytes()
    assert [found[:1].tobytes(), found[1:2].tobytes()] == [canonical, canonical]
    assert np.isfinite(found[2:].astype(float)).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_geometric_median_ignores_a_peer_that_is_not_finite(dtype):
    rows = peers(4, 100, dtype)
    for bad in (math.nan, math.inf, -math.inf):
        broken = [row.copy() for row in rows]
        broken[1][99] = bad
        without = [rows[0], rows[2], rows[3]]
        assert (
            merged("geometric_median", broken, [1, 2, 3, 4]).tobytes()
            == merged("geometric_median", without, [1, 3, 4]).tobytes()
        )
    for row in rows:
        row[5] = math.nan
    with pytest.raises(MergeError, match="no peer's parameters are finite"):
        merged("geometric_median", rows, [1, 1, 1, 1])


@pytest.mark.parametrize("how", [merge for merge in MERGES if merge.method in mixture.METHODS], ids=str)
def test_a_peer_that_is_not_finite_has_no_part_in_a_mixture(how):
    rows = peers(5, 100)
    for bad in (math.nan, math.inf, -math.inf):
        broken = [row.copy() for row in rows]
        broken[1][99] = bad
        out = np.empty_like(rows[0])
        cpu.merge_values(how, broken, mixture.mixture(how, [1, 2, 3, 4, 5], cpu.Pieces([broken])), out)
        assert np.isfinite(out).all()


@pytest.mark.parametrize("distance", [1e2, 1e6, 1e15, 1e30, math.inf, math.nan])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("coord_median", {}),
        ("geometric_median", {}),
        ("trimmed_mean", {"trim": 0.25}),
        ("krum", {"num_byzantine": 2}),
        ("multi_krum", {"num_byzantine": 2}),
        ("centred_clipping", {"radius": 1.0, "iterations": 5}),
    ],
)
def test_two_of_eight_peers_that_collude_cannot_move_the_merge_far(method, parameters, distance):
    rows = peers(8, 1001)
    for row in rows[3:5]:
        row[:] = distance
    found = np.empty_like(rows[0])
    getattr(cpu, method)(rows, [1.0] * 8, found, **parameters)
    honest = np.mean([row for number, row in enumerate(rows) if number not in (3, 4)], axis=0)
    # no farther than an honest peer is, or for the trimmed mean and the medians somewhat off in every coordinate
    assert np.linalg.norm(found - honest) < 1.5 * np.linalg.norm(rows[0] - honest)


@pytest.mark.parametrize("exponent", [4, 8, 12, 20, 30, 37])
def test_one_peer_however_far_away_does_not_move_the_geometric_median_far(exponent):
    rows = peers(5, 1001)
    honest = merged("geometric_median", rows, [1] * 5)
    rows[2] = rows[2] * np.float32(10.0**exponent)
    found = merged("geometric_median", rows, [1] * 5)
    assert_close(found, expected("geometric_median", rows, [1] * 5), "F32")
    assert np.linalg.norm(found - honest) < np.linalg.norm(rows[0] - honest)


def test_peers_that_are_close_together_and_far_from_zero_are_still_told_apart():
    rows = [1000 + row * np.float32(1e-3) for row in peers(5, 4001)]
    rows[4] = rows[4] + np.float32(0.5)
    assert_close(merged("geometric_median", rows, [1] * 5), expected("geometric_median", rows, [1] * 5), "F32", 1000)


def weiszfeld_by_hand(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weiszfeld on the points themselves, without smoothing, in float64: shares nothing with the code under test."""
    middle = np.average(points, axis=0, weights=weights)
    for _ in range(3000):
        pull = weights / np.linalg.norm(points - middle, axis=1)
        middle = (points * pull[:, None]).sum(0) / pull.sum()
    return middle


@pytest.mark.parametrize("num_peers", [3, 4, 7, 8])
def test_the_geometric_median_is_the_one_found_by_iterating_over_the_points(num_peers):
    points = np.random.default_rng(num_peers).standard_normal((num_peers, 50))
    weights = np.arange(2.0, num_peers + 2)
    found = merged("geometric_median", list(points), weights.tolist())
    np.testing.assert_allclose(found, weiszfeld_by_hand(points, weights), atol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_identical_peers_are_their_own_merge(method, dtype):
    row = peers(1, 1001, dtype)[0]
    for num_peers in (count for count in NUM_PEERS if count >= LEAST_PEERS[method]):
        found = merged(method, [row] * num_peers, weights_of(num_peers, "unequal"))
        if method in ("mean", "multi_krum", "trimmed_mean"):
            np.testing.assert_allclose(found.astype(float), row.astype(float), rtol=3e-7 if dtype == "F32" else 1e-2)
        else:
            assert found.tobytes() == row.tobytes()


# centred clipping starts at a peer: of two that are equally near to half of the weight, at the first one
@pytest.mark.parametrize("method", [method for method in METHODS if method != "centred_clipping"])
def test_the_order_of_the_peers_matters_for_no_more_than_rounding(method):
    rows, weights = peers(5, 1001), [1.0, 2.0, 2.0, 5.0, 1.0]
    first = merged(method, rows, weights)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        found = merged(method, [rows[peer] for peer in order], [weights[peer] for peer in order])
        np.testing.assert_allclose(found, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_ratios_of_the_weights_count(method):
    rows = peers(4, 257)
    few, many = [1.0, 2.0, 3.0, 4.0], [peer * 2.0**1020 for peer in (1, 2, 3, 4)]
    assert merged(method, rows, few).tobytes() == merged(method, rows, many).tobytes()


def test_the_constants_are_those_of_the_definition():
    assert (QUANTA, mixture.LIMIT, mixture.NO_SPREAD) == (reference.QUANTA, reference.LIMIT, reference.NO_SPREAD)
    backend, definition = (
        {name: item.default for name, item in inspect.signature(method).parameters.items() if name in SETTINGS}
        for method in (mixture.mixture, reference.geometric_median)
    )
    assert set(backend) == SETTINGS
    assert backend == definition


# whole blobs

MODEL = place(
    [
        TensorSpec("features.weight", "F32", (3, 5)),
        TensorSpec("norm.weight", "F32", (3,)),
        TensorSpec("norm.running_mean", "F32", (3,)),
        TensorSpec("norm.running_var", "F32", (3,)),
        TensorSpec("norm.num_batches_tracked", "I64", ()),
        TensorSpec("scale", "F32", ()),
        TensorSpec("empty", "F32", (0, 3)),
        TensorSpec("head", "BF16", (7,)),
        TensorSpec("half", "F16", (2, 2)),
        TensorSpec("exact", "F64", (2,)),
        TensorSpec("frozen", "BOOL", (3,)),
        *(TensorSpec(f"count.{dtype}", dtype, (5,)) for dtype in ("I32", "I16", "I8", "U64", "U32", "U16", "U8")),
    ],
    {"head.tied": "features.weight"},
)


def views(layout: Layout, blob: bytearray) -> dict[str, np.ndarray]:
    return {
        placed.spec.name: np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], blob, placed.start)
        for placed in layout.tensors
    }


def blob_of(layout: Layout, seed: int) -> bytearray:
    """A blob with values of a kind that fits each dtype; integers over their whole range."""
    chance = np.random.default_rng(seed)
    blob = bytearray(layout.size_bytes)
    blob[: len(layout.header)] = layout.header
    for array in views(layout, blob).values():
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            array[...] = chance.integers(limits.min, limits.max, array.shape, array.dtype, endpoint=True)
        elif array.dtype.kind == "b":
            array[...] = chance.integers(0, 2, array.shape)
        else:
            array[...] = chance.standard_normal(array.shape)
    return blob


def merge(layout: Layout, how: Merge, blobs: list[bytearray], weights: list[float]) -> bytearray:
    out = bytearray(b"\xa5" * layout.size_bytes)
    cpu.merge(layout, how, blobs, weights, memoryview(out))
    assert parse(out) == layout
    return out


@pytest.mark.parametrize(
    ("how", "num_peers"),
    [(how, num_peers) for how in MERGES for num_peers in (1, 2, 3, 4, 8) if num_peers >= how.least_peers],
    ids=str,
)
def test_a_whole_model_is_merged_by_the_rule_of_each_tensor(how, num_peers):
    blobs = [blob_of(MODEL, seed) for seed in range(num_peers)]
    weights = weights_of(num_peers, "unequal")
    each = [views(MODEL, blob) for blob in blobs]
    found = views(MODEL, merge(MODEL, how, blobs, weights))
    name = dict(zip(MERGES, METHODS, strict=True))[how]
    floating = [placed.spec for placed in MODEL.tensors if placed.spec.dtype in FLOATS]
    # all floating tensors as one vector: the geometric median has one set of weights for the whole model
    vectors = [np.concatenate([peer[spec.name].astype(float).ravel() for spec in floating]) for peer in each]
    wanted = expected(name, vectors, weights)
    start = 0
    for spec in floating:
        size = found[spec.name].size
        assert_close(found[spec.name].ravel(), wanted[start : start + size], spec.dtype)
        start += size
    for placed in MODEL.tensors:
        arrays = [peer[placed.spec.name] for peer in each]
        if placed.spec.dtype == "BOOL":
            assert np.array_equal(found[placed.spec.name], arrays[0])
        elif placed.spec.dtype not in FLOATS:
            assert np.array_equal(found[placed.spec.name], np.max(arrays, axis=0))


@pytest.mark.parametrize("how", MERGES, ids=str)
def test_counters_never_pass_through_floating_point(how):
    layout = place([TensorSpec("norm.num_batches_tracked", "I64", ()), TensorSpec("big", "U64", ())])
    blobs = [blob_of(layout, seed) for seed in range(2)]
    for blob, steps in zip(blobs, (2**53 + 1, 2**53), strict=True):
        views(layout, blob)["norm.num_batches_tracked"][...] = steps
        views(layout, blob)["big"][...] = 2**64 - 1 - steps % 2
    found = views(layout, merge(layout, how, blobs, [1, 100]))
    assert found["norm.num_batches_tracked"] == 2**53 + 1
    assert found["big"] == 2**64 - 1


@pytest.mark.parametrize("how", MERGES, ids=str)
def test_a_peer_of_weight_zero_counts_nowhere(how):
    blobs = [blob_of(MODEL, seed) for seed in range(4)]
    views(MODEL, blobs[0])["norm.weight"][...] = math.nan
    assert merge(MODEL, how, blobs, [0, 1, 2, 1]) == merge(MODEL, how, blobs[1:], [1, 2, 1])


@pytest.mark.parametrize("how", MERGES, ids=str)
def test_a_model_without_floating_tensors_or_without_any_tensor_is_merged(how):
    for specs in ([], [TensorSpec("empty", "F32", (0,))], [TensorSpec("steps", "I64", (2,))]):
        layout = place(specs)
        blobs = [blob_of(layout, seed) for seed in range(3)]
        assert len(merge(layout, how, blobs, [1, 1, 1])) == layout.size_bytes


def test_booleans_of_a_peer_become_zero_or_one():
    layout = place([TensorSpec("mask", "BOOL", (4,))])
    blob = blob_of(layout, 0)
    blob[-4:] = b"\x00\x01\x02\xff"
    assert merge(layout, Merge(), [blob], [1])[-4:] == b"\x00\x01\x01\x01"


def test_buffers_of_another_size_and_bad_weights_are_refused():
    blob = blob_of(MODEL, 0)
    out = memoryview(bytearray(MODEL.size_bytes))
    for blobs, weights, target, message in (
        ([blob, blob[:-1]], [1, 1], out, "buffer 1 of 2"),
        ([blob], [1], out[:-1], "buffer 1 of 1"),
        ([blob], [1, 1], out, "1 peers, but 2 weights"),
        ([], [], out, "0 peers"),
        ([blob, blob], [0, 0], out, "weights"),
        ([blob, blob], [1, -1], out, "weights"),
    ):
        with pytest.raises(MergeError, match=message):
            cpu.merge(MODEL, Merge(), blobs, weights, target)
