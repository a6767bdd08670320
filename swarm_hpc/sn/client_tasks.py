"""Calls to an SN about tasks and taskrunners: the part of SnClient that SWOP and SWCI use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from swarm_hpc.records import Task, TaskRun, Taskrunner, TaskState, TaskType, decode

MAX_WAIT_S: Final = 30.0
"""The longest that an SN holds a long-poll."""


class TaskClient(ABC):
    """Tasks are for swci (NotAuthorized), except for reading; enrolling and reporting is for swop, for its own node."""

    # --- tasks ---

    async def create_task(self, name: str, kind: TaskType, author: str, prereq: str, outcome: str) -> Task:
        """Create a task without a body. AlreadyExists: other fields under that name. TaskRefused, NotFound: prereq."""
        fields = {"name": name, "type": kind, "author": author, "prereq": prereq, "outcome": outcome}
        return decode(Task, await self._post("/v1/tasks", **fields))

    async def append_task_body(self, name: str, first: int, lines: Sequence[str]) -> Task:
        """Add or overwrite lines `first` (from 1) and following: 256 lines of 160 bytes in all. TaskRefused."""
        return decode(Task, await self._post(_task(name, "body"), first=first, lines=list(lines)))

    async def finalize_task(self, name: str) -> Task:
        """Fix the body: the task can be assigned and never changes again. TaskRefused, NotFound."""
        return decode(Task, await self._post(_task(name, "finalize")))

    async def delete_task(self, name: str) -> None:
        """Delete a task that is not finalised (TaskRefused); no-op where there is none."""
        await self._post(_task(name, "delete"))

    async def task(self, name: str) -> Task:
        """The task with its body; NotFound."""
        return decode(Task, await self._get(_task(name)))

    async def tasks(self) -> tuple[Task, ...]:
        """All tasks with their bodies, oldest first, ROOTTASK included."""
        return decode(tuple[Task, ...], await self._get("/v1/tasks"))

    # --- taskrunners ---

    async def create_taskrunner(self, name: str) -> Taskrunner:
        """Create a taskrunner; no-op where it is there. For swci and swop."""
        return decode(Taskrunner, await self._post("/v1/taskrunners", name=name))

    async def taskrunner(self, name: str, *, seen: int = -1, wait_s: float = 0) -> Taskrunner:
        """The taskrunner with its peers, at once if its version is not `seen`, else when it has changed or after
        `wait_s` (the SN caps it at 30). NotFound."""
        wait_s = min(wait_s, MAX_WAIT_S)
        answer = await self._get(_runner(name), {"seen": seen, "wait_s": wait_s} if seen >= 0 else None, wait_s)
        return decode(Taskrunner, answer)

    async def taskrunners(self) -> tuple[Taskrunner, ...]:
        """All taskrunners, oldest first."""
        return decode(tuple[Taskrunner, ...], await self._get("/v1/taskrunners"))

    async def task_runs(self, taskrunner: str, first: int = 1, last: int | None = None) -> tuple[TaskRun, ...]:
        """Runs `first` to `last` (inclusive) of the taskrunner, at most up to the newest; NotFound: the taskrunner."""
        query = {"first": first} if last is None else {"first": first, "last": last}
        return decode(tuple[TaskRun, ...], await self._get(_runner(taskrunner, "runs"), query))

    async def assign(self, taskrunner: str, task: str, num_peers: int = 0, target: str = "") -> Taskrunner:
        """Give the taskrunner a task: for as many as make `num_peers` (0: all), or for one target node.

        num_peers counts SL nodes in RUN_SWARM and SWOP nodes otherwise. TaskRefused while it is running, except that a
        target may join a running assignment of the same task; TaskRefused: too few peers have done the prerequisite.
        """
        answer = await self._post(_runner(taskrunner, "assign"), task=task, num_peers=num_peers, target=target)
        return decode(Taskrunner, answer)

    async def reset_taskrunner(self, name: str) -> Taskrunner:
        """Drop the assignment, whatever its state: its peers stop what they do; no-op where there is none."""
        return decode(Taskrunner, await self._post(_runner(name, "reset")))

    async def enrol(self, taskrunner: str, node: str, incarnation: int, num_sl: int) -> Taskrunner:
        """The node follows this taskrunner and can start `num_sl` SL nodes; again: changes num_sl. Fenced."""
        answer = await self._post(_runner(taskrunner, "enrol"), node=node, incarnation=incarnation, num_sl=num_sl)
        return decode(Taskrunner, answer)

    async def report(
        self,
        taskrunner: str,
        run: int,
        node: str,
        incarnation: int,
        state: TaskState,
        text: str = "",
        num_done: int = 0,
    ) -> Taskrunner:
        """How far the node is with that run: RUNNING, COMPLETE or ERROR; the text is cut at 1024 bytes.

        Its first report begins its part: TaskRefused when the task has peers enough already, when the run is over or
        reset, or when the node has not completed the task's prerequisite. After COMPLETE and ERROR it has ended its
        part (TaskRefused). The same again is a no-op. Fenced.
        """
        answer = await self._post(
            _runner(taskrunner, "report"),
            run=run,
            node=node,
            incarnation=incarnation,
            state=state,
            text=text,
            num_done=num_done,
        )
        return decode(Taskrunner, answer)

    @abstractmethod
    async def _get(self, path: str, query: Mapping[str, str | int | float] | None = None, wait_s: float = 0) -> Any: ...

    @abstractmethod
    async def _post(self, path: str, **fields: object) -> Any: ...


def _task(name: str, *rest: str) -> str:
    return "/".join(["/v1/tasks", quote(name, safe=""), *rest])


def _runner(name: str, *rest: str) -> str:
    return "/".join(["/v1/taskrunners", quote(name, safe=""), *rest])
