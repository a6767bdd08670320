"""Commands about tasks: what SWOP nodes can be told to do."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from swarm_hpc.errors import TaskRefused
from swarm_hpc.records import Task, TaskType
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swci.grammar import Label, Rest, Subject
from swarm_hpc.swci.result import Result, facts, moment, said, table
from swarm_hpc.swci.session import Session
from swarm_hpc.swci.task_files import NewTask, check_body, read_new_task

SUBJECT = Subject("Tasks")

MAX_FILE_BYTES: Final = 1 << 18
"""Of a task's YAML file: more than a body of 256 lines can come from."""


class NewTaskType(StrEnum):
    """The types of task that can be written; the records' TaskType has ROOT_TASK as well."""

    RUN_SWARM = "RUN_SWARM"
    MAKE_USER_CONTAINER = "MAKE_USER_CONTAINER"
    MAKE_SWARM_USER_CONTENT = "MAKE_SWARM_USER_CONTENT"
    PULL_IMAGE = "PULL_IMAGE"


@SUBJECT.command("CREATE TASK FROM {file}")
async def create_task_from(session: Session, file: str) -> Result:
    """Create a task, body included, from a YAML file of the session's folder; FINALIZE TASK comes after it. A task that
    the same file made before, and that is not finalised, gets the new body."""
    new = read_new_task(session.folder.read(file, MAX_FILE_BYTES), file)
    task = await _register(session.sn, new)
    warnings = (f"WARNING - {text}" for text in new.warnings)
    return said(*warnings, f"Task Registered : {new.name}", data=task)


@SUBJECT.command("CREATE TASK {type} {task} {author} {prereq} {outcome}")
async def create_task(
    session: Session, type: NewTaskType, task: Label, author: str, prereq: Label, outcome: str
) -> Result:
    """Create a task without a body; APPEND TASK BODY and FINALIZE TASK come after it. A prerequisite is a finalised
    task, or ROOTTASK where nothing has to come first."""
    made = await session.sn.create_task(task, TaskType(type), author, prereq, outcome)
    return said(f"Task Registered : {task}", data=made)


@SUBJECT.command("APPEND TASK BODY {task} {index} {line}")
async def append_task_body(session: Session, task: Label, index: int, line: Rest) -> Result:
    """Add a line to a task's body, or overwrite one; they are numbered from 1. What follows the number and one space is
    the line, as it stands."""
    made = await session.sn.append_task_body(task, index, [str(line)])
    return said(f"LINE {index} OF TASK BODY SET : {task}", data=made)


@SUBJECT.command("FINALIZE TASK {task}")
async def finalize_task(session: Session, task: Label) -> Result:
    """Fix a task's body, which has to be one of its type: from now on it can be assigned, and never changes again."""
    check_body(await session.sn.task(task))
    return said(f"TASK FINALIZED : {task}", data=await session.sn.finalize_task(task))


@SUBJECT.command("DELETE TASK {task}")
async def delete_task(session: Session, task: Label) -> Result:
    """Delete a task that is not finalised."""
    await session.sn.task(task)  # a name that is not there is a slip of the pen
    await session.sn.delete_task(task)
    return said(f"TASK DELETED : {task}", data={"task": task})


@SUBJECT.command("GET TASK INFO {task}")
async def get_task_info(session: Session, task: Label) -> Result:
    """Show what a task is, all but its body."""
    found = await session.sn.task(task)
    lines = facts(
        [
            ("TASK", found.name),
            ("TYPE", found.type),
            ("AUTHOR", found.author),
            ("PREREQ", found.prereq),
            ("OUTCOME", found.outcome),
            ("FINALIZED", "YES" if found.finalised else "NO"),
            ("CREATED", moment(found.created_at)),
            ("SITE", found.site),
            ("BODY_LINES", len(found.body)),
        ]
    )
    return said(*lines, data=found)


@SUBJECT.command("GET TASK BODY {task}")
async def get_task_body(session: Session, task: Label) -> Result:
    """Show the lines of a task's body as they are on the ledger."""
    found = await session.sn.task(task)
    return said(*found.body, data=found.body)


@SUBJECT.command("LIST TASKS")
async def list_tasks(session: Session) -> Result:
    """List all tasks, oldest first."""
    tasks = await session.sn.tasks()
    rows = [(one.name, one.type, one.author, "YES" if one.finalised else "NO", one.prereq, one.site) for one in tasks]
    return said(*table(("Name", "Type", "Author", "Finalized", "Prereq", "Site"), rows), data=tasks)


async def _register(sn: SnClient, new: NewTask) -> Task:
    """Create the task with its body. AlreadyExists; TaskRefused where a finalised one of that name has another body."""

    async def create() -> Task:
        return await sn.create_task(new.name, new.type, new.author, new.prereq, new.outcome)

    known = await create()
    if known.body and known.body != new.lines:
        if known.finalised:
            raise TaskRefused(f"{new.name} is finalised with another body, and stays: give the new task another name")
        await sn.delete_task(new.name)  # lines beyond the new body's last would stay otherwise
        await create()
    return await sn.append_task_body(new.name, 1, new.lines)
