"""From check-ins' blobs to the merged blob."""

import numpy as np
import pytest

from swarm_hpc.errors import BlobCorrupt, MergeError, ModelMismatch
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import CheckIn, Merge, MergeMethod
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.transport.blobs import hash_bytes

LAYOUT = place([TensorSpec("weight", "F32", (3,)), TensorSpec("steps", "I64", ())])


def blob(value, steps=0, layout=LAYOUT):
    with Arena.create(layout) as arena:
        arena.array("weight")[:] = value
        if "steps" in {placed.spec.name for placed in layout.tensors}:
            arena.array("steps")[...] = steps
        return bytes(arena.buffer)


def check_in(node, data, weight=1, num_nodes=1):
    return CheckIn(node=node, blob=hash_bytes(data), weight=weight, num_nodes=num_nodes)


def merged(check_ins, *blobs, method=MergeMethod.MEAN):
    out = bytearray(LAYOUT.size_bytes)
    name = merge_blobs(
        LAYOUT, Merge(method=method), check_ins, {hash_bytes(data): data for data in blobs}, memoryview(out)
    )
    assert name == hash_bytes(out)
    return out


def weight_of(data):
    placed = next(placed for placed in LAYOUT.tensors if placed.spec.name == "weight")
    return np.frombuffer(data[placed.start : placed.stop], np.float32)


def test_a_node_that_stands_for_several_counts_as_many():
    one, nine = blob(1.0, steps=5), blob(9.0, steps=3)
    out = merged([check_in("a/sl/1", one, weight=2, num_nodes=3), check_in("b/sl/1", nine, weight=2)], one, nine)
    assert weight_of(out) == pytest.approx([3.0] * 3)
    steps = next(placed for placed in LAYOUT.tensors if placed.spec.name == "steps")
    assert np.frombuffer(out[steps.start : steps.stop], np.int64) == 5


@pytest.mark.parametrize("method", MergeMethod)
def test_the_order_of_check_ins_does_not_change_a_bit(method):
    blobs = [blob(value) for value in (0.1, 1e7, -3.3, 0.7)]
    check_ins = [check_in(f"s{i}/sl/1", data, weight=i + 1) for i, data in enumerate(blobs)]
    assert merged(check_ins, *blobs, method=method) == merged(check_ins[::-1], *blobs, method=method)


def test_two_nodes_with_the_same_parameters_both_count():
    same, other = blob(1.0), blob(4.0)
    out = merged([check_in("a/sl/1", same), check_in("b/sl/1", same), check_in("c/sl/1", other)], same, other)
    assert weight_of(out) == pytest.approx([2.0] * 3)


def test_another_model_names_the_node_and_the_tensor():
    good = blob(1.0)
    other = blob(1.0, layout=place([TensorSpec("weight", "F32", (4,)), TensorSpec("steps", "I64", ())]))
    with pytest.raises(ModelMismatch, match=r"b/sl/1.*weight.*\[4\].*\[3\]"):
        merged([check_in("a/sl/1", good), check_in("b/sl/1", other)], good, other)


@pytest.mark.parametrize("data", [b"", b"no blob at all", LAYOUT.header], ids=["empty", "text", "header only"])
def test_what_is_no_blob_names_the_node(data):
    with pytest.raises(BlobCorrupt, match="b/sl/1"):
        merged([check_in("b/sl/1", data)], data)


def test_no_check_ins_cannot_be_merged():
    with pytest.raises(MergeError):
        merged([])
