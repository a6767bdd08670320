"""The unit files of an SN and a SWOP that are services of a user: systemd takes them, and they fit how those end."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_hpc.cli.settings import CONF
from swarm_hpc.errors import ConfigError, IdentityError
from swarm_hpc.sn import consensus

UNIT = CONF / "systemd" / "swarm-hpc-sn.service"
PAGE = Path(__file__).parents[1] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    return unit["Service"]


def start(service: configparser.SectionProxy, settings: str) -> subprocess.CompletedProcess[str]:
    """What systemd would run, with these settings in sn.env."""
    words = service["ExecStart"].replace("$SN_SETTINGS", settings)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(shlex.split(words), env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["sn", "swop"])
def test_systemd_takes_it(tmp_path: Path, name: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    words = [program, "verify", "--user", UNIT.with_name(f"swarm-hpc-{name}.service")]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["data_dri=x", "identity.cert=none identity.key=none identity.bundle=none"])
def test_an_sn_that_cannot_work_as_it_is_set_up_is_not_started_again(
    service: configparser.SectionProxy, settings: str
) -> None:
    done = start(service, settings)
    assert str(done.returncode) in service["RestartPreventExitStatus"].split(), done.stderr


def test_only_settings_and_certificates_keep_it_from_a_new_start(service: configparser.SectionProxy) -> None:
    assert service["Restart"] == "on-failure"
    kept = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert kept == {ConfigError.exit_code, IdentityError.exit_code}


def test_it_has_the_time_to_end_its_programs_in_order(service: configparser.SectionProxy) -> None:
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > consensus._STOP_S


def test_the_page_on_operations_speaks_of_this_file_and_its_settings(service: configparser.SectionProxy) -> None:
    page = PAGE.read_text()
    assert f"conf/systemd/{UNIT.name}" in page
    assert service["EnvironmentFile"].replace("%h", "~") in page
    assert re.search(r"^SN_SETTINGS=", page, re.MULTILINE)
