"""Images that tasks make, with a stand-in for Apptainer: names, repeats, and what stays untouched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from swarm_hpc.errors import ConfigError, ContainerError, SwarmError
from swarm_hpc.records import TaskType
from swarm_hpc.slurm import build
from swarm_hpc.slurm.images import find_image, read_record
from swarm_hpc.swop.images import image_name
from swarm_hpc.swop.places import Job, Places, read_job, write_job
from swarm_hpc.swop.work import MODULE, perform
from swarm_hpc.tasks.file import MakeUserContainer, PullImage, RunSwarm
from swarm_hpc.tasks.lines import to_lines
from tests.slurm.stand_ins import APPTAINER, calls, put

PULL = PullImage(tag="2.3", repo="env", registry="hub.example.org/team")
ENV = {"http_proxy": "http://jane:s3cret@proxy", "SL_LOG_LEVEL": "INFO"}


class Site:
    def __init__(self, root):
        self.root, self.said = root, []
        self.apptainer = put(root / "bin/apptainer", APPTAINER)
        self.images, self.volumes = root / "images", root / "volumes"
        self.images.mkdir()
        (self.images / "sl-pytorch.sif").write_bytes(b"a base")

    def places(self, **changes):
        fields = {"images": self.images, "volumes": self.volumes, "log": self.root / "log", "env": ENV, "timeout_s": 30}
        return Places(apptainer=str(self.apptainer), **fields | changes)

    def build(self, *steps, outcome="user-env", context=None, **changes):
        body = MakeUserContainer(build_context=context, build_steps=steps or ("FROM sl-pytorch", "RUN true"))
        return perform(body, outcome, self.places(**changes), self.said.append)

    def pull(self, body=PULL, outcome="hub.example.org/team/env:2.3", **changes):
        return perform(body, outcome, self.places(**changes), self.said.append)

    def builds(self):
        return [words for words in calls(self.apptainer) if words.startswith("build")]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_as_builder", lambda: [])
    return Site(tmp_path)


def test_an_image_is_named_after_the_outcome_and_recorded(site):
    told = site.build(outcome="user-env-tf2.7.0-swop")
    image = find_image("user-env-tf2.7.0-swop", site.images)
    assert told == f"image user-env-tf2.7.0-swop: {image.path.name}, {read_record(image.path).digest}"
    assert [one.name for one in site.images.iterdir() if one.name.startswith((".build", ".making"))] == []


def test_a_repeat_does_nothing_and_other_steps_or_another_base_build_again(site):
    site.build()
    assert "there already" in site.build()
    assert len(site.builds()) == 1
    site.build("FROM sl-pytorch", "RUN false")
    (site.images / "sl-pytorch.sif").write_bytes(b"another base")
    site.build("FROM sl-pytorch", "RUN false")
    assert len(site.builds()) == 3


def test_an_image_of_a_task_can_be_built_upon(site):
    site.build(outcome="team/env:1")
    site.build("FROM team/env:1", outcome="env2")
    assert image_name("team/env:1") == "team+env@1"
    assert len(site.builds()) == 2


def test_an_outcome_may_have_the_ending_that_its_file_has(site):
    site.build(outcome="user-env.sif")
    assert find_image(image_name("user-env.sif"), site.images).path == site.images / "user-env.sif"
    site.build("FROM user-env.sif", outcome="env2", registries=())
    with pytest.raises(ConfigError, match="image of swarm-hpc itself"):
        site.build(outcome="sl-keras.sif")


def test_the_files_of_the_context_and_the_proxies_are_bound(site):
    with pytest.raises(ConfigError, match="there is no volume"):
        site.build(context="lib")
    (site.volumes / "lib").mkdir(parents=True)
    site.build("FROM sl-pytorch", "COPY a /b", context="lib")
    (words,) = site.builds()
    assert f"--bind {site.volumes}/lib:/mnt/context:ro" in words
    assert "s3cret" not in words


def test_nobody_else_can_read_the_proxies_of_a_build(site):
    look = 'case "$1" in build) stat -c %a mount/environment.sh; cat mount/environment.sh ;; esac'
    site.apptainer = put(site.root / "bin/looks", f"{look} >>{site.root}/seen\n{APPTAINER}")
    site.build()
    assert (site.root / "seen").read_text().splitlines() == ["600", "export http_proxy=http://jane:s3cret@proxy"]


def test_an_image_that_no_task_has_made_stays(site):
    (site.images / "mine.sif").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="no task has made it"):
        site.build(outcome="mine")
    with pytest.raises(ConfigError, match="image of swarm-hpc itself"):
        site.build(outcome="sl-keras")
    assert (site.images / "mine.sif").read_bytes() == b"mine"


def test_a_base_that_is_not_here_comes_from_a_registry_if_the_policy_lets_it(site):
    site.build("FROM python:3.11")
    with pytest.raises(ConfigError, match="policy of this site"):
        site.build("FROM python:3.12", registries=("hub.example.org/*",))


def test_an_image_of_a_registry_is_fetched_under_the_name_of_the_outcome(site):
    site.pull()
    assert (site.images / "hub.example.org+team+env@2.3.sif").exists()
    assert site.builds()[0].endswith("docker://hub.example.org/team/env:2.3")
    assert "there already" in site.pull()


def test_credentials_are_a_file_of_the_site(site):
    with pytest.raises(ConfigError, match=r"no file /none/config[.]json at this site"):
        site.pull(PullImage(tag="1", repo="r", registry="o", auth="/none/config.json"))
    (site.root / "config.json").write_text("{}")
    site.pull(PullImage(tag="1", repo="r", registry="o", auth=str(site.root / "config.json")))
    assert f"--authfile {site.root}/config.json" in site.builds()[0]


@pytest.mark.parametrize("outcome", ["../x", "a b", "", "a/../b", "-x", "x" * 161, "/etc/x"])
def test_an_outcome_that_is_no_name_is_refused(site, outcome):
    with pytest.raises(SwarmError):
        site.build(outcome=outcome)


def test_a_build_that_fails_is_told_with_its_log_and_leaves_the_image(site):
    site.build()
    before = (site.images / "user-env.sif").read_bytes()
    put(site.apptainer, '[ "$1" != build ] || { echo "FATAL: no space"; exit 255; }; echo apptainer version 1.4.5')
    with pytest.raises(ContainerError, match=rf"no space.*\(log: {site.root}/log\)"):
        site.build("FROM sl-pytorch", "RUN other")
    assert (site.images / "user-env.sif").read_bytes() == before


def test_a_run_is_not_this_work(site):
    with pytest.raises(ConfigError, match="SWOP node"):
        perform(RunSwarm(command="x", entrypoint="", working_dir="/w"), "o", site.places(), print)


@pytest.mark.slow
def test_a_process_does_a_job_and_ends_with_the_reason(site, monkeypatch):
    file = site.root / "job.json"
    job = Job(task="t", type=TaskType.PULL_IMAGE, outcome="a b", body=to_lines(PULL), places=site.places())
    write_job(file, job)
    assert read_job(file) == job
    assert file.stat().st_mode & 0o077 == 0
    done = subprocess.run([sys.executable, "-m", MODULE, file], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1].startswith("Outcome: 'a b' is no name of an image")
    file.write_text(json.dumps({"task": 1}))
    with pytest.raises(ConfigError, match="no description of a job"):
        read_job(file)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_nothing_that_disturbs_the_next_one(site, number):
    waits = f'[ "$1" != build ] || {{ : >{site.root}/started; exec sleep 60; }}; echo apptainer version 1.4.5'
    put(site.apptainer, waits)
    body = MakeUserContainer(build_context=None, build_steps=("FROM sl-pytorch",))
    job = Job(
        task="t", type=TaskType.MAKE_USER_CONTAINER, outcome="user-env", body=to_lines(body), places=site.places()
    )
    write_job(site.root / "job.json", job)
    # without unshare, which is what root builds with
    code = "import sys; from swarm_hpc.slurm import build; from swarm_hpc.swop import work; build._as_builder = list; "
    code += "sys.exit(work.main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", code, site.root / "job.json"], stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not (site.root / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        told = process.communicate(timeout=30)[0].decode()
    assert told.endswith("stopped\n") == (number == signal.SIGTERM)
    assert not (site.images / "user-env.sif").exists()
    put(site.apptainer, APPTAINER)
    site.build("FROM sl-pytorch")
    assert [one.name for one in site.images.iterdir() if one.name.startswith(".build")] == []
