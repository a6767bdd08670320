"""RUN_SWARM with executor=slurm on a real Slurm: jobs that are found again, never doubled, and cancelled by a reset."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm_hpc.config import ProgramConfig, SwopConfig
from swarm_hpc.records import TaskState
from swarm_hpc.slurm.executor import submit
from swarm_hpc.swop.executor import Order
from swarm_hpc.swop.part import SlotState
from swarm_hpc.swop.slurm_executor import SlurmExecutor
from tests.lab.slurm import Cluster, clusters
from tests.swop.conftest import RUNNER, Site, ended, enrolled, make_task
from tests.swop.lab import Project, eventually, log_of, swop_process

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def cluster(slurm_clusters: dict[str, Cluster], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    one = slurm_clusters["alpha"]
    for key, value in one.env.items():
        monkeypatch.setenv(key, value)
    yield one
    one.cancel_all()


@pytest.fixture
def shaky_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """For this test alone: a node that was lost is not quite itself again for a while."""
    with clusters("shaky") as up:
        for key, value in up["shaky"].env.items():
            monkeypatch.setenv(key, value)
        yield up["shaky"]
        up["shaky"].cancel_all()


@pytest.fixture
def config(site: Site, project: Project) -> SwopConfig:
    config = site.config(profile=str(project.profile))
    config.site.command = f"{sys.executable} -m swarm_hpc.cli"
    config.follow.poll_s = 0.3
    return config


def order(config: SwopConfig, folder: Path, *words: str) -> Order:
    folder.mkdir(parents=True)
    return Order(
        tag=f"swarm-{folder.name}",
        folder=folder,
        name="any",
        program=ProgramConfig(command=list(words)),
        identity=config.site.identity,
        round=config.round,
        container=config.container,
    )


def end(executor: SlurmExecutor, folder: Path, handle: str) -> SlotState:
    deadline = time.monotonic() + 120
    while not (standing := executor.poll(folder, handle)).state.is_over:
        assert time.monotonic() < deadline, standing
        time.sleep(0.2)
    return standing.state


async def test_jobs_train_and_merge_and_a_killed_swop_finds_them(
    site: Site, project: Project, config: SwopConfig, cluster: Cluster
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
        runner = await ended(ada, patience_s=200)
    assert runner.state is TaskState.COMPLETE, log_of(config)
    assert (project.runs(0), project.runs(1), project.merged()) == (1, 1, [2.0, 2.0])
    assert all(line.startswith("alpha/sl/job-") for line in runner.peers[0].text.splitlines()[1:])


def requeue(cluster: Cluster, job: str) -> None:
    cluster.run("scontrol", "requeue", job)


def lose_its_node(cluster: Cluster, job: str) -> None:
    node = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    cluster.lose_node(node)
    cluster.find_node(node)


@pytest.mark.parametrize("interrupt", [requeue, lose_its_node])
async def test_a_job_that_comes_back_is_the_same_part(
    site: Site,
    project: Project,
    config: SwopConfig,
    shaky_cluster: Cluster,
    interrupt: Callable[[Cluster, str], None],
) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body())
    project.hold()
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await eventually(lambda: project.runs(0) == project.runs(1) == 1)
        (started,) = Path(config.state_dir).glob("runs/*/slot-0/started")
        await asyncio.to_thread(interrupt, shaky_cluster, started.read_text().strip())
        await eventually(lambda: project.runs(0) >= 2)
        project.let_go()
        runner = await ended(ada, patience_s=200)
    assert runner.state is TaskState.COMPLETE, runner.peers[0].text + log_of(config)
    assert project.merged() == [2.0, 2.0]


async def test_a_reset_cancels_the_jobs(site: Site, project: Project, config: SwopConfig, cluster: Cluster) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body())
    project.hold()
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await eventually(lambda: project.runs(0) == project.runs(1) == 1)
        await ada.reset_taskrunner(RUNNER)
        await eventually(lambda: not cluster.processes_of())


async def test_a_failed_job_is_told_with_its_programs_last_words(
    site: Site, project: Project, config: SwopConfig, cluster: Cluster
) -> None:
    ada = await site.operator()
    await make_task(ada, "train", project.body(data="missing"))
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        runner = await ended(ada, patience_s=200)
    assert runner.state is TaskState.ERROR
    text = runner.peers[0].text
    assert "failed: exit code" in text, text
    assert "there is no missing" in text, text + log_of(config)


async def test_a_slot_is_submitted_once(config: SwopConfig, cluster: Cluster, tmp_path: Path) -> None:
    executor = SlurmExecutor(config)
    one = order(config, tmp_path / "once", "false")
    first = await asyncio.to_thread(executor.start, one)
    assert await asyncio.to_thread(executor.start, one) == first


async def test_a_second_job_of_a_slot_ends_without_running_anything(
    config: SwopConfig, cluster: Cluster, tmp_path: Path
) -> None:
    executor = SlurmExecutor(config)
    one = order(config, tmp_path / "fenced", "false")
    (one.folder / "started").write_text("1\n")
    second = await asyncio.to_thread(submit, executor.script(one), one.folder)
    while not (log := one.folder / f"slurm-{second}.log").exists() or not log.read_text():
        await asyncio.sleep(0.2)
    assert log.read_text() == "this is for job 1\n"
    assert not (one.folder / f"job-{second}").exists()


async def test_what_was_cancelled_before_it_was_submitted_never_runs(
    config: SwopConfig, cluster: Cluster, tmp_path: Path
) -> None:
    executor = SlurmExecutor(config)
    one = order(config, tmp_path / "never", "false")
    await asyncio.to_thread(executor.cancel, one.folder, one.tag, "")
    late = await asyncio.to_thread(submit, executor.script(one), one.folder)
    while not (log := one.folder / f"slurm-{late}.log").exists() or not log.read_text():
        await asyncio.sleep(0.2)
    assert log.read_text() == "this is for job cancelled\n"


async def test_the_end_of_a_job_that_slurm_has_forgotten_is_read_from_what_it_left(
    config: SwopConfig, cluster: Cluster, tmp_path: Path
) -> None:
    executor = SlurmExecutor(config)
    one = order(config, tmp_path / "forgotten", "false")
    handle = await asyncio.to_thread(executor.start, one)
    assert await asyncio.to_thread(end, executor, one.folder, handle) is SlotState.FAILED
    assert (one.folder / "ended").read_text().strip() not in ("", "0")
    (one.folder / "started").write_text("999999\n")
    assert "exit code" in (await asyncio.to_thread(executor.poll, one.folder, handle)).why
