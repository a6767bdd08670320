"""Following jobs to their ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final

from swarm_hpc.errors import JobFailed, SlurmMissing, TimedOut
from swarm_hpc.slurm.job import Job
from swarm_hpc.slurm.query import fetch_jobs

log = logging.getLogger(__name__)

_SILENT_S: Final = 600.0
"""How long Slurm may give no answer: its controller restarts now and then."""


def follow(ids: Sequence[str], *, poll_s: float, timeout_s: float) -> Iterator[Job]:
    """Each of the jobs every `poll_s`, the last time when it is over; ends when all are.

    JobFailed, when the others are over: Slurm knows one no more, so how it ended cannot be told. TimedOut: they go on
    by themselves. SlurmMissing.
    """
    deadline = time.monotonic() + timeout_s
    answered = time.monotonic()
    waiting, lost = list(ids), []
    while waiting:
        try:
            found = {job.id: job for job in fetch_jobs(waiting, now=time.time())}
            answered = time.monotonic()
        except SlurmMissing as exc:
            if time.monotonic() - answered > _SILENT_S:
                raise
            log.warning("%s; asking again", exc)
        else:
            yield from found.values()
            lost += [id for id in waiting if id not in found]
            waiting = [id for id, job in found.items() if not job.is_over]
            if not waiting:
                break
        if time.monotonic() > deadline:
            raise TimedOut(f"not over after {timeout_s:g} s (wait_s): {_named(waiting)}, which goes on by itself")
        time.sleep(poll_s)
    if lost:
        raise JobFailed(f"Slurm knows no {_named(lost)} any more: the log says how it ended")


def _named(ids: Sequence[str]) -> str:
    return f"job{'s' if len(ids) > 1 else ''} {', '.join(ids)}"
