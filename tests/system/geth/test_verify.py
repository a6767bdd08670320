"""`swarm-hpc verify RUN_DIR` of a run on the shared ledger: only geth is started, on the first site's folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil
import pytest

from swarm_hpc.local.folder import RunFolder
from swarm_hpc.processes import Process, stop

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]
COMMAND = [sys.executable, "-m", "swarm_hpc.cli"]
PATIENCE_S = 120.0


def swarm_hpc(*words):
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True)


def gethers(folder):
    """Processes that work on the folder."""
    return [
        one.pid for one in psutil.process_iter(["cmdline"]) if any(str(folder) in w for w in one.info["cmdline"] or ())
    ]


def test_a_run_on_the_shared_ledger_is_verified_and_a_flipped_byte_is_named(tmp_path):
    run_dir = tmp_path / "run"
    words = ["experiment=digits", "ledger=geth", "sites=2", "baselines=false", "experiment.env.MAX_EPOCHS=2"]
    done = swarm_hpc("local", *words, f"run_dir={run_dir}", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    folder = RunFolder.existing(run_dir)

    done = swarm_hpc("verify", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    assert "lacks the newest blocks" not in done.stderr
    assert json.loads(done.stdout)["rounds_checked"] == summary["rounds"] > 0
    assert gethers(folder.ledger) == []

    # both SNs keep the result: the other site's copy is spoilt
    copy = next((run_dir / "sn-beta").rglob(summary["merged_hashes"][1]))
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    done = swarm_hpc("verify", str(run_dir), "--json")
    assert done.returncode == 1, done.stderr
    [detail] = json.loads(done.stdout)["details"]
    assert (detail["contract"], detail["round"]) == ("digits", 2)
    assert str(copy) in detail["reason"]

    # of two sites the founder alone has the quorum
    sn = Process.start(
        "sn", [*COMMAND, "sn", "--config-dir", str(folder.settings), "+node=sn"], log=tmp_path / "sn-again.log"
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (folder.sn_data / "endpoint.json").exists():
            sn.check()
            assert time.monotonic() < deadline, sn.tail()
            time.sleep(0.1)
        done = swarm_hpc("verify", str(run_dir))
        assert done.returncode == 1
        assert f"{folder.ledger} is in use: its SN is running" in done.stderr
        assert "swarm-hpc verify CONTRACT sn=" in done.stderr
        done = swarm_hpc("status", str(run_dir), "--json")
        assert done.returncode == 0, done.stderr
        validators = json.loads(done.stdout)["consensus"]["validators"]
        assert [(one["site"], one["connected"]) for one in validators] == [("alpha", True), ("beta", False)]
        done = swarm_hpc("sites", str(run_dir))
        assert [word in done.stdout for word in ("alpha", "beta", "member")] == [True] * 3
        done = swarm_hpc("sites", "admit", "gamma", str(run_dir))
        assert done.returncode == 1
        assert "gamma has not asked this SN" in done.stderr
    finally:
        stop([sn], 30.0)
