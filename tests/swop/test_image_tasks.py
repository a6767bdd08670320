"""Images made by a real SWOP process of an ordinary user, with real Apptainer, that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swarm_hpc import settings_file
from swarm_hpc.config import ExecutorKind, ImageConfig, SwopConfig
from swarm_hpc.records import TaskState, TaskType
from swarm_hpc.slurm.build import Builder
from swarm_hpc.slurm.images import find_image
from tests.conftest import cannot_run
from tests.lab.apptainer import find_apptainer
from tests.lab.slurm import hand_over
from tests.lab.unprivileged import Unprivileged, find_unprivileged, ordinary_user
from tests.swop.conftest import RUNNER, Site, ended, enrolled, make_task, site_in
from tests.swop.lab import Project, eventually, log_of
from tests.swop.registry import REPOSITORY, TAG, Registry

pytestmark = [pytest.mark.slow, pytest.mark.apptainer, pytest.mark.timeout(600)]

BUILD_S = 300.0


@pytest.fixture(scope="module")
def user() -> Iterator[Unprivileged]:
    if isinstance(reason := find_unprivileged(), str):
        cannot_run(reason)
    with ordinary_user() as who:
        yield who


@pytest.fixture
async def site(user: Unprivileged, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """As the other tests' site, in the user's home."""
    async with site_in(user.home / request.node.name) as one:
        yield one


@pytest.fixture
def config(site: Site) -> SwopConfig:
    config = site.config(profile=str(Project(site.folder / "project").profile))
    config.executor = ExecutorKind.LOCAL
    config.container.image_dir = str(site.folder / "images")
    Path(config.container.image_dir).mkdir()
    return config


@contextmanager
def swop_of(user: Unprivileged, config: SwopConfig, folder: Path) -> Iterator[int]:
    """The user's `swarm-hpc swop`; its process, which is killed at the end of the block."""
    words = settings_file.write(Path(config.state_dir) / "settings", "swop", "swop", config)
    hand_over(folder, user.user)
    command = [*user.launcher, sys.executable, "-m", "swarm_hpc.cli", *words]
    # plain HTTP, for the registry of these tests
    env = {**os.environ, "APPTAINER_NOHTTPS": "true"}
    with (Path(config.state_dir) / "swop.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, env=env, cwd=user.home)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def count(config: SwopConfig, text: str) -> int:
    return sum(
        line.strip() == text
        for file in Path(config.state_dir).glob("runs/*/slot-*/*log")
        for line in file.read_text().splitlines()
    )


async def test_a_build_outlives_a_killed_swop_and_is_made_once(
    user: Unprivileged, site: Site, config: SwopConfig
) -> None:
    base = Builder(ImageConfig(timeout_s=BUILD_S), os.environ, lambda text: None).build("base")
    (Path(config.container.image_dir) / "base.sif").symlink_to(base.image.path)
    steps = ["FROM base", "RUN echo STARTED && sleep 5 && echo made > /made"]
    lines = ["BuildContext: null", "BuildType: INLINE", "BuildSteps:", *(f"- {step}" for step in steps)]
    ada = await site.operator()
    await make_task(ada, "build", lines, TaskType.MAKE_USER_CONTAINER)
    with swop_of(user, config, site.folder) as pid:
        await enrolled(ada)
        await ada.assign(RUNNER, "build")
        await eventually(lambda: count(config, "STARTED") == 1)
        os.kill(pid, signal.SIGKILL)
    with swop_of(user, config, site.folder):
        runner = await ended(ada, BUILD_S)
    assert runner.state is TaskState.COMPLETE, f"{runner}\n{log_of(config)}"
    assert count(config, "STARTED") == 1
    image = find_image("outcome", Path(config.container.image_dir))
    apptainer = find_apptainer()
    assert isinstance(apptainer, Path), apptainer
    assert user.run(apptainer, "exec", image.path, "cat", "/made").stdout == "made\n"


async def test_an_image_of_a_registry_is_fetched_once_by_a_killed_swop(
    user: Unprivileged, site: Site, config: SwopConfig
) -> None:
    registry = Registry()
    try:
        organisation, _, name = REPOSITORY.rpartition("/")
        lines = [f"Tag: '{TAG}'", f"RepoName: {name}", f"OrgAndReg: {registry.address}/{organisation}", "Auth: null"]
        ada = await site.operator()
        await make_task(ada, "pull", lines, TaskType.PULL_IMAGE)
        with swop_of(user, config, site.folder) as pid:
            await enrolled(ada)
            await ada.assign(RUNNER, "pull")
            await eventually(lambda: registry.num_layers == 1)
            os.kill(pid, signal.SIGKILL)
        with swop_of(user, config, site.folder):
            registry.go.set()
            runner = await ended(ada, BUILD_S)
    finally:
        registry.stop()
    assert runner.state is TaskState.COMPLETE, f"{runner}\n{log_of(config)}"
    assert registry.num_layers == 1
    assert find_image("outcome", Path(config.container.image_dir)).path.stat().st_size > 0
