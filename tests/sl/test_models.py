"""Models that arrive as differences, and what is published of their merge."""

import numpy as np
import pytest

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, ModelMismatch
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import CheckIn, Merge, MergeMethod, Wire
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.sl.models import Models
from swarm_hpc.transport.blobs import hash_bytes

LAYOUT = place(
    [
        TensorSpec("weight", "F32", (5003,)),
        TensorSpec("wide", "F64", (1025,)),
        TensorSpec("half", "F16", (77,)),
        TensorSpec("steps", "I64", (3,)),
        TensorSpec("flag", "BOOL", ()),
    ]
)
CHUNK_BYTES = 9000


def model(seed, layout=LAYOUT):
    chance = np.random.default_rng(seed)
    blob = empty(layout)
    for placed in layout.tensors:
        dtype = DTYPES[placed.spec.dtype]
        size = (placed.stop - placed.start) // dtype.itemsize
        np.frombuffer(blob, dtype, size, placed.start)[:] = (chance.standard_normal(size) * 3).astype(dtype)
    return blob


def empty(layout):
    blob = bytearray(layout.size_bytes)
    blob[: len(layout.header)] = layout.header
    return memoryview(blob)


def started(merge, base, layout=LAYOUT):
    """A node that has the result of round 1."""
    models = Models(layout, merge, chunk_bytes=CHUNK_BYTES)
    models.spare[:] = base
    models.keep(1)
    return models


def room(size_bytes):
    return memoryview(bytearray(size_bytes))


def check_ins_of(blobs):
    names = [hash_bytes(blob) for blob in blobs]
    nodes = [CheckIn(node=f"s{i}/sl/sl", blob=name, weight=1 + i) for i, name in enumerate(names)]
    return nodes, dict(zip(names, blobs, strict=True))


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.INT8])
@pytest.mark.parametrize("method", MergeMethod)
def test_a_merge_is_that_of_the_models_that_the_differences_stand_for(method, wire):
    """One of the four checks in whole; the merge in chunks has the bits of the one of whole models."""
    merge, base = Merge(method=method, wire=wire), model(0)
    sent = [bytes(started(merge, base).outgoing(2, model(seed))) for seed in (1, 2, 3)]
    check_ins, blobs = check_ins_of([*sent, bytes(model(4))])
    models = started(merge, base)
    published = models.merge(2, check_ins, blobs, room)

    opened = {}
    for name, blob in blobs.items():
        opened[name] = blob
        if len(blob) != LAYOUT.size_bytes:
            opened[name] = room(LAYOUT.size_bytes)
            models.forms.check_in.decode(blob, base, opened[name])
    exact = room(LAYOUT.size_bytes)
    merge_blobs(LAYOUT, merge, check_ins, opened, exact)
    rounded = room(models.forms.result.layout.size_bytes)
    models.forms.result.encode(exact, base, rounded)
    assert models.published(models.spare) == rounded and published == hash_bytes(rounded)

    other = started(merge, base)
    [small, _] = other.rooms
    small[:] = rounded
    other.open(2, small)
    assert other.spare == models.spare


def test_what_is_whole_by_the_contract_or_for_lack_of_differences_is_published_whole():
    base = model(0)
    merge = Merge(wire=Wire.INT8, whole_every=3)
    for number, whole in ((2, False), (3, False), (4, True), (5, False)):
        models = started(merge, base)
        models.spare[:] = base
        models.keep(number - 1)
        check_ins, blobs = check_ins_of([bytes(models.outgoing(number, model(1)))])
        published = models.merge(number, check_ins, blobs, room)
        assert (published == hash_bytes(models.spare)) == whole
        assert (len(models.published(models.spare)) == LAYOUT.size_bytes) == whole
    models = started(merge, base)
    check_ins, blobs = check_ins_of([bytes(model(1)), bytes(model(2))])
    assert models.merge(2, check_ins, blobs, room) == hash_bytes(models.spare)


def test_without_the_round_before_there_is_nothing_to_add_a_difference_to():
    merge = Merge(wire=Wire.BF16)
    sent = bytes(started(merge, model(0)).outgoing(2, model(1)))
    check_ins, blobs = check_ins_of([sent, bytes(model(2))])
    models = Models(LAYOUT, merge)
    assert models.outgoing(2, memoryview(bytes(model(1)))) == model(1)
    assert models.needs_base(2, blobs)
    with pytest.raises(BlobNotFound, match="round 1"):
        models.merge(2, check_ins, blobs, room)
    [small, _] = models.rooms
    small[: len(models.forms.result.layout.header)] = models.forms.result.layout.header
    with pytest.raises(BlobNotFound, match="round 2 differs"):
        models.open(2, small)


@pytest.mark.parametrize("number", [1, 4])
def test_a_difference_for_a_result_that_is_whole_by_the_contract_is_no_result(number):
    models = started(Merge(wire=Wire.INT8, whole_every=3), model(0))
    models.keep(number - 1)
    [small, _] = models.rooms
    small[: len(models.forms.result.layout.header)] = models.forms.result.layout.header
    models.open(number, small)
    assert models.spare[: len(LAYOUT.header)] != LAYOUT.header


def test_which_results_lead_to_one():
    models = started(Merge(wire=Wire.BF16, whole_every=4), model(0))
    assert list(models.needed(4)) == [2, 3]
    assert list(models.needed(2)) == []
    assert list(models.needed(8)) == [5, 6, 7]
    assert list(models.needed(9)) == []
    assert list(Models(LAYOUT, Merge()).needed(9)) == []


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (bytes(LAYOUT.size_bytes), BlobCorrupt),
        (bytes(model(1, place([TensorSpec("other", "F32", (5,))]))), ModelMismatch),
    ],
    ids=["zeros", "another model"],
)
def test_what_is_neither_a_model_nor_a_difference_is_refused_with_its_node(blob, error):
    models = started(Merge(wire=Wire.INT8), model(0))
    check_ins, blobs = check_ins_of([bytes(models.outgoing(2, model(1))), blob])
    with pytest.raises(error, match="s1/sl/sl"):
        models.merge(2, check_ins, blobs, room)


def test_what_is_no_result_leaves_no_header_behind():
    models = started(Merge(wire=Wire.INT8), model(0))
    models.spare[:] = model(3)
    [small, _] = models.rooms
    models.open(2, small)
    assert models.spare[: len(LAYOUT.header)] != LAYOUT.header


def of_values(dtype, values):
    """A model of one tensor."""
    layout = place([TensorSpec("weight", dtype, (len(values),))])
    blob = empty(layout)
    values_of(layout, blob)[:] = values
    return layout, blob


def values_of(layout, blob):
    [placed] = layout.tensors
    return np.frombuffer(blob, DTYPES[placed.spec.dtype], -1, placed.start)


def alone(models, number, blob):
    """A round of one node; its result."""
    sent = models.outgoing(number, blob)
    check_ins, blobs = check_ins_of([sent])
    models.merge(number, check_ins, blobs, room)
    models.arrived(number, blob, sent)
    result = room(len(blob))
    models.take(number, result)
    return result


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_what_the_dtype_rounds_off_comes_later(dtype):
    """Steps of 4, one unit of the dtype, beside another parameter's that make 10 the unit of the difference."""
    values = np.zeros(1024)
    values[0] = 512 if dtype == "BF16" else 4096
    layout, blob = of_values(dtype, values)
    models = started(Merge(wire=Wire.INT8, whole_every=1000), blob, layout)
    taken = 0.0
    for number in range(2, 52):
        found = values_of(layout, blob)
        before = float(found[0])
        found[0] = before + 4
        taken += float(found[0]) - before
        found[1] = float(found[1]) + (1270 if number % 2 else -1270)
        blob = alone(models, number, blob)
    assert taken >= 190
    assert float(values_of(layout, blob)[0]) - values[0] == pytest.approx(taken, abs=16)


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.INT8])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_what_is_not_finite_and_stays_so_costs_nothing_beside_it(wire, value):
    values = np.ones(1024)
    values[3] = value
    layout, blob = of_values("F32", values)
    models = started(Merge(wire=wire), blob, layout)
    found = values_of(layout, alone(models, 2, of_values("F32", values + 0.25)[1]))
    np.testing.assert_array_equal(found[3], np.float32(value))
    assert np.delete(found, 3) == pytest.approx(1.25, rel=0.01)


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.INT8])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_what_is_finite_again_travels_whole_for_no_difference_leads_there(wire, value):
    values = np.linspace(1, 2, 1024)
    values[3] = value
    layout, blob = of_values("F32", values)
    models = started(Merge(wire=wire), blob, layout)
    values = np.linspace(2, 3, 1024).astype(np.float32)
    blob = alone(models, 2, of_values("F32", values)[1])
    assert values_of(layout, blob).tolist() == values.tolist()
    assert len(models.outgoing(3, blob)) < len(blob)


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.INT8])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_the_largest_finite_values_stay_finite(wire, dtype):
    largest = {"F64": 1.7e308, "F32": 3.4028234e38, "F16": 65504, "BF16": 3.38e38}[dtype]
    values = np.zeros(1024)
    values[:2] = largest * 0.99, -largest
    layout, blob = of_values(dtype, values)
    models = started(Merge(wire=wire), blob, layout)
    for number, factor in ((2, -1), (3, 1)):
        values[:2] = largest * factor, largest * 0.6 * factor
        blob = alone(models, number, of_values(dtype, values)[1])
        assert np.isfinite(values_of(layout, blob)).all()


def test_a_difference_in_round_1_is_refused_with_its_node():
    merge, base = Merge(wire=Wire.INT8), model(0)
    sent = bytes(started(merge, base).outgoing(2, model(1)))
    forms = Models(LAYOUT, merge).forms
    forms.check(sent, forms.check_in, "s0/sl/sl", 2)
    with pytest.raises(BlobCorrupt, match=r"s0/sl/sl: a difference in round 1"):
        forms.check(sent, forms.check_in, "s0/sl/sl", 1)
