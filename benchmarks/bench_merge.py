"""How long a merge takes, in multiples of the time to read all inputs once, beside torch in the same run.

    python benchmarks/bench_merge.py [--json] [--sizes 1000000 25000000] [--peers 4] [--repeats 5]

Prints a table (or JSON) and writes benchmarks/results/merge.json. Everything in one thread; output memory is reused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from machine import describe, write_results
from rich.console import Console
from rich.table import Table

from swarm_hpc.kernels import cpu

Merge = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 25_000_000], help="parameters of the model")
    parser.add_argument("--peers", type=int, nargs="+", default=[4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-save", action="store_true", help="leave results/merge.json as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for size in options.sizes
        for num_peers in options.peers
        for row in measure(num_peers, size, options.repeats)
    ]
    if not options.no_save:
        libraries = {"numpy": np.__version__, "torch": torch.__version__}
        write_results("merge", {"machine": describe() | libraries, "rows": rows})
    if options.json:
        print(json.dumps({"rows": rows}))
    else:
        show(rows)


def measure(num_peers: int, num_parameters: int, repeats: int) -> Iterator[dict[str, object]]:
    chance = np.random.default_rng(0)
    base = chance.standard_normal(num_parameters, dtype=np.float32)
    models = [base + 0.05 * chance.standard_normal(num_parameters, dtype=np.float32) for _ in range(num_peers)]
    del base
    out = np.zeros(num_parameters, np.float32)
    for method, backend, weights, merge in merges(models, out):
        merge()
        # limit and merge in turn, so that both see the same load of the machine
        times = [(seconds(lambda: [model.max() for model in models]), seconds(merge)) for _ in range(repeats)]
        limit_s, merge_s = min(limit for limit, _ in times), min(taken for _, taken in times)
        yield {
            "method": method,
            "backend": backend,
            "weights": weights,
            "num_peers": num_peers,
            "num_parameters": num_parameters,
            "dtype": "F32",
            "threads": 1,
            "times_limit": round(merge_s / limit_s, 3),
            "times_limit_median": round(statistics.median(taken / limit for limit, taken in times), 3),
            "merge_s": round(merge_s, 6),
            "limit_s": round(limit_s, 6),
        }


def merges(models: list[np.ndarray], out: np.ndarray) -> Iterator[tuple[str, str, str, Merge]]:
    equal = [1.0] * len(models)
    unequal = [float(1 + peer) for peer in range(len(models))]
    tensors = [torch.from_numpy(model) for model in models]
    yield "mean", "numpy", "equal", lambda: cpu.mean(models, equal, out)
    yield "mean", "torch.stack", "equal", lambda: torch.stack(tensors).mean(0)
    yield "coordmedian", "numpy", "equal", lambda: cpu.coord_median(models, equal, out)
    yield "coordmedian", "numpy", "unequal", lambda: cpu.coord_median(models, unequal, out)
    yield "coordmedian", "torch.stack", "equal", lambda: torch.stack(tensors).median(0).values
    yield "geomedian", "numpy", "equal", lambda: cpu.geometric_median(models, equal, out)


def seconds(work: Merge) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="Merging, in multiples of the time to read all inputs once (1 thread)")
    for name in ("method", "backend", "weights", "peers", "parameters", "times limit", "ms"):
        table.add_column(name, justify="left" if name in ("method", "backend", "weights") else "right")
    for row in rows:
        table.add_row(
            str(row["method"]),
            str(row["backend"]),
            str(row["weights"]),
            str(row["num_peers"]),
            f"{row['num_parameters']:,}",
            f"{row['times_limit']:.2f}",
            f"{1000 * float(str(row['merge_s'])):.1f}",
        )
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
