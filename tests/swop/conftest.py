"""An SN with real certificates, its operator, and SWOP nodes in the test's event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swarm_hpc.config import (
    ConnectionConfig,
    FollowConfig,
    IdentityConfig,
    SiteConfig,
    SnConfig,
    SwopConfig,
    TransferConfig,
)
from swarm_hpc.errors import SwarmError
from swarm_hpc.identity import ca, certs
from swarm_hpc.records import NodeName, Task, Taskrunner, TaskState, TaskType
from swarm_hpc.sn import node as sn_node
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swop import node
from swarm_hpc.swop.doing import Doing, Workshop
from swarm_hpc.swop.executor import Failure, Standing
from swarm_hpc.swop.part import Part, Slot, SlotState

RUNNER = "runner"
PATIENCE_S = 60.0
ENDED = (TaskState.COMPLETE, TaskState.ERROR)


class Bench(Workshop):
    """A workshop without anything behind it: a test says how slots stand."""

    def __init__(self, num_sl: int = 1) -> None:
        self._num_sl = num_sl
        self.refusal: SwarmError | None = None
        self.standing = Standing(SlotState.DONE, "done")
        self.starts: Counter[str] = Counter()
        self.cancelled: list[str] = []
        self.opened: list[str] = []

    @property
    def num_sl(self) -> int:
        return self._num_sl

    def open(self, task: Task, prereqs: Sequence[Task]) -> Doing:
        self.opened.append(task.name)
        if self.refusal is not None:
            raise self.refusal
        return _Bench(self, self._num_sl if task.type is TaskType.RUN_SWARM else 1)

    def cancel(self, kind: TaskType, slot: Slot, folder: Path) -> None:
        self.cancelled.append(slot.tag)


class _Bench(Doing):
    def __init__(self, bench: Bench, num_slots: int) -> None:
        self._bench = bench
        self._num_slots = num_slots

    @property
    def indexes(self) -> Sequence[int]:
        return range(self._num_slots)

    def start(self, part: Part, slot: Slot, folder: Path) -> str:
        self._bench.starts[slot.tag] += 1
        return slot.tag

    def poll(self, slot: Slot, folder: Path) -> Standing:
        return self._bench.standing

    def tail(self, slot: Slot, folder: Path, num_lines: int) -> list[str]:
        return ["loading", "no such file: data.csv"][-num_lines:]

    def failure(self, slot: Slot, folder: Path) -> Failure:
        return Failure()

    def node_prefix(self, part: Part, slot: Slot) -> str:
        return ""


@dataclass
class Site:
    """Site alpha: its CA, an SN, an operator and SWOPs."""

    folder: Path
    address: str
    stack: AsyncExitStack
    connection: ConnectionConfig = field(default_factory=lambda: ConnectionConfig(connect_timeout_s=5))

    def identity(self, name: str) -> IdentityConfig:
        cert, key = ca.issue(self.folder / "alpha", NodeName.parse(name), self.folder / "alpha")
        return IdentityConfig(cert=str(cert), key=str(key), bundle=str(self.folder / "bundle.json"))

    async def operator(self) -> SnClient:
        identity = certs.load(self.identity("alpha/swci/ada"))
        client = SnClient(identity, self.address, connection=self.connection)
        await self.stack.enter_async_context(client)
        await client.create_taskrunner(RUNNER)
        return client

    def config(self, name: str = "swop1", profile: str = "") -> SwopConfig:
        return SwopConfig(
            profile=profile,
            name=f"alpha/swop/{name}",
            sn=self.address,
            state_dir=str(self.folder / name),
            identity=self.identity(f"alpha/swop/{name}"),
            site=SiteConfig(name="alpha", sn=self.address, identity=self.identity("alpha/sl/jobs")),
            connection=self.connection,
            transfer=TransferConfig(min_free_mib=0),
            follow=FollowConfig(poll_s=0.05, report_s=0.05),
        )

    @asynccontextmanager
    async def swop(self, bench: Workshop, name: str = "swop1") -> AsyncIterator[asyncio.Task[None]]:
        """A SWOP node, until the end of the block."""
        life = asyncio.create_task(node.follow(self.config(name), RUNNER, bench, self.address))
        try:
            yield life
        finally:
            life.cancel()
            await asyncio.wait({life})


async def make_task(
    client: SnClient,
    name: str,
    body: Sequence[str] = ("nothing: to read",),
    kind: TaskType = TaskType.RUN_SWARM,
    prereq: str = "ROOTTASK",
) -> None:
    await client.create_task(name, kind, "Ada", prereq, "outcome")
    await client.append_task_body(name, 1, list(body))
    await client.finalize_task(name)


async def until(client: SnClient, found: Callable[[Taskrunner], bool], patience_s: float = PATIENCE_S) -> Taskrunner:
    """Wait until that holds of the taskrunner."""
    deadline = time.monotonic() + patience_s
    runner = await client.taskrunner(RUNNER)
    while not found(runner):
        assert time.monotonic() < deadline, runner
        runner = await client.taskrunner(RUNNER, seen=runner.version, wait_s=5)
    return runner


async def enrolled(client: SnClient, num_swops: int = 1) -> None:
    await until(client, lambda runner: len(runner.peers) == num_swops)


async def ended(client: SnClient, patience_s: float = PATIENCE_S) -> Taskrunner:
    return await until(client, lambda runner: runner.state in ENDED, patience_s)


@asynccontextmanager
async def site_in(folder: Path) -> AsyncIterator[Site]:
    """Site alpha with all its files in that folder."""
    authority = ca.create_ca("alpha", "swarm.test", folder / "alpha")
    ca.write_bundle({"alpha": authority}, "swarm.test", folder / "bundle.json")
    one = Site(folder, "", AsyncExitStack())
    config = SnConfig(
        port=0,
        data_dir=str(folder / "sn"),
        identity=one.identity("alpha/sn/sn"),
        transfer=TransferConfig(min_free_mib=0, keep_rounds=0),
    )
    async with one.stack as stack:
        one.address = await stack.enter_async_context(sn_node.start(config, certs.load(config.identity)))
        yield one


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path) as one:
        yield one
