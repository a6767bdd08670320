"""Timing a merge in multiples of the time to read all inputs once. Needs numpy only."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def make_models(num_peers: int, num_parameters: int) -> list[np.ndarray]:
    """Models that have trained from one start: float32."""
    chance = np.random.default_rng(0)
    base = chance.standard_normal(num_parameters, dtype=np.float32)
    models = []
    for _ in range(num_peers):
        model = chance.standard_normal(num_parameters, dtype=np.float32)
        model *= np.float32(0.05)
        model += base
        models.append(model)
    return models


def measure(
    models: Sequence[np.ndarray], merge: Callable[[], object], repeats: int, *, threads: int = 1, **names: object
) -> dict[str, object]:
    """A row: the merge's time, and the limit's, in turn, so that both see the same load of the machine."""
    pool = ThreadPoolExecutor(threads)
    merge()
    times = [(seconds(lambda: read(models, pool, threads)), seconds(merge)) for _ in range(repeats)]
    limit_s, merge_s = min(limit for limit, _ in times), min(taken for _, taken in times)
    pool.shutdown()
    return names | {
        "num_peers": len(models),
        "num_parameters": len(models[0]),
        "dtype": "F32",
        "threads": threads,
        "times_limit": round(merge_s / limit_s, 3),
        "times_limit_median": round(statistics.median(taken / limit for limit, taken in times), 3),
        "merge_s": round(merge_s, 6),
        "limit_s": round(limit_s, 6),
    }


def read(models: Sequence[np.ndarray], pool: ThreadPoolExecutor, threads: int) -> None:
    """Read all values once: the largest of each part, which numpy finds as fast as the memory gives it."""
    step = -(-len(models[0]) // threads)
    parts = [model[start : start + step] for model in models for start in range(0, len(model), step)]
    if threads == 1:
        for part in parts:
            part.max()
    else:
        list(pool.map(np.max, parts))


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
