"""What both SL images are tested for beside their framework: a merge with the right values, and MPI."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import Merge, MergeMethod


def check_merges() -> None:
    """Three models, written into arenas as ML programs do, merged by each method."""
    layout = place([TensorSpec("weight", "F32", (7, 5)), TensorSpec("steps", "I64", ())])
    values = np.random.default_rng(0).standard_normal((3, 7, 5)).astype(np.float32)
    weights = [1.0, 1.0, 1.0]
    arenas = [Arena.create(layout) for _ in values]
    for number, arena in enumerate(arenas):
        arena.array("weight")[...] = values[number]
        arena.array("steps")[...] = number
    expected = {MergeMethod.MEAN: values.mean(0), MergeMethod.COORDMEDIAN: np.median(values, axis=0)}
    if find_spec("torch"):
        expected |= _from_reference(values, weights)
    for method in MergeMethod:
        with Arena.create(layout) as merged:
            cpu.merge(
                layout,
                Merge(method=method, num_byzantine=0),
                [arena.buffer for arena in arenas],
                weights,
                merged.buffer,
            )
            found, steps = merged.array("weight").copy(), int(merged.array("steps"))
        assert np.isfinite(found).all(), method
        assert steps == len(values) - 1, (method, steps)
        if method in expected:
            np.testing.assert_allclose(found, expected[method], rtol=1e-5, atol=1e-6, err_msg=method)
    for arena in arenas:
        arena.close()
    backend = cpu.backends()[-1].name
    print(f"merged {len(values)} models in {backend} by {', '.join(MergeMethod)}")


def _from_reference(values: np.ndarray, weights: list[float]) -> dict[MergeMethod, np.ndarray]:
    import torch

    from swarm_hpc.kernels import reference

    stack, parts = torch.from_numpy(values.reshape(len(values), -1)).double(), torch.tensor(weights).double()
    methods = {
        MergeMethod.MEAN: reference.mean,
        MergeMethod.COORDMEDIAN: reference.coord_median,
        MergeMethod.GEOMEDIAN: reference.geometric_median,
    }
    return {name: method(stack, parts).numpy().reshape(values.shape[1:]) for name, method in methods.items()}


def check_mpi() -> None:
    """MPI starts, alone, and sums."""
    from mpi4py import MPI

    total = np.zeros(4, np.float32)
    MPI.COMM_WORLD.Allreduce(np.ones(4, np.float32), total)
    assert (total == MPI.COMM_WORLD.size).all(), total
    print(f"MPI {'.'.join(map(str, MPI.Get_version()))}: {MPI.Get_library_version().splitlines()[0].strip()}")
