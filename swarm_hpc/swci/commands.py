"""All commands, HELP among them, and how a line that was typed is carried out."""

from __future__ import annotations

from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci import contexts, contracts, network, surroundings, taskrunners, tasks, waiting
from swarm_hpc.swci.grammar import Command, Rest, Subject
from swarm_hpc.swci.parser import nearest, parse
from swarm_hpc.swci.result import Result, Tell, said
from swarm_hpc.swci.session import Session

_HELP = Subject("Help")


@_HELP.command("HELP [{command}]")
async def help(session: Session, command: Rest = Rest()) -> Result:  # noqa: B008 - a constant
    """List the commands, or show how one is written and what it does."""
    words = command.upper().split()
    if not words:
        names = sorted({" ".join(one.head) for one in COMMANDS})
        return said(*(f"    {name}" for name in names), data=names)
    found = [one for one in COMMANDS if list(one.head[: len(words)]) == words]
    if not found:
        near = nearest(words, COMMANDS)
        hint = f"; did you mean {' '.join(near.head)}?" if near else "; HELP lists them"
        raise ConfigError(f"there is no command {' '.join(words)[:80]}{hint}")
    lines = [line for one in found for line in (one.usage, f"    {one.help}")]
    return said(*lines, data=[{"usage": one.usage, "help": one.help} for one in found])


SUBJECTS: Final = (
    contexts.SUBJECT,
    contracts.SUBJECT,
    tasks.SUBJECT,
    taskrunners.SUBJECT,
    waiting.SUBJECT,
    network.SUBJECT,
    surroundings.SUBJECT,
    _HELP,
)
COMMANDS: Final[tuple[Command, ...]] = tuple(one for subject in SUBJECTS for one in subject.commands)


async def run(session: Session, text: str, tell: Tell) -> Result:
    """Carry out one command. `tell` takes what it says while it works; the result has what it says at the end.

    ConfigError where the text is no command; whatever the command raises, SwarmErrors all.
    """
    call = parse(text, COMMANDS)
    if call.command.tells:
        return await call.command.run(session, **call.arguments, tell=tell)
    return await call.command.run(session, **call.arguments)
