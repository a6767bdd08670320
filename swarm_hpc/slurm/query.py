"""How jobs do: asked of squeue, of slurmdbd where there is one, and of the jobs' own logs."""

from __future__ import annotations

import logging
import pwd
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from swarm_hpc.errors import ProtocolError, SlurmError
from swarm_hpc.slurm import joblog, sacct, squeue
from swarm_hpc.slurm.command import run
from swarm_hpc.slurm.job import Job

log = logging.getLogger(__name__)

ENDED_S: Final = 24 * 3600.0
"""How long a job that has ended is shown, where slurmdbd remembers it."""
_SACCT_S: Final = 15.0


def fetch_jobs(ids: Sequence[str], *, now: float) -> tuple[Job, ...]:
    """These jobs, ended ones as long as Slurm remembers them (without slurmdbd MinJobAge, some minutes). `now` is Unix
    time.

    SlurmMissing: no Slurm on this host, or it does not answer. SlurmError: it refused to say.
    """
    try:
        found = tuple(_with_cause(job) for job in _ask_squeue(now, f"--jobs={','.join(ids)}"))
    except SlurmError as exc:
        if "Invalid job id" not in str(exc):  # squeue says so only where it knows none of them
            raise
        found = ()
    if missing := set(ids) - {job.id for job in found}:
        runs = _ask_sacct(f"--jobs={','.join(sorted(missing))}") or {}
        found += tuple(_named(sacct.forgotten(one, now)) for one in runs.values())
    return found


def find_job(name: str, *, now: float) -> Job | None:
    """The newest job of that name, as long as Slurm remembers it; None: there is none. Raises as `fetch_jobs`."""
    found = _ask_squeue(now, f"--name={name}")
    if found:
        return max(found, key=lambda job: int(job.id) if job.id.isdecimal() else 0)
    runs = _ask_sacct(f"--name={name}", f"--starttime=now-{ENDED_S / 3600:.0f}hours") or {}
    return _named(sacct.forgotten(runs[max(runs)], now)) if runs else None


def fetch_ours(*, now: float) -> tuple[Job, ...]:
    """Ours: first those that are not over, then those that ended lately, the latest first. Raises as `fetch_jobs`."""
    known = {job.id: _with_cause(job) for job in _ask_squeue(now) if job.is_ours}
    runs = _runs_of(known, now)
    jobs = [sacct.complete(job, runs.get(job.id, ())) for job in known.values()]
    jobs += [job for id, one in runs.items() if id not in known and (job := sacct.forgotten(one, now)).is_ours]
    return tuple(sorted(map(_named, jobs), key=lambda job: (job.ended_s is not None, job.ended_s or 0.0)))


def _runs_of(known: dict[str, Job], now: float) -> dict[str, tuple[sacct.Run, ...]]:
    """What slurmdbd knows of these jobs, and of what has ended lately; nothing where there is none."""
    lately = _ask_sacct("--allusers", f"--starttime=now-{ENDED_S / 3600:.0f}hours")
    if lately is None:
        return {}
    ended = {id for id, runs in lately.items() if sacct.forgotten(runs, now).is_ours}
    ids = sorted(known.keys() | ended)
    return (_ask_sacct("--allusers", f"--jobs={','.join(ids)}") or {}) if ids else {}


def _ask_squeue(now: float, *words: str) -> tuple[Job, ...]:
    return squeue.parse(run("squeue", "--noheader", "--states=all", f"--Format={squeue.FORMAT}", *words), now)


def _with_cause(job: Job) -> Job:
    return replace(job, requeued_after=joblog.find_cause(job))


def _ask_sacct(*words: str) -> dict[str, tuple[sacct.Run, ...]] | None:
    """None where there is no slurmdbd, or no answer of it."""
    try:
        return sacct.parse(run(*sacct.WORDS, *words, timeout_s=_SACCT_S))
    except (SlurmError, ProtocolError) as exc:
        log.debug("nothing from slurmdbd: %s", exc)
        return None


def _named(job: Job) -> Job:
    """Slurm tells a user's ID; people know the name."""
    name = job.cancelled_by
    with suppress(KeyError, ValueError, OverflowError):
        name = pwd.getpwuid(int(name)).pw_name
    return replace(job, cancelled_by=name)
