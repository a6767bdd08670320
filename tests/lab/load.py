"""A load on a consortium: one SL node per site, with the real participant and a tiny model, and what it was promised.

All nodes live in one thread. Every answer that confirms a change is kept, to be compared with each site's ledger later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from swarm_hpc.config import ConnectionConfig, JobConfig, RoundConfig
from swarm_hpc.errors import SwarmError, TrainingOver
from swarm_hpc.identity import certs
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, model_hash, place
from swarm_hpc.records import CheckIn, ContractSpec, Event, Merge, Platform, Round, RoundState
from swarm_hpc.sl.contract import enter
from swarm_hpc.sl.exchange import GatewayExchange
from swarm_hpc.sl.frames import SyncRequest
from swarm_hpc.sl.member import Member
from swarm_hpc.sl.training import Part, Training
from swarm_hpc.sn.client import SnClient
from tests.lab.consortium import Consortium

PATIENCE_S: Final = 900.0
PACE_S: Final = 1.0
"""How long a node trains between two rounds."""
LAYOUT: Final = place([TensorSpec("w", "F32", (64,))])


@dataclass
class Promises:
    """What the SNs have confirmed: a 2xx answer to a change."""

    check_ins: list[tuple[int, str, str]] = field(default_factory=list)
    """(round, node, blob)."""
    results: list[tuple[int, str, str]] = field(default_factory=list)
    """(round, leader, merged)."""
    at: list[float] = field(default_factory=list)
    """time.monotonic() of each."""


class _Recorder(SnClient):
    """Keeps what was confirmed."""

    promises: Promises

    async def check_in(self, contract: str, number: int, incarnation: int, check_in: CheckIn) -> Round:
        answer = await super().check_in(contract, number, incarnation, check_in)
        self.promises.check_ins.append((number, check_in.node, check_in.blob))
        self.promises.at.append(time.monotonic())
        return answer

    async def publish(self, contract: str, number: int, node: str, incarnation: int, merged: str) -> Round:
        answer = await super().publish(contract, number, node, incarnation, merged)
        self.promises.results.append((number, node, merged))
        self.promises.at.append(time.monotonic())
        return answer


class Load:
    """Training that goes on until it is stopped. Use it in `with`; `check` fails when a node has given up."""

    def __init__(
        self,
        consortium: Consortium,
        sites: Iterable[str] = (),
        *,
        contract: str = "tiny",
        min_peers: int = 2,
        quorum_wait_s: int = 4,
        leader_timeout_s: int = 8,
    ) -> None:
        self.consortium, self.contract = consortium, contract
        self.promises = Promises()
        self.failures: dict[str, BaseException] = {}
        self._rules = RoundConfig(
            contract=contract, min_peers=min_peers, quorum_wait_s=quorum_wait_s, leader_timeout_s=leader_timeout_s
        )
        self._sites = tuple(sites) or consortium.names
        self._nodes: dict[str, _Node] = {}
        self._loop = asyncio.new_event_loop()
        # A daemon, so that tests come to an end where the nodes do not.
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        for site in self._sites:
            self.add(site)
        self.consortium.beside = self.check
        return self

    def __exit__(self, *_: object) -> None:
        self.consortium.beside = lambda: None
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, site: str) -> None:
        """Let a site's node train as well."""
        identity = certs.load(self.consortium.identity(f"{site}/sl/sl"))
        sn = _Recorder(
            identity,
            self.consortium.address(site),
            connection=ConnectionConfig(connect_timeout_s=PATIENCE_S),
            halt_wait_s=PATIENCE_S,
            site=site,
        )
        sn.promises = self.promises
        node = self._nodes[site] = _Node(f"{site}/sl/sl", sn, self._rules)
        self._loop.call_soon_threadsafe(self._launch, site, node)

    def drop(self, site: str) -> None:
        """End a site's node, as a job is ended: without a word."""
        node = self._nodes.pop(site)
        self._loop.call_soon_threadsafe(node.cancel)

    def check(self) -> None:
        assert not self.failures, f"nodes gave up: {self.failures}\n{self.consortium.report()}"

    @property
    def round(self) -> int:
        """The newest round of which a node has the result."""
        return max([0, *(node.round for node in self._nodes.values())])

    def round_of(self, site: str) -> int:
        """The newest round of which that site's node has the result."""
        return self._nodes[site].round

    def reason(self, site: str) -> str:
        """What the node waits for, as its heartbeats say it."""
        return self._nodes[site].reason

    def await_rounds(self, count: int, patience_s: float = 90.0) -> None:
        """Until that many more rounds are over."""
        goal = self.round + count
        self.consortium.until(lambda: self.round >= goal, f"round {goal} (at {self.round})", patience_s)

    def await_part(self, *sites: str, patience_s: float = 90.0) -> None:
        """Until each of these sites has taken part in a round that began after now, together with the others."""
        after = self.round + 1

        def is_there() -> bool:
            there = {node for number, node, _ in list(self.promises.check_ins) if number > after}
            return there >= {f"{site}/sl/sl" for site in sites} and self.round > after

        self.consortium.until(is_there, f"{', '.join(sites)} to take part after round {after}", patience_s)

    def _launch(self, site: str, node: _Node) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (failure := task.exception()) is not None:
                self.failures[site] = failure

        node.task = self._loop.create_task(node.live())
        node.task.add_done_callback(ended)

    async def _end(self) -> None:
        tasks = [node.task for node in self._nodes.values() if node.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # Connections that were given up close in the background.
        await asyncio.sleep(0.25)
        await self._loop.shutdown_default_executor()

    # --- what has come of it ---

    def check_promises(self, *sites: str) -> None:
        """Every confirmed fact is on the ledger of each of these sites (all), and no round has two results."""
        for site in sites or self.consortium.names:
            rounds: tuple[Round, ...] = self.consortium.ask(site, lambda client: client.rounds(self.contract))
            there = {(r.number, c.node, c.blob) for r in rounds for c in r.check_ins}
            lost = [one for one in self.promises.check_ins if one not in there]
            assert not lost, f"{site} has lost check-ins: {lost}"
            merged = {r.number: r.merged for r in rounds if r.state is RoundState.PUBLISHED}
            changed = [one for one in self.promises.results if merged.get(one[0]) != one[2]]
            assert not changed, f"{site} has lost results: {changed}"
            events = Counter(e.facts["round"] for e in self._events(site) if e.name == "Published")
            assert all(count == 1 for count in events.values()), f"{site}: rounds published twice: {events}"
            assert set(events) == set(merged)
        assert self.promises.results

    def results(self, site: str) -> dict[int, str]:
        """Round -> hash of the merged parameters, on that site's ledger."""
        rounds: tuple[Round, ...] = self.consortium.ask(site, lambda client: client.rounds(self.contract))
        return {r.number: r.merged for r in rounds if r.state is RoundState.PUBLISHED}

    def _events(self, site: str) -> list[Event]:
        async def collect(client: SnClient) -> list[Event]:
            found: list[Event] = []
            cursor = 0
            while True:
                page = await client.events(cursor, contract=self.contract)
                if not page.events:
                    return found
                found += page.events
                cursor = page.cursor

        events: list[Event] = self.consortium.ask(site, collect)
        return events


class _Node:
    """One SL node without a process of its own."""

    def __init__(self, name: str, sn: SnClient, rules: RoundConfig) -> None:
        self.round = 0
        self.task: asyncio.Task[None] | None = None
        self._name, self._sn, self._rules = name, sn, rules
        self._training: Training | None = None

    @property
    def reason(self) -> str:
        return self._training.reason if self._training is not None else self._sn.halted

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    async def live(self) -> None:
        async with self._sn as sn:
            member = Member(sn, self._name, "", f"instance of {self._name}")
            await member.register()
            alive = asyncio.create_task(member.keep_alive())
            train = asyncio.create_task(self._train(sn, member))
            try:
                await asyncio.wait([alive, train], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (alive, train):
                    task.cancel()
                results = await asyncio.gather(alive, train, return_exceptions=True)
            for result in results:
                if isinstance(result, SwarmError):
                    raise result
                if isinstance(result, Exception):
                    raise AssertionError(f"{self._name} failed") from result

    async def _train(self, sn: SnClient, member: Member) -> None:
        spec = ContractSpec(
            name=self._rules.contract,
            platform=Platform.PYTORCH,
            merge=Merge(),
            min_peers=self._rules.min_peers,
            quorum_wait_s=self._rules.quorum_wait_s,
            leader_timeout_s=self._rules.leader_timeout_s,
            model=model_hash(LAYOUT),
        )
        contract = await enter(sn, member, spec, LAYOUT)
        with Arena.create(LAYOUT) as arena:
            part = Part(arena=arena, weight=1, rules=self._rules, job=JobConfig(), used_cpu_s=lambda: 0.0)
            training = self._training = Training(sn, member, GatewayExchange(sn, None), contract, part)
            member.rejoin = training.rejoin
            await training.resume()
            step = 1.0 + len(self._name)
            while True:
                await asyncio.sleep(PACE_S)
                arena.array("w")[:] += step
                synced = await training.sync(SyncRequest(loss=1.0))
                self.round = synced.round
                if synced.training_over:
                    raise TrainingOver(f"{self._name}: {self._rules.contract} was completed")
