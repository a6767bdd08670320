"""`swarm-hpc local` on the shared ledger: the same numbers, bit for bit, as on the embedded one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import LONG

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(900)]


def run_digits(run_dir, ledger, *words):
    command = [sys.executable, "-m", "swarm_hpc.cli", "local", "experiment=digits", f"ledger={ledger}", *words]
    done = subprocess.run([*command, f"run_dir={run_dir}", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_digits_on_a_network_of_four_sites_gives_what_the_embedded_ledger_gives(tmp_path):
    """One epoch, or, with SWARM_HPC_LONG_TESTS=1, all ten and the accuracy that they come to.

    The four sites merge in shards, which changes nothing either.
    """
    words = ["seed=3"] if LONG else ["seed=3", "baselines=false", "experiment.env.MAX_EPOCHS=1"]
    shared = run_digits(tmp_path / "geth", "geth", "merge.plan=sharded", *words)
    embedded = run_digits(tmp_path / "embedded", "embedded", *words)
    assert (shared["ledger"]["kind"], shared["merge"]) == ("geth", "mean plan=sharded")
    assert shared["merged_hashes"] == embedded["merged_hashes"]
    assert len(shared["merged_hashes"]) == shared["rounds"] > 0
    assert [site["swarm"] for site in shared["sites"]] == [site["swarm"] for site in embedded["sites"]]
    if LONG:
        assert all(site["swarm"] >= shared["pooled"] - 0.02 for site in shared["sites"])
        assert all(site["alone"] < 0.91 for site in shared["sites"])
