"""Commands about tasks: what SWOP nodes can be told to do."""

from __future__ import annotations

from typing import Final

from swarm_hpc.errors import AlreadyExists, ConfigError
from swarm_hpc.records import Task, TaskType
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swci.grammar import Rest, Subject
from swarm_hpc.swci.result import Result, facts, moment, said, table
from swarm_hpc.swci.session import Session
from swarm_hpc.tasks.file import TaskFile, parse_task
from swarm_hpc.tasks.lines import to_lines

SUBJECT = Subject("Tasks")

MAX_FILE_BYTES: Final = 1 << 20


@SUBJECT.command("CREATE TASK FROM {file}")
async def create_task_from(session: Session, file: str) -> Result:
    """Register the task of a YAML file, with its body. FINALIZE TASK makes it one that can be assigned."""
    read = parse_task(_text(session, file), file)
    lines = to_lines(read.body)
    task = await _register(session.sn, read, lines)
    warnings = tuple(f"WARNING - {text}" for text in read.warnings)
    return said(*warnings, f"Task Registered : {task.name}", data=task)


@SUBJECT.command("CREATE TASK {type} {task} {author} {prereq} {outcome}")
async def create_task(session: Session, type: TaskType, task: str, author: str, prereq: str, outcome: str) -> Result:
    """Register a task without a body; APPEND TASK BODY adds that, line by line."""
    if type is TaskType.ROOT_TASK:
        raise ConfigError(f"type: {type} is the type of ROOTTASK alone")
    made = await session.sn.create_task(task, type, author, prereq, outcome)
    return said(f"Task Registered : {made.name}", data=made)


@SUBJECT.command("APPEND TASK BODY {task} {index} {line}")
async def append_task_body(session: Session, task: str, index: int, line: Rest) -> Result:
    """Add or overwrite a line of a task's body, counted from 1, while the task is not finalised."""
    changed = await session.sn.append_task_body(task, index, [line])
    return said(f"TASK BODY APPENDED : {task}", data=changed)


@SUBJECT.command("FINALIZE TASK {task}")
async def finalize_task(session: Session, task: str) -> Result:
    """Fix a task's body for good: from now on it can be assigned."""
    return said(f"TASK FINALIZED : {task}", data=await session.sn.finalize_task(task))


@SUBJECT.command("DELETE TASK {task}")
async def delete_task(session: Session, task: str) -> Result:
    """Delete a task that is not finalised."""
    await session.sn.task(task)  # a name that was mistyped is an error, not a success
    await session.sn.delete_task(task)
    return said(f"TASK DELETED : {task}", data={"task": task})


@SUBJECT.command("GET TASK INFO {task}")
async def get_task_info(session: Session, task: str) -> Result:
    """Show what a task is, but for its body."""
    found = await session.sn.task(task)
    values = [
        ("TASK", found.name),
        ("TYPE", found.type),
        ("AUTHOR", found.author),
        ("SITE", found.site),
        ("PREREQ", found.prereq),
        ("OUTCOME", found.outcome),
        ("FINALIZED", _yes(found.finalised)),
        ("CREATED", moment(found.created_at)),
        ("LINES", len(found.body)),
    ]
    return said(*facts(values), data=found)


@SUBJECT.command("GET TASK BODY {task}")
async def get_task_body(session: Session, task: str) -> Result:
    """Show the lines of a task's body."""
    found = await session.sn.task(task)
    return said(*found.body, data=found.body)


@SUBJECT.command("LIST TASKS")
async def list_tasks(session: Session) -> Result:
    """List all tasks, oldest first."""
    tasks = await session.sn.tasks()
    rows = [(one.name, one.type, one.author, _yes(one.finalised)) for one in tasks]
    return said(*table(("Name", "Type", "Author", "Finalized"), rows), data=tasks)


async def _register(sn: SnClient, read: TaskFile, lines: tuple[str, ...]) -> Task:
    """The task with exactly these lines; again it is a no-op. AlreadyExists: another one of that name."""
    task = await sn.create_task(read.name, read.type, read.author, read.prereq, read.outcome)
    if task.body == lines:
        return task
    if task.finalised:
        raise AlreadyExists(f"{task.name}: there is a finalised task of that name with another body; rename this one")
    if len(task.body) > len(lines):  # lines can be overwritten, not taken away
        await sn.delete_task(task.name)
        await sn.create_task(read.name, read.type, read.author, read.prereq, read.outcome)
    return await sn.append_task_body(task.name, 1, lines)


def _text(session: Session, file: str) -> str:
    try:
        return session.folder.read(file, MAX_FILE_BYTES).decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file}: is no text in UTF-8") from exc


def _yes(value: bool) -> str:
    return "YES" if value else "NO"
