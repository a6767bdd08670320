"""A long run of the shared ledger on four sites, while geth or CometBFT of one site at a time is killed with -9.

    python benchmarks/soak_ledger.py [--blocks 20000] [--minutes 0] [--seed 1] [--json] [--no-save]

Every site writes for itself. Afterwards all sites must have the same blocks, one per height, and every transaction that
was confirmed. Prints what was found and writes benchmarks/results/soak_ledger.json; exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ledger_lab import GethNetwork, LabSite, disk_bytes, found, network, rss_mib, until
from machine import describe, write_results
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.errors import SwarmError
from swarm_hpc.sn.ledger import Ledger

BLOCKS_PER_CALL = 20
SAMPLE_S = 5.0
PAUSE_S = 10.0
BACK_S = 120.0
END_S = 300.0


class Recorder(BaseProvider):
    """A site's provider that remembers every receipt which it has handed out: these transactions are confirmed."""

    def __init__(self, site: LabSite, confirmed: dict[str, str]) -> None:
        super().__init__()
        self._provider, self._confirmed = site.provider(), confirmed

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        answer = self._provider.make_request(method, params)
        receipt: Any = answer.get("result")
        if method == "eth_getTransactionReceipt" and receipt:
            self._confirmed[receipt["transactionHash"]] = receipt["blockHash"]
        return answer

    def halted(self) -> str:
        return self._provider.halted()


@dataclass
class Soak:
    """What happens during the run."""

    net: GethNetwork
    chance: random.Random
    confirmed: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    back_s: list[float] = field(default_factory=list)
    rss: dict[str, list[float]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def write(self, site: LabSite, ledger: Ledger) -> None:
        """One site's writer: a transaction after the other until the end."""
        try:
            while not self.over.is_set():
                try:
                    ledger.register_node(f"{site.name}/sl/sl-1", "", "i")
                except SwarmError as exc:
                    self.refused[type(exc).__name__] += 1
                    self.over.wait(0.2)
        finally:
            site.close()

    def kill_one(self) -> None:
        """Kill a program of one site at a random moment and wait until the site is in step again."""
        self.over.wait(self.chance.uniform(0.0, PAUSE_S))
        site, what = self.chance.choice(self.net.sites), self.chance.choice(("geth", "cometbft", "both"))
        for program in ("geth", "cometbft") if what == "both" else (what,):
            self.net.kill(site, program)
        self.kills[what] += 1
        start = time.monotonic()
        until(lambda: self._is_behind_by(site) <= 1, f"{site.name} after the kill of {what}", BACK_S)
        self.back_s.append(time.monotonic() - start)

    def _is_behind_by(self, site: LabSite) -> int:
        others = [one.consensus.height for one in self.net.sites if one is not site]
        try:
            height = int(site.consensus.comet.call("status", timeout_s=2.0)["sync_info"]["latest_block_height"])
        except SwarmError:
            return sys.maxsize
        is_connected = site.is_up and not site.consensus.missing()
        return max(others) - height if is_connected else sys.maxsize

    def sample(self) -> None:
        """Memory of all processes, until the end. A killed program starts small again."""
        while not self.over.wait(SAMPLE_S):
            self.rss.setdefault("ours (all sites)", []).append(rss_mib(os.getpid()))
            for site in self.net.sites:
                for program, pid in site.consensus.pids().items():
                    try:
                        self.rss.setdefault(program, []).append(rss_mib(pid or 0))
                    except (ProcessLookupError, ValueError, OSError, KeyError, SystemError):
                        continue
                    except Exception as exc:  # psutil's own: the process was just killed
                        if type(exc).__name__ not in ("NoSuchProcess", "ZombieProcess", "AccessDenied"):
                            raise


def run(num_blocks: int, minutes: float, seed: int) -> dict[str, Any]:
    with network(4) as net:
        soak = Soak(net, random.Random(seed))
        ledgers = found(net, lambda site: Recorder(site, soak.confirmed))
        threads = [
            threading.Thread(target=soak.write, args=pair, name=f"writer-{pair[0].name}")
            for pair in zip(net.sites, ledgers, strict=True)
        ]
        threads.append(threading.Thread(target=soak.sample, name="sampler"))
        start = time.monotonic()
        disk_before, first = disk_bytes(net.sites[0].folder), net.sites[0].block_number()
        for thread in threads:
            thread.start()
        try:
            while max(site.consensus.height for site in net.sites) < num_blocks:
                if minutes and time.monotonic() - start > 60 * minutes:
                    break
                soak.kill_one()
        finally:
            soak.over.set()
            for thread in threads:
                thread.join()
        seconds = time.monotonic() - start
        faults = checked(net, soak.confirmed)
        site = net.sites[0]
        blocks = site.block_number() - first
        return {
            "blocks": site.block_number(),
            "comet_heights": site.consensus.height,
            "minutes": round(seconds / 60, 1),
            "blocks_per_s": round(blocks / seconds, 2),
            "confirmed": len(soak.confirmed),
            "not_confirmed": dict(soak.refused),
            "kills": dict(soak.kills),
            "back_after_s": {"p50": _middle(soak.back_s), "max": round(max(soak.back_s, default=0.0), 1)},
            "disk_mib": {"first": disk_before >> 20, "last": disk_bytes(site.folder) >> 20},
            "rss_mib": {name: _growth(values) for name, values in soak.rss.items()},
            "faults": faults,
        }


def checked(net: GethNetwork, confirmed: dict[str, str]) -> list[str]:
    """What is not as it has to be: empty where all is well."""
    newest = max(site.consensus.height for site in net.sites)
    for site in net.sites:
        until(partial(_is_at, site, newest), f"{site.name} at height {newest}", END_S)
    net.await_height(max(site.block_number() for site in net.sites))
    faults = []
    first, *others = net.sites
    chains = {site.name: _block_hashes(site) for site in net.sites}
    decided = {site.name: _comet_hashes(site) for site in net.sites}
    for site in others:
        for kind, found_ in (("geth's", chains), ("CometBFT's", decided)):
            ours, theirs = found_[first.name], found_[site.name]
            if len(ours) != len(theirs):
                faults.append(f"{kind} height: {len(ours)} at {first.name}, {len(theirs)} at {site.name}")
            at = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
            if at is not None:
                faults.append(f"{kind} block {at} differs between {first.name} and {site.name}")
    for site in net.sites:
        lost = [one for one, block in confirmed.items() if _block_of(site, one) != block]
        if lost:
            faults.append(f"{len(lost)} of {len(confirmed)} confirmed transactions are not at {site.name}: {lost[:3]}")
    return faults


def _is_at(site: LabSite, height: int) -> bool:
    return site.is_up and site.consensus.height >= height


def _block_hashes(site: LabSite) -> list[str]:
    call, newest = site.consensus.geth.call, site.block_number()
    return [call("eth_getBlockByNumber", hex(number), False)["hash"] for number in range(newest + 1)]


def _comet_hashes(site: LabSite) -> list[str]:
    found_: list[str] = []
    newest = site.consensus.height
    while len(found_) < newest:
        low = len(found_) + 1
        high = min(newest, low + BLOCKS_PER_CALL - 1)
        page = site.consensus.comet.call("blockchain", minHeight=str(low), maxHeight=str(high))["block_metas"]
        found_ += [meta["block_id"]["hash"] for meta in reversed(page)]
    return found_


def _block_of(site: LabSite, digest: str) -> str:
    receipt = site.consensus.geth.call("eth_getTransactionReceipt", digest)
    return str(receipt["blockHash"]) if receipt else ""


def _middle(values: list[float]) -> float:
    return round(sorted(values)[len(values) // 2], 1) if values else 0.0


def _growth(values: list[float]) -> dict[str, float]:
    """The middle of the first and of the last tenth of the run."""
    tenth = max(1, len(values) // 10)
    return {"first": _middle(values[:tenth]), "last": _middle(values[-tenth:]), "max": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20_000, help="end after so many blocks")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after so long in any case; 0: never")
    parser.add_argument("--seed", type=int, default=1, help="which kills")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--no-save", action="store_true", help="leave results/soak_ledger.json as it is")
    options = parser.parse_args()
    # Each kill is warned of.
    logging.getLogger("swarm_hpc").setLevel(logging.ERROR)
    result = {"benchmark": "soak_ledger", "machine": describe(), "seed": options.seed}
    result |= run(options.blocks, options.minutes, options.seed)
    if not options.no_save:
        write_results("soak_ledger", result)
    lines = (f"{name:22}{value}" for name, value in result.items())
    print(json.dumps(result, indent=2) if options.json else "\n".join(lines))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
