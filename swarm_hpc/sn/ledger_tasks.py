"""Tasks and taskrunners on the ledger: the part of Ledger that SWOP and SWCI use. The rules are in Tasks.vy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swarm_hpc.records import Task, TaskRun, Taskrunner, TaskState, TaskType
from swarm_hpc.sn import views
from swarm_hpc.sn.chain import Chain

BATCH: Final = 32
"""How many lines of a task's body go into one transaction."""
TEXT_BYTES: Final = 1024
"""The longest text of a report."""


class TaskLedger:
    """Tasks (what SWOP nodes can be told to do) and taskrunners (groups of them that do one at a time)."""

    _chain: Chain

    # --- tasks ---

    def create_task(self, name: str, kind: TaskType, author: str, prereq: str, outcome: str, site: str) -> None:
        """Create a task for an operator of the site, without a body; no-op where it is there with the same fields, else
        AlreadyExists."""
        views.label(name, "task")
        author, outcome = views.text(author, 160, "author"), views.text(outcome, 160, "outcome")
        views.label(prereq, "prereq")
        self._chain.send("Tasks", "create_task", name, str(kind), author, prereq, outcome, site, what=f"task {name}")

    def append_task_body(self, name: str, first: int, lines: Sequence[str]) -> None:
        """Add or overwrite the lines from number `first` (from 1) on: at most 256 of 160 bytes. TaskRefused once
        finalised, unless they are the same."""
        checked = [views.text(line, 160, f"line {at} of task {name}") for at, line in enumerate(lines, first)]
        for at in range(0, len(checked) or 1, BATCH):
            batch = checked[at : at + BATCH]
            what = f"lines {first + at} to {first + at + len(batch) - 1} of task {name}"
            self._chain.send("Tasks", "append_task_body", name, first + at, batch, what=what)

    def finalize_task(self, name: str) -> None:
        """Fix the body: the task can be assigned and never changes again; no-op where it is so."""
        self._chain.send("Tasks", "finalize_task", name, what=f"finalising task {name}")

    def delete_task(self, name: str) -> None:
        """Delete a task that is not finalised (TaskRefused); no-op where there is none."""
        self._chain.send("Tasks", "delete_task", name, what=f"deleting task {name}")

    def task(self, name: str) -> Task:
        """The task with its body; NotFound."""
        return views.task(self._chain.call("Tasks", "task_view", name, what=f"task {name}"))

    def tasks(self) -> tuple[Task, ...]:
        """All tasks, oldest first, ROOTTASK included."""
        return tuple(self.task(name) for name in self._names("num_tasks", "task_name"))

    # --- taskrunners ---

    def create_taskrunner(self, name: str) -> None:
        """Create a taskrunner; no-op where it is there."""
        views.label(name, "taskrunner")
        self._chain.send("Tasks", "create_taskrunner", name, what=f"taskrunner {name}")

    def enrol(self, taskrunner: str, node: str, num_sl: int = 1, *, incarnation: int = 0) -> None:
        """The node follows this taskrunner and can start `num_sl` SL nodes; again: changes num_sl. Fenced."""
        what = f"{node} enrolling in {taskrunner}"
        self._chain.send("Tasks", "enrol", taskrunner, node, incarnation, num_sl, what=what)

    def assign(self, taskrunner: str, task: str, num_peers: int = 0, target: str = "") -> None:
        """Give the taskrunner a task: for as many as make `num_peers` (0: all), or for one target node.

        num_peers counts SL nodes in RUN_SWARM and SWOP nodes otherwise. TaskRefused while it is running, except that a
        target may join a running assignment of the same task; and where too few have completed the prerequisite.
        """
        what = f"assigning {task} to {taskrunner}"
        self._chain.send("Tasks", "assign", taskrunner, task, num_peers, target, what=what)

    def report(
        self,
        taskrunner: str,
        run: int,
        node: str,
        state: TaskState,
        text: str = "",
        num_done: int = 0,
        *,
        incarnation: int = 0,
    ) -> None:
        """How far a node is with that run. Its first report begins its part: TaskRefused when the task has peers enough
        already, when the run is over, or when the node has not completed the prerequisite. Fenced."""
        # The text is for people to read: the head of a long one says enough.
        text = text.encode()[:TEXT_BYTES].decode(errors="ignore")
        number = views.TASK_STATES.index(TaskState(state))
        what = f"{node} reporting to {taskrunner}"
        self._chain.send("Tasks", "report", taskrunner, run, node, incarnation, number, text, num_done, what=what)

    def reset_taskrunner(self, taskrunner: str) -> None:
        """Drop the assignment, whatever its state; no-op where there is none. It stays in the history of runs."""
        self._chain.send("Tasks", "reset_taskrunner", taskrunner, what=f"resetting {taskrunner}")

    def taskrunner(self, name: str) -> Taskrunner:
        """The taskrunner with its peers; NotFound."""
        return views.taskrunner(self._chain.call("Tasks", "taskrunner_view", name, what=f"taskrunner {name}"))

    def taskrunner_version(self, name: str) -> int:
        """Grows with every change of the taskrunner; NotFound."""
        version: int = self._chain.call("Tasks", "taskrunner_version", name, what=f"taskrunner {name}")
        return version

    def task_runs(self, taskrunner: str, first: int = 1, last: int | None = None) -> tuple[TaskRun, ...]:
        """Runs `first` to `last` of the taskrunner, at most up to the newest; NotFound: the taskrunner."""
        newest = self.taskrunner(taskrunner).num_runs
        numbers = range(max(1, first), min(last or newest, newest) + 1)
        found = (self._chain.call("Tasks", "run_view", taskrunner, number) for number in numbers)
        return tuple(views.task_run(taskrunner, one) for one in found)

    def taskrunners(self) -> tuple[Taskrunner, ...]:
        """All taskrunners, oldest first."""
        return tuple(self.taskrunner(name) for name in self._names("num_taskrunners", "taskrunner_name"))

    def _names(self, count: str, name: str) -> list[str]:
        numbers = range(1, self._chain.call("Tasks", count) + 1)
        return [found for number in numbers if (found := self._chain.call("Tasks", name, number))]
