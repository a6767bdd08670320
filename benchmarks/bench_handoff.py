"""How long the parameters of an ML program take to where SL reads them, and back into the model, by several ways.

    python benchmarks/bench_handoff.py [--json] [--megabytes 100 400] [--repeats 5]

Prints a table (or JSON) and writes benchmarks/results/handoff.json. One thread. Files lie in memory (/dev/shm), so no
disk counts. One way: from the model's tensors into memory of the reader; an arena is read where it is. Both ways: then
back into the model's tensors.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from machine import describe, write_results
from rich.console import Console
from rich.table import Table
from timing import seconds
from torch import nn

from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.ml.pytorch import TorchModel

Way = Callable[[], object]
PICKLE = "pickle file"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-save", action="store_true", help="leave results/handoff.json as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    rows = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(prefix="handoff-", dir=memory) as folder:
            rows += measure(megabytes, Path(folder), options.repeats)
    if not options.no_save:
        libraries = {"torch": torch.__version__, "safetensors": safetensors.__version__}
        write_results("handoff", {"machine": describe() | libraries, "rows": rows})
    if options.json:
        print(json.dumps({"rows": rows}))
    else:
        show(rows)


def measure(megabytes: int, folder: Path, repeats: int) -> list[dict[str, object]]:
    """A row per way. The first pass of each is left out: it allocates."""
    model = model_of(megabytes)
    rows: list[dict[str, object]] = []
    times = {
        name: [(seconds(out), seconds(back)) for _ in range(1 + repeats)][1:]
        for name, out, back in ways_of(model, folder)
    }
    pickled = statistics.median(out for out, _ in times[PICKLE])
    for name, taken in times.items():
        one_way = statistics.median(out for out, _ in taken)
        both_ways = statistics.median(out + back for out, back in taken)
        rows.append(
            {
                "way": name,
                "megabytes": megabytes,
                "num_tensors": len(list(model.parameters())),
                "one_way_ms": round(1000 * one_way, 3),
                "both_ways_ms": round(1000 * both_ways, 3),
                "faster_than_pickle": round(pickled / one_way, 1),
            }
        )
    return rows


def model_of(megabytes: int) -> nn.Module:
    """160 tensors, as many as a ResNet-50 has: half of them small."""
    small, num_large = 2048, 80
    large = (megabytes * 1_000_000 // 4 - 80 * small) // num_large
    sizes = [size for _ in range(num_large) for size in (large, small)]
    return nn.ParameterList([torch.randn(size) for size in sizes])


def ways_of(model: nn.Module, folder: Path) -> Iterator[tuple[str, Way, Way]]:
    """(name, from the model to the reader, back into the model), to be used before the next is asked for."""
    path = folder / "model"
    received: dict[str, torch.Tensor] = {}

    def pickle_out() -> None:
        with path.open("wb") as file:
            pickle.dump(model.state_dict(), file, protocol=pickle.HIGHEST_PROTOCOL)
        with path.open("rb") as file:
            received.update(pickle.load(file))

    def torch_out() -> None:
        torch.save(model.state_dict(), path)
        received.update(torch.load(path))

    def safetensors_out() -> None:
        safetensors.torch.save_file(model.state_dict(), path)
        received.update(safetensors.torch.load_file(path))

    def load(way: Way) -> Way:
        def back() -> None:
            way()
            model.load_state_dict(received)

        return back

    yield PICKLE, pickle_out, load(pickle_out)
    yield "torch.save file", torch_out, load(torch_out)
    yield "safetensors file", safetensors_out, load(safetensors_out)
    received.clear()
    raw = np.empty(sum(parameter.nbytes for parameter in model.parameters()), np.uint8)
    yield "raw file", lambda: raw_out(model, path, raw), lambda: raw_back(model, path, raw)
    for share in (False, True):
        seen = TorchModel(model, share_memory=share)
        with Arena.create(place(*seen.describe())) as arena:
            name = "parameters in the arena" if share else "arena, copied"
            yield name, lambda: seen.write(arena), lambda: seen.read(arena)  # noqa: B023
        seen.release()


def raw_out(model: nn.Module, path: Path, buffer: np.ndarray) -> None:
    with path.open("wb", buffering=0) as file:
        for parameter in model.parameters():
            file.write(parameter.detach().numpy())
    with path.open("rb", buffering=0) as file:
        file.readinto(buffer)


def raw_back(model: nn.Module, path: Path, buffer: np.ndarray) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(buffer)
    with path.open("rb", buffering=0) as file:
        for parameter in model.parameters():
            file.readinto(parameter.detach().numpy())


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="From the ML program to SL, and back (1 thread, files in memory)")
    for name in ("way", "MB", "one way ms", "both ways ms", "times faster than pickle"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(
            str(row["way"]),
            str(row["megabytes"]),
            f"{row['one_way_ms']:.2f}",
            f"{row['both_ways_ms']:.2f}",
            f"{row['faster_than_pickle']:.1f}",
        )
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
