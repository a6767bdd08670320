"""Blobs to measure with: one float32 tensor of normally distributed values."""

from __future__ import annotations

import numpy as np

from swarm_hpc.kernels.plan import Layout, TensorSpec, place


def layout_of(mib: int) -> Layout:
    """Of a model of `mib` MiB."""
    return place([TensorSpec("weight", "F32", (mib << 18,))])


def fill(layout: Layout, blob: memoryview, seed: int) -> None:
    """Make `blob`, of that layout's size, a model; without memory of its own."""
    blob[: len(layout.header)] = layout.header
    [placed] = layout.tensors
    values = np.frombuffer(blob, np.float32, (placed.stop - placed.start) // 4, placed.start)
    np.random.default_rng(seed).standard_normal(dtype=np.float32, out=values)
