"""A task's YAML file as fields and body lines for the ledger: the one place where SWCI meets the task reader."""

from __future__ import annotations

from dataclasses import dataclass

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import Task, TaskType
from swarm_hpc.tasks.file import parse_task
from swarm_hpc.tasks.lines import from_lines, to_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTask:
    """What a task is created with."""

    name: str
    type: TaskType
    author: str
    prereq: str
    outcome: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def read_new_task(data: bytes, file: str) -> NewTask:
    """The task in the bytes of a YAML file; ConfigError names `file` and the key."""
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file}: byte {exc.start} is not UTF-8: save the file as UTF-8") from exc
    found = parse_task(text, file)
    return NewTask(
        name=found.name,
        type=found.type,
        author=found.author,
        prereq=found.prereq,
        outcome=found.outcome,
        lines=to_lines(found.body),
        warnings=found.warnings,
    )


def check_body(task: Task) -> None:
    """ConfigError where the task's lines, written by hand perhaps, are no body of its type."""
    from_lines(task.type, task.body, task.name)
