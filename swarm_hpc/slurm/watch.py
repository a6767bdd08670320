"""Following one job to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from swarm_hpc.errors import JobFailed, SlurmMissing, TimedOut
from swarm_hpc.slurm.query import Job, fetch_jobs

log = logging.getLogger(__name__)

_SILENT_S: Final = 600.0
"""How long Slurm may give no answer: its controller restarts now and then."""


def follow(job_id: str, *, poll_s: float, timeout_s: float) -> Iterator[Job]:
    """The job every `poll_s`, the last time when it is over.

    JobFailed: Slurm knows it no more, so how it ended cannot be told. TimedOut: it goes on by itself. SlurmMissing.
    """
    deadline = time.monotonic() + timeout_s
    answered = time.monotonic()
    while True:
        try:
            found = fetch_jobs([job_id], now=time.time())
            answered = time.monotonic()
        except SlurmMissing as exc:
            if time.monotonic() - answered > _SILENT_S:
                raise
            log.warning("%s; asking again", exc)
        else:
            if not found:
                raise JobFailed(f"Slurm knows no job {job_id} any more: its log says how it ended")
            yield found[0]
            if found[0].is_over:
                return
        if time.monotonic() > deadline:
            raise TimedOut(f"job {job_id} was not over after {timeout_s:g} s (wait_s); it goes on by itself")
        time.sleep(poll_s)
