"""The peak memory of a merge of whole blobs, in models, inputs and result included, by the kernel's own count.

    python benchmarks/bench_memory.py [--peers 4] [--mib 400] [--json]

Each case is a process of its own: the growth of its peak resident set (VmHWM) from before the blobs are there. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from machine import describe, write_results
from rich.console import Console
from rich.table import Table

from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import Merge, MergeMethod


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--mib", type=int, default=400, help="size of the parameters")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(peak_of(MergeMethod(options.case), options.peers, options.mib << 20))
        return
    rows = []
    for method in MergeMethod:
        words = ["--case", method, "--peers", str(options.peers), "--mib", str(options.mib)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        models = float(done.stdout)
        rows.append(
            {
                "method": str(method),
                "num_peers": options.peers,
                "mib": options.mib,
                "peak_models": round(models, 3),
                "beyond_inputs_and_result_percent": round(100 * (models / (options.peers + 1) - 1), 2),
            }
        )
    write_results("memory", {"machine": describe() | {"native": cpu.backends()[-1].name}, "rows": rows})
    print(json.dumps({"rows": rows})) if options.json else show(rows)


def peak_of(method: MergeMethod, num_peers: int, size: int) -> float:
    """Models at the peak."""
    layout = place([TensorSpec("weight", "F32", (size // 4,))])
    cpu.backends()
    before = peak_bytes()
    blobs = [bytearray(layout.size_bytes) for _ in range(num_peers)]
    chance = np.random.default_rng(0)
    for blob in blobs:
        blob[: len(layout.header)] = layout.header
        values = np.frombuffer(blob, np.float32, size // 4, layout.tensors[0].start)
        for start in range(0, len(values), 1 << 20):
            values[start : start + (1 << 20)] = chance.standard_normal(
                len(values[start : start + (1 << 20)]), np.float32
            )
    out = memoryview(bytearray(layout.size_bytes))
    cpu.merge(layout, Merge(method=method), blobs, [1.0] * num_peers, out, threads=cpu.usable_threads())
    return (peak_bytes() - before) / layout.size_bytes


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="Peak memory of a merge")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "method" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(file=sys.stdout, width=100).print(table)


if __name__ == "__main__":
    main()
