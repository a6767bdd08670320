"""Commands one after the other: of a script, of a pipe, or as they are typed. What one says goes to `out` at once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TextIO

from swarm_hpc.errors import SwarmError
from swarm_hpc.printable import printable
from swarm_hpc.swci import commands
from swarm_hpc.swci.parser import is_comment
from swarm_hpc.swci.session import Session

log = logging.getLogger(__name__)

FAILED = 1
"""Exit code of a script that went on after a command had failed."""


@dataclass(slots=True)
class Console:
    """Where commands are carried out for a person: answers go to `out`, what went wrong to `err`."""

    session: Session
    out: TextIO
    err: TextIO
    number: int = 0
    """How many commands there were; it is in the prompt."""

    @property
    def prompt(self) -> str:
        """What stands before a command."""
        return f"SWCI:{self.number} > "

    def tell(self, text: str, *, end: str = "\n") -> None:
        """Say something while a command works."""
        print(printable(text), end=end, file=self.out, flush=True)

    async def carry_out(self, line: str) -> SwarmError | None:
        """Carry out one command and say what came of it; the error where it failed."""
        try:
            result = await commands.run(self.session, line, self.tell)
        except SwarmError as exc:
            self.tell(f"ERROR {one_line(exc)}")
            return exc
        except Exception as exc:
            log.exception("%s failed", line)
            self.tell(f"ERROR {type(exc).__name__}: {one_line(exc)} (a bug; the log has the traceback)")
            return SwarmError(f"{type(exc).__name__}: {one_line(exc)}")
        finally:
            self.number += 1
        for text in result.lines:
            self.tell(text)
        return None


def one_line(error: BaseException) -> str:
    """An error's text, without line ends."""
    return " ".join(str(error).split())


async def run_lines(console: Console, lines: AsyncIterator[str], name: str, *, echo: bool) -> int:
    """Carry out a script's lines until EXIT, its end, or a failure after EXIT ON FAILURE; its exit code.

    0: no command failed. After EXIT ON FAILURE: the exit code of the error. Else 1 where any has failed. Each failure
    is told on `err` with the number of its line.
    """
    code, number = 0, 0
    async for line in lines:
        number += 1
        if is_comment(line):
            continue
        text = line.rstrip("\r\n").lstrip()
        if echo:
            console.tell(f"{console.prompt}{text}")
        error = await console.carry_out(text)
        if error is not None:
            told = f"swci: {name} line {number}: {text}: {one_line(error)}"
            print(printable(told), file=console.err, flush=True)
            if console.session.exit_on_failure:
                console.session.is_over = True
                return error.exit_code
            code = FAILED
        if console.session.is_over:
            return code
    return code


async def each(lines: Iterable[str]) -> AsyncIterator[str]:
    """Lines that are there already."""
    for line in lines:
        yield line
