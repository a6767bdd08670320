"""A real network for tests and benchmarks: geth and CometBFT of several sites on loopback, without SNs and TLS.

The sites' own Registry makes them validators; who needs an empty ledger deploys a contract set of its own beside it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import rlp
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.errors import SwarmError
from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.consensus import Consensus, Programs
from swarm_hpc.sn.geth_provider import GethProvider
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.powers import UNIT

log = logging.getLogger(__name__)

SITES: Final = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
CONFIG: Final = LedgerConfig(commit_wait_ms=20, jail_after_s=3600, power=PowerRule.EQUAL)
PATIENCE_S: Final = 90.0
_GRANT: Final = 10**27
_LOOK_S: Final = 0.5
_REDIAL_S: Final = 4.0
"""CometBFT waits up to 3 s before it dials: a second order meanwhile would only fail."""

Clock = Callable[["LabSite"], float]


def account(number: int) -> LocalAccount:
    """An account that every lab network gives money to: 0 to 15."""
    made: LocalAccount = Account.from_key((1000 + number).to_bytes(32, "big"))
    return made


def contract_address(creator: str, nonce: int) -> str:
    """Where the contract of that transaction will be (Ethereum yellow paper, 7)."""
    return to_checksum_address(keccak(rlp.encode([bytes.fromhex(creator[2:]), nonce]))[12:])


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; fails when it does not come."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)
    return value


class LabSite:
    """One site: its keys, its account, and its geth and CometBFT under our own supervisor."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.keys = ConsensusKeys.load(folder / "keys")
        # Its own money comes from the Registry, as any site's; the founder's from the genesis.
        self.account: LocalAccount = Account.create()
        self._consensus: Consensus | None = None

    def __repr__(self) -> str:
        return f"LabSite({self.name})"

    @property
    def consensus(self) -> Consensus:
        """Its three parts, once it was started."""
        assert self._consensus is not None, f"{self.name} was not started"
        return self._consensus

    def start(self, network: Network, programs: Programs, config: LedgerConfig, clock: Callable[[], float]) -> None:
        """Start geth and CometBFT, and return when they run."""
        self._consensus = Consensus(
            self.folder / "ledger", network, self.keys, programs, config, committed=_nobody_waits, clock=clock
        )
        self._consensus.start()

    def stop(self) -> None:
        """End both; no-op when they do not run."""
        if self._consensus is not None:
            self._consensus.stop()

    def close(self) -> None:
        """Close the calling thread's connection to geth."""
        if self._consensus is not None:
            self._consensus.geth.close()

    @property
    def is_up(self) -> bool:
        """Whether all its parts run."""
        return self._consensus is not None and self._consensus.await_running(0)

    def provider(self) -> GethProvider:
        """web3's way to the ledger through this site."""
        return GethProvider(self.consensus)

    def block_number(self) -> int:
        """Number of the newest final block here."""
        return int(self.consensus.geth.call("eth_blockNumber"), 16)

    def block_time_ms(self) -> int:
        """Time of the newest final block here."""
        return int(self.consensus.geth.call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


def _nobody_waits(_height: int) -> None:
    """What an SN would do with news of a block."""


def real_time(_site: LabSite) -> float:
    """The clock on the wall."""
    return time.time()


class GethNetwork:
    """Several sites of one chain, all of them validators. Use as a context manager, or `start` and `stop`."""

    def __init__(
        self,
        folder: Path,
        programs: Programs,
        num_sites: int = 4,
        *,
        config: LedgerConfig = CONFIG,
        clock: Clock = real_time,
    ) -> None:
        """`clock` says for each site what time it has: one that is shared can be moved by a test."""
        self._folder, self._programs, self.config, self._clock = folder, programs, config, clock
        self.sites = [LabSite(folder / name, name) for name in SITES[:num_sites]]
        founder = self.sites[0]
        network = Network.found(config, founder.name, founder.account.address, founder.keys.consensus_key())
        rich = {account(number).address: {"balance": hex(_GRANT)} for number in range(16)}
        genesis = network.geth_genesis
        self.network = replace(network, geth_genesis={**genesis, "alloc": {**genesis["alloc"], **rich}})
        self._ledgers: dict[str, Ledger] = {}
        self._stopping = threading.Event()
        self._connecting = threading.Thread(target=self._keep_connected, name="lab-links")

    # --- life ---

    def start(self) -> None:
        """Start all sites, found the network and make every site a validator; returns when the powers are given."""
        try:
            self._start_all(self.sites)
            self._connecting.start()
            for site in self.sites[1:]:
                self.admit(site)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything; a second time has no effect."""
        self._stopping.set()
        if self._connecting.is_alive():
            self._connecting.join()
        for site in self.sites:
            site.close()
        with ThreadPoolExecutor(len(self.sites)) as pool:
            list(pool.map(LabSite.stop, self.sites))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start_all(self, sites: Sequence[LabSite]) -> None:
        def start(site: LabSite) -> None:
            site.start(self.network, self._programs, self.config, partial(self._clock, site))
            site.consensus.befriend([one.keys.p2p_id() for one in self.sites])

        with ThreadPoolExecutor(len(sites)) as pool:
            list(pool.map(start, sites))

    # --- sites ---

    def ledger(self, site: LabSite) -> Ledger:
        """The network's own ledger as that site uses it."""
        if site.name not in self._ledgers:
            self._ledgers[site.name] = Ledger(
                site.provider(), site.account, kind="geth", found=self._founder(), registry=self.network.registry
            )
        return self._ledgers[site.name]

    def admit(self, site: LabSite) -> None:
        """Let the members vote for a site that runs, and wait until it is a validator everywhere."""
        members = [one for one in self.sites if self._speaks(one)]
        for member in members:
            self.ledger(member).vote(
                site.name,
                site.account.address,
                f"{site.name}.test:30304",
                "aa" * 32,
                True,
                consensus_key=site.keys.consensus_key(),
                p2p_id=site.keys.p2p_id(),
            )
        until(lambda: self._speaks(site), f"{site.name} to hear of its admission")
        until(lambda: not site.consensus.halted(), f"{site.name} to see who is connected")
        self.ledger(site).announce(f"{site.name}.test:30304")
        until(lambda: self._has_power(site), f"{site.name} to become a validator")

    def add(self) -> LabSite:
        """One more site, which starts from nothing: it is connected, but no member yet."""
        site = LabSite(self._folder / SITES[len(self.sites)], SITES[len(self.sites)])
        self.sites.append(site)
        for one in self.sites[:-1]:
            one.consensus.befriend([other.keys.p2p_id() for other in self.sites])
        self._start_all([site])
        return site

    def restart(self, site: LabSite) -> None:
        """Start a site that was stopped."""
        self._start_all([site])

    def kill(self, site: LabSite, what: str) -> int:
        """kill -9 of a site's `geth` or `cometbft`; its process ID. Our supervisor starts it again."""
        pid = until(lambda: site.consensus.pids()[what], f"{what} of {site.name} to run")
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def await_height(self, number: int, sites: Sequence[LabSite] | None = None) -> None:
        """Wait until these sites (all) have that block."""
        for site in self.sites if sites is None else sites:
            until(partial(_reached, site, number), f"block {number} at {site.name}")

    def _founder(self) -> Founder:
        site = self.sites[0]
        return Founder(
            site=site.name,
            endpoint=f"{site.name}.test:30304",
            ca_fingerprint="aa" * 32,
            consensus_key=site.keys.consensus_key(),
            p2p_id=site.keys.p2p_id(),
        )

    def _speaks(self, site: LabSite) -> bool:
        if site is self.sites[0]:
            return True
        return any(one.name == site.name and one.active for one in site.consensus.sites)

    def _has_power(self, site: LabSite) -> bool:
        members = [one for one in self.sites if one.name in {known.name for known in self.sites[0].consensus.sites}]
        key = site.keys.consensus_key()
        return all(one.consensus.standing().powers.get(key) == UNIT for one in members)

    # --- connections ---

    def _keep_connected(self) -> None:
        dialled: dict[tuple[str, str], float] = {}
        while not self._stopping.is_set():
            for site in tuple(self.sites):
                try:
                    self._connect(site, dialled)
                except SwarmError as exc:
                    log.debug("%s is not up: %s", site.name, exc)
            self._stopping.wait(_LOOK_S)

    def _connect(self, site: LabSite, dialled: dict[tuple[str, str], float]) -> None:
        if not site.is_up:
            return
        connected = site.consensus.connected()
        site.consensus.note_connected(connected)
        wanted, now = [], time.monotonic()
        for other in self.sites:
            # The lower ID dials: two that dial each other at the same moment may each refuse the other's connection.
            theirs = other.keys.p2p_id()
            if other is site or theirs in connected or theirs < site.keys.p2p_id() or not other.is_up:
                continue
            if now - dialled.get((site.name, other.name), -_REDIAL_S) >= _REDIAL_S:
                dialled[site.name, other.name] = now
                wanted.append(f"{theirs}@127.0.0.1:{other.consensus.p2p_port}")
        if wanted:
            site.consensus.comet.dial(wanted)


def _reached(site: LabSite, number: int) -> bool:
    try:
        return site.block_number() >= number
    except SwarmError:  # it is being started again
        return False
