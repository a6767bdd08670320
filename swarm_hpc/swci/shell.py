"""The interactive shell: a prompt with completion and history where there is a terminal, else lines from stdin.

Ctrl-C ends the command that runs, not the shell; Ctrl-D or EXIT end the shell. A failed command does not, unless EXIT
ON FAILURE was said.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from swarm_hpc.swci.parser import is_comment
from swarm_hpc.swci.script import Console, run_lines


async def read_stdin() -> AsyncIterator[str]:
    """The lines of stdin, as they come."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line


async def run_pipe(console: Console) -> int:
    """Carry out what comes from stdin, as a script."""
    return await run_lines(console, read_stdin(), "stdin", echo=False)


async def run_shell(console: Console, history: str) -> int:
    """Ask for commands until EXIT or Ctrl-D; the exit code: 0, or that of the error that ended it."""
    from swarm_hpc.swci.prompt import make_prompt  # a script needs no terminal's library

    prompt = make_prompt(console.session, history)
    while not console.session.is_over:
        try:
            line = await prompt.prompt_async(console.prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            break
        if is_comment(line):
            continue
        task = asyncio.create_task(console.carry_out(line.lstrip()))
        with interruptible(task):
            await asyncio.wait([task])
        if task.cancelled():
            console.tell("\nERROR interrupted")
        elif (error := task.result()) is not None and console.session.exit_on_failure:
            return error.exit_code
    return 0


@contextmanager
def interruptible(task: asyncio.Task[object]) -> Iterator[None]:
    """Ctrl-C cancels the task as long as the block lasts."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
