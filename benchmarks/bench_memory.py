"""The peak memory of a leader's merge, in models, own parameters and result included, by the kernel's own count.

    python benchmarks/bench_memory.py [--peers 4] [--mib 400] [--json]

Of whole blobs in memory, and, where the method can, of peers' blobs that arrive meanwhile (from files here). Each case
is a process of its own: the growth of its peak resident set (VmHWM) from before any blob is there. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from machine import describe, write_results
from models import fill, layout_of
from rich.console import Console
from rich.table import Table

from swarm_hpc.kernels import cpu
from swarm_hpc.records import CheckIn, Merge, MergeMethod
from swarm_hpc.sl.streaming import Stream, can_stream
from swarm_hpc.transport.blobs import Sink, hash_bytes

WHOLE: Final = "whole"
STREAMED: Final = "streamed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--mib", type=int, default=400, help="size of the parameters")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        method, _, how = options.case.partition(":")
        print({WHOLE: peak_of_whole, STREAMED: peak_of_streamed}[how](MergeMethod(method), options.peers, options.mib))
        return
    cases = [(method, how) for how in (WHOLE, STREAMED) for method in MergeMethod]
    rows = [
        measure(method, how, options.peers, options.mib)
        for method, how in cases
        if how == WHOLE or can_stream(Merge(method=method))
    ]
    write_results("memory", {"machine": describe() | {"native": cpu.backends()[-1].name}, "rows": rows})
    print(json.dumps({"rows": rows})) if options.json else show(rows)


def measure(method: MergeMethod, how: str, num_peers: int, mib: int) -> dict[str, object]:
    """A row: `beyond_percent` is what is needed beside all models, or beside the own one, and the result."""
    words = ["--case", f"{method}:{how}", "--peers", str(num_peers), "--mib", str(mib)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    models, least = float(done.stdout), num_peers + 1 if how == WHOLE else 2
    return {
        "method": str(method),
        "how": how,
        "num_peers": num_peers,
        "mib": mib,
        "peak_models": round(models, 3),
        "beyond_percent": round(100 * (models / least - 1), 2),
    }


def peak_of_whole(method: MergeMethod, num_peers: int, mib: int) -> float:
    """Models at the peak, where all are in memory before they are merged."""
    layout = layout_of(mib)
    cpu.backends()
    before = peak_bytes()
    blobs = [bytearray(layout.size_bytes) for _ in range(num_peers)]
    for number, blob in enumerate(blobs):
        fill(layout, memoryview(blob), number)
    out = memoryview(bytearray(layout.size_bytes))
    cpu.merge(layout, Merge(method=method), blobs, [1.0] * num_peers, out, threads=cpu.usable_threads())
    return (peak_bytes() - before) / layout.size_bytes


class Files:
    """The peers, as files: what `Stream` asks of an exchange."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    async def stream(self, blob: str, holders: Iterable[str], sink: Sink) -> None:
        await asyncio.to_thread(self._send, blob, sink)

    def _send(self, blob: str, sink: Sink) -> None:
        with self.files[blob].open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            sink.begin(size_bytes)
            while sink.have < size_bytes:
                sink.took(file.readinto(sink.room()))
        sink.finish()


def peak_of_streamed(method: MergeMethod, num_peers: int, mib: int) -> float:
    """Models at the peak, where the others' arrive while they are merged."""
    layout = layout_of(mib)
    cpu.backends()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number in range(1, num_peers):
            path = Path(folder) / str(number)
            with path.open("wb+") as file:
                file.truncate(layout.size_bytes)
                with mmap.mmap(file.fileno(), 0) as mapped, memoryview(mapped) as blob:
                    fill(layout, blob, number)
                    files[hash_bytes(blob)] = path
        clear_peak()
        before = peak_bytes()
        own = bytearray(layout.size_bytes)
        fill(layout, memoryview(own), 0)
        out = memoryview(bytearray(layout.size_bytes))
        check_ins = [
            CheckIn(node=f"alpha/sl/{n}", blob=blob, weight=1) for n, blob in enumerate([hash_bytes(own), *files])
        ]
        stream = Stream(Files(files), layout, Merge(method=method))
        asyncio.run(stream.merge(check_ins, {check_ins[0].blob: own}, out, lambda text: None))
        return (peak_bytes() - before) / layout.size_bytes


def clear_peak() -> None:
    """From now on the peak counts anew: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="Peak memory of a leader's merge")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name in ("method", "how") else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(file=sys.stdout, width=100).print(table)


if __name__ == "__main__":
    main()
