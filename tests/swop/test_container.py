"""A RUN_SWARM whose program runs in a real container: what it sees, and where it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_hpc.config import ContainerKind, ExecutorKind, SlPlace, SwopConfig
from swarm_hpc.records import TaskState
from swarm_hpc.swop import attended
from tests.lab.apptainer import make_root
from tests.swop.conftest import RUNNER, Site, ended, enrolled, make_task
from tests.swop.lab import Project, log_of, swop_process

pytestmark = [pytest.mark.slow, pytest.mark.apptainer, pytest.mark.timeout(300)]

SCRIPT = """\
pwd
cat value
echo
touch result && echo private data is writable
[ -e /bin/ls ] || echo its programs are those of the image
cat /mnt/key.pem 2>/dev/null || echo no other file of the site is there
echo "$APPTAINER_BIND"
touch model/x 2>&1 || echo shared content is not
echo "$DATA_DIR"
exit 3
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    (project.folder / "model" / "say.sh").write_text(SCRIPT)
    return project


@pytest.fixture
def config(site: Site, project: Project, apptainer: Path) -> Iterator[SwopConfig]:
    root = make_root(site.folder / "images" / "tiny", "sh", "cat", "touch", "env")
    (root / ".singularity.d").mkdir()
    config = site.config(profile=str(project.profile))
    config.executor = ExecutorKind.LOCAL
    config.follow.share_log_lines = 20
    config.container.kind = ContainerKind.APPTAINER
    config.container.apptainer = str(apptainer)
    config.container.sl = SlPlace.HOST
    config.container.image = str(root)
    config.container.image_dir = str(site.folder / "images")
    yield config
    for slot in Path(config.state_dir).glob("runs/*/slot-*"):
        attended.cancel(slot)


async def test_a_program_sees_hpes_paths_in_its_container(site: Site, project: Project, config: SwopConfig) -> None:
    ada = await site.operator()
    replaced = {"model/train.py": "model/say.sh", "python3": "sh"}
    secret = project.folder / "home"
    secret.mkdir()
    (secret / "key.pem").write_text("secret\n")
    body = project.body(data="app-data")
    body[3] = f"Envvars: ['DATA_DIR': app-data, 'APPTAINER_BIND': '{secret}:/mnt']"
    for old, new in replaced.items():
        body = [line.replace(old, new) for line in body]
    await make_task(ada, "train", body)
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        (mine,) = (await ended(ada)).peers
    assert mine.state is TaskState.ERROR
    said = mine.text.splitlines()
    assert said[0].endswith("exit code 1: its program ended with exit code 3: app-data"), log_of(config)
    told = said[said.index("/tmp/test") :]
    assert told[1:3] == ["1.0", "private data is writable"], log_of(config)
    assert "its programs are those of the image" in told
    assert told[4:6] == ["no other file of the site is there", f"{secret}:/mnt"]
    assert told[-2:] == ["shared content is not", "app-data"]
    assert (project.data(0) / "result").exists()
