"""How long a merge takes, in multiples of the time to read all inputs once, beside other projects in the same run.

    python benchmarks/bench_merge.py [--json] [--quick] [--sizes 25000000] [--peers 4 8] [--threads 1 2]

Prints a table (or JSON) and writes benchmarks/results/merge.json. Models lie where a node puts those of its peers
(kernels/rooms.py). flwr, NVFLARE and geom-median run from their own packages, installed once into an environment of
their own in the cache folder (peers.txt), in one thread as they do by themselves. They, numpy and torch are slow: by
default they merge the smallest size among at most 8 peers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_results
from rich.console import Console
from rich.table import Table
from timing import make_models, measure

from swarm_hpc.cache import cache_folder
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.rooms import room

Row = dict[str, Any]
Merge = Callable[[], object]

HERE = Path(__file__).parent
SLOW_PEERS = 8
GOALS = {
    "mean": {4: 1.3, 8: 1.3, 16: 1.3},
    "coordmedian": {4: 2.0, 8: 2.0, 16: 2.2},
    "geomedian": {4: 2.8, 8: 2.8, 16: 3.2},
    "krum": {4: 1.6, 8: 1.6, 16: 1.6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="one small model, without other projects: does it work?")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[25_000_000, 100_000_000], help="parameters of the model"
    )
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-save", action="store_true", help="leave results/merge.json as it is")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.peers, options.threads, options.repeats = [1_000_000], [4], [1], 2
    torch.set_num_threads(1)
    others = None if options.quick else find_others()
    rows: list[Row] = []
    for size in options.sizes:
        for num_peers in options.peers:
            slow = size == min(options.sizes) and num_peers <= SLOW_PEERS
            rows += measure_all(num_peers, size, options.threads, options.repeats, slow)
            if slow and others is not None:
                rows += run_others(others, num_peers, size)
            print(f"{num_peers} peers with {size:,} parameters: done", file=sys.stderr)
    if not options.no_save and not options.quick:
        libraries = {"numpy": np.__version__, "torch": torch.__version__, "native": cpu.backends()[-1].name}
        write_results("merge", {"machine": describe() | libraries, "rows": rows})
    print(json.dumps({"rows": rows})) if options.json else show(rows)


def measure_all(num_peers: int, num_parameters: int, threads: list[int], repeats: int, slow: bool) -> Iterator[Row]:
    models = [placed(model, number) for number, model in enumerate(make_models(num_peers, num_parameters))]
    out = np.zeros(num_parameters, np.float32)
    backends = cpu.backends()
    for count in threads:
        for method, weights, merge in merges(models, out, count, backends[-1]):
            name = "native" if len(backends) > 1 else "numpy"
            yield measure(models, merge, repeats, threads=count, method=method, backend=name, weights=weights)
    if slow:
        for method, weights, merge in merges(models, out, 1, backends[0]):
            yield measure(models, merge, 2, method=method, backend="numpy", weights=weights)
        for method, backend, weights, merge in torch_merges(models):
            yield measure(models, merge, 2, method=method, backend=backend, weights=weights)


def placed(model: np.ndarray, number: int) -> np.ndarray:
    """The model where a node would have put it."""
    found = np.frombuffer(room(model.nbytes, number), model.dtype)
    found[:] = model
    return found


def merges(models: list[np.ndarray], out: np.ndarray, threads: int, backend: Any) -> Iterator[tuple[str, str, Merge]]:
    equal = [1.0] * len(models)
    unequal = [float(1 + peer) for peer in range(len(models))]
    how = {"threads": threads, "backend": backend}
    yield "mean", "unequal", lambda: cpu.mean(models, unequal, out, **how)
    yield "coordmedian", "equal", lambda: cpu.coord_median(models, equal, out, **how)
    yield "coordmedian", "unequal", lambda: cpu.coord_median(models, unequal, out, **how)
    yield "trimmedmean", "equal", lambda: cpu.trimmed_mean(models, equal, out, trim=0.25, **how)
    yield "trimmedmean", "unequal", lambda: cpu.trimmed_mean(models, unequal, out, trim=0.25, **how)
    yield "geomedian", "equal", lambda: cpu.geometric_median(models, equal, out, **how)
    yield "krum", "equal", lambda: cpu.krum(models, equal, out, num_byzantine=1, **how)


def torch_merges(models: list[np.ndarray]) -> Iterator[tuple[str, str, str, Merge]]:
    tensors = [torch.from_numpy(model) for model in models]
    total = torch.empty_like(tensors[0])

    def accumulate() -> None:
        total.zero_()
        for peer, tensor in enumerate(tensors):
            total.add_(tensor, alpha=(1 + peer) / sum(range(1, len(tensors) + 1)))

    yield "mean", "torch.stack", "equal", lambda: torch.stack(tensors).mean(0)
    yield "mean", "torch add_", "unequal", accumulate
    yield "coordmedian", "torch.stack", "equal", lambda: torch.stack(tensors).median(0).values


def find_others() -> Path | None:
    """The Python of the other projects' environment, made anew when peers.txt changes; None where that fails."""
    wanted = (HERE / "peers.txt").read_bytes()
    folder = cache_folder(os.environ) / f"bench-peers-{hashlib.sha256(wanted).hexdigest()[:12]}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        uv = str(Path(sys.executable).parent / "uv")
        install = [uv, "pip", "install", "--quiet", "--system-certs", "--python", str(python)]
        print(f"installing the other projects into {folder}", file=sys.stderr)
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [*install, "--requirement", str(HERE / "peers.txt")],
            # its own dependencies are many, and this part of it takes none of them
            [*install, "--no-deps", "nvflare==2.9.0"],
        ):
            if subprocess.run(command, timeout=600, check=False).returncode:
                print("the other projects cannot be installed (no network?): they are not measured", file=sys.stderr)
                return None
        (folder / "complete").touch()
    return python


def run_others(python: Path, num_peers: int, num_parameters: int) -> list[Row]:
    command = [str(python), str(HERE / "merge_peers.py"), "--size", str(num_parameters), "--peers", str(num_peers)]
    command += ["--repeats", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env=environment | threads, stdout=subprocess.PIPE, timeout=3600, check=True)
    rows: list[Row] = json.loads(done.stdout)
    return rows


def show(rows: list[Row]) -> None:
    table = Table(title="Merging float32, in multiples of the time to read all inputs once")
    left = ("method", "backend", "weights")
    for name in (*left, "peers", "parameters", "threads", "times limit", "goal", "ms", "times native"):
        table.add_column(name, justify="left" if name in left else "right")
    native = {key(row): row["merge_s"] for row in rows if row["backend"] == "native" and row["threads"] == 1}
    for row in rows:
        goal = GOALS.get(row["method"], {}).get(row["num_peers"]) if row["backend"] == "native" else None
        beside = native.get(key(row), 0) if row["backend"] != "native" else 0
        table.add_row(
            *(str(row[name]) for name in (*left, "num_peers")),
            f"{row['num_parameters']:,}",
            str(row["threads"]),
            f"{row['times_limit']:.2f}",
            "" if goal is None else f"{'met' if row['times_limit'] <= goal else 'missed'} {goal}",
            f"{1000 * row['merge_s']:.1f}",
            f"{row['merge_s'] / beside:.1f}" if beside else "",
        )
    Console(file=sys.stdout, width=150).print(table)


def key(row: Row) -> tuple[Any, ...]:
    """What is compared with the same of another backend; a mean takes as long with any weights."""
    weights = "" if row["method"] == "mean" else row["weights"]
    return row["method"], weights, row["num_peers"], row["num_parameters"]


if __name__ == "__main__":
    main()
