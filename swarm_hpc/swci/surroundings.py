"""Commands about the session itself: its end, its folder, and pauses."""

from __future__ import annotations

import shlex
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci.grammar import Flag, Rest, Subject
from swarm_hpc.swci.result import Result, said
from swarm_hpc.swci.session import Session

SUBJECT = Subject("Session")

MAX_SLEEP_S: Final = 86400.0


@SUBJECT.command("EXIT ON FAILURE [{state}]")
async def exit_on_failure(session: Session, state: Flag = Flag.ON) -> Result:
    """Let the next command that fails end the session, or, with OFF, go on after it."""
    session.exit_on_failure = state is Flag.ON
    return said(f"EXIT ON FAILURE : {state}", data={"exit_on_failure": session.exit_on_failure})


@SUBJECT.command("EXIT")
async def exit(session: Session) -> Result:
    """End the session; its contexts are forgotten."""
    session.is_over = True
    return said()


@SUBJECT.command("SLEEP {seconds}")
async def sleep(session: Session, seconds: float) -> Result:
    """Wait for so many seconds."""
    if not 0 <= seconds <= MAX_SLEEP_S:
        raise ConfigError(f"seconds: {seconds:g} is outside 0-{MAX_SLEEP_S:g}")
    await session.sleep(seconds)
    return said()


@SUBJECT.command("CD {folder}")
async def cd(session: Session, folder: str) -> Result:
    """Go to another folder: where LS looks, and where CREATE TASK FROM finds its file."""
    session.folder.enter(folder)
    return said(data={"folder": str(session.folder.path)})


@SUBJECT.command("LS [{options}]")
async def ls(session: Session, options: Rest = Rest()) -> Result:  # noqa: B008 - a constant
    """List files: ls [-a] [-l] [NAME ...]."""
    try:
        words = shlex.split(options)
    except ValueError as exc:
        raise ConfigError(f"LS {options}: {exc}") from exc
    entries = session.folder.entries(words)
    return said(*entries, data=entries)


@SUBJECT.command("PWD")
async def pwd(session: Session) -> Result:
    """Show the folder where the session is."""
    return said(str(session.folder.path), data={"folder": str(session.folder.path)})
