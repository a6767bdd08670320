"""`fetch_ours` and `fetch_jobs` with what squeue and sacct say put into their mouths, as of Slurm 22.05."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_hpc.local import jobs
from swarm_hpc.slurm.query import fetch_jobs, fetch_ours
from tests.slurm.test_sacct import CANCELLED, PREEMPTED, REAL, RUNNING
from tests.slurm.test_squeue import FAILED, PENDING, line_of

NOW = 1795659900.0
DISABLED = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a program say a text; `raw` is bash instead."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def make(program: str, text: str = "", *, raw: str = "") -> None:
        file = tmp_path / program
        (tmp_path / f"{program}.txt").write_text(text)
        file.write_text(f"#!/bin/bash\n{raw or f'cat {tmp_path}/{program}.txt'}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


def test_without_slurmdbd_there_is_what_squeue_says(say: Callable[..., None]) -> None:
    say("squeue", line_of(f"{FAILED}\n{PENDING}\n"))
    say("sacct", raw=DISABLED)
    assert [(job.id, job.state) for job in fetch_ours(now=NOW)] == [("2", "PENDING"), ("3", "FAILED")]
    assert [job.earlier_gpu_s for job in fetch_ours(now=NOW)] == [None, None]


def test_a_slurmdbd_that_does_not_answer_or_says_something_else_is_done_without(say: Callable[..., None]) -> None:
    say("squeue", line_of(f"{PENDING}\n"))
    for raw in ("echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1", "echo what"):
        say("sacct", raw=raw)
        assert [job.id for job in fetch_ours(now=NOW)] == ["2"]


def test_a_squeue_that_says_something_else_leaves_the_rest_of_a_status(
    say: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    say("squeue", "what\n")
    assert jobs.fetch_ours() is None
    assert "the jobs cannot be shown: squeue printed 'what" in caplog.text


def test_with_slurmdbd_what_slurmctld_has_forgotten_is_there_if_it_is_ours(say: Callable[..., None]) -> None:
    others = RUNNING.replace("12|", "5|").replace("swarm-digits", "climate")
    say("squeue", line_of(f"{PENDING}\n"))
    say("sacct", "\n".join([*REAL[:3], REAL[4], others]))
    waiting, over = fetch_ours(now=NOW)
    assert (waiting.id, over.id, over.state, over.ended_s) == ("2", "4", "CANCELLED", NOW - 1795659874)
    assert (over.why, over.gpu_hours) == ("by root", 14 / 3600)


def test_a_job_that_slurmctld_has_forgotten_can_still_be_asked_for(say: Callable[..., None]) -> None:
    say("squeue", raw="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    say("sacct", f"{PREEMPTED}\n{CANCELLED}\n")
    assert [(job.id, job.state) for job in fetch_jobs(["12"], now=NOW)] == [("12", "CANCELLED")]
    say("sacct", raw=DISABLED)
    assert fetch_jobs(["12"], now=NOW) == ()
