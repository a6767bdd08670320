"""What tasks make, with the real Apptainer: an image from lines of a Dockerfile, as an ordinary user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from swarm_hpc.records import TaskType
from swarm_hpc.swop.places import Job, Places, write_job
from swarm_hpc.swop.work import MODULE
from swarm_hpc.tasks.file import MakeUserContainer
from swarm_hpc.tasks.lines import to_lines
from tests.conftest import cannot_run
from tests.lab.apptainer import find_apptainer, make_root
from tests.lab.slurm import hand_over
from tests.lab.unprivileged import Unprivileged, find_unprivileged, ordinary_user

pytestmark = [pytest.mark.apptainer, pytest.mark.system, pytest.mark.slow]
STEPS = (
    "FROM team/base:1",
    "ARG WHAT='a  b'",
    'ENV GREETING="{{ hello }} $WHAT" PATH=/opt/app/bin:$PATH',
    "WORKDIR /opt/app",
    "COPY tool bin/",
    'RUN echo "proxy $http_proxy" >built; \\',
    '    echo "$GREETING" >>built',
    "LABEL org.example.team=swarm",
    'ENTRYPOINT ["tool", "it\'s"]',
    'CMD ["by default"]',
)
BASE_PROGRAMS = ("sh", "mkdir", "cp", "cat", "dirname", "chmod")
FAKEROOTS = ("getopt", "sed", "ls", "tr", "cut", "id", "sleep")
"""Where a user has no subordinate ones, Apptainer runs %post under fakeroot."""


@pytest.fixture(scope="module")
def apptainer() -> Path:
    found = find_apptainer()
    if isinstance(found, str):
        cannot_run(found)
    return Path(found)


@pytest.fixture
def user():
    if isinstance(reason := find_unprivileged(), str):
        cannot_run(reason)
    with ordinary_user() as who:
        yield who


def make_base(who: Unprivileged, apptainer: Path, folder: Path) -> None:
    """A SIF file of a few programs of this host."""
    folder.mkdir()
    root = make_root(who.home / "root", *BASE_PROGRAMS, *FAKEROOTS)
    (root / "mnt").mkdir()
    hand_over(who.home, who.user)
    command = [apptainer, "build", folder / "team+base@1.sif", root]
    done = who.run(*command)
    assert done.returncode == 0, done.stderr


def test_an_image_is_built_from_lines_of_a_dockerfile_and_does_what_they_say(user, apptainer):
    images, volumes, log = user.home / "images", user.home / "volumes", user.home / "work.log"
    make_base(user, apptainer, images)
    (volumes / "lib").mkdir(parents=True)
    (volumes / "lib" / "tool").write_text('#!/bin/sh\necho "$# $1 $2 $GREETING"; cat /opt/app/built\n')
    (volumes / "lib" / "tool").chmod(0o755)
    places = Places(
        images=images,
        volumes=volumes,
        log=log,
        apptainer=str(apptainer),
        env={"http_proxy": "http://jane:s3cret@proxy.example.org", "SL_LOG_LEVEL": "INFO"},
    )
    body = MakeUserContainer(build_context="lib", build_steps=STEPS)
    job = Job(task="t", type=TaskType.MAKE_USER_CONTAINER, outcome="env:2", body=to_lines(body), places=places)
    write_job(user.home / "job.json", job)
    hand_over(user.home, user.user)

    done = user.run(sys.executable, "-m", MODULE, user.home / "job.json")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
    assert done.stdout.splitlines()[-1].startswith("image env:2: env@2.sif, sha256:")
    assert [one for one in os.listdir(images) if one.startswith((".build", ".making"))] == []

    # Apptainer has the shell tell each command
    assert "mkdir -p /opt/app" in log.read_text()
    assert "s3cret" not in log.read_text() + done.stdout

    image = images / "env@2.sif"
    told = run(user, apptainer, "run", image)
    assert told == "2 it's by default {{ hello }} a  b\nproxy http://jane:s3cret@proxy.example.org\n{{ hello }} a  b\n"
    assert "2 it's mine" in run(user, apptainer, "run", image, "mine")
    inspected = user.run(apptainer, "inspect", "--all", image).stdout
    assert "org.example.team" in inspected
    kept = user.run(apptainer, "inspect", "--deffile", image).stdout
    assert "proxy.example.org" not in kept


def run(who: Unprivileged, apptainer: Path, verb: str, image: Path, *words: str) -> str:
    done = who.run(apptainer, verb, "--cleanenv", "--no-home", image, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout
