"""A site's part in the consensus: geth, the ABCI application and CometBFT, started together and again when one dies.

Crash-only: whichever of the three fails, CometBFT is ended, the application made anew, and CometBFT's handshake replays
what geth lacks. A geth that has lost its state is built anew from CometBFT's blocks.
"""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import LedgerError, SwarmError
from swarm_hpc.records import SeenVotes, SiteRecord
from swarm_hpc.sn import registry
from swarm_hpc.sn.abci import Application
from swarm_hpc.sn.abci_server import AbciServer
from swarm_hpc.sn.blocks import bring_to, load_tail
from swarm_hpc.sn.comet import CometHome, CometProcess, CometRpc, ConsensusKeys
from swarm_hpc.sn.contracts import ticks
from swarm_hpc.sn.epochs import Epoch
from swarm_hpc.sn.geth import Engine, EngineFault, GethProcess, GethRpc, Payload, RpcRefused
from swarm_hpc.sn.heights import Heights
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.powers import UNIT, Standing, address_of, has_quorum
from swarm_hpc.sn.pulse import Pulse

log = logging.getLogger(__name__)

START_S: Final = 300.0
"""The longest that the first start may take; a long chain is replayed in it only where geth lost its state."""
_LOOK_S: Final = 0.1
_STOP_S: Final = 60.0
_STABLE_S: Final = 60.0
_PAUSE_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between starts that did not last."""
_MAX_LOG_BYTES: Final = 16 << 20
_LOOK_UP_S: Final = 2.0
"""How long a program may take for a question of ours: one that hangs must not make a status hang."""
_COMMITS_LOOKED_AT: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The two programs."""

    geth: Path
    cometbft: Path


class Consensus:
    """The three parts under a supervisor thread, from `start` to `stop`."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        keys: ConsensusKeys,
        programs: Programs,
        config: LedgerConfig,
        *,
        committed: Callable[[int], None],
        epochs: Sequence[Epoch] = (),
        fetch_blocks: Callable[[int], Sequence[Payload]] = lambda _first: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`committed` is told of each final height, in a thread of ours. `folder` is the ledger's in data_dir.

        `fetch_blocks` answers blocks from that number on, from other members; also called in a thread of ours. `clock`,
        in seconds since 1970, is what blocks are stamped by.
        """
        self.network, self.keys, self.epochs = network, keys, tuple(epochs)
        self.own_key = keys.consensus_key()
        """Public key of this site's votes: asked for all the time, so not read from its file each time."""
        self._epoch = epochs[-1] if epochs else None
        self._fetch_blocks = fetch_blocks
        self._folder, self._programs, self._config, self._tell = folder, programs, config, committed
        self._clock = clock
        self.run_dir = _run_dir(folder)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._logs = {name: folder / "logs" / f"{name}.log" for name in ("geth", "cometbft")}
        self._geth = GethProcess(programs.geth, folder / "geth", self.run_dir, self._logs["geth"], network.chain_id)
        suffix = f"-{self._epoch.number}" if self._epoch is not None else ""
        self.home = CometHome(folder / f"comet{suffix}", keys, self.run_dir)
        self._comet = CometProcess(programs.cometbft, self.home, self._logs["cometbft"])
        self.geth = GethRpc(self._geth.socket)
        self.comet = CometRpc(self.home.rpc_socket)
        self.p2p_port = 0
        """Loopback port of CometBFT's p2p; another one after each start."""
        self._heights = Heights(folder / f"heights{suffix}.sqlite")
        self._application: Application | None = None
        self._height = self._epoch.height if self._epoch is not None else 0
        self._height_at = time.monotonic()
        self._friends: frozenset[str] = frozenset()
        self._connected: Mapping[str, float] = {}
        self._sites: Sequence[SiteRecord] = ()
        self._running, self._stopping = threading.Event(), threading.Event()
        self._wipe = not self._geth.has_data
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._supervise, name="consensus")

    # --- life ---

    def start(self, timeout_s: float = START_S) -> None:
        """Start all three and return when they run. LedgerError says what prevents it."""
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        while not self._running.wait(0.1):
            if self._stopping.is_set():
                raise LedgerError("the ledger was stopped while it started")
            if self._fault is not None and time.monotonic() > deadline - timeout_s + 30:
                raise LedgerError(f"the ledger cannot be started: {self._fault}")
            if time.monotonic() > deadline:
                raise LedgerError(f"the ledger is not up after {timeout_s:g} s (logs: {self._folder / 'logs'})")

    def stop(self) -> None:
        """End all three; a second time has no effect."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._heights.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def await_running(self, timeout_s: float) -> bool:
        """Wait until all three are up (again)."""
        return self._running.wait(timeout_s)

    def pids(self) -> Mapping[str, int | None]:
        """Process IDs of the two programs, None for one that does not run."""
        return {"geth": self._geth.pid, "cometbft": self._comet.pid}

    def _supervise(self) -> None:
        attempts = 0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                self._run_once()
            except (SwarmError, OSError) as exc:
                self._fault = exc
                log.warning("the ledger's programs start again: %s", exc)
                self._wipe |= isinstance(exc, EngineFault)
            except Exception as exc:  # the outermost loop of a daemon's thread
                self._fault = exc
                log.exception("the ledger's programs start again")
            finally:
                self._running.clear()
                self._comet.stop()
            attempts = 1 if time.monotonic() - started_at > _STABLE_S else attempts + 1
            self._stopping.wait(_PAUSE_S[min(attempts, len(_PAUSE_S)) - 1])
        self.geth.close()
        self._geth.stop()

    def _run_once(self) -> None:
        """Start what does not run, and return or raise when a part has failed."""
        self._start_geth()
        engine = Engine(self.geth)
        self._bring_to_epoch(engine)
        application = Application(
            engine,
            self._heights,
            genesis=self._first_standing(),
            base=(self._epoch.height, self._epoch.head) if self._epoch is not None else None,
            rule=self.network.rule(),
            members=self._members,
            may_connect=self._may_connect,
            committed=self._committed,
            clock=self._clock,
        )
        self._application = application
        with ExitStack() as stack:
            server = stack.enter_context(AbciServer(self.home.abci_socket, application))
            self.p2p_port = _free_port()
            self.home.prepare(self._comet_genesis(), self.p2p_port, self._config.commit_wait_ms)
            self._comet.start()
            stack.callback(self._comet.stop)
            self._watch(server)

    def _start_geth(self) -> None:
        if self._wipe:
            log.info("geth gets a new data folder; CometBFT replays the blocks, if there are any")
            self._geth.stop()
            self._heights.clear()
            self._geth.init(self.network.geth_genesis)
            self._wipe = False
        elif self._geth.is_alive and not self._geth_answers():
            log.warning("geth runs and does not answer: it is started again")
            self._geth.stop()
        if not self._geth.is_alive:
            self._geth.start()

    def _geth_answers(self) -> bool:
        try:
            self._ask_geth()
        except SwarmError:
            return False
        return True

    def _ask_geth(self) -> None:
        rpc = GethRpc(self._geth.socket, call_s=_LOOK_UP_S)
        try:
            rpc.call("eth_chainId")
        finally:
            rpc.close()

    def _bring_to_epoch(self, engine: Engine) -> None:
        """Let geth come to the block that this epoch goes on from, if it is before."""
        epoch = self._epoch
        if epoch is None or self._heights.of_block(str(engine.head()["hash"])) is not None:
            return
        tail = load_tail(self._folder, epoch.number)
        bring_to(engine, epoch.head, epoch.block, tail, self._fetch_blocks)

    def _first_standing(self) -> Standing:
        if self._epoch is not None:
            return self._epoch.genesis_standing()
        return Standing(powers={self.network.founder_key(): UNIT})

    def _comet_genesis(self) -> Mapping[str, Any]:
        return self._epoch.comet_genesis(self.network) if self._epoch is not None else self.network.comet_genesis

    def _watch(self, server: AbciServer) -> None:
        pulses = (
            Pulse("geth", self._ask_geth, self._geth.stop),
            Pulse("CometBFT", lambda: self.comet.call("health", timeout_s=_LOOK_UP_S), self._comet.stop),
        )
        while not self._stopping.wait(_LOOK_S):
            if server.fault is not None:
                raise server.fault
            if not self._comet.is_alive:
                raise LedgerError(f"CometBFT ended: {self._comet.tail()} (log: {self._logs['cometbft']})")
            if not self._geth.is_alive:
                raise LedgerError("geth ended")
            if not self._running.is_set() and self._answers():
                self._fault = None
                self._running.set()
            if self._running.is_set():  # until then CometBFT replays blocks, and may take its time
                for pulse in pulses:
                    pulse.check()
            for file in self._logs.values():
                _rotate(file)

    def _answers(self) -> bool:
        try:
            status = self.comet.call("status", timeout_s=2.0)
        except SwarmError:
            return False
        self._height = max(self._height, int(status["sync_info"]["latest_block_height"]))
        self._sites = registry.sites(self.geth, self.network.registry, "latest") or ()
        return True

    # --- what the application asks ---

    def _members(self, block: str) -> Sequence[SiteRecord] | None:
        return registry.sites(self.geth, self.network.registry, {"blockHash": block})

    def _may_connect(self, p2p_id: str) -> bool:
        members = {site.p2p_id for site in self._sites if site.active}
        return p2p_id in members or p2p_id in self._friends

    def _committed(self, height: int, sites: Sequence[SiteRecord]) -> None:
        self._height, self._height_at, self._sites = height, time.monotonic(), sites
        self._tell(height)

    # --- what the SN asks ---

    def befriend(self, p2p_ids: Collection[str]) -> None:
        """Connect to these as well: the members, as a site knows them that has no blocks yet."""
        self._friends = frozenset(p2p_ids)

    def now_ms(self) -> int:
        """Ledger time, milliseconds since 1970."""
        return self._application.now_ms() if self._application is not None else ticks(self._clock())

    @property
    def height(self) -> int:
        """CometBFT's newest final height."""
        return self._height

    @property
    def sites(self) -> Sequence[SiteRecord]:
        """The sites of the Registry after the newest block."""
        return self._sites

    def standing(self) -> Standing:
        """The validators after the newest block."""
        try:
            return self._heights.standing(self._height)
        except LedgerError:
            return self._first_standing()

    def deciding(self) -> Standing:
        """The validators whose votes the next block needs: CometBFT takes a change up two heights after its block."""
        try:
            return self._heights.standing(self._height - 1)
        except LedgerError:
            return self.standing()

    def fault(self) -> str:
        """Why the programs do not run at the moment; empty while they do."""
        return "" if self._running.is_set() else str(self._fault or "they are being started")

    def connected(self) -> frozenset[str]:
        """p2p IDs that CometBFT is connected to now. NotReachable while it does not answer."""
        peers = self.comet.call("net_info", timeout_s=5.0)["peers"]
        return frozenset(str(peer["node_info"]["id"]) for peer in peers)

    def missing(self) -> list[str]:
        """Names of the sites whose votes the next block needs, and that there is no connection to."""
        powers = self.deciding().powers
        return [site.name for site in self._sites if site.consensus_key in powers and not self._is_here(site)]

    def halted(self) -> str:
        """Why no block can be made now: who is missing. Empty while more than 2/3 of the voting power is here."""
        own = next((site for site in self._sites if site.consensus_key == self.own_key), None)
        if own is not None and own.announced and not own.active:
            return f"site {own.name} was voted out of this network"
        powers = self.deciding().powers
        here = sum(powers.get(site.consensus_key, 0) for site in self._sites if site.active and self._is_here(site))
        total = sum(powers.values())
        if not self._sites or has_quorum(here, total):
            return ""
        names = ", ".join(self.missing())
        return (
            f"the ledger stands still: {here} of {total} voting power is up, more than 2/3 is needed; missing: {names}"
        )

    def is_catching_up(self) -> bool:
        """Whether other sites have blocks that are not here yet, as far as CometBFT knows; True while it is not up."""
        try:
            status = self.comet.call("status", timeout_s=5.0)
            return bool(status["sync_info"]["catching_up"]) or any(h > self._height + 1 for h in self.peer_heights())
        except SwarmError:
            return True

    def peer_heights(self) -> list[int]:
        """The newest final height of each connected peer. NotReachable while CometBFT does not answer."""
        peers = self.comet.call("dump_consensus_state", timeout_s=_LOOK_UP_S)["peers"]
        # What a peer works at is the height after its newest final one.
        return [int(peer["peer_state"]["round_state"]["height"]) - 1 for peer in peers]

    def seen_votes(self, site: str, key: str) -> SeenVotes:
        """What has been seen here of that validator's votes. NotReachable while CometBFT does not answer."""
        state = self.comet.call("dump_consensus_state", timeout_s=5.0)["round_state"]
        address = address_of(key).hex().upper()
        height = int(state["height"])
        vote = max([(0, 0, 0), *((height, *one) for one in _votes_of(state, address))])
        standing, names = self.standing(), {one.consensus_key: one.name for one in self._sites}
        return SeenVotes(
            site=site,
            height=height - 1,
            powers={names[key]: power for key, power in standing.powers.items() if key in names},
            vote_height=vote[0],
            vote_round=vote[1],
            vote_step=vote[2],
            last_signed=self._last_signed(address, height - 1),
        )

    def _last_signed(self, address: str, newest: int) -> int:
        for height in range(newest, max(0, newest - _COMMITS_LOOKED_AT), -1):
            try:
                signatures = self._signatures(height)
            except RpcRefused:  # before this epoch's first block
                return 0
            if any(one["validator_address"] == address and one["signature"] for one in signatures):
                return height
        return 0

    def _signatures(self, height: int | None = None) -> Sequence[Mapping[str, Any]]:
        """The votes in the commit of that height, or of the newest one; none before the first."""
        wanted = {"height": str(height)} if height is not None else {}
        header = self.comet.call("commit", timeout_s=_LOOK_UP_S, **wanted)["signed_header"]
        found: Sequence[Mapping[str, Any]] = header["commit"]["signatures"] if header and header["commit"] else ()
        return found

    def quiet_s(self) -> float:
        """Seconds since the newest block came."""
        return time.monotonic() - self._height_at

    def vote_times(self) -> Mapping[str, float]:
        """Site -> when it voted for the newest block by its own clock, s since 1970. NotReachable, RpcRefused."""
        names = {address_of(site.consensus_key).hex().upper(): site.name for site in self._sites if site.consensus_key}
        return {
            names[one["validator_address"]]: _seconds(one["timestamp"])
            for one in self._signatures()
            if one["signature"] and one["validator_address"] in names
        }

    def note_connected(self, p2p_ids: Collection[str]) -> None:
        """What links.py has seen last: who is connected."""
        now = time.monotonic()
        self._connected = {one: now for one in p2p_ids}

    def _is_here(self, site: SiteRecord) -> bool:
        return site.consensus_key == self.own_key or site.p2p_id in self._connected


def _votes_of(state: Mapping[str, Any], address: str) -> list[tuple[int, int]]:
    """Round and step of each vote of that validator in CometBFT's round state (its RPC dump_consensus_state)."""
    validators = [one["address"] for one in state["validators"]["validators"]]
    if address not in validators:
        return []
    index = validators.index(address)
    found = []
    for votes in state["votes"] or ():
        for step, kind in ((2, "prevotes"), (3, "precommits")):
            if votes[kind][index] != "nil-Vote":
                found.append((int(votes["round"]), step))
    return found


def _seconds(text: str) -> float:
    """Seconds since 1970 of a time as CometBFT writes it: RFC 3339 with up to nine decimals."""
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def _run_dir(folder: Path) -> Path:
    """A private folder for sockets, with a short path; what an earlier process left is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "run"
    if link.is_symlink():
        earlier = link.readlink()
        if earlier.name.startswith("swarm-sn-") and not earlier.is_symlink():
            shutil.rmtree(earlier, ignore_errors=True)
        link.unlink()
    made = Path(tempfile.mkdtemp(prefix="swarm-sn-"))
    link.symlink_to(made)
    return made


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _rotate(file: Path) -> None:
    """Keep a log and the one before it. The programs append, so a file that is cut goes on from its beginning."""
    try:
        if file.stat().st_size > _MAX_LOG_BYTES:
            shutil.copyfile(file, file.with_suffix(".log.1"))
            with file.open("r+b") as output:
                output.truncate()
    except FileNotFoundError:
        return
