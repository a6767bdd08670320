"""How long the ranks of a job take to merge, beside MPI_Allreduce of the same bytes and a merge on one rank.

    python benchmarks/bench_mpi.py [--json] [--sizes 25000000 100000000] [--ranks 4] [--repeats 3] [--no-save]

Starts itself with mpiexec, on loopback. Prints a table (or JSON) and writes benchmarks/results/mpi.json. Times are the
slowest rank's, the best of the repeats; memory is the peak of the rank that needs most, in models, own one included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe, write_results
from rich.console import Console
from rich.table import Table

from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.plan import Layout, TensorSpec, place
from swarm_hpc.records import Merge, MergeMethod

ALLREDUCE = "MPI_Allreduce"
SHARDS, ONE_RANK = "shards", "gathered on one rank"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000_000, 100_000_000], help="parameters (float32)")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-save", action="store_true", help="leave results/mpi.json as it is")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        rank_main(options)
        return
    rows = [row for size in options.sizes for row in measure(size, options)]
    if not options.no_save:
        libraries = {"numpy": np.__version__, "mpi": library()}
        write_results("mpi", {"machine": describe() | libraries, "rows": rows})
    if options.json:
        print(json.dumps({"rows": rows}))
    else:
        show(rows)


def measure(size: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """One job per merge, so that each has a peak of memory of its own; Allreduce and the mean share one."""
    rows = []
    for what in ("mean", *(f"{method}:{how}" for method in ("coordmedian", "geomedian") for how in (SHARDS, ONE_RANK))):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows"
            mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(options.ranks)]
            loopback = ["-genv", "FI_PROVIDER", "tcp", "-genv", "FI_TCP_IFACE", "lo"]
            words = ["--of", f"{what}>{out}", "--sizes", str(size), "--ranks", str(options.ranks)]
            words += ["--repeats", str(options.repeats)]
            subprocess.run([*mpiexec, *loopback, sys.executable, __file__, *words], check=True)
            rows += json.loads(out.read_text())
    return rows


def library() -> str:
    words = [sys.executable, "-c", "from swarm_hpc.kernels.mpi import MPI; print(MPI.Get_library_version())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split()[:3])


def rank_main(options: argparse.Namespace) -> None:
    """What each rank does."""
    from swarm_hpc.kernels.mpi import MPI, Ranks
    from swarm_hpc.kernels.sharded import ShardedMerge

    what, _, out = options.of.partition(">")
    method, _, how = what.partition(":")
    ranks = Ranks.start(options.ranks, 600.0)
    comm = MPI.COMM_WORLD
    (size,) = options.sizes
    layout = place([TensorSpec("weight", "F32", (size,))])
    blob = memoryview(bytearray(layout.size_bytes))
    values = np.frombuffer(blob[len(layout.header) :], np.float32)
    fill(values, ranks.rank)
    weights = [float(1 + rank) for rank in range(ranks.size)]
    merger = ShardedMerge(ranks, layout)
    before = status_kib("VmRSS")

    def timed(work: Callable[[], object]) -> float:
        comm.Barrier()
        start = time.perf_counter()
        work()
        return float(comm.allreduce(time.perf_counter() - start, MPI.MAX))

    def merge() -> None:
        merger.merge(Merge(method=MergeMethod(method)), weights, blob)

    if method == "mean":
        pairs = {SHARDS: merge, ALLREDUCE: lambda: comm.Allreduce(MPI.IN_PLACE, values)}
    elif how == SHARDS:
        pairs = {SHARDS: merge}
    else:
        pairs = {ONE_RANK: on_one_rank(comm, layout, Merge(method=MergeMethod(method)), weights, blob)}
    peaks = {}
    for name, work in pairs.items():
        timed(work)
        grown = status_kib("VmHWM") - before + layout.size_bytes / 1024
        peaks[name] = comm.allreduce(grown * 1024 / layout.size_bytes, MPI.MAX)
    # in turn, so that all see the same load of the machine
    times = [{name: timed(work) for name, work in pairs.items()} for _ in range(options.repeats)]
    rows = [
        {
            "method": method,
            "how": name,
            "num_ranks": ranks.size,
            "num_parameters": size,
            "dtype": "F32",
            "seconds": round(min(taken[name] for taken in times), 4),
            "times_allreduce": round(min(taken[name] for taken in times) / min(taken[ALLREDUCE] for taken in times), 3)
            if method == "mean"
            else None,
            # Allreduce comes after the mean, whose peak it would have as well
            "peak_models": None if name == ALLREDUCE else round(peaks[name], 3),
        }
        for name in pairs
    ]
    if ranks.rank == 0:
        Path(out).write_text(json.dumps(rows))
    ranks.close()


def on_one_rank(comm, layout: Layout, rule: Merge, weights: list[float], blob: memoryview) -> Callable[[], None]:
    """What shards are compared with: rank 0 collects all models, merges, and gives all the result."""
    from swarm_hpc.kernels.mpi import MPI

    root = comm.rank == 0
    out = memoryview(bytearray(layout.size_bytes if root else 0))
    models = [memoryview(bytearray(layout.size_bytes)) for _ in range(comm.size - 1)] if root else []

    def work() -> None:
        if root:
            for request in [comm.Irecv([model, MPI.BYTE], rank) for rank, model in enumerate(models, 1)]:
                wait(request)
            cpu.merge(layout, rule, [blob, *models], weights, out)
            blob[:] = out
        else:
            wait(comm.Isend([blob, MPI.BYTE], 0))
        wait(comm.Ibcast([blob, MPI.BYTE], 0))

    return work


def wait(request) -> None:
    """With pauses: ranks that spin would take the cores from the one that merges."""
    while not request.Test():
        time.sleep(0.0005)


def fill(values: np.ndarray, rank: int) -> None:
    """The same model at all ranks, give or take what training changes; in pieces, so that the peak is the merge's."""
    for start in range(0, len(values), 1 << 20):
        piece = values[start : start + (1 << 20)]
        piece[:] = np.random.default_rng(start).standard_normal(len(piece), np.float32)
        piece += np.float32(0.05) * np.random.default_rng([start, rank]).standard_normal(len(piece), np.float32)


def status_kib(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(field)))


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="Merging across the ranks of a job")
    for name in ("method", "how", "ranks", "parameters", "ms", "times Allreduce", "peak, models"):
        table.add_column(name, justify="left" if name in ("method", "how") else "right")
    for row in rows:
        table.add_row(
            str(row["method"]),
            str(row["how"]),
            str(row["num_ranks"]),
            f"{row['num_parameters']:,}",
            f"{1000 * float(str(row['seconds'])):.0f}",
            str(row["times_allreduce"] or ""),
            str(row["peak_models"] or ""),
        )
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
