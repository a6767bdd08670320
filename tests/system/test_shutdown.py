"""`swarm-hpc local` leaves no process behind, whatever ends it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from swarm_hpc.local.folder import RunFolder
from tests.system.conftest import TINY, until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]
EXPERIMENT = """
name: tiny
metric: mean
platform: pytorch
prepare: [python, -c, "print('nothing to prepare')"]
train: [python, "{program}"]
env: {{TARGET: 1, LAST_ROUND: "{last_round}"}}
"""


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Every live process that works in the run folder or was started for it."""
    found = []
    for process in psutil.process_iter():
        try:
            words, cwd, status = process.cmdline(), process.cwd(), process.status()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if status != psutil.STATUS_ZOMBIE and any(str(run_dir) in text for text in [*words, cwd]):
            found.append(process)
    return found


def command_of(tmp_path: Path, *words: str) -> list[str]:
    """`swarm-hpc local` of two sites that train until they are told to stop, in the folder `run`."""
    experiment = tmp_path / "conf" / "experiment" / "tiny.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(EXPERIMENT.format(program=TINY, last_round=tmp_path / "last-round"))
    words = ("experiment=tiny", "sites=2", "baselines=false", f"run_dir={tmp_path / 'run'}", "--json", *words)
    return [sys.executable, "-m", "swarm_hpc.cli", "local", *words, "--config-dir", str(tmp_path / "conf")]


@pytest.fixture
def local(tmp_path):
    """A running `swarm-hpc local` whose two sites train until they are told to stop; (process, run folder)."""
    run_dir = tmp_path / "run"
    command = command_of(tmp_path)
    output = tmp_path / "local.log"
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:

        def training():
            assert process.poll() is None, output.read_text()
            blobs = run_dir / "sn" / "blobs"
            return blobs.is_dir() and len(list(blobs.iterdir())) > 4

        try:
            until(training, "the first rounds")
            yield process, run_dir
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_leaves_no_process(local, tmp_path, number):
    process, run_dir = local
    assert len(processes_of(run_dir)) >= 6  # supervisor, SN, two SLs, two programs
    process.send_signal(number)
    assert process.wait(60) == 130
    assert (tmp_path / "local.log").read_text().endswith("swarm-hpc: interrupted\n")
    assert "Traceback" not in (tmp_path / "local.log").read_text()
    assert processes_of(run_dir) == []
    assert not (run_dir / "sn" / "endpoint.json").exists()


def test_a_killed_run_leaves_no_process(local):
    process, run_dir = local
    process.kill()
    process.wait()
    until(lambda: not processes_of(run_dir), "all processes to die with their supervisor")


def test_a_run_that_takes_too_long_names_the_setting(tmp_path):
    done = subprocess.run(command_of(tmp_path, "timeout_s=1"), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (4, "")
    expected = "swarm-hpc: the run takes longer than timeout_s=1: alpha, beta did not end within 0 s; "
    assert done.stderr.splitlines()[-1].startswith(expected), done.stderr
    assert processes_of(tmp_path / "run") == []


def test_a_dead_site_ends_the_run_with_the_reason(local, tmp_path):
    process, run_dir = local
    programs = [one for one in processes_of(run_dir) if one.cmdline()[-1] == str(TINY)]
    programs[0].kill()
    assert process.wait(60) == 1
    text = (tmp_path / "local.log").read_text()
    assert "SIGKILL" in text.splitlines()[-1]
    assert text.splitlines()[-1].startswith("swarm-hpc: ")
    assert processes_of(run_dir) == []


def test_a_running_swarm_can_be_asked_how_it_does(local):
    _, run_dir = local
    done = subprocess.run(
        [sys.executable, "-m", "swarm_hpc.cli", "status", str(run_dir)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for text in ("alpha/sn/sn", "alpha/sl/sl-1", "beta/sl/sl-1", "tiny", "embedded"):
        assert text in done.stdout


def test_the_contract_of_a_running_swarm_can_be_verified(local):
    _, run_dir = local
    client = RunFolder.existing(run_dir).client()
    identity = [f"identity.{key}={getattr(client.identity, key)}" for key in ("cert", "key", "bundle")]
    words = ["verify", "tiny", f"sn={client.sn}", *identity, "--json"]
    done = subprocess.run([sys.executable, "-m", "swarm_hpc.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rounds_checked"] > 0
    assert (report["mismatches"], report["details"]) == (0, [])
