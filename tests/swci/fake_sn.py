"""An SN without ledger or sockets, with the methods of SnClient that SWCI uses. test_commands.py runs on it and on a
real one, which is why it can be trusted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from swarm_hpc.errors import AlreadyExists, ConfigError, ContractBusy, NotFound, NotReachable, TaskRefused
from swarm_hpc.records import (
    LABEL,
    CheckIn,
    ContractSpec,
    ContractState,
    DeclaredContract,
    LedgerStatus,
    Merge,
    NetworkStatus,
    NodeRecord,
    NodeStatus,
    Participant,
    Platform,
    Progress,
    Round,
    SiteList,
    SiteRecord,
    Task,
    TaskRun,
    Taskrunner,
    TaskrunnerPeer,
    TaskState,
    TaskType,
    TrainingContract,
)
from swarm_hpc.sn.client import RoundView
from tests.lab.rounds import published, round_of

DEFAULT_RUNNER = "defaulttaskbb.taskdb.sml.hpe"
NOW = 1_800_000_000


class FakeSn:
    """One SN, of site alpha."""

    def __init__(self) -> None:
        self.down = 0
        """So many calls are answered by nobody."""
        self.calls: list[str] = []
        self._tasks = {"ROOTTASK": task("ROOTTASK", TaskType.ROOT_TASK, finalised=True)}
        self._runners = {DEFAULT_RUNNER: runner(DEFAULT_RUNNER)}
        self._runs: dict[str, list[TaskRun]] = {DEFAULT_RUNNER: []}
        self._contracts: dict[str, TrainingContract] = {}
        self._rounds: dict[str, list[Round]] = {}
        self._declared: list[str] = []
        self._nodes: list[NodeStatus] = []
        self._sites = {"alpha": site("alpha", 1), "beta": site("beta", 2)}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> FakeSn:
        return self

    async def __aexit__(self, *_) -> None:
        pass

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.down:
            self.down -= 1
            raise NotReachable("127.0.0.1:1: nobody")

    # the network

    async def status(self) -> NetworkStatus:
        self._answer("status")
        return NetworkStatus(
            site="alpha",
            node="alpha/sn/sn",
            version="0.1.0",
            uptime_s=5.0,
            ledger=LedgerStatus(kind="embedded", chain_id=1, height=7, transactions=7, blocks=7, genesis="ab"),
            sites=tuple(self._sites.values()),
            nodes=tuple(self._nodes),
            contracts=tuple(self._contracts.values()),
        )

    async def nodes(self):
        self._answer("nodes")
        return tuple(self._nodes)

    async def sites(self) -> SiteList:
        self._answer("sites")
        return SiteList(sites=tuple(self._sites.values()))

    async def admit(self, name: str) -> SiteList:
        if name not in self._sites:
            raise NotFound(f"site {name} has not asked to be a member")
        return await self.sites()

    async def remove(self, name: str) -> SiteList:
        if name not in self._sites:
            raise NotFound(f"site {name} is no member")
        self._sites[name] = replace(self._sites[name], active=False)
        return await self.sites()

    def add_node(self, name: str, progress: Progress | None = None) -> None:
        """A node of a site, as if it had registered."""
        record = NodeRecord(
            name=name,
            endpoint="10.0.0.1:30305",
            instance=f"id-of-{name.replace('/', '-')}",
            incarnation=1,
            active=True,
            since=NOW,
        )
        self._nodes.append(NodeStatus(node=record, last_seen_s=3.0, progress=progress or Progress()))

    # contracts

    async def declare_contract(self, name: str) -> None:
        self._answer("declare")
        label(name, NotFound)
        if name not in self._declared:
            self._declared.append(name)

    async def declared_contracts(self):
        free = [name for name in self._declared if name not in self._contracts]
        return tuple(DeclaredContract(name=name, created_at=NOW) for name in free)

    async def contracts(self):
        self._answer("contracts")
        return tuple(self._contracts.values())

    async def contract(self, name: str) -> TrainingContract:
        self._answer("contract")
        if name not in self._contracts:
            raise NotFound(f"no training contract {name}")
        return self._contracts[name]

    async def reset_contract(self, name: str) -> str:
        if (await self.contract(name)).state is not ContractState.COMPLETED:
            raise ContractBusy(f"{name} is not completed")
        archive = f"{name}.1"
        old = self._contracts.pop(name)
        self._contracts[archive] = replace(old, spec=replace(old.spec, name=archive))
        self._rounds[archive] = self._rounds.pop(name)
        self._declared.append(name)
        return archive

    async def round(self, contract: str, number: int, *, after: int = 0, wait_s: float = 0) -> RoundView:
        found = [one for one in await self.rounds(contract) if one.number == number]
        if not found:
            raise NotFound(f"{contract} has no round {number}")
        return RoundView(cursor=1, round=found[0], contract=self._contracts[contract])

    async def rounds(self, contract: str, first: int = 1, last: int | None = None):
        await self.contract(contract)
        return tuple(
            one for one in self._rounds[contract] if first <= one.number and (last is None or one.number <= last)
        )

    def train(self, name: str, *nodes: str, completed: bool = False) -> None:
        """A contract with one published round and a second that is open, as if these nodes had trained."""
        spec = ContractSpec(
            name=name,
            platform=Platform.PYTORCH,
            merge=Merge(),
            min_peers=2,
            quorum_wait_s=30,
            leader_timeout_s=60,
            model="ab" * 32,
        )
        self._contracts[name] = TrainingContract(
            spec=spec,
            state=ContractState.COMPLETED if completed else ContractState.TRAINING,
            round=2,
            created_at=NOW,
            participants=tuple(Participant(node=node, active=True) for node in nodes),
        )
        ins = tuple(CheckIn(node=one, blob="cd" * 32, weight=1, loss=0.5, metric=0.9, epoch=3, at=NOW) for one in nodes)
        first = published(1, "ef" * 32, contract=name, check_ins=ins, leader=nodes[0], published_at=NOW)
        self._rounds[name] = [first, round_of(2, contract=name)]

    def go_on(self, name: str, rounds: int, node: str) -> None:
        """So many rounds more, which that node alone checks in to."""
        last = self._rounds[name].pop().number + rounds
        for number in range(last - rounds, last):
            ins = (CheckIn(node=node, blob="cd" * 32, weight=1, loss=0.1, epoch=number - 1, at=NOW),)
            self._rounds[name].append(published(number, "ef" * 32, contract=name, check_ins=ins, leader=node))
        self._rounds[name].append(round_of(last, contract=name))
        self._contracts[name] = replace(self._contracts[name], round=last)

    # tasks

    async def create_task(self, name: str, kind: TaskType, author: str, prereq: str, outcome: str) -> Task:
        self._answer("create_task")
        label(name)
        if not self._task(prereq).finalised:
            raise TaskRefused("the prerequisite is not finalised")
        new = task(name, kind, author=author, prereq=prereq, outcome=outcome, site="alpha")
        known = self._tasks.setdefault(name, new)
        if replace(known, body=(), finalised=False) != new:
            raise AlreadyExists(f"task {name}: another task has that name")
        return known

    async def append_task_body(self, name: str, first: int, lines) -> Task:
        known = self._task(name)
        body = list(known.body)
        if not 1 <= first <= len(body) + 1:
            raise ConfigError(f"task {name}: lines are numbered from 1, without gaps")
        body[first - 1 : first - 1 + len(lines)] = lines
        if known.finalised and tuple(body) != known.body:
            raise TaskRefused(f"task {name}: the task is finalised")
        return self._keep(replace(known, body=tuple(body)))

    async def finalize_task(self, name: str) -> Task:
        return self._keep(replace(self._task(name), finalised=True))

    async def delete_task(self, name: str) -> None:
        if self._task(name).finalised:
            raise TaskRefused(f"task {name}: a finalised task stays")
        del self._tasks[name]

    async def task(self, name: str) -> Task:
        self._answer("task")
        return self._task(name)

    async def tasks(self):
        self._answer("tasks")
        return tuple(self._tasks.values())

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            raise NotFound(f"task {name}: no such task")
        return self._tasks[name]

    def _keep(self, one: Task) -> Task:
        self._tasks[one.name] = one
        return one

    # taskrunners

    async def create_taskrunner(self, name: str) -> Taskrunner:
        label(name)
        self._runs.setdefault(name, [])
        return self._runners.setdefault(name, runner(name))

    async def taskrunners(self):
        self._answer("taskrunners")
        return tuple(self._runners.values())

    async def taskrunner(self, name: str, *, seen: int = -1, wait_s: float = 0) -> Taskrunner:
        self._answer("taskrunner")
        found = self._runner(name)
        if found.version == seen:
            self._changed.clear()
            try:
                async with asyncio.timeout(min(wait_s, 0.01)):  # a fake need not wait longer to have waited
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self._runner(name)

    async def task_runs(self, name: str, first: int = 1, last: int | None = None):
        self._runner(name)
        return tuple(one for one in self._runs[name] if first <= one.number and (last is None or one.number <= last))

    async def assign(self, name: str, task_name: str, num_peers: int = 0, target: str = "") -> Taskrunner:
        found, what = self._runner(name), self._task(task_name)
        if not what.finalised:
            raise TaskRefused(f"assigning {task_name} to {name}: the task is not finalised")
        if target and target not in [one.node for one in found.peers]:
            raise NotFound(f"assigning {task_name} to {name}: the target is not enrolled")
        if found.state is TaskState.RUNNING:
            raise TaskRefused(f"assigning {task_name} to {name}: the taskrunner is running")
        counts_sl = what.type is TaskType.RUN_SWARM
        there = sum(one.num_sl if counts_sl else 1 for one in found.peers)
        wanted = 1 if target else num_peers or there
        if not 1 <= wanted <= there:
            raise TaskRefused(f"assigning {task_name} to {name}: fewer peers are enrolled")
        number = found.num_runs + 1
        new = replace(
            found,
            state=TaskState.RUNNING,
            task=task_name,
            counts_sl=counts_sl,
            num_peers=wanted,
            target=target,
            assigned_at=NOW,
            ended_at=0,
            run=number,
            num_runs=number,
            peers=tuple(replace(one, state=TaskState.IDLE, text="", num_done=0, at=0) for one in found.peers),
        )
        return self._change(new)

    async def reset_taskrunner(self, name: str) -> Taskrunner:
        found = self._runner(name)
        if found.state is TaskState.RUNNING:
            self._record(replace(found, state=TaskState.RESET))
        idle = replace(runner(name), num_runs=found.num_runs, version=found.version, peers=found.peers)
        return self._change(idle)

    def enrol(self, name: str, node: str, num_sl: int = 1) -> None:
        """A SWOP node of the taskrunner."""
        peer = TaskrunnerPeer(node=node, num_sl=num_sl, state=TaskState.IDLE, text="", num_done=0, at=0)
        self._change(replace(self._runner(name), peers=(*self._runner(name).peers, peer)))
        self.add_node(node)

    def report(self, name: str, node: str, state: TaskState, text: str = "") -> None:
        """What a SWOP node says; COMPLETE and ERROR of one end the run here, other than on the ledger."""
        found = self._runner(name)
        peers = tuple(replace(one, state=state, text=text, at=NOW) if one.node == node else one for one in found.peers)
        self._change(replace(found, state=state, peers=peers))

    def _runner(self, name: str) -> Taskrunner:
        if name not in self._runners:
            raise NotFound(f"taskrunner {name}: no such taskrunner")
        return self._runners[name]

    def _change(self, new: Taskrunner) -> Taskrunner:
        self._runners[new.name] = new = replace(new, version=new.version + 1)
        if new.run:
            self._record(new)
        self._changed.set()
        return new

    def _record(self, now: Taskrunner) -> None:
        run = TaskRun(
            taskrunner=now.name,
            number=now.run,
            task=now.task,
            state=now.state,
            counts_sl=now.counts_sl,
            num_peers=now.num_peers,
            target=now.target,
            assigned_at=now.assigned_at,
            ended_at=now.ended_at,
            peers=now.peers,
        )
        self._runs[now.name][now.run - 1 :] = [run]


def label(name: str, error: type[Exception] = ConfigError) -> None:
    if not LABEL.fullmatch(name):
        raise error(f"{name!r}: use letters, digits, '.', '_', '-', at most 63")


def site(name: str, at: int) -> SiteRecord:
    return SiteRecord(
        name=name,
        account=f"0x{at:040x}",
        endpoint=f"sn.{name}.test:30304",
        ca_fingerprint="ef" * 32,
        consensus_key="",
        p2p_id="",
        active=True,
        joined_at=NOW + at,
        announced=1,
    )


def task(
    name: str,
    kind: TaskType,
    *,
    author: str = "swarm-hpc",
    prereq: str = "",
    outcome: str = "",
    site: str = "",
    finalised: bool = False,
) -> Task:
    return Task(
        name=name,
        type=kind,
        author=author,
        prereq=prereq,
        outcome=outcome,
        finalised=finalised,
        created_at=NOW,
        site=site,
        body=(),
    )


def runner(name: str) -> Taskrunner:
    return Taskrunner(
        name=name,
        state=TaskState.IDLE,
        task="",
        counts_sl=False,
        num_peers=0,
        target="",
        assigned_at=0,
        ended_at=0,
        run=0,
        num_runs=0,
        version=0,
        reachable=True,
        peers=(),
    )
