"""What the ledger costs: embedded beside eth-tester (py-evm) on the same calls, and geth on networks of real sites.

    python benchmarks/bench_ledger.py [--json] [--quick] [--rounds 30] [--sites 4,7] [--no-save]

Prints a table (or JSON) and writes benchmarks/results/ledger.json with the machine and the commit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_tester import EthereumTester, PyEVMBackend
from machine import describe, write_results
from shared_ledger import CONTRACT, MODEL, NUM_NODES, QUICK, Size, bench
from web3 import EthereumTesterProvider

from swarm_hpc.config import LedgerConfig
from swarm_hpc.records import CheckIn, Platform
from swarm_hpc.sn.ledger import JOURNAL, Founder, Ledger

FOUNDER = Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa")


class Timer:
    """Collects how long each kind of call took."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def summary(self) -> dict[str, dict[str, float]]:
        return {name: percentiles(values) for name, values in self.seconds.items()}


def percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {
        "p50_ms": round(1000 * statistics.median(seconds), 2),
        "p95_ms": round(1000 * cuts[18], 2),
        "n": len(seconds),
    }


def set_up(ledger: Ledger) -> list[str]:
    ledger.create_contract(CONTRACT)
    nodes = [f"alpha/sl/sl-{i}" for i in range(NUM_NODES)]
    for node in nodes:
        ledger.register_node(node, "", "i")
        ledger.join("bench", node, 1, Platform.PYTORCH, MODEL)
    return nodes


def run_rounds(ledger: Ledger, num_rounds: int) -> dict[str, dict[str, float]]:
    """Rounds of four nodes, as SLs run them: every one checks in and looks, one claims and publishes."""
    nodes, timer = set_up(ledger), Timer()

    def one_round(number: int) -> None:
        for node in nodes:
            entry = CheckIn(node=node, blob=f"{number:064x}", weight=1, loss=0.5, metric=0.9, epoch=number)
            timer("check_in", lambda entry=entry: ledger.check_in("bench", number, 1, entry))
            timer("round (view)", lambda: ledger.round("bench", number))
        timer("claim", lambda: ledger.claim("bench", number, nodes[0], 1))
        timer("publish", lambda: ledger.publish("bench", number, nodes[0], 1, f"{number:064x}"))

    for number in range(1, num_rounds + 1):
        timer(f"whole round, {NUM_NODES} nodes", lambda number=number: one_round(number))
        cursor = ledger.cursor()
        timer("events (none new)", lambda cursor=cursor: ledger.events(cursor, contract="bench"))
    return timer.summary()


def bench_embedded(num_rounds: int, num_transactions: int) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp(prefix="bench-ledger-"))
    try:
        with Ledger.open(LedgerConfig(), folder, found=FOUNDER) as ledger:
            calls = run_rounds(ledger, num_rounds)
            start = time.perf_counter()
            for _ in range(num_transactions):
                ledger.register_node("alpha/sl/sl-0", "", "i")
            per_s = num_transactions / (time.perf_counter() - start)
            blocks = ledger.status().blocks
        start = time.perf_counter()
        Ledger.open(LedgerConfig(), folder, found=None).close()
        reopen_s = time.perf_counter() - start
        size = (folder / JOURNAL).stat().st_size
    finally:
        shutil.rmtree(folder)
    return {
        "calls": calls,
        "registrations_per_s": round(per_s, 1),
        "blocks": blocks,
        "reopen_s": round(reopen_s, 3),
        "replay_blocks_per_s": round(blocks / reopen_s, 1),
        "journal_bytes_per_block": round(size / blocks),
    }


def bench_eth_tester(num_rounds: int) -> dict[str, object]:
    backend = PyEVMBackend()
    account = Account.from_key(backend.account_keys[0].to_bytes())
    provider = EthereumTesterProvider(EthereumTester(backend))
    return {"calls": run_rounds(Ledger(provider, account, kind="eth-tester", found=FOUNDER), num_rounds)}


def bench_geth(num_sites: list[int], size: Size) -> dict[str, object]:
    return {f"{num} sites": bench(num, size) for num in num_sites}


def lines_of(value: Any, indent: str = "") -> list[str]:
    """Nested figures, one a line."""
    lines = []
    for name, one in value.items():
        if isinstance(one, dict) and any(isinstance(each, dict) for each in one.values()):
            lines += [f"{indent}{name}", *lines_of(one, indent + "  ")]
        else:
            shown = "  ".join(f"{key} {each}" for key, each in one.items()) if isinstance(one, dict) else one
            lines.append(f"{indent + name:40}{shown}")
    return lines


def table(result: dict[str, Any]) -> str:
    embedded, tester = result["embedded"], result["eth_tester"]
    lines = [f"{'':26}{'embedded':>20}{'eth-tester':>20}", f"{'':26}{'p50 / p95 ms':>20}{'p50 / p95 ms':>20}"]
    for name, ours in embedded["calls"].items():
        cells = [f"{one['p50_ms']:.1f} / {one['p95_ms']:.1f}" for one in (ours, tester["calls"][name])]
        lines.append(f"{name:26}{cells[0]:>20}{cells[1]:>20}")
    for name in ("registrations_per_s", "blocks", "reopen_s", "replay_blocks_per_s", "journal_bytes_per_block"):
        lines.append(f"{name:26}{embedded[name]!s:>20}")
    lines += lines_of(result["geth"])
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of four nodes on the embedded ledger")
    parser.add_argument("--transactions", type=int, default=300, help="as many in a row, for the rate and the replay")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-save", action="store_true", help="leave results/ledger.json as it is")
    parser.add_argument("--sites", default="4,7", help="sizes of the geth networks, as 4,7; empty for none")
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that it works, figures are rough")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.transactions = 5, 50
    num_sites = [int(word) for word in options.sites.split(",") if word]
    result = {
        "benchmark": "ledger",
        "machine": describe(),
        "embedded": bench_embedded(options.rounds, options.transactions),
        "eth_tester": bench_eth_tester(max(3, options.rounds // 5)),
        "geth": bench_geth(num_sites, QUICK if options.quick else Size()),
    }
    if not options.no_save:
        write_results("ledger", result)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
