"""scripts/install_slurm.sh where it has nothing to do, and where it may not do anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.slurm import PROGRAMS

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_slurm.sh"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with what the script itself needs, but neither Slurm nor apt-get nor sudo."""
    for name in ("bash", "id", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return tmp_path


def install(
    path: Path, *args: str, script: str | Path = SCRIPT, cwd: Path | None = None, **env: str
) -> tuple[int, str]:
    """Exit code and what it said."""
    done = subprocess.run(
        [path / "bash", script, *args], cwd=cwd, env={"PATH": str(path), **env}, text=True, stderr=subprocess.PIPE
    )
    return done.returncode, done.stderr


def put(path: Path, name: str, text: str) -> None:
    (path / name).write_text(f"#!{path}/bash\n{text}\n")
    (path / name).chmod(0o755)


def test_nothing_is_done_where_everything_is_there(path: Path) -> None:
    for name in (*PROGRAMS, "ip"):
        put(path, name, "exit 1")
    put(path, "apt-get", "echo called >&2; exit 1")
    assert install(path) == (0, "")


def test_it_may_be_called_from_its_own_folder(path: Path) -> None:
    for name in (*PROGRAMS, "ip"):
        put(path, name, "exit 1")
    for script in (SCRIPT.name, f"./{SCRIPT.name}"):
        assert install(path, script=script, cwd=SCRIPT.parent) == (0, "")


def test_a_host_without_apt_is_told_what_to_install(path: Path) -> None:
    code, said = install(path)
    assert code == 1
    assert "there is no apt-get" in said
    assert "slurmctld" in said


def test_an_ordinary_user_is_told_what_root_may_do(path: Path) -> None:
    put(path, "apt-get", "echo called >&2; exit 1")
    (path / "id").unlink()
    put(path, "id", "echo 1000")
    code, said = install(path)
    assert code == 1
    assert "only root may install packages: apt-get install munge slurm-client" in said
    assert "called" not in said


def test_an_optional_installation_may_fail_except_in_ci(path: Path) -> None:
    code, said = install(path, "--optional")
    assert code == 0
    assert "are skipped" in said
    assert install(path, "--optional", CI="true")[0] == 1
