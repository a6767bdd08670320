"""Whole swarms of real processes on this host, and how a test watches them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from swarm_hpc.config import ExperimentConfig, LocalConfig, ProgramConfig, RoundConfig
from swarm_hpc.identity import certs
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import Swarm, fetch_rounds, fetch_status, sl_name
from swarm_hpc.records import Event, NodeStatus, Platform, Round, RoundState
from swarm_hpc.sn.client import SnClient

TINY = Path(__file__).parent / "programs" / "tiny.py"
CONTRACT = "tiny"
PATIENCE_S = 90.0


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; fails the test when it does not come."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.05)
    return value


@dataclass
class Network:
    """A swarm whose sites run tiny.py, seen with a test's eyes."""

    swarm: Swarm
    folder: RunFolder

    @property
    def last_round(self) -> Path:
        return self.folder.root / "last-round"

    def program(self, site: str, **env: str) -> ProgramConfig:
        scratch = self.folder.scratch(site, "swarm")
        scratch.mkdir(parents=True, exist_ok=True)
        target = str(float(self.swarm.sites.index(site)))
        own = {"TARGET": target, "LAST_ROUND": str(self.last_round), "SCRATCH_DIR": str(scratch)}
        return ProgramConfig(
            command=[sys.executable, str(TINY)],
            cwd=str(scratch),
            env={**own, **env},
            log=str(self.folder.log(f"{site}-ml")),
            stop_timeout_s=2.0,
        )

    def start_sl(self, site: str, *, env: dict[str, str] | None = None, **changes: Any) -> None:
        self.swarm.start_sl(site, self.program(site, **(env or {})), **changes)

    def start(self, **env: str) -> None:
        """SN and all sites."""
        self.swarm.start_sn()
        for site in self.swarm.sites:
            self.start_sl(site, env=env)

    def rounds(self) -> list[Round]:
        """The published rounds so far."""
        contracts = fetch_status(self.swarm.client()).contracts
        if not contracts:
            return []
        return [r for r in fetch_rounds(self.swarm.client(), CONTRACT) if r.state is RoundState.PUBLISHED]

    def await_round(self, number: int, *, with_sites: set[str] | None = None) -> Round:
        """The first published round from `number` on, in which those sites' nodes (and no others) took part."""

        def found() -> Round | None:
            rounds = [r for r in self.rounds() if r.number >= number]
            return next((r for r in rounds if with_sites is None or sites_of(r) == with_sites), None)

        return until(found, f"round {number} or later with {with_sites or 'anybody'}")

    def node(self, site: str) -> NodeStatus | None:
        nodes = fetch_status(self.swarm.client()).nodes
        return next((node for node in nodes if node.node.name == str(sl_name(site))), None)

    def finish(self) -> None:
        """Let every site finish, three rounds from now, and end."""
        beside = self.last_round.with_suffix(".new")  # a program may read it at any moment
        beside.write_text(str(len(self.rounds()) + 3))
        beside.rename(self.last_round)
        self.swarm.wait(self.swarm.sites, PATIENCE_S)

    def events(self, after: int, wait_s: float) -> tuple[int, tuple[Event, ...]]:
        async def ask() -> tuple[int, tuple[Event, ...]]:
            config = self.swarm.client()
            async with SnClient(certs.load(config.identity), config.sn, connection=config.connection) as client:
                page = await client.events(after, contract=CONTRACT, wait_s=wait_s)
                return page.cursor, page.events

        return asyncio.run(ask())

    def ml_process(self, site: str) -> psutil.Process:
        """The ML program of the site's SL."""

        def found() -> psutil.Process | None:
            children = psutil.Process(self.swarm.processes[site].popen.pid).children()
            return next((child for child in children if str(TINY) in child.cmdline()), None)

        return until(found, f"the ML program of {site}")


def sites_of(one: Round) -> set[str]:
    return {check_in.node.partition("/")[0] for check_in in one.check_ins}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Callable[..., Network]]:
    """Makes a network with certificates but no process; ends whatever was started."""
    made: list[Network] = []

    def make(
        sites: str = "alpha beta gamma", *, min_peers: int = 2, leader_timeout_s: int = 10, **changes: Any
    ) -> Network:
        names = sites.split()
        rules = RoundConfig(contract=CONTRACT, min_peers=min_peers, quorum_wait_s=20, leader_timeout_s=leader_timeout_s)
        config = LocalConfig(
            experiment=ExperimentConfig(name=CONTRACT, metric="mean", platform=Platform.PYTORCH, prepare=[], train=[]),
            sites=len(names),
            round=rules,
            **{"lease_s": 3.0, **changes},
        )
        config.transfer.port = 0
        config.transfer.keep_rounds = 0
        folder = RunFolder.create(tmp_path / f"run{len(made)}")
        swarm = Swarm(config, folder, names)
        made.append(Network(swarm, folder))
        swarm.make_certificates()
        return made[-1]

    yield make
    for one in made:
        one.swarm.stop()
