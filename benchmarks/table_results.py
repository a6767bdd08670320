"""The examples' results over several seeds and all merge methods, from real swarms: the tables of docs/results.md.

    python benchmarks/table_results.py [--experiment digits] [--seeds 0-4] [--output docs/results-digits.md]
        [--merges 'mean,mean wire=bf16,mean wire=int8']

Takes about half a minute per digits swarm and a minute per thyroid swarm on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MERGES = "mean,coordmedian,geomedian"


def run(experiment: str, seed: int, merge: str, run_dir: Path, *, baselines: bool) -> dict[str, Any]:
    """One `swarm-hpc local`, with the sites alone and the pooled data or without."""
    method, *words = merge.split()
    settings = [f"experiment={experiment}", f"seed={seed}", f"merge={method}", f"run_dir={run_dir}"]
    settings += [f"baselines={'true' if baselines else 'false'}", *(f"merge.{word}" for word in words)]
    command = [sys.executable, "-m", "swarm_hpc.cli", "local", *settings, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def rows_of(experiment: str, seeds: range, merges: list[str]) -> list[dict[str, Any]]:
    """A row per seed: each site alone, the worst and best site of each merge, pooled."""
    rows = []
    for seed in seeds:
        row: dict[str, Any] = {"seed": seed}
        for merge in merges:
            first = merge == merges[0]
            with tempfile.TemporaryDirectory(prefix="results-") as folder:
                summary = run(experiment, seed, merge, Path(folder) / "run", baselines=first)
            swarm = [site["swarm"] for site in summary["sites"]]
            row[merge] = {"min": min(swarm), "max": max(swarm)}
            if first:
                row |= {"alone": {s["site"]: s["alone"] for s in summary["sites"]}, "pooled": summary["pooled"]}
            print(f"{experiment} seed {seed} {merge}: {min(swarm):.3f} in {summary['seconds']} s", file=sys.stderr)
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], merges: list[str]) -> str:
    """The table, and the largest distance of any site in the swarm from pooled."""
    sites = list(rows[0]["alone"])
    head = ["seed", *sites, *merges, "pooled"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        cells = [row["alone"][site] for site in sites] + [row[merge]["min"] for merge in merges] + [row["pooled"]]
        lines.append(f"| {row['seed']} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    gap = max(row["pooled"] - row[merge]["min"] for row in rows for merge in merges)
    best = max(max(row["alone"].values()) for row in rows)
    lines += ["", f"Best site alone {best:.3f}; most that any site in any swarm stays below pooled: {gap:.3f}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument("--seeds", default="0-4", help="first-last")
    parser.add_argument("--merges", default=MERGES, help="separated by commas; a method, then settings of the merge")
    parser.add_argument("--output", type=Path, help="file for the table; stdout by default")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object instead")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    merges = options.merges.split(",")
    rows = rows_of(options.experiment, range(int(first), int(last or first) + 1), merges)
    text = json.dumps({"experiment": options.experiment, "rows": rows}) if options.json else markdown(rows, merges)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
