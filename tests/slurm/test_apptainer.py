"""Finding Apptainer, and what becomes of its failures."""

import os
import time
from pathlib import Path

import pytest

from swarm_hpc.errors import ConfigError, ContainerError
from swarm_hpc.slurm.apptainer import find_apptainer, run
from tests.lab.slurm import until
from tests.slurm.stand_ins import put


@pytest.fixture
def env(tmp_path):
    """An environment in which nothing is found yet."""
    return {"PATH": str(tmp_path / "path"), "SWARM_HPC_CACHE": str(tmp_path / "cache")}


def test_the_order_is_setting_path_cache(tmp_path, env):
    cached = put(tmp_path / "cache/apptainer/bin/apptainer", "")
    assert find_apptainer("", env) == cached
    on_path = put(tmp_path / "path/apptainer", "")
    assert find_apptainer("", env) == on_path
    configured = put(tmp_path / "mine", "")
    assert find_apptainer(str(configured), env) == configured


def test_without_apptainer_the_remedy_is_named(env):
    with pytest.raises(ConfigError, match=r"no apptainer on PATH.*make apptainer.*container\.apptainer="):
        find_apptainer("", env)


def test_a_configured_one_that_cannot_be_run_is_an_error(tmp_path, env):
    put(tmp_path / "path/apptainer", "")
    (tmp_path / "mine").write_text("no program")
    with pytest.raises(ConfigError, match=r"apptainer: .*/mine is no program"):
        find_apptainer(str(tmp_path / "mine"), env)


def test_what_it_prints_is_returned_and_variables_are_handed_on(tmp_path):
    program = put(tmp_path / "apptainer", 'echo "INFO: a notice" >&2; echo "$1 $TMP_OF_BUILD"')
    assert run(program, "inspect", env={"TMP_OF_BUILD": "here"}) == "inspect here\n"


def test_a_failure_has_its_last_words_without_its_progress(tmp_path):
    program = put(
        tmp_path / "apptainer", "echo INFO: one >&2; echo FATAL: no such file >&2; echo INFO: end >&2; exit 255"
    )
    with pytest.raises(ContainerError, match=r"^apptainer exec: FATAL: no such file$"):
        run(program, "exec", "x.sif")


def test_a_failure_without_words_has_its_exit_code(tmp_path):
    with pytest.raises(ContainerError, match="apptainer exec: exit code 7"):
        run(put(tmp_path / "apptainer", "exit 7"), "exec")


def test_one_that_cannot_be_started_is_told(tmp_path):
    with pytest.raises(ContainerError, match="cannot be run"):
        run(tmp_path / "nothing", "exec")


@pytest.mark.slow
def test_after_its_deadline_nothing_of_it_is_left(tmp_path):
    program = put(tmp_path / "apptainer", f"sleep 60 & echo $! >{tmp_path}/child; echo waiting >&2; wait")
    started = time.monotonic()
    with pytest.raises(ContainerError, match=r"apptainer build: not done after 0\.5 s; last: waiting"):
        run(program, "build", timeout_s=0.5)
    assert time.monotonic() - started < 30
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    until(lambda: not child.exists() or "Z" in (child / "stat").read_text(), "the child to end", 10)


def test_what_it_makes_can_be_read_by_everybody(tmp_path):
    before = os.umask(0o077)
    try:
        run(put(tmp_path / "apptainer", f": >{tmp_path}/made"), "build")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644
