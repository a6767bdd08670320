"""A whole swarm as real processes on this host: per site an SL with its ML program, and one SN or one per site.

It makes the certificates and each node's settings, starts, watches and stops the processes. What they train is
experiment.py's affair.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from swarm_hpc import processes, settings_file
from swarm_hpc.config import (
    ClientConfig,
    ConnectionConfig,
    LedgerKind,
    LocalConfig,
    ProgramConfig,
    SlConfig,
    SnConfig,
    TransferConfig,
)
from swarm_hpc.errors import NotReachable, SwarmError, TimedOut
from swarm_hpc.identity import ca
from swarm_hpc.local.containers import Containers
from swarm_hpc.local.folder import SUPERVISOR, TRUST_DOMAIN, RunFolder
from swarm_hpc.processes import Process
from swarm_hpc.records import Kind, NetworkStatus, NodeName, Round
from swarm_hpc.sn.client import ask

ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Many programs share this host: more than one thread each would only slow all of them down."""
SN: Final = "sn"
START_S: Final = 180.0
STOP_S: Final = 8.0
SN_STOP_S: Final = 25.0
"""geth writes its state to disk when it ends."""


class Swarm:
    """The processes of one run. Use it in `with`: at the end nothing is left running.

    `processes` has the newest process of each name: each site's SL under the site's name, `sn`, and with
    ledger=geth the other sites' SNs as `sn-SITE`.
    """

    def __init__(
        self, config: LocalConfig, folder: RunFolder, sites: Sequence[str], containers: Containers | None = None
    ) -> None:
        """`containers`: the SNs run in them, and what SLs do `config` says."""
        self.config = config
        self.folder = folder
        self.sites = tuple(sites)
        self.processes: dict[str, Process] = {}
        self.containers = containers
        self.launcher: Sequence[str] = ()
        """First words of every process's command line: how another user's are started."""
        self._started: list[Process] = []
        self._addresses: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def make_certificates(self) -> None:
        """A CA per site, certificates for its SL, the SN's and the supervisor's at the first site, and the bundle."""
        authorities = {}
        for site in self.sites:
            authorities[site] = ca.create_ca(site, TRUST_DOMAIN, self.folder.ca(site))
            names = [sl_name(site)]
            if site in self.sn_of.values():
                names += [sn_name(site), NodeName(site, Kind.SWCI, SUPERVISOR)]
            for name in names:
                ca.issue(self.folder.ca(site), name, self.folder.certs(site))
        ca.write_bundle(authorities, TRUST_DOMAIN, self.folder.bundle)

    @property
    def sn_of(self) -> dict[str, str]:
        """Name of each SN's process -> its site: the first site's alone, or with ledger=geth one of each site."""
        first, *others = self.sites
        if self.config.ledger.kind is LedgerKind.EMBEDDED:
            return {SN: first}
        return {SN: first} | {f"{SN}-{site}": site for site in others}

    def start_sns(self, timeout_s: float = START_S) -> None:
        """Start all SNs and wait until they are ready: the first one founds the network, the others join it."""
        self.launch_sns()
        self.await_sns(timeout_s)

    def launch_sns(self) -> None:
        """The first half of `start_sns`: the first SN's programs come up while something else is done."""
        self.launch_sn()

    def await_sns(self, timeout_s: float = START_S, told: Callable[[int], None] | None = None) -> None:
        """The second half. `told` hears how many are ready, each time that one more is."""
        first, *others = self.sn_of
        self.await_sn(first, timeout_s)
        for name in others:
            self.launch_sn(name)
        for at, name in enumerate(others, 1):
            if told:
                told(at)
            self.await_sn(name, timeout_s)

    def start_sn(self, name: str = SN, *, host: str = "", port: int | None = None, timeout_s: float = START_S) -> None:
        """Start an SN and wait until it is ready: on `host` and `port`, else where it was before, else on a free one
        of 127.0.0.1."""
        self.launch_sn(name, host=host, port=port)
        self.await_sn(name, timeout_s)

    def launch_sn(self, name: str = SN, *, host: str = "", port: int | None = None) -> None:
        """The first half of `start_sn`."""
        ledger = self.config.ledger
        if name != SN:
            ledger = replace(ledger, join=[self._addresses[SN]])
        old_host, _, old_port = self._addresses.get(name, "127.0.0.1:0").rpartition(":")
        config = SnConfig(
            host=host or old_host,
            port=int(old_port) if port is None else port,
            data_dir=str(self.folder.sn_data_of(name)),
            lease_s=self.config.lease_s,
            sentinel=name == SN,
            identity=self.folder.identity(sn_name(self.sn_of[name])),
            ledger=ledger,
            transfer=self.config.transfer,
        )
        self.folder.endpoint_file(name).unlink(missing_ok=True)  # left by one that was killed
        self._start(name, "sn", config)

    def await_sn(self, name: str = SN, timeout_s: float = START_S) -> None:
        """The second half: ProgramFailed when the SN ends instead, TimedOut."""
        self._until(lambda: self._sn_is_ready(name), f"{name} to be ready", timeout_s)

    def _sn_is_ready(self, name: str) -> bool:
        file = self.folder.endpoint_file(name)
        if not file.exists():
            return False
        self._addresses[name] = str(json.loads(file.read_text(encoding="utf-8"))["address"])
        return True

    def start_sl(self, site: str, program: ProgramConfig, *, launcher: Sequence[str] = (), **changes: Any) -> Process:
        """Start the site's SL with that ML program; `changes` are fields of SlConfig to set otherwise.

        `launcher`: the first words of a command that starts it, such as mpiexec.
        """
        config = SlConfig(
            name=str(sl_name(site)),
            sn=self._addresses[self.sn_for(site)],
            state_dir=str(self.folder.state(site)),
            identity=self.folder.identity(sl_name(site)),
            connection=ConnectionConfig(connect_timeout_s=60.0),
            transfer=self._transfer_of(site),
            merge=self.config.merge,
            round=self.config.round,
            container=self.config.container.of(self.config.experiment.platform),
            program=program,
        )
        return self._start(site, "sl", replace(config, **changes), launcher)

    def sn_for(self, site: str) -> str:
        """Name of the SN that serves the site."""
        return next((name for name, home in self.sn_of.items() if home == site), SN)

    def _transfer_of(self, site: str) -> TransferConfig:
        """The sites' file servers share this host: they count up from the port asked for."""
        transfer = self.config.transfer
        return replace(transfer, port=transfer.port and transfer.port + self.sites.index(site))

    def _start(self, name: str, command: str, config: SnConfig | SlConfig, launcher: Sequence[str] = ()) -> Process:
        words = settings_file.write(self.folder.settings, command, name, config)
        if isinstance(config, SnConfig) and self.containers is not None:
            line = self.containers.sn(config, self.folder.settings, words)
        else:
            line = [sys.executable, "-m", "swarm_hpc.cli", *words]
        process = Process.start(name, [*self.launcher, *launcher, *line], log=self.folder.log(name), env=ONE_THREAD)
        self.processes[name] = process
        self._started.append(process)
        return process

    def kill(self, name: str, number: int) -> None:
        """Send a signal to the SN or to a site's SL (not to its ML program)."""
        self.processes[name].signal(number)

    def wait(self, names: Sequence[str], timeout_s: float, every: Callable[[], None] | None = None) -> None:
        """Until these have ended well. ProgramFailed as soon as one of them, or the SN, does not; TimedOut."""

        def look() -> None:
            for name in self.sn_of:
                self.processes[name].check()
            if every:
                every()

        processes.wait([self.processes[name] for name in names], timeout_s, every=look)

    def _until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for process in self.processes.values():
                process.check()
            if time.monotonic() > deadline:
                raise TimedOut(f"waited {timeout_s:g} s for {what}; logs are in {self.folder.log(SN).parent}")
            time.sleep(processes.POLL_S / 2)

    def client(self, sn: str = SN) -> ClientConfig:
        """How to ask an SN."""
        return self.folder.client(connect_timeout_s=5.0, sn=sn)

    def stop(self) -> None:
        """End every process; SLs first, so that they can say goodbye to the SN."""
        processes.stop([process for process in self._started if process.name not in self.sn_of], STOP_S)
        processes.stop([process for process in self._started if process.name in self.sn_of], SN_STOP_S)


def fetch_whole_status(swarm: Swarm) -> NetworkStatus:
    """What the first SN that answers says, with each node's progress from the SN that hears its heartbeats.

    NotReachable, TimedOut: none answers.
    """
    found: list[NetworkStatus] = []
    failure: SwarmError | None = None
    for name in swarm.sn_of:
        try:
            found.append(fetch_status(swarm.client(name)))
        except (NotReachable, TimedOut) as exc:
            failure = exc
    if not found:
        assert failure is not None
        raise failure
    heard = {one.node.name: one for status in found for one in status.nodes if one.last_seen_s is not None}
    return replace(found[0], nodes=tuple(heard.get(one.node.name, one) for one in found[0].nodes))


def sn_name(site: str) -> NodeName:
    """The SN of a site."""
    return NodeName(site, Kind.SN, SN)


def sl_name(site: str) -> NodeName:
    """The one SL node of a site."""
    return NodeName(site, Kind.SL, "sl-1")


def fetch_status(config: ClientConfig) -> NetworkStatus:
    """What the SN says of its network. NotReachable, TimedOut."""

    return ask(config, lambda client: client.status())


def fetch_rounds(config: ClientConfig, contract: str) -> tuple[Round, ...]:
    """All rounds of a contract. NotFound, NotReachable, TimedOut."""

    return ask(config, lambda client: client.rounds(contract))
