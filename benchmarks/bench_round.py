"""What a round costs beside training: hand-off, transfer, ledger and merge, with 4 SL nodes and one SN on this host.

    python benchmarks/bench_round.py [--sizes 1,25,100] [--rounds 3] [--transfer gateway] [--json]

Sizes are millions of float32 parameters. The first round of each size is left out: it touches new memory. Figures are
medians over the other rounds, in seconds: `leader` of the node that merged, `others` of the rest. The peers of the
hand-off are measured in the same run: pickle to a file and back (how HPE's client hands parameters over), and a plain
copy.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe, write_results
from rich.console import Console
from rich.table import Table
from rounds import Case, run

from swarm_hpc.config import TransferMode
from swarm_hpc.local.swarm import sl_name

SITES = ("alpha", "beta", "gamma", "delta")
PHASES = ("handoff", "hash", "offer", "ledger", "wait", "fetch", "merge", "load", "sync")


def rows_of(millions: int, seen: dict[str, list[dict]], leaders: dict[int, str]) -> list[dict]:
    """One row for leaders, one for the others: medians per phase."""
    by_role: dict[str, list[dict]] = {"leader": [], "others": []}
    for site, rounds in seen.items():
        for one in rounds[1:]:
            by_role["leader" if leaders[one["round"]] == str(sl_name(site)) else "others"].append(one)
    return [
        {"millions": millions, "role": role}
        | {phase: statistics.median(one.get(phase, 0.0) for one in rounds) for phase in PHASES}
        for role, rounds in by_role.items()
        if rounds
    ]


def handoff_peers(folder: Path, millions: int) -> dict[str, float]:
    """Seconds to hand the same parameters over, both ways: by a plain copy, and by pickle to a file and back."""
    values = np.ones(millions * 1_000_000, np.float32)
    other = np.zeros_like(values)
    copies, pickles = [], []
    for _ in range(3):
        begun = time.monotonic()
        other[:] = values
        values[:] = other
        copies.append(time.monotonic() - begun)
        begun = time.monotonic()
        for _ in range(2):
            with (folder / "weights.pkl").open("wb") as file:
                pickle.dump({"w": values}, file, protocol=pickle.HIGHEST_PROTOCOL)
            with (folder / "weights.pkl").open("rb") as file:
                other = pickle.load(file)["w"]
        pickles.append(time.monotonic() - begun)
    (folder / "weights.pkl").unlink()
    return {"copy": statistics.median(copies), "pickle": statistics.median(pickles)}


def show(rows: list[dict], peers: dict[int, dict[str, float]]) -> None:
    table = Table(title="One round, 4 SL nodes on one host (median seconds)")
    for column in ("M params", "node", *PHASES):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["millions"]), row["role"], *(f"{row[phase]:.3f}" for phase in PHASES))
    console = Console(width=120)
    console.print(table)
    for millions, seconds in peers.items():
        console.print(
            f"hand-off of {millions} M both ways: plain copy {seconds['copy']:.3f} s, pickle {seconds['pickle']:.3f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,25,100", help="millions of parameters")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, per size")
    parser.add_argument("--transfer", type=TransferMode, default=TransferMode.GATEWAY, choices=list(TransferMode))
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options = parser.parse_args()
    rows, peers = [], {}
    for millions in map(int, options.sizes.split(",")):
        print(f"{millions} M parameters, {options.transfer}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-round-") as root:
            case = Case(
                sites=SITES,
                num_parameters=millions * 1_000_000,
                num_rounds=options.rounds + 1,
                mode=options.transfer,
                timeout_s=900.0,
            )
            seen, leaders = run(case, Path(root) / "run")
            peers[millions] = handoff_peers(Path(root), millions)
        rows += rows_of(millions, seen, leaders)
    results = {"machine": describe(), "transfer": options.transfer.value, "rows": rows, "handoff_peers": peers}
    write_results("round" if options.transfer is TransferMode.GATEWAY else f"round-{options.transfer}", results)
    if options.json:
        print(json.dumps(results))
    else:
        show(rows, peers)


if __name__ == "__main__":
    main()
