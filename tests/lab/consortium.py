"""A consortium of real SNs on this host, one per site with its own geth and CometBFT, and ways to hurt them.

What systemd would do for an SN is done by `until`, in which every wait of a test passes: it starts again what has ended
by itself. Nothing else brings a site back: what a test leaves to the network, the network has to do.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import psutil
import yaml

from swarm_hpc import processes
from swarm_hpc.config import ConnectionConfig, IdentityConfig, LedgerConfig, LedgerKind, SnConfig, TransferConfig
from swarm_hpc.errors import SwarmError
from swarm_hpc.identity import ca, certs
from swarm_hpc.local.swarm import ONE_THREAD
from swarm_hpc.processes import Process
from swarm_hpc.records import ConsensusStatus, NetworkStatus, NodeName, encode
from swarm_hpc.sn.client import SnClient
from swarm_hpc.sn.comet import CometRpc
from swarm_hpc.sn.geth import GethRpc
from tests.lab.relays import Relays

T = TypeVar("T")

TRUST_DOMAIN: Final = "swarm.test"
PATIENCE_S: Final = 90.0
LEASE_S: Final = 5.0
POLL_S: Final = 0.2
RESTART_S: Final = 1.0
"""How long a supervisor waits before it starts an SN again, as systemd's RestartSec."""
PARTS: Final = ("geth", "cometbft", "sn")


@dataclass
class Site:
    """One institution: where its SN listens and lives, and the process that it is now."""

    name: str
    folder: Path
    port: int
    process: Process | None = None
    wanted: bool = False
    """It is to run: when it has ended, it is started again."""
    ended_at: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SnConfig that are otherwise than usual."""

    @property
    def data_dir(self) -> Path:
        return self.folder / "sn"

    @property
    def ledger(self) -> Path:
        return self.data_dir / "ledger"

    @property
    def log(self) -> Path:
        return self.folder / "sn.log"

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.code is None

    @property
    def is_ready(self) -> bool:
        file = self.data_dir / "endpoint.json"
        if not self.is_up or not file.exists():
            return False
        assert self.process is not None
        return f'"pid": {self.process.popen.pid}' in file.read_text()

    def psutil(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.popen.pid)

    def child(self, part: str) -> psutil.Process | None:
        """The geth or CometBFT of this SN."""
        try:
            return next((one for one in self.psutil().children() if one.name().startswith(part)), None)
        except psutil.NoSuchProcess:
            return None


class Consortium:
    """Use it in `with`: at the end nothing is left running."""

    def __init__(
        self,
        root: Path,
        names: str = "alpha beta gamma delta",
        *,
        guests: str = "",
        relays: bool = False,
        lease_s: float = LEASE_S,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        **ledger: Any,
    ) -> None:
        """`guests` are in everybody's trust bundle, but are started by the test. With `relays` sites reach each other
        through ports that can be cut. `environments` are variables for the SNs of some sites."""
        self.root, self.names, self.lease_s = root, tuple(names.split()), lease_s
        self._ledger, self._environments = ledger, environments or {}
        everybody = (*self.names, *guests.split())
        ports = _free_ports(len(everybody))
        self.sites = {name: Site(name, root / name, port) for name, port in zip(everybody, ports, strict=True)}
        self.relays = Relays({name: site.port for name, site in self.sites.items()}, self._owner) if relays else None
        self.beside: Callable[[], None] = lambda: None
        """Called in every wait: it fails the test when something that runs beside it has failed."""
        self.surprises: list[str] = []
        """SNs that ended by themselves."""
        self._loop = asyncio.Runner()
        self._clients: dict[str, SnClient] = {}
        self._open = AsyncExitStack()
        self._started: list[Process] = []
        self._certify(everybody)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for site in self.sites.values():
            site.wanted = False
        for one in self._started:
            _resume(one)
        processes.stop(self._started, 20.0)
        if self.relays is not None:
            self.relays.close()
        self._loop.run(self._open.aclose())
        self._loop.close()

    # --- life ---

    def start(self) -> Self:
        """All sites, the first one as the sentinel; ready, connected and each with voting power."""
        first, *others = self.names
        self.launch(first)
        self.await_ready(first)
        for name in others:
            self.launch(name)
        self.await_whole()
        return self

    def launch(self, name: str, **changes: Any) -> None:
        """Start a site's SN (again), and from now on whenever it has ended."""
        site = self.sites[name]
        assert not site.is_up
        if changes:
            site.changes = changes
        first = self.names[0]
        config = SnConfig(
            port=site.port,
            advertise=self.endpoint(name),
            data_dir=str(site.data_dir),
            lease_s=self.lease_s,
            sentinel=name == first,
            identity=self.identity(f"{name}/sn/sn"),
            ledger=LedgerConfig(
                kind=LedgerKind.GETH, join=[] if name == first else [self.endpoint(first)], **self._ledger
            ),
            transfer=TransferConfig(keep_rounds=0, min_free_mib=0),
        )
        for key, value in site.changes.items():
            setattr(config, key, value)
        settings = site.folder / "settings"
        (settings / "node").mkdir(parents=True, exist_ok=True)
        (settings / "node" / "sn.yaml").write_text("# @package _global_\n" + yaml.safe_dump(encode(config)))
        words = [sys.executable, "-m", "swarm_hpc.cli", "sn", "--config-dir", str(settings), "+node=sn"]
        variables = {**ONE_THREAD, **self._environments.get(name, {})}
        site.process = Process.start(f"sn-{name}", words, log=site.log, env=variables)
        site.wanted, site.ended_at = True, None
        self._started.append(site.process)

    def await_ready(self, *names: str, patience_s: float = PATIENCE_S) -> None:
        for name in names or self.names:
            self.until(lambda name=name: self.sites[name].is_ready, f"{name}'s SN to be ready", patience_s)

    def await_whole(self, *names: str, patience_s: float = PATIENCE_S) -> None:
        """Until each of these sites (all) is ready, has voting power, and sees all of them connected and in step."""
        wanted = set(names or self.names)

        def is_whole(name: str) -> bool:
            seen = self.consensus(name)
            if seen is None or seen.halted:
                return False
            return {one.site for one in seen.validators if one.power and one.connected} >= wanted and seen.behind <= 1

        self.await_ready(*wanted, patience_s=patience_s)
        for name in wanted:
            self.until(
                lambda name=name: is_whole(name), f"{name} to be in step with {', '.join(sorted(wanted))}", patience_s
            )

    def stop(self, *names: str) -> None:
        """End these SNs as systemd does, with SIGTERM."""
        chosen = [self.sites[name] for name in names or self.names]
        for site in chosen:
            site.wanted = False
        processes.stop([site.process for site in chosen if site.process is not None], 20.0)

    def kill(self, name: str, part: str = "sn", *, back: bool = True) -> None:
        """SIGKILL one process of a site. Its SN is started again by every wait from now on, unless `back` is False."""
        site = self.sites[name]
        if part == "sn":
            site.wanted = back
            assert site.process is not None
            site.process.signal(signal.SIGKILL)
            site.process.popen.wait()
        else:
            found = self.until(lambda: site.child(part), f"{name} to have a {part}")
            found.kill()

    def pause(self, name: str) -> None:
        """SIGSTOP everything of a site."""
        for one in _tree(self.sites[name].process):
            one.suspend()

    def resume(self, name: str) -> None:
        _resume(self.sites[name].process)

    def tend(self) -> None:
        """Start again what has ended, a moment later; fail the test where something beside it has failed."""
        for site in self.sites.values():
            if site.wanted and not site.is_up:
                if site.ended_at is None:
                    site.ended_at = time.monotonic()
                    assert site.process is not None
                    if site.process.code != -signal.SIGKILL:
                        self.surprises.append(f"{site.name}: {site.process.code}: {site.process.tail()}")
                elif time.monotonic() - site.ended_at > RESTART_S:
                    self.launch(site.name)
        self.beside()

    def until(self, condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
        """The condition's first true value. AssertionError when it does not come."""
        deadline = time.monotonic() + patience_s
        while True:
            self.tend()
            if value := condition():
                return value
            assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}\n{self.report()}"
            time.sleep(POLL_S)

    def linger(self, seconds: float) -> None:
        """Let a disturbance last that long: it is part of what is tested."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tend()
            time.sleep(POLL_S)

    # --- questions ---

    def endpoint(self, name: str) -> str:
        """Where the other sites reach a site's SN."""
        port = self.relays.port(name) if self.relays is not None else self.sites[name].port
        return f"127.0.0.1:{port}"

    def address(self, name: str) -> str:
        """Where the site's own nodes reach it."""
        return f"127.0.0.1:{self.sites[name].port}"

    def identity(self, node: str) -> IdentityConfig:
        """Files of a node; made on first use."""
        name = NodeName.parse(node)
        folder = self.root / "certs" / name.site
        stem = folder / f"{name.kind}-{name.name}"
        if not stem.with_suffix(".pem").exists():
            ca.issue(folder / "ca", name, folder)
        return IdentityConfig(cert=f"{stem}.pem", key=f"{stem}-key.pem", bundle=str(self.root / "bundle.json"))

    def ask(self, name: str, question: Callable[[SnClient], Any], *, timeout_s: float = 20.0) -> Any:
        """What a site's SN answers to its operator; SwarmError."""

        async def ask() -> Any:
            if name not in self._clients:
                identity = certs.load(self.identity(f"{name}/swci/swci"))
                client = SnClient(
                    identity, self.address(name), connection=ConnectionConfig(connect_timeout_s=3.0), site=name
                )
                self._clients[name] = await self._open.enter_async_context(client)
            async with asyncio.timeout(timeout_s):
                return await question(self._clients[name])

        return self._loop.run(ask())

    def status(self, name: str) -> NetworkStatus | None:
        """The network as that site sees it; None while its SN does not answer."""
        if not self.sites[name].is_ready:
            return None
        try:
            found: NetworkStatus = self.ask(name, lambda client: client.status())
        except (SwarmError, TimeoutError):
            return None
        return found

    def consensus(self, name: str) -> ConsensusStatus | None:
        status = self.status(name)
        return status.consensus if status is not None else None

    def powers(self, name: str) -> dict[str, int]:
        """Voting power of the member sites, as a site sees it."""
        seen = self.consensus(name)
        return {one.site: one.power for one in seen.validators} if seen is not None else {}

    @contextmanager
    def geth(self, name: str) -> Iterator[GethRpc]:
        """Calls to a site's geth."""
        rpc = GethRpc(self._run_dir(name) / "geth.ipc")
        try:
            yield rpc
        finally:
            rpc.close()

    def comet(self, name: str) -> CometRpc:
        """Calls to a site's CometBFT."""
        return CometRpc(self._run_dir(name) / "comet.sock")

    def report(self) -> str:
        """The end of every log, for a test that fails."""
        parts = [f"(logs in {self.root})"]
        for site in self.sites.values():
            state = "up" if site.is_up else "down" if site.process is not None else "never started"
            parts.append(f"--- {site.name}: {state}")
            if site.log.exists():
                parts += site.log.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(parts)

    def _run_dir(self, name: str) -> Path:
        # Resolved: the path of a Unix socket is at most 107 bytes long.
        return (self.sites[name].ledger / "run").resolve()

    def _owner(self, port: int) -> str | None:
        """The site whose SN has a connection from that local port."""
        for site in self.sites.values():
            try:
                if site.is_up and any(c.laddr and c.laddr.port == port for c in site.psutil().net_connections("tcp")):
                    return site.name
            except psutil.NoSuchProcess:
                continue
        return None

    def _certify(self, everybody: Iterable[str]) -> None:
        folders = {name: self.root / "certs" / name / "ca" for name in everybody}
        authorities = {name: ca.create_ca(name, TRUST_DOMAIN, folder) for name, folder in folders.items()}
        ca.write_bundle(authorities, TRUST_DOMAIN, self.root / "bundle.json")


def copy_tree(source: Path, target: Path) -> None:
    """A backup of a stopped site's folder, or its return: the target is replaced. Links stay links."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def _resume(process: Process | None) -> None:
    for one in _tree(process):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            one.resume()


def _tree(process: Process | None) -> list[psutil.Process]:
    if process is None or process.code is not None:
        return []
    try:
        own = psutil.Process(process.popen.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system hands out: nobody takes them while an SN is down."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found
