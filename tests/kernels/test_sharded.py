"""Merging across the ranks of a real MPI job, against `cpu.py` on the same models."""

import json

import numpy as np
import pytest

from swarm_hpc.kernels import cpu, mixture
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import Merge, MergeMethod

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

TOLERANCE = {"F64": 1e-12, "F32": 2e-6, "F16": 2e-3, "BF16": 1.6e-2}
DTYPES_MERGED = ("F64", "F32", "BF16", "F16", "I64", "I32", "I8", "U64", "U8", "BOOL")
ODD = place(
    [TensorSpec(dtype, dtype, (1237,)) for dtype in DTYPES_MERGED]
    + [TensorSpec("scalar", "F32", ()), TensorSpec("none", "F16", (0, 3)), TensorSpec("large", "F32", (70_001,))]
)
TINY = place([TensorSpec("one", "F32", (1,)), TensorSpec("two", "BF16", (2,)), TensorSpec("flag", "BOOL", ())])
COUNTERS = place([TensorSpec("steps", "I64", (3,)), TensorSpec("seen", "BOOL", (5,))])
MERGES = [Merge(method=method, num_byzantine=0) for method in MergeMethod]
SMALL_BLOCKS, ONE_BLOCK = 4096, 16 << 20


def blob(layout, seed):
    chance = np.random.default_rng(seed)
    data = bytearray(layout.size_bytes)
    data[: len(layout.header)] = layout.header
    for placed in layout.tensors:
        array = np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], data, placed.start)
        if placed.spec.dtype == "BOOL":
            array.view(np.uint8)[...] = chance.integers(0, 3, array.shape)
        elif placed.spec.dtype[0] in "IU":
            array[...] = chance.integers(np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, array.shape, array.dtype)
        else:
            array[...] = chance.standard_normal(array.shape).astype(array.dtype)
    return data


def tensors(layout, data):
    return {
        placed.spec.name: np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], data, placed.start)
        for placed in layout.tensors
    }


class Cases:
    """Models and merges that one job goes through."""

    def __init__(self, folder, num_ranks):
        self.folder, self.num_ranks = folder, num_ranks
        self.cases, self.wanted = [], {}

    def add(self, name, layout, blobs, merge, weights, *, block_bytes=SMALL_BLOCKS):
        if sum(weight > 0 for weight in weights) < merge.least_peers:
            return
        for rank, data in enumerate(blobs):
            (self.folder / f"{name}.{rank}").write_bytes(data)
        self.cases.append(
            {"name": name, "blobs": name, "merge": str(merge), "weights": weights, "block_bytes": block_bytes}
        )
        out = bytearray(layout.size_bytes)
        cpu.merge(layout, merge, blobs, weights, memoryview(out))
        self.wanted[name] = (layout, merge.method, out)

    def run(self, job):
        (self.folder / "cases.json").write_text(json.dumps(self.cases))
        done = job("merge", self.num_ranks)
        assert done.returncode == 0, done.stderr
        for name, (layout, method, wanted) in self.wanted.items():
            first, *others = [(self.folder / f"{name}.out.{rank}").read_bytes() for rank in range(self.num_ranks)]
            assert all(other == first for other in others), f"{name}: the ranks have different bits"
            assert first[: len(layout.header)] == layout.header
            compare(name, layout, method, self.num_ranks, bytearray(first), wanted)


def compare(name, layout, method, num_ranks, found, wanted):
    if method in (MergeMethod.COORDMEDIAN, MergeMethod.TRIMMEDMEAN) or (method is MergeMethod.MEAN and num_ranks <= 2):
        # the order of two terms does not matter
        assert found == wanted, name
    found, wanted = tensors(layout, found), tensors(layout, wanted)
    for tensor, values in wanted.items():
        code = next(placed.spec.dtype for placed in layout.tensors if placed.spec.name == tensor)
        if code in TOLERANCE:
            # products of narrower tensors are added up in float32, in other pieces here
            tolerance = max(TOLERANCE[code], 1e-7 if method in mixture.METHODS else 0)
            np.testing.assert_allclose(
                found[tensor].astype(np.float64),
                values.astype(np.float64),
                rtol=tolerance,
                atol=tolerance,
                err_msg=f"{name}: {tensor}",
            )
        else:
            assert (found[tensor] == values).all(), f"{name}: {tensor}"


def weights_of(num_ranks):
    yield "equal", [1] * num_ranks
    yield "unequal", [1 + (37 * rank) % 100 for rank in range(num_ranks)]
    if num_ranks > 1:
        yield "first absent", [0, *(100 for _ in range(num_ranks - 1))]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_it_agrees_with_the_merge_of_the_gathered_models(job, tmp_path, num_ranks):
    cases = Cases(tmp_path, num_ranks)
    for merge in MERGES:
        for kind, weights in weights_of(num_ranks):
            for what, layout in (("odd", ODD), ("tiny", TINY), ("counters", COUNTERS)):
                blobs = [blob(layout, seed) for seed in range(num_ranks)]
                cases.add(f"{merge.method}-{kind}-{what}", layout, blobs, merge, weights)
        blobs = [blob(ODD, seed) for seed in range(num_ranks)]
        cases.add(f"{merge.method}-one-block", ODD, blobs, merge, [1] * num_ranks, block_bytes=ONE_BLOCK)
    cases.run(job)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_nan_and_infinity_are_treated_as_in_a_merge_of_the_gathered_models(job, tmp_path, num_ranks):
    cases = Cases(tmp_path, num_ranks)
    for merge in MERGES:
        blobs = [blob(ODD, seed) for seed in range(num_ranks)]
        for name in ("F64", "F32", "BF16", "F16"):
            array = tensors(ODD, blobs[-1])[name]
            # NaNs of either sign and an infinity, in one of the models only
            array[:3] = [np.nan, -np.nan, np.inf]
        cases.add(f"{merge.method}", ODD, blobs, merge, [2] * num_ranks)
    cases.run(job)


def test_close_models_with_one_far_away_have_an_exact_geometric_median(job, tmp_path):
    # inner products from distances would have lost their digits: the models are exchanged once more
    layout = place([TensorSpec("w", "F32", (5003,))])
    blobs = [blob(layout, 0) for _ in range(4)]
    for rank, data in enumerate(blobs):
        tensors(layout, data)["w"][:] += np.float32(1e12 if rank == 3 else 1e-3 * rank)
    cases = Cases(tmp_path, 4)
    cases.add("far", layout, blobs, Merge(method=MergeMethod.GEOMEDIAN), [1] * 4)
    cases.run(job)


def test_where_no_model_is_finite_every_rank_says_so_and_keeps_its_own(job, tmp_path):
    layout = place([TensorSpec("w", "F32", (100,)), TensorSpec("steps", "I64", ())])
    blobs = [blob(layout, rank) for rank in range(2)]
    for rank, data in enumerate(blobs):
        tensors(layout, data)["w"][7 + rank] = np.nan
        (tmp_path / f"nan.{rank}").write_bytes(data)
    case = {"name": "nan", "blobs": "nan", "merge": "geomedian", "weights": [1, 1], "block_bytes": 64}
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    done = job("merge", 2)
    assert done.returncode == 0, done.stderr
    for rank, data in enumerate(blobs):
        assert (tmp_path / f"nan.error.{rank}").read_text() == "no peer's parameters are finite"
        assert (tmp_path / f"nan.out.{rank}").read_bytes() == data


def test_no_rank_ever_needs_memory_for_three_models(job, tmp_path):
    done = job("memory", 4)
    assert done.returncode == 0, done.stderr
    models = [float((tmp_path / f"memory.{rank}").read_text()) for rank in range(4)]
    assert max(models) < 3, models
