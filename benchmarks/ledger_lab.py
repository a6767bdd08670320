"""Real geth networks for the ledger's benchmarks: the tests' own, and what its processes and folders weigh."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from web3.providers.base import BaseProvider

# Beside site-packages' `tests`, the project's own is not found by that name.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab.geth import CONFIG, GethNetwork, LabSite, account, contract_address, until

from swarm_hpc.sn.consensus import Programs
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.programs import find_program

__all__ = ["CONFIG", "GethNetwork", "LabSite", "found", "network", "until"]

MIB = 1 << 20


@contextmanager
def network(num_sites: int, **settings: Any) -> Iterator[GethNetwork]:
    """A network of validators in a temporary folder."""
    programs = Programs(**{name: find_program(name, "", os.environ) for name in ("geth", "cometbft")})
    folder = Path(tempfile.mkdtemp(prefix="bench-geth-"))
    try:
        with GethNetwork(folder, programs, num_sites, **settings) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def found(
    net: GethNetwork, wrapped: Callable[[LabSite], BaseProvider] = LabSite.provider, *, first_account: int = 0
) -> list[Ledger]:
    """A fresh contract set whose members are all sites of the network: each site's ledger, through its own geth."""
    accounts = [account(first_account + number) for number in range(len(net.sites))]
    geth = net.sites[0].consensus.geth
    nonce = int(geth.call("eth_getTransactionCount", accounts[0].address, "latest"), 16)
    registry = contract_address(accounts[0].address, nonce)
    founder = Founder(site=net.sites[0].name, endpoint="a:1", ca_fingerprint="aa" * 32)
    ledgers: list[Ledger] = []
    for site, one in zip(net.sites, accounts, strict=True):
        for member in ledgers:
            member.vote(site.name, one.address, f"{site.name}:1", "aa" * 32, True)
        net.await_height(net.sites[0].block_number())
        ledgers.append(Ledger(wrapped(site), one, kind="geth", found=founder, registry=registry))
    return ledgers


def rss_mib(pid: int) -> float:
    """Memory that the process has in use."""
    return round(psutil.Process(pid).memory_info().rss / MIB, 1)


def cpu_s(pid: int) -> float:
    """Processor time that the process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def disk_bytes(folder: Path) -> int:
    """Room that the folder's files take up on disk."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_blocks * 512
        except FileNotFoundError:  # its program has just removed it
            continue
    return total
