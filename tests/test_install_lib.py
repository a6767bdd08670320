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
    head = f"set -euo pipefail\nsubject=Test skipped=x\nsource '{LIB}'\npolicy={policy} kept={policy}.swarm-hpc\n"
    env = {"PATH": f"{policy.parent}:{os.defpath}", "SWARM_HPC_CACHE": str(policy.parent.with_name("cache")), **env}
    done = subprocess.run(["bash", "-c", head + lines], env=env, stderr=subprocess.PIPE, text=True, timeout=60)
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


APT_GET = """\
#!/bin/bash
[ ! -e "$0.done" ] || exit 0
touch "$0.done"
echo "E: Could not get lock $LOCK. It is held by process 7 (apt-get)"
exit 100
"""


@pytest.mark.parametrize(("lock", "expected"), [("/var/lib/apt/lists/lock", 0), ("/var/lib/other/lock", 1)])
def test_another_apt_that_updates_the_lists_is_waited_for(policy: Path, lock: str, expected: int) -> None:
    program = policy.parent / "apt-get"
    program.write_text(APT_GET)
    program.chmod(0o755)
    code, said = run(policy, "packages=(one two); apt update", LOCK=lock)
    assert (code, "Could not get lock" in said) == (expected, bool(expected))


def test_another_apt_that_does_not_end_is_told(policy: Path) -> None:
    program = policy.parent / "apt-get"
    program.write_text(APT_GET.replace("touch", "true"))
    program.chmod(0o755)
    code, said = run(policy, "packages=(one two) lists_wait_s=0; apt update", LOCK="/var/lib/apt/lists/lock")
    assert code == 1
    assert "It is held by process 7" in said
    assert "apt-get update failed; install one two by hand" in said
