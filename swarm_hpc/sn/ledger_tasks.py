"""Tasks and taskrunners on the ledger: the part of Ledger that SWOP and SWCI use. The rules are in Tasks.vy."""

from __future__ import annotations

from swarm_hpc.records import Task, Taskrunner, TaskState, TaskType
from swarm_hpc.sn import views
from swarm_hpc.sn.chain import Chain


class TaskLedger:
    """Tasks (what SWOP nodes can be told to do) and taskrunners (groups of them that do one at a time)."""

    _chain: Chain

    # --- tasks ---

    def create_task(self, name: str, kind: TaskType, author: str, prereq: str, outcome: str) -> None:
        """Create a task without a body; no-op where it is there with the same fields, else AlreadyExists."""
        views.label(name, "task")
        author, outcome = views.text(author, 160, "author"), views.text(outcome, 160, "outcome")
        self._chain.send("Tasks", "create_task", name, str(kind), author, prereq, outcome, what=f"task {name}")

    def append_task_body(self, name: str, index: int, line: str) -> None:
        """Add or overwrite line `index` (from 1, at most 256 lines of 160 bytes). TaskRefused once finalised."""
        line = views.text(line, 160, f"line {index} of task {name}")
        self._chain.send("Tasks", "append_task_body", name, index, line, what=f"line {index} of task {name}")

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

    def enrol(self, taskrunner: str, node: str, num_sl: int = 1) -> None:
        """The node follows this taskrunner and can start `num_sl` SL nodes; again: changes num_sl."""
        self._chain.send("Tasks", "enrol", taskrunner, node, num_sl, what=f"{node} enrolling in {taskrunner}")

    def assign(self, taskrunner: str, task: str, num_peers: int = 0, target: str = "") -> None:
        """Give the taskrunner a task: for as many as make `num_peers` (0: all), or for one target node.

        num_peers counts SL nodes in RUN_SWARM and SWOP nodes otherwise. TaskRefused while it is running, except that a
        target may join a running assignment of the same task.
        """
        what = f"assigning {task} to {taskrunner}"
        self._chain.send("Tasks", "assign", taskrunner, task, num_peers, target, what=what)

    def report(self, taskrunner: str, node: str, state: TaskState, text: str = "", num_done: int = 0) -> None:
        """How far a node is. Its first report begins its part: TaskRefused when the task has peers enough already."""
        # The text is for people to read: the head of a long one says enough.
        text = text.encode()[:160].decode(errors="ignore")
        number = views.TASK_STATES.index(TaskState(state))
        what = f"{node} reporting to {taskrunner}"
        self._chain.send("Tasks", "report", taskrunner, node, number, text, num_done, what=what)

    def reset_taskrunner(self, taskrunner: str) -> None:
        """Drop the assignment, whatever its state; no-op where there is none."""
        self._chain.send("Tasks", "reset_taskrunner", taskrunner, what=f"resetting {taskrunner}")

    def taskrunner(self, name: str) -> Taskrunner:
        """The taskrunner with its peers; NotFound."""
        return views.taskrunner(self._chain.call("Tasks", "taskrunner_view", name, what=f"taskrunner {name}"))

    def taskrunners(self) -> tuple[Taskrunner, ...]:
        """All taskrunners, oldest first."""
        return tuple(self.taskrunner(name) for name in self._names("num_taskrunners", "taskrunner_name"))

    def _names(self, count: str, name: str) -> list[str]:
        numbers = range(1, self._chain.call("Tasks", count) + 1)
        return [found for number in numbers if (found := self._chain.call("Tasks", name, number))]
