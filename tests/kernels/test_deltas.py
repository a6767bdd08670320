"""Differences from an earlier model: what is lost on the way, and what comes later."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.deltas import _CHUNK, BLOCK, Deltas
from swarm_hpc.kernels.plan import TensorSpec, parse, place
from swarm_hpc.records import Wire

LOSSY = [Wire.BF16, Wire.INT8]


def model_of(**tensors):
    """A blob with these tensors, flat, and its layout."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    layout = place(
        [TensorSpec(name, codes[values.dtype], values.shape) for name, values in tensors.items()],
    )
    blob = bytearray(layout.size_bytes)
    blob[: len(layout.header)] = layout.header
    for placed in layout.tensors:
        view_of(layout, blob, placed.spec.name)[...] = tensors[placed.spec.name]
    return layout, blob


def view_of(layout, blob, name):
    [placed] = [placed for placed in layout.tensors if placed.spec.name == name]
    size = (placed.stop - placed.start) // DTYPES[placed.spec.dtype].itemsize
    return np.frombuffer(blob, DTYPES[placed.spec.dtype], size, placed.start).reshape(placed.spec.shape)


def sent(deltas, model, base, left=None):
    out = bytearray(deltas.layout.size_bytes)
    deltas.encode(model, base, memoryview(out), left=left)
    return out


def arrived(deltas, compact, base):
    out = bytearray(len(base))
    deltas.decode(compact, base, memoryview(out))
    return out


def normal(size, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK + 7])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wire", LOSSY)
def test_each_value_is_off_by_less_than_its_differences_rounding(wire, dtype, size):
    old = normal(size, 1, dtype)
    new = (old.astype(np.float64) + 0.01 * normal(size, 2)).astype(dtype)
    layout, model = model_of(weight=new)
    _, base = model_of(weight=old)
    deltas = Deltas(layout, wire)
    found = view_of(layout, arrived(deltas, sent(deltas, model, base), base), "weight").astype(np.float64)
    new, old = new.astype(np.float64), old.astype(np.float64)
    if wire is Wire.BF16 and np.dtype(dtype).itemsize == 2:
        assert np.array_equal(found, new)
        return
    if wire is Wire.BF16:
        allowed = np.abs(new - old) * 2.0**-8
    else:
        blocks = np.abs(np.pad(new - old, (0, -size % BLOCK))).reshape(-1, BLOCK).max(axis=1)
        allowed = np.repeat(blocks / 127 / 2, BLOCK)[:size] * (1 + 1e-5)
    digits = {8: 52, 4: 23, 2: 10 if dtype is np.float16 else 7}[np.dtype(dtype).itemsize]
    assert np.all(np.abs(found - new) <= allowed + np.abs(new) * 2.0**-digits + 2.0**-24)


@pytest.mark.parametrize("wire", LOSSY)
def test_what_is_not_floating_travels_as_it_is(wire):
    layout, model = model_of(
        weight=normal(5, 1), steps=np.array([2**62], np.int64), small=np.arange(3, dtype=np.int8), flag=np.array([True])
    )
    _, base = model_of(
        weight=normal(5, 2), steps=np.array([-1], np.int64), small=np.zeros(3, np.int8), flag=np.array([False])
    )
    deltas = Deltas(layout, wire)
    found = arrived(deltas, sent(deltas, model, base), base)
    for name in ("steps", "small", "flag"):
        assert np.array_equal(view_of(layout, found, name), view_of(layout, model, name))
    assert found[: len(layout.header)] == layout.header


@pytest.mark.parametrize("wire", LOSSY)
def test_a_compact_blob_is_one_that_any_reader_of_blobs_can_open(wire):
    layout, model = model_of(a=normal(2000, 1), b=normal((3, 7), 2), c=normal(2, 3, np.float64))
    deltas = Deltas(layout, wire)
    found = {placed.spec.name: str(placed.spec) for placed in parse(sent(deltas, model, model)).tensors}
    if wire is Wire.BF16:
        assert found == {"F64": "BF16 [2]", "F32": "BF16 [2021]"}
    else:
        scales = {"F64.scales": "F32 [1]", "F32.scales": "F32 [2]"}
        assert found == {"F64": "I8 [2]", "F32": "I8 [2021]"} | scales
    assert deltas.num_differences == 2023


@pytest.mark.parametrize(("wire", "share"), [(Wire.BF16, 0.5), (Wire.INT8, 0.251)])
def test_a_large_model_takes_half_or_a_quarter_of_the_bytes(wire, share):
    layout = place([TensorSpec("weight", "F32", (1 << 20,))])
    assert Deltas(layout, wire).layout.size_bytes == pytest.approx(share * layout.size_bytes, rel=1e-3)


@pytest.mark.parametrize("wire", LOSSY)
def test_the_same_model_is_the_same_afterwards(wire):
    layout, model = model_of(weight=normal(3000, 1))
    deltas = Deltas(layout, wire)
    assert arrived(deltas, sent(deltas, model, model), model) == model


@given(seed=st.integers(0, 1 << 32), wire=st.sampled_from(LOSSY), rounds=st.integers(1, 12))
def test_what_is_left_out_comes_later_so_the_sum_of_all_steps_is_off_by_one_rounding(seed, wire, rounds):
    chance = np.random.default_rng(seed)
    steps = chance.standard_normal((rounds, BLOCK + 3)) * 10.0 ** chance.integers(-4, 4, BLOCK + 3)
    layout, base = model_of(weight=np.zeros(BLOCK + 3, np.float32))
    deltas = Deltas(layout, wire)
    left = np.zeros(deltas.num_differences, np.float32)
    total = np.zeros(BLOCK + 3)
    for step in steps:
        _, model = model_of(weight=step.astype(np.float32))
        compact = sent(deltas, model, base, left)
        deltas.leave(model, base, compact, left)
        total += view_of(layout, arrived(deltas, compact, base), "weight")
    wanted = steps.astype(np.float32).astype(np.float64).sum(axis=0)
    assert np.allclose(total + left, wanted, rtol=1e-5, atol=1e-6 * np.abs(steps).max())
    largest = np.abs(steps).max()
    # of int8 the unit is that of the largest value in the block, with what was left
    unit = largest / 127 if wire is Wire.INT8 else np.abs(steps).max(axis=0) * 2.0**-8
    assert np.all(np.abs(left) <= 1.1 * unit + 1e-7 * largest)


@pytest.mark.parametrize("wire", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nan_alone_or_with_its_block_and_leaves_nothing_behind(wire, bad):
    new = normal(2 * BLOCK, 1)
    new[3] = bad
    layout, model = model_of(weight=new)
    _, base = model_of(weight=np.zeros(2 * BLOCK, np.float32))
    deltas = Deltas(layout, wire)
    left = np.ones(deltas.num_differences, np.float32)
    compact = sent(deltas, model, base, left)
    deltas.leave(model, base, compact, left)
    found = view_of(layout, arrived(deltas, compact, base), "weight")
    lost = ~np.isfinite(found)
    assert lost[3] and lost.sum() == (1 if wire is Wire.BF16 else BLOCK)
    assert np.isfinite(left).all() and not left[lost].any()
    nans = found[np.isnan(found)].view(np.uint32)
    assert set(nans) <= {np.float32(np.nan).view(np.uint32)}


@pytest.mark.parametrize("wire", LOSSY)
def test_nan_has_one_form_whatever_it_came_from(wire):
    strange = np.array([0xFFC12345], np.uint32).view(np.float32)
    layout, first = model_of(weight=strange)
    _, second = model_of(weight=np.array([np.nan], np.float32))
    _, base = model_of(weight=np.zeros(1, np.float32))
    deltas = Deltas(layout, wire)
    assert sent(deltas, first, base) == sent(deltas, second, base)
    assert arrived(deltas, sent(deltas, base, base), first) == arrived(deltas, sent(deltas, base, base), second)


def test_differences_below_the_least_scale_are_none():
    layout, model = model_of(weight=np.full(5, 1e-45, np.float32))
    _, base = model_of(weight=np.zeros(5, np.float32))
    deltas = Deltas(layout, Wire.INT8)
    assert arrived(deltas, sent(deltas, model, base), base) == base


def test_the_result_may_take_the_place_of_what_it_is_seen_from():
    layout, model = model_of(weight=normal(_CHUNK + 5, 1))
    _, base = model_of(weight=normal(_CHUNK + 5, 2))
    deltas = Deltas(layout, Wire.INT8)
    compact = sent(deltas, model, base)
    wanted = arrived(deltas, compact, base)
    deltas.decode(compact, base, memoryview(base))
    assert base == wanted


def test_a_blob_of_another_size_is_refused():
    layout, model = model_of(weight=normal(5, 1))
    deltas = Deltas(layout, Wire.BF16)
    with pytest.raises(MergeError, match="bytes instead of"):
        deltas.decode(model, model, memoryview(model))
    with pytest.raises(MergeError, match="bytes instead of"):
        deltas.encode(model, model[:-1], memoryview(bytearray(deltas.layout.size_bytes)))
