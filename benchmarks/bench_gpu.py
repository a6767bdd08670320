"""How long a merge takes on a GPU, in multiples of a device copy that moves the same bytes, beside torch in one run.

    python benchmarks/bench_gpu.py [--json] [--sizes 25000000 100000000] [--peers 4 8 16] [--repeats 20]

Prints a table (or JSON) and writes benchmarks/results/gpu.json. Without a GPU it says so, and leaves the file as it is.
Bytes moved: mean and medians read K models and write one; the geometric median reads them twice. A copy of n bytes
reads and writes n. Times are from CUDA events, so those of the geometric median hold the host's part, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from machine import describe, write_results
from rich.console import Console
from rich.table import Table

Merge = Callable[[], object]
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000_000, 100_000_000], help="parameters")
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-save", action="store_true", help="leave results/gpu.json as it is")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing measured", file=sys.stderr)
        if options.json:
            print(json.dumps({"rows": []}))
        return
    rows = [
        row
        for dtype in options.dtypes
        for size in options.sizes
        for num_peers in options.peers
        for row in measure(num_peers, size, dtype, options.repeats)
    ]
    if not options.no_save:
        write_results("gpu", {"machine": describe() | gpu_facts(), "rows": rows})
    if options.json:
        print(json.dumps({"rows": rows}))
    else:
        show(rows)


def gpu_facts() -> dict[str, Any]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def measure(num_peers: int, num_parameters: int, dtype: str, repeats: int) -> Iterator[dict[str, object]]:
    models = models_of(num_peers, num_parameters, DTYPES[dtype])
    out = torch.zeros_like(models[0])
    for method, backend, weights, num_moved, merge in merges(models, out):
        copy = times_of(copy_of(num_moved * num_parameters // 2, out), repeats)
        times = times_of(merge, repeats)
        yield {
            "method": method,
            "backend": backend,
            "weights": weights,
            "num_peers": num_peers,
            "num_parameters": num_parameters,
            "dtype": dtype,
            "times_copy": round(statistics.median(times) / statistics.median(copy), 3),
            "merge_ms": round(statistics.median(times), 4),
            "copy_ms": round(statistics.median(copy), 4),
            "copy_gb_per_s": round(num_moved * num_parameters * out.element_size() / statistics.median(copy) / 1e6),
        }
    # what torch's own way kept would crowd the next size
    torch.cuda.empty_cache()


def models_of(num_peers: int, num_parameters: int, dtype: torch.dtype) -> list[torch.Tensor]:
    chance = torch.Generator("cuda").manual_seed(0)
    base = torch.randn(num_parameters, generator=chance, device="cuda")
    return [
        (base + 0.05 * torch.randn(num_parameters, generator=chance, device="cuda")).to(dtype) for _ in range(num_peers)
    ]


def merges(models: list[torch.Tensor], out: torch.Tensor) -> Iterator[tuple[str, str, str, int, Merge]]:
    """(method, backend, weights, how many models it has to read and write, what does it)."""
    from swarm_hpc.kernels import gpu

    num_peers = len(models)
    once, twice = num_peers + 1, 2 * num_peers + 1
    equal = [1.0] * num_peers
    unequal = [float(1 + peer) for peer in range(num_peers)]
    yield "mean", "triton", "unequal", once, lambda: gpu.mean(models, unequal, out)
    yield "mean", "torch add_", "unequal", once, lambda: torch_mean(models, unequal, out)
    yield "mean", "torch.stack", "equal", once, lambda: torch.stack(models).mean(0)
    yield "coordmedian", "triton", "equal", once, lambda: gpu.coord_median(models, equal, out)
    yield "coordmedian", "triton", "unequal", once, lambda: gpu.coord_median(models, unequal, out)
    yield "coordmedian", "torch.stack", "equal", once, lambda: torch.stack(models).median(0).values
    yield "trimmedmean", "triton", "equal", once, lambda: gpu.trimmed_mean(models, equal, out, trim=0.2)
    yield "trimmedmean", "triton", "unequal", once, lambda: gpu.trimmed_mean(models, unequal, out, trim=0.2)
    yield "geomedian", "triton", "equal", twice, lambda: gpu.geometric_median(models, equal, out)
    yield "geomedian", "torch, 10 steps", "equal", twice, lambda: torch_geometric_median(models, equal, out, 10)


def torch_mean(models: Sequence[torch.Tensor], weights: Sequence[float], out: torch.Tensor) -> torch.Tensor:
    total = sum(weights)
    torch.mul(models[0], weights[0] / total, out=out)
    for model, weight in zip(models[1:], weights[1:], strict=True):
        out.add_(model, alpha=weight / total)
    return out


def torch_geometric_median(
    models: Sequence[torch.Tensor], weights: Sequence[float], out: torch.Tensor, num_steps: int
) -> torch.Tensor:
    """Weiszfeld's iteration over the models themselves, as packages do it."""
    torch_mean(models, weights, out)
    for _ in range(num_steps):
        pulls = [weight / float((model - out).norm()) for model, weight in zip(models, weights, strict=True)]
        torch_mean(models, pulls, out)
    return out


def copy_of(size: int, like: torch.Tensor) -> Merge:
    source, target = torch.ones(2, size, dtype=like.dtype, device=like.device)
    return lambda: target.copy_(source)


def times_of(work: Merge, repeats: int) -> list[float]:
    """Without the first three: they compile, and allocate."""
    return [milliseconds(work) for _ in range(3 + repeats)][3:]


def milliseconds(work: Merge) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="Merging on a GPU, in multiples of a device copy that moves the same bytes")
    for name in ("method", "backend", "weights", "dtype", "peers", "parameters", "times copy", "ms"):
        table.add_column(name, justify="left" if name in ("method", "backend", "weights", "dtype") else "right")
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in ("method", "backend", "weights", "dtype", "num_peers")),
            f"{row['num_parameters']:,}",
            f"{row['times_copy']:.2f}",
            f"{row['merge_ms']:.3f}",
        )
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
