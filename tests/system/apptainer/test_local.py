"""`swarm-hpc local container=apptainer`, run by an ordinary user: every SN, SL and program in its own container."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import ONE_THREAD
from swarm_hpc.slurm.images import digest_of
from tests.lab.slurm import until
from tests.system.apptainer.conftest import User

pytestmark = [pytest.mark.apptainer, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


def test_three_sites_in_containers_gain_from_the_swarm_and_the_ledger_has_their_image(user: User) -> None:
    run_dir, summary = user.local("digits", "merge=geomedian")
    assert all(site["alone"] < 0.91 for site in summary["sites"])
    assert all(site["swarm"] >= summary["pooled"] - 0.02 for site in summary["sites"])
    report = json.loads(user.swarm_hpc("verify", str(run_dir), "--json").stdout)
    assert (report["rounds_checked"], report["mismatches"]) == (summary["rounds"], 0)
    user.check_that_nothing_is_left()


def test_a_program_sees_its_own_folders_and_no_key(user: User, inside: Path) -> None:
    user.who.run("mkdir", "own").check_returncode()
    binds = f"container.binds=['{user.who.home}/own:/somewhere/else:rw']"
    run_dir, _ = user.local("inside", "baselines=false", "--config-dir", str(inside), binds)
    for site in ("alpha", "beta", "gamma"):
        seen = json.loads((run_dir / site / "swarm" / "result.json").read_text())["seen"]
        assert seen.pop("uid") != 0
        assert seen == {
            "root": False,
            "packages": False,
            "code": False,
            "data": False,
            "scratch": True,
            "home": True,
            "tmp": [user.who.home.parts[2]],  # the way to what is bound
            "cache": "/home/swarm/.cache",
            "bound": True,
            "keys": [],
            "capabilities": 0,
            "no_new_privs": 1,
            "python_path": "",
        }
    user.check_that_nothing_is_left()


def test_every_node_has_a_container_of_its_own_and_none_is_left_after_ctrl_c(user: User) -> None:
    run_dir = user.who.home / "run-stopped"
    words = ("experiment=digits", "sites=3", f"run_dir={run_dir}", "baselines=false", *user.words)
    words += ("experiment.env.MAX_EPOCHS=900",)
    command = [*user.who.launcher, sys.executable, "-m", "swarm_hpc.cli", "local", *words]
    with (user.who.home / "stopped.log").open("w+") as log:
        running = subprocess.Popen(command, env={**os.environ, **ONE_THREAD}, cwd=user.who.home, stdout=log, stderr=log)
        try:
            until(lambda: rounds_of(run_dir) > 2, "it to train", 120, lambda: log.name and Path(log.name).read_text())
            roles = containers(user)
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 130
    assert roles == {"sn": 1, "sl": 3, "train.py": 3}
    user.check_that_nothing_is_left()


def rounds_of(run_dir: Path) -> int:
    """How many rounds are over, as far as the logs say."""
    from swarm_hpc.errors import SwarmError
    from swarm_hpc.local.swarm import fetch_status

    try:
        contracts = fetch_status(RunFolder(run_dir).client(connect_timeout_s=1.0)).contracts
    except (SwarmError, OSError):
        return 0
    return contracts[0].round if contracts else 0


def containers(user: User) -> dict[str, int]:
    """How many mount namespaces there are of each kind of node."""
    found: dict[str, set[Path]] = {}
    for pid in user.who.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        for role in ("sn", "sl", "train.py"):
            mine = words[0].endswith("python3") and any(Path(word).name == role for word in words[1:3])
            if mine and "swarm_hpc.slurm.outside" not in words:
                found.setdefault(role, set()).add(Path(f"/proc/{pid}/ns/mnt").readlink())
    all_of_them = [one for ones in found.values() for one in ones]
    assert len(set(all_of_them)) == len(all_of_them)
    return {role: len(ones) for role, ones in found.items()}


def test_programs_that_run_in_another_image_than_the_contract_names_are_refused(user: User) -> None:
    run_dir = user.who.home / "run-refused"
    words = ("experiment=digits", "sites=2", f"run_dir={run_dir}", "baselines=false", *user.words)
    done = user.swarm_hpc("local", *words, f"round.image=sha256:{'0' * 64}")
    assert done.returncode != 0
    assert f"wants programs to run in image sha256:{'0' * 64} (round.image), this one runs in image " in done.stderr
    user.check_that_nothing_is_left()


def test_the_contract_can_name_the_image_that_is_there(user: User, inside: Path) -> None:
    digest = digest_of(user.image())
    words = ("baselines=false", "--config-dir", str(inside), f"run_dir={user.who.home}/run-named")
    _, summary = user.local("inside", *words, f"round.image={digest}")
    assert summary["rounds"] > 0
