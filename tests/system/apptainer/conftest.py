"""An ordinary user with real Apptainer: a whole swarm in containers on one host, and two Slurm clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_hpc import settings_file
from swarm_hpc.config import ImageConfig
from swarm_hpc.local.swarm import ONE_THREAD
from swarm_hpc.slurm.build import NAMES, Builder
from swarm_hpc.slurm.images import Image, find_image
from tests.conftest import cannot_run
from tests.lab.slurm import clusters, hand_over, until
from tests.lab.unprivileged import Unprivileged, find_unprivileged, ordinary_user
from tests.system.slurm.conftest import PROGRAMS, SITES, Network, network_of

COMMAND_S = 400.0
BUILD_S = 1200.0
END_S = 20.0
OTHERS_S = 90.0


@dataclass
class User:
    """The user, and the images that they run."""

    who: Unprivileged
    images: Path

    @property
    def words(self) -> tuple[str, ...]:
        return ("container=apptainer", f"container.image_dir={self.images}")

    def image(self, name: str = "sl-pytorch") -> Image:
        return find_image(name, self.images)

    def swarm_hpc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`swarm-hpc WORDS` in the user's home."""
        return self.who.run(sys.executable, "-m", "swarm_hpc.cli", *words, env=ONE_THREAD, timeout_s=COMMAND_S)

    def local(self, experiment: str, *words: str) -> tuple[Path, dict[str, Any]]:
        """`swarm-hpc local` in containers: its run folder, and what came of it."""
        run_dir = self.who.home / f"run-{experiment}"
        words = (f"experiment={experiment}", "sites=3", f"run_dir={run_dir}", *self.words, *words)
        done = self.swarm_hpc("local", *words, "--json")
        assert done.returncode == 0, f"{done.stderr}\n{logs(run_dir)}"
        return run_dir, json.loads(done.stdout)

    def check_that_nothing_is_left_of_jobs(self) -> None:
        """Soon after a job: no container, nor what served its image, and nothing in /tmp."""
        until(lambda: not self._containers(), "its containers to be gone", END_S, lambda: str(self._containers()))
        _check_that_no_folder_is_left()

    def _containers(self) -> list[bytes]:
        found = []
        for pid in self.who.pids():
            with suppress(OSError):  # it has just ended
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        return [words for words in found if b"apptainer" in words or b"squashfuse" in words]

    def check_that_nothing_is_left(self) -> None:
        """No process, and nothing in /tmp."""
        left = self.who.pids() - {self.who.holder}
        assert not left, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        _check_that_no_folder_is_left()


def _check_that_no_folder_is_left() -> None:
    """Those of tests that run beside this one go when their nodes end."""
    left = list(Path("/tmp").glob("swarm-sl-*"))
    until(lambda: not any(path.exists() for path in left), "folders in /tmp to be gone", OTHERS_S, lambda: str(left))


def logs(run_dir: Path) -> str:
    return "\n".join(f"--- {file}\n{file.read_text()[-1500:]}" for file in sorted(run_dir.glob("logs/*.log")))


@pytest.fixture(scope="module")
def user(images: Path) -> Iterator[User]:
    if isinstance(reason := find_unprivileged(), str):
        cannot_run(reason)
    with ordinary_user(images) as who:
        yield User(who, images)


@pytest.fixture
def inside(user: User) -> Path:
    """A folder with the experiment `inside`, for --config-dir."""
    experiment = {
        "name": "inside",
        "metric": "mean",
        "platform": "pytorch",
        "prepare": ["python", "{examples}/digits/prepare.py"],
        "train": ["python", str(PROGRAMS / "inside.py")],
        "max_sites": 3,
    }
    folder = user.who.home / "settings"
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(experiment, sort_keys=False)
    (folder / "experiment" / "inside.yaml").write_text(f"# @package experiment\n{text}")
    return folder


@pytest.fixture
def network(user: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Network]]:
    """Makes two sites, whose SNs, clusters and jobs are the user's."""
    write = settings_file.write

    def write_for_user(folder: Path, command: str, name: str, settings: object) -> list[str]:
        words = write(folder, command, name, settings)
        hand_over(folder, user.who.user)  # nobody else may read them
        return words

    monkeypatch.setattr(settings_file, "write", write_for_user)
    with ExitStack() as stack:

        def make() -> Network:
            launchers = dict.fromkeys(SITES, user.who.launcher)
            slurm = stack.enter_context(clusters(*SITES, launchers=launchers, user=user.who.user))
            root = user.who.home / f"network{len(list(user.who.home.glob('network*')))}"
            one = stack.enter_context(network_of(root, slurm))
            hand_over(root, user.who.user)
            one.swarm.launcher = user.who.launcher
            one.swarm.start_sn()
            for site in SITES:
                one.write_profile(site)
            return one

        yield make


@pytest.fixture(scope="session")
def images() -> Path:
    """Folder of base, sn, sl-pytorch and sl-keras of this checkout; those that are not there yet are built."""
    builder = Builder(ImageConfig(timeout_s=BUILD_S), os.environ, lambda text: None)
    for name in NAMES:
        builder.build(name)
    return builder.folder
