"""Why a job was put back into the queue, from what Slurm has written into its log: slurmctld itself forgets it.

The words are those of slurmstepd and srun (22.05), and of our own script (script.py). A node that is lost with all of
its job's processes says nothing.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_hpc.slurm.job import Cause, Job

_MOST_BYTES: Final = 4 << 20
"""So much of a log's end is looked at."""
_SLACK_S: Final = 300.0
"""A requeue counts from the end of the job's processes (KillWait, epilogs), its word from the signal to them."""
_ENDED: Final = re.compile(
    r"\*\*\* JOB (\d+) ON \S+ (?:CANCELLED|LEFT) AT (\S+) DUE TO (JOB REQUEUE|PREEMPTION|NODE FAILURE|TIME WARNING)|"
    r"^srun: error: Node failure on ",
    re.MULTILINE,
)
_CAUSES: Final = {
    "JOB REQUEUE": Cause.COMMAND,
    "PREEMPTION": Cause.PREEMPTION,
    "NODE FAILURE": Cause.NODE_FAILURE,
    "TIME WARNING": Cause.TIME_WARNING,
}
_OWN_S: Final = 60.0
"""So long after a warning a requeue is what the script has asked for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """Slurm ended a run of the job so that it goes back into the queue."""

    cause: Cause
    at: float | None = None
    """Unix time, where it is told."""


def find_cause(job: Job) -> Cause:
    """What put the job back into the queue the latest time; UNKNOWN also where its log cannot be read."""
    if not job.num_restarts:
        return Cause.UNKNOWN
    text = read_end(job.log)
    return choose_cause(job, None if text is None else parse(text, job.id))


def choose_cause(job: Job, words: list[Word] | None) -> Cause:
    """What the latest of these words means, if it is about the latest requeue. None: the log could not be read."""
    if words and (len(words) >= job.num_restarts or _is_near(words[-1], job.requeued_at)):
        return words[-1].cause
    # without a word: a node that was lost, if Slurm has missed a step's end
    if job.lost_step and (words is not None or job.num_restarts == 1):
        return Cause.NODE_FAILURE
    return Cause.UNKNOWN


def parse(text: str, job_id: str) -> list[Word]:
    """One word per ended run, in order."""
    words: list[Word] = []
    for found in _ENDED.finditer(text):
        if found[1] is None:
            words.append(Word(cause=Cause.NODE_FAILURE))
            continue
        if found[1] != job_id:
            continue
        cause = _CAUSES[found[3]]
        if words and words[-1] == Word(cause=cause):  # srun has said it just before
            words.pop()
        word = Word(cause=cause, at=_unix_time(found[2]))
        if words and _is_own(words[-1], word):
            continue
        if word not in words:  # each node of the job says it
            words.append(word)
    return words


def read_end(path: str) -> str | None:
    """The end of a log; None where it cannot be read."""
    with suppress(OSError, ValueError):
        if not path or not Path(path).is_file():  # a pipe would block
            return None
        with Path(path).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_BYTES))
            return file.read(_MOST_BYTES).decode(errors="replace")
    return None


def _is_own(warning: Word, word: Word) -> bool:
    """Whether a requeue by command is the one that our script asks for after a warning."""
    if (warning.cause, word.cause) != (Cause.TIME_WARNING, Cause.COMMAND) or warning.at is None or word.at is None:
        return False
    return 0 <= word.at - warning.at < _OWN_S


def _is_near(word: Word, at: float | None) -> bool:
    return word.at is not None and at is not None and abs(at - word.at) < _SLACK_S


def _unix_time(text: str) -> float | None:
    with suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None
