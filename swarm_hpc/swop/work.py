"""Doing a task that makes something: an image or volumes. RUN_SWARM is the SWOP node's own.

All of it may be killed at any moment and done again: what is made is made beside and renamed, what a killed one has
left is removed, and what is finished is recognised.

    python -m swarm_hpc.swop.work JOB.json

does it in a process of its own: progress on stdout, exit code 0 or 1, and the result or the reason as the last line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from swarm_hpc import processes
from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.swop.content import make_content
from swarm_hpc.swop.images import make_container, pull_image
from swarm_hpc.swop.places import Places, read_job
from swarm_hpc.tasks.file import Body, MakeUserContainer, MakeUserContent, PullImage
from swarm_hpc.tasks.lines import from_lines

MODULE = "swarm_hpc.swop.work"


def perform(body: Body, outcome: str, places: Places, say: Callable[[str], None]) -> str:
    """Make what the task asks for; what was made, in one line. A repeat does nothing where it is made already.

    SwarmError has the reason in one line, and the path of the log where a program failed.
    """
    if isinstance(body, MakeUserContainer):
        return make_container(body, outcome, places, say)
    if isinstance(body, PullImage):
        return pull_image(body, outcome, places, say)
    if isinstance(body, MakeUserContent):
        return make_content(body, outcome, places, say)
    raise ConfigError("RUN_SWARM makes nothing: the SWOP node starts its jobs")


def main(words: Sequence[str]) -> int:
    """Do the job that the file describes; exit code."""
    try:
        with processes.interruptible():
            if len(words) != 1:
                raise ConfigError(f"python -m {MODULE} JOB.json")
            job = read_job(Path(words[0]))
            os.environ.update(job.places.proxies)  # for downloads
            body = from_lines(job.type, job.body, job.task)
            _say(perform(body, job.outcome, job.places, _say))
            return 0
    except SwarmError as exc:
        _say(" ".join(str(exc).split()))
    except OSError as exc:
        _say(f"{exc.filename or 'a file'}: {exc.strerror or exc}")
    except KeyboardInterrupt:
        _say("stopped")
    return 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
