"""An ordinary user's containers: the real Apptainer needs no setuid program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.apptainer import make_root
from tests.lab.slurm import hand_over, until
from tests.lab.unprivileged import Unprivileged, has_ended, ordinary_user

pytestmark = [pytest.mark.apptainer, pytest.mark.slow]
BUILD_S = 100.0
PATIENCE_S = 30.0
# The last ones are what Apptainer runs in a container while it builds one.
PROGRAMS = ("cat", "grep", "id", "sh", "cut", "getopt", "rm", "sed")
WHO = "id -u; grep NoNewPrivs: /proc/self/status; exit 7"


@pytest.fixture
def root(unprivileged: Unprivileged) -> Path:
    """A tiny root file system of the user's."""
    root = make_root(unprivileged.home / "root", *PROGRAMS)
    hand_over(root, unprivileged.user)
    return root


def test_a_folder_is_run_without_privileges(apptainer: Path, unprivileged: Unprivileged, root: Path) -> None:
    done = unprivileged.run(apptainer, "exec", root, "sh", "-c", WHO)
    assert done.returncode == 7, done.stderr
    uid, *rest = done.stdout.split()
    assert uid == unprivileged.run("id", "-u").stdout.strip() != "0"
    if unprivileged.holder:
        assert rest[:2] == ["NoNewPrivs:", "1"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_container_ends_with_its_user_even_if_what_started_it_is_gone(apptainer: Path) -> None:
    with ordinary_user() as one:
        root = make_root(one.home / "root", "sh", "sleep")
        hand_over(root, one.user)
        command = [*one.launcher, apptainer, "exec", "--cleanenv", root, "sh", "-c", "echo $$; exec sleep 600"]
        with subprocess.Popen(command, cwd=one.home, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            assert {pid, process.pid} <= one.pids()
            process.kill()
    until(lambda: has_ended(pid), "the container to end", PATIENCE_S)


def test_an_image_is_built_and_run_without_privileges(apptainer: Path, unprivileged: Unprivileged, root: Path) -> None:
    recipe = unprivileged.home / "recipe.def"
    recipe.write_text(f"Bootstrap: localimage\nFrom: {root}\n%post\n    echo built >/made\n")
    done = unprivileged.run(apptainer, "build", "image.sif", recipe, timeout_s=BUILD_S)
    assert done.returncode == 0, done.stderr
    done = unprivileged.run(apptainer, "exec", "image.sif", "sh", "-c", "cat /made; id -u; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stdout.split()[0] == "built"
    assert done.stdout.split()[1] != "0"
