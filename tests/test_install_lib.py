"""scripts/lib/install.sh, with folders of the test's own in place of the host's."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "scripts" / "lib" / "install.sh"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Where this host's policy for daemons would be."""
    (tmp_path / "sbin").mkdir()
    return tmp_path / "sbin" / "policy-rc.d"


def run(policy: Path, lines: str, **env: str) -> tuple[int, str]:
    """Exit code of a script that takes the lib and these lines, and what it said."""
    text = f"set -euo pipefail\nsubject=Test skipped=x\nsource '{LIB}'\npolicy={policy} kept={policy}.swarm-hpc\n{lines}"
    env = {"PATH": f"{policy.parent}:{os.defpath}", "SWARM_HPC_CACHE": str(policy.parent.with_name("cache")), **env}
    done = subprocess.run(["bash", "-c", text], env=env, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


def left(policy: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in policy.parent.iterdir()}


def test_daemons_are_forbidden_for_the_time_of_an_installation(policy: Path) -> None:
    assert run(policy, f"forbid_daemons; ! '{policy}' || exit 9")[0] == 0
    assert left(policy) == {}


def test_the_hosts_own_policy_comes_back(policy: Path) -> None:
    policy.write_text("the host's own")
    assert run(policy, "forbid_daemons; exit 3")[0] == 3
    assert left(policy) == {"policy-rc.d": "the host's own"}


@pytest.mark.parametrize("own", ["", "the host's own"])
def test_what_a_killed_installation_left_does_not_stay(policy: Path, own: str) -> None:
    if own:
        policy.write_text(own)
    assert run(policy, "forbid_daemons; kill -KILL $$")[0] == -signal.SIGKILL
    assert "exit 101" in policy.read_text()
    assert run(policy, "forbid_daemons; restore_policy")[0] == 0
    assert left(policy) == ({"policy-rc.d": own} if own else {})
