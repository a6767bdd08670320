"""All commands, HELP, and running one from its text."""

from __future__ import annotations

from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci import contexts, contracts, rest, taskrunners, tasks
from swarm_hpc.swci.grammar import Command, Rest, Subject
from swarm_hpc.swci.parser import Call, nearest, parse
from swarm_hpc.swci.result import Result, Tell, said
from swarm_hpc.swci.session import Session

SUBJECT = Subject("Help")


@SUBJECT.command("HELP [{command}]")
async def help(session: Session, command: Rest = Rest("")) -> Result:  # noqa: B008 - a str: it never changes
    """List the commands, or show how one of them is written and what it does."""
    words = tuple(command.upper().split())
    if not words:
        names = sorted({" ".join(one.head) for one in COMMANDS})
        return said(*(f"    {name}" for name in names), data=names)
    found = [one for one in COMMANDS if one.head[: len(words)] == words or words[: len(one.head)] == one.head]
    exact = [one for one in found if one.head == words]
    if not found:
        near = nearest(words, COMMANDS)
        hint = f"; did you mean {' '.join(near.head)}?" if near else "; HELP lists the commands"
        raise ConfigError(f"there is no command {command.strip()[:80]!r}{hint}")
    chosen = exact or found
    lines = [line for one in chosen for line in (one.usage, f"    {one.help}")]
    return said(*lines, data=[describe(one) for one in chosen])


COMMANDS: Final[tuple[Command, ...]] = tuple(
    command
    for subject in (
        contexts.SUBJECT,
        contracts.SUBJECT,
        tasks.SUBJECT,
        taskrunners.SUBJECT,
        rest.SUBJECT,
        SUBJECT,
    )
    for command in subject.commands
)


def by_name(name: str) -> Command:
    """The command of that name (assign_task). ConfigError."""
    for command in COMMANDS:
        if command.name == name:
            return command
    raise ConfigError(f"there is no command {name!r}")


def describe(command: Command) -> dict[str, object]:
    """A command for programs."""
    arguments = [{"name": one.name, "kind": one.kind, "required": one.required} for one in command.arguments]
    return {
        "name": command.name,
        "usage": command.usage,
        "help": command.help,
        "subject": command.subject,
        "ours": command.ours,
        "arguments": arguments,
    }


async def run(session: Session, text: str, tell: Tell) -> Result:
    """Parse the command and do it. ConfigError for what is none; else what it raises."""
    return await call(session, read(text), tell)


def read(text: str) -> Call:
    """The command that the text is. ConfigError."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError("a command is text; this one holds half a character") from exc
    return parse(text, COMMANDS)


async def call(session: Session, wanted: Call, tell: Tell) -> Result:
    """Do a command that was parsed."""
    extra = {"tell": tell} if wanted.command.tells else {}
    return await wanted.command.run(session, **wanted.arguments, **extra)
