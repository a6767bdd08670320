"""A merge is the same bits on every machine: a golden hash, and processes that may use less of the processor.

Without torch, whose import would take most of the time here.
"""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__ as FEATURES

from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.plain import Backend
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import Merge, MergeMethod

GOLDEN = "cec17ac8024eb9b3b0ba8576be5f90ce7334c2afc684f0c2150af17eccc36728"
"""Changes only where the arithmetic is meant to change; then a round that spans both versions cannot be verified."""

LAYOUT = place(
    [
        TensorSpec("large", "F32", (cpu.BLOCK + 4099,)),
        *(TensorSpec(dtype, dtype, (1237,)) for dtype in ("F64", "F16", "BF16", "I64", "U8", "BOOL")),
    ]
)


def blob(peer: int) -> bytearray:
    """Values by whole-number arithmetic: numpy's random streams may change, this does not."""
    data = bytearray(LAYOUT.size_bytes)
    data[: len(LAYOUT.header)] = LAYOUT.header
    for placed in LAYOUT.tensors:
        array = np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], data, placed.start)
        mixed = (np.arange(array.size, dtype=np.uint64) + np.uint64(peer << 32)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = ((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(11)
        if placed.spec.dtype in ("I64", "U8", "BOOL"):
            array[...] = mixed % np.uint64(200 if placed.spec.dtype != "BOOL" else 2)
        else:
            array[...] = mixed.astype(np.float64) / 2.0**52 - 1
    # zeros of both signs; infinities and NaN would take the peer out of the geometric median
    large(data, 3)[:] = (0.0, -0.0, 1e-42)[peer % 3], 0.0, -1e-30 * peer
    return data


def large(data: bytearray, size: int) -> np.ndarray:
    """The first values of the large tensor."""
    [start] = [placed.start for placed in LAYOUT.tensors if placed.spec.name == "large"]
    return np.ndarray(size, np.float32, data, start)


MERGES = (
    Merge(),
    Merge(method=MergeMethod.COORDMEDIAN),
    Merge(method=MergeMethod.GEOMEDIAN),
    Merge(method=MergeMethod.TRIMMEDMEAN, trim=0.2),
    Merge(method=MergeMethod.KRUM, num_byzantine=2),
    Merge(method=MergeMethod.MULTIKRUM, num_byzantine=1),
    Merge(method=MergeMethod.CENTREDCLIP),
)


def digest(backend: Backend | None = None, threads: int = 1) -> str:
    """One hash over merges by every method, of several numbers of peers, with and without a peer that is not finite."""
    found = hashlib.sha256()
    blobs = [blob(peer) for peer in range(5)]
    broken, opposite, far = blob(5), blob(6), blob(7)
    large(broken, 4)[:] = math.nan, math.inf, -math.inf, 3.0
    large(opposite, 4)[:] = 1.0, -math.inf, math.inf, math.nan
    large(far, 100)[:] = 1e30
    for peers in (blobs[:1], blobs[:2], blobs, [*blobs, broken, opposite], [*blobs, far]):
        for weights in ([1.0] * len(peers), [float(1 + 7 * number % 5) for number in range(len(peers))]):
            for merge in MERGES:
                if len(peers) >= merge.least_peers:
                    out = bytearray(LAYOUT.size_bytes)
                    cpu.merge(LAYOUT, merge, peers, weights, memoryview(out), threads=threads, backend=backend)
                    found.update(out)
    return found.hexdigest()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_bits_are_those_of_every_other_machine(threads):
    assert digest(threads=threads) == GOLDEN


@pytest.mark.slow
@pytest.mark.parametrize("backend", cpu.backends(), ids=lambda backend: backend.name)
def test_the_bits_are_those_of_every_backend(backend):
    assert digest(backend) == GOLDEN


@pytest.mark.slow
@pytest.mark.parametrize(("without", "threads"), [([], 3), (FEATURES[1:], 1), (FEATURES, 1)])
def test_the_bits_of_numpy_are_the_same_whatever_the_processor_can_do(without, threads):
    program = f"""
import importlib.util
from numpy._core._multiarray_umath import __cpu_features__ as features
spec = importlib.util.spec_from_file_location("bits", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.digest(module.cpu.backends()[0]), [name for name in {without!r} if features.get(name)])
"""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | limits | {"NPY_DISABLE_CPU_FEATURES": ",".join(without)}
    # numpy warns of features that this processor lacks anyway
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == f"{GOLDEN} []"
