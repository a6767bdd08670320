"""Rounds over links of a limited speed: merged by a leader or in shards, with exact parameters or rounded differences.

    python benchmarks/bench_links.py [--nodes 4,8] [--millions 25] [--mbit 1000] [--methods mean,geomedian]
        [--ways leader,sharded,bf16,int8] [--rounds 3] [--json] [--no-save]

Takes root: each SL node has a network namespace of its own with one link, which tc limits in both directions. All
nodes are on this host, so its cores are shared by what N hosts would do at the same time: `CPU s` says how long they
were busy in a round, and where that is near `cores` times the seconds of the round, the cores were the limit and not
the links. Parameters are float32 and travel from SL to SL (transfer.mode=direct). Figures are medians over the rounds
but the first two, in which each node touches new memory. A round takes from when the last node has the merged
parameters of the round before until the last one has this round's; no training is between them. Models (of float32)
sent and received are those of the node that sends or receives most, whatever else the link carried included; so are
seconds of phases. Of `bf16` and `int8` (merge.wire, with a leader) only rounds with differences are measured, not the
whole ones between. Writes benchmarks/results/links.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from limited_links import switched
from machine import describe, write_results
from rich.console import Console
from rich.table import Table
from rounds import Case, run

from swarm_hpc.config import MergeConfig, TransferMode
from swarm_hpc.records import MergeMethod, MergePlan, Wire

UNCOUNTED = 2
"""First rounds, which touch new memory."""
PHASES = ("hash", "offer", "fetch", "merge", "load")
WAYS = {
    "leader": {"plan": MergePlan.LEADER},
    "sharded": {"plan": MergePlan.SHARDED},
    "bf16": {"wire": Wire.BF16, "whole_every": 1000},
    "int8": {"wire": Wire.INT8, "whole_every": 1000},
}
RUN_S = 1800.0


def measure(way: str, method: MergeMethod, num_nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row."""
    sites = [f"site{number}" for number in range(num_nodes)]
    with (
        tempfile.TemporaryDirectory(prefix="bench-links-") as root,
        switched(num_nodes, options.mbit) as (switch, hosts),
    ):
        case = Case(
            sites=sites,
            num_parameters=int(options.millions * 1e6),
            num_rounds=options.rounds + UNCOUNTED,
            mode=TransferMode.DIRECT,
            timeout_s=RUN_S,
            merge=MergeConfig(method=method, **WAYS[way]),
            hosts=dict(zip(sites, hosts, strict=True)),
            sn_host=switch,
        )
        seen, _ = run(case, Path(root) / "run")
    told = {"way": way, "method": method.value, "nodes": num_nodes, "num_parameters": case.num_parameters}
    return told | {"rate_mbit": options.mbit} | figures(list(seen.values()), case.num_parameters * 4)


def figures(nodes: list[list[dict[str, Any]]], model_bytes: int) -> dict[str, Any]:
    """Medians over the rounds that count."""
    rounds = list(zip(*nodes, strict=True))
    later = list(itertools.pairwise(rounds))[UNCOUNTED - 1 :]

    def taken(phase: str) -> float:
        return statistics.median(max(one.get(phase, 0.0) for one in after) for _, after in later)

    def grown(name: str) -> float:
        """Of what each node counts from its start on."""
        return statistics.median(max(b[name] - a[name] for a, b in zip(*pair, strict=True)) for pair in later)

    ends = [(max(one["at"] for one in before), max(one["at"] for one in after)) for before, after in later]
    return {
        "round_s": round(statistics.median(after - before for before, after in ends), 3),
        "sent_models": round(grown("sent") / model_bytes, 3),
        "received_models": round(grown("received") / model_bytes, 3),
        "busy_s": round(grown("busy"), 2),
        "phases": {phase: round(taken(phase), 3) for phase in PHASES},
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="A round: medians over rounds, most at any node")
    names = ("way", "method", "nodes", "M params", "Mbit/s", "round s", "models sent", "models received", "CPU s")
    for name in (*names, *(f"{phase} s" for phase in PHASES)):
        table.add_column(name, justify="left" if name in ("way", "method") else "right")
    for row in rows:
        table.add_row(
            row["way"],
            row["method"],
            str(row["nodes"]),
            f"{row['num_parameters'] / 1e6:g}",
            str(row["rate_mbit"]),
            f"{row['round_s']:.2f}",
            f"{row['sent_models']:.2f}",
            f"{row['received_models']:.2f}",
            f"{row['busy_s']:.1f}",
            *(f"{row['phases'][phase]:.2f}" for phase in PHASES),
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="4,8", help="numbers of SL nodes")
    parser.add_argument("--millions", type=float, default=25.0, help="millions of parameters")
    parser.add_argument("--mbit", type=int, default=1000, help="speed of each node's link, in Mbit/s per direction")
    parser.add_argument("--methods", default="mean,geomedian", help="methods to merge by")
    parser.add_argument("--ways", default=",".join(WAYS), help="plans and wire formats")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, per swarm")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--no-save", action="store_true", help="leave results/links.json as it is")
    options = parser.parse_args()
    rows = []
    for nodes in map(int, options.nodes.split(",")):
        for method in map(MergeMethod, options.methods.split(",")):
            for way in options.ways.split(","):
                print(f"{nodes} nodes, {method}, {way}", file=sys.stderr, flush=True)
                rows.append(measure(way, method, nodes, options))
    if not options.no_save:
        write_results("links", {"machine": describe(), "rows": rows})
    print(json.dumps({"rows": rows})) if options.json else show(rows)


if __name__ == "__main__":
    main()
