"""What an SN answers about tasks and taskrunners, and who may ask: operators write tasks, SWOP nodes do them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from swarm_hpc.errors import NotAuthorized
from swarm_hpc.records import Kind, Task, Taskrunner, TaskState, TaskType
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership
from swarm_hpc.sn.request import READERS, acting, answer, named, take, waiting_time, whole_number
from swarm_hpc.transport.server import allow, body


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskApi:
    """The handlers of one SN."""

    live: LiveLedger
    membership: Membership

    def add_routes(self, app: web.Application) -> None:
        """Serve the API."""
        task, runner = "/v1/tasks/{task}", "/v1/taskrunners/{taskrunner}"
        app.add_routes(
            [
                web.get("/v1/tasks", self.get_tasks),
                web.post("/v1/tasks", self.create_task),
                web.get(task, self.get_task),
                web.post(task + "/body", self.append_body),
                web.post(task + "/finalize", self.finalize),
                web.post(task + "/delete", self.delete),
                web.get("/v1/taskrunners", self.get_taskrunners),
                web.post("/v1/taskrunners", self.create_taskrunner),
                web.get(runner, self.get_taskrunner),
                web.get(runner + "/runs", self.get_runs),
                web.post(runner + "/enrol", self.enrol),
                web.post(runner + "/assign", self.assign),
                web.post(runner + "/report", self.report),
                web.post(runner + "/reset", self.reset),
            ]
        )

    # tasks

    async def get_tasks(self, request: web.Request) -> web.Response:
        """All tasks."""
        allow(request, *READERS)
        return answer(await self.live.read(lambda ledger: ledger.tasks()))

    async def get_task(self, request: web.Request) -> web.Response:
        """One task."""
        allow(request, *READERS)
        name = _task(request)
        return answer(await self.live.read(lambda ledger: ledger.task(name)))

    async def create_task(self, request: web.Request) -> web.Response:
        """A task of the operator's site, without a body."""
        peer = allow(request, Kind.SWCI)
        said = await body(request)
        name, author = take(said, "name", str), take(said, "author", str)
        kind = take(said, "type", TaskType)
        prereq, outcome = take(said, "prereq", str), take(said, "outcome", str)

        def act(ledger: Ledger) -> Task:
            ledger.create_task(name, kind, author, prereq, outcome, peer.site)
            return ledger.task(name)

        return answer(await self.live.write(act))

    async def append_body(self, request: web.Request) -> web.Response:
        """Lines of a task's body."""
        said = await body(request)
        first, lines = take(said, "first", int), take(said, "lines", list[str])
        return await self._change_task(request, lambda ledger, name: ledger.append_task_body(name, first, lines))

    async def finalize(self, request: web.Request) -> web.Response:
        """The task is complete."""
        return await self._change_task(request, lambda ledger, name: ledger.finalize_task(name))

    async def delete(self, request: web.Request) -> web.Response:
        """The task is not wanted any more."""
        allow(request, Kind.SWCI)
        name = _task(request)
        await self.live.write(lambda ledger: ledger.delete_task(name))
        return web.json_response({})

    async def _change_task(self, request: web.Request, change: Callable[[Ledger, str], None]) -> web.Response:
        allow(request, Kind.SWCI)
        name = _task(request)

        def act(ledger: Ledger) -> Task:
            change(ledger, name)
            return ledger.task(name)

        return answer(await self.live.write(act))

    # taskrunners

    async def get_taskrunners(self, request: web.Request) -> web.Response:
        """All taskrunners."""
        allow(request, *READERS)
        return answer(await self.live.read(lambda ledger: ledger.taskrunners()))

    async def get_taskrunner(self, request: web.Request) -> web.Response:
        """One taskrunner, now or when it has changed."""
        allow(request, *READERS)
        name = _taskrunner(request)
        seen = whole_number(request, "seen", 0) if "seen" in request.query else None
        return answer(await self._wait_for(name, seen, waiting_time(request)))

    async def _wait_for(self, name: str, seen: int | None, wait_s: float) -> Taskrunner:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            cursor = self.live.cursor
            version = await self.live.read(lambda ledger: ledger.taskrunner_version(name))
            left_s = until - loop.time()
            if version != seen or left_s <= 0 or self.live.stopped:
                return await self.live.read(lambda ledger: ledger.taskrunner(name))
            await self.live.wait(None, cursor, left_s)

    async def get_runs(self, request: web.Request) -> web.Response:
        """What the taskrunner has done."""
        allow(request, *READERS)
        name = _taskrunner(request)
        first, last = whole_number(request, "first", 1), whole_number(request, "last", 0) or None
        return answer(await self.live.read(lambda ledger: ledger.task_runs(name, first, last)))

    async def create_taskrunner(self, request: web.Request) -> web.Response:
        """A taskrunner of that name."""
        allow(request, Kind.SWCI, Kind.SWOP)
        name = take(await body(request), "name", str)

        def act(ledger: Ledger) -> Taskrunner:
            ledger.create_taskrunner(name)
            return ledger.taskrunner(name)

        return answer(await self.live.write(act))

    async def enrol(self, request: web.Request) -> web.Response:
        """A SWOP node follows the taskrunner."""
        said = await body(request)
        node, incarnation = await self._act(request, said)
        num_sl = take(said, "num_sl", int)
        return await self._change(
            request, lambda ledger, name: ledger.enrol(name, node, num_sl, incarnation=incarnation)
        )

    async def report(self, request: web.Request) -> web.Response:
        """How far a SWOP node is."""
        said = await body(request)
        node, incarnation = await self._act(request, said)
        run, num_done = take(said, "run", int), take(said, "num_done", int)
        state, text = take(said, "state", TaskState), take(said, "text", str)
        return await self._change(
            request,
            lambda ledger, name: ledger.report(name, run, node, state, text, num_done, incarnation=incarnation),
        )

    async def assign(self, request: web.Request) -> web.Response:
        """An operator gives the taskrunner a task."""
        allow(request, Kind.SWCI)
        said = await body(request)
        task, target = take(said, "task", str), take(said, "target", str)
        num_peers = take(said, "num_peers", int)
        return await self._change(request, lambda ledger, name: ledger.assign(name, task, num_peers, target))

    async def reset(self, request: web.Request) -> web.Response:
        """An operator takes it back."""
        allow(request, Kind.SWCI)
        return await self._change(request, lambda ledger, name: ledger.reset_taskrunner(name))

    async def _act(self, request: web.Request, said: dict[str, Any]) -> tuple[str, int]:
        """The SWOP node that the request acts for, which is alive by that, and its incarnation."""
        allow(request, Kind.SWOP)
        node, incarnation = acting(request, said, "node"), take(said, "incarnation", int)
        if node.kind is not Kind.SWOP:
            raise NotAuthorized(f"{node}: a taskrunner's peers are nodes of kind swop")
        await self.membership.act(str(node), incarnation)
        return str(node), incarnation

    async def _change(self, request: web.Request, change: Callable[[Ledger, str], None]) -> web.Response:
        name = _taskrunner(request)

        def act(ledger: Ledger) -> Taskrunner:
            change(ledger, name)
            return ledger.taskrunner(name)

        return answer(await self.live.write(act))


def _task(request: web.Request) -> str:
    return named(request, "task", "task")


def _taskrunner(request: web.Request) -> str:
    return named(request, "taskrunner", "taskrunner")
