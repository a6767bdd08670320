"""RUN_SWARM with executor=local: real SL nodes with real programs, and a SWOP process that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_hpc.config import ExecutorKind, SwopConfig
from swarm_hpc.records import TaskState
from swarm_hpc.swop import attended
from tests.swop.conftest import RUNNER, Site, ended, enrolled, make_task, until
from tests.swop.lab import Project, eventually, log_of, swop_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def config(site: Site, project: Project) -> Iterator[SwopConfig]:
    config = site.config(profile=str(project.profile))
    config.executor = ExecutorKind.LOCAL
    config.container.image_dir = str(site.folder / "images")
    yield config
    for claim in Path(config.state_dir).glob("runs/*/slot-*"):
        attended.cancel(claim)


async def test_a_training_runs_with_hpes_paths_and_merges(site: Site, project: Project, config: SwopConfig) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body())
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        runner = await ended(ada)
    assert runner.state is TaskState.COMPLETE, log_of(config)
    assert project.merged() == [2.0, 2.0]
    lines = runner.peers[0].text.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["alpha/sl/swop1-1-0", "alpha/sl/swop1-1-1"]


async def test_a_failed_program_is_told_with_its_last_words(site: Site, project: Project, config: SwopConfig) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body(data="missing"))
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        runner = await ended(ada)
    assert runner.state is TaskState.ERROR
    assert "there is no missing" in runner.peers[0].text.splitlines()[0], log_of(config)


async def test_an_sl_that_fails_by_itself_says_why(site: Site, project: Project, config: SwopConfig) -> None:
    ada = await site.operator()
    body = [line.replace("model/train.py", "-c 'print(5)'") for line in project.body()]
    await make_task(ada, "train", body)
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        (mine,) = (await ended(ada)).peers
    assert "ended before its training was finished" in mine.text.splitlines()[0], log_of(config)


async def test_a_killed_swop_finds_its_programs_again_and_nothing_runs_twice(
    site: Site, project: Project, config: SwopConfig
) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body())
    project.hold()
    with swop_process(config) as process:
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await eventually(lambda: project.runs(0) == project.runs(1) == 1)
        os.kill(process.pid, signal.SIGKILL)
    project.let_go()
    with swop_process(config):
        runner = await ended(ada)
    assert runner.state is TaskState.COMPLETE, log_of(config)
    assert (project.runs(0), project.runs(1)) == (1, 1)


async def test_a_swop_ended_by_sigterm_leaves_and_a_reset_ends_the_programs_when_it_is_back(
    site: Site, project: Project, config: SwopConfig
) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body())
    project.hold()
    with swop_process(config) as process:
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await eventually(lambda: project.runs(0) == project.runs(1) == 1)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
    slots = list(Path(config.state_dir).glob("runs/*/slot-*"))
    assert {attended.poll(slot).state for slot in slots} == {"started"}
    await ada.reset_taskrunner(RUNNER)
    with swop_process(config):
        await eventually(lambda: all(attended.poll(slot).state.is_over for slot in slots))
        await until(ada, lambda runner: runner.state is TaskState.IDLE)
        assert process.returncode == 0
