"""scripts/setup_environment.sh with a stand-in for Python, its environments, pip and uv: no network, milliseconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INPUTS = ("pyproject.toml", "constraints.txt", "setup.py", "swarm_hpc/kernels/native.c")
# As the real ones: an environment has its interpreter long before it has pip, and pip and uv take time.
PYTHON = """#!/bin/bash
set -e
case "$*" in
-c*) exit ;;
"-m venv .venv")
    echo venv >>"$LOG"
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    if [ "$BREAKS" = venv ]; then
        read -r _ _ _ script _ </proc/$PPID/stat # the parent is a subshell of it
        kill -KILL $script $PPID
        exit 1
    fi
    sleep 0.2
    touch .venv/pip
    ;;
"-m pip install"*)
    [ -e .venv/pip ] || { echo "No module named pip" >&2; exit 1; }
    case "${PIP_USER:-} $*" in "1 "*--no-user*) ;; "1 "*) echo "Can not perform a '--user' install" >&2; exit 1 ;; esac
    echo pip >>"$LOG"
    cat >.venv/bin/uv <<'END'
#!/bin/bash
[ "$1" != --version ] || { echo "uv $UV_VERSION"; exit; }
echo "uv $*" >>"$LOG"
[ ! -e "$COMPILER" ] || touch swarm_hpc/kernels/_native.so
[ "$BREAKS" != uv ] || { kill -KILL $PPID; exit 1; }
END
    chmod +x .venv/bin/uv
    ;;
*) exit 1 ;;
esac
"""


@dataclass
class Checkout:
    """A checkout with the script and what it looks at, and a Python in a folder with a space in its name."""

    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.script = self.folder / "scripts" / "setup_environment.sh"
        self.script.parent.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup_environment.sh", self.script)
        for name in INPUTS:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(name)
        python = self.folder / "my python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        self.compiler = self.folder / "cc"
        self.compiler.touch()
        self.compiler.chmod(0o755)
        version = next(line for line in self.script.read_text().splitlines() if line.startswith("uv_version="))
        self.env = {
            "PATH": os.defpath,
            "PYTHON": str(python),
            "CC": str(self.compiler),
            "COMPILER": str(self.compiler),
            "LOG": str(self.folder / "log"),
            "UV_VERSION": version.partition("=")[2],
        }

    def start(self, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        script = self.script if cwd is None else os.path.relpath(self.script, cwd)
        return subprocess.Popen(
            ["bash", script], env=self.env | env, cwd=cwd, text=True, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )

    def set_up(self, cwd: Path | None = None, **env: str) -> tuple[int, str]:
        """Exit code and what it said."""
        with self.start(cwd, **env) as process:
            said = process.communicate(timeout=60)[1]
        return process.returncode, said

    def did(self) -> list[str]:
        """`venv`, `pip`, `uv`, or `uv again` where everything is installed anew; forgotten then."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[0] + " again" * ("--reinstall" in line) for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_it_is_made_once_and_then_nothing_is_said_or_done(checkout: Checkout) -> None:
    code, said = checkout.set_up()
    assert code == 0, said
    assert checkout.did() == ["venv", "pip", "uv again"]
    assert checkout.set_up() == (0, "")
    assert checkout.did() == []


def test_it_may_be_called_from_any_folder(checkout: Checkout) -> None:
    assert checkout.set_up(checkout.script.parent)[0] == 0
    assert checkout.set_up(checkout.folder / "swarm_hpc") == (0, "")


def test_a_host_where_pip_installs_for_the_user_gets_one_as_well(checkout: Checkout) -> None:
    code, said = checkout.set_up(PIP_USER="1")
    assert code == 0, said


def test_two_at_once_make_one_environment(checkout: Checkout) -> None:
    with checkout.start() as first, checkout.start() as second:
        for process in (first, second):
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 0, said
    assert checkout.did() == ["venv", "pip", "uv again"]


def test_an_environment_whose_making_was_interrupted_is_made_anew(checkout: Checkout) -> None:
    assert checkout.set_up(BREAKS="venv")[0] == -signal.SIGKILL
    code, said = checkout.set_up()
    assert code == 0, said
    assert checkout.did() == ["venv", "venv", "pip", "uv again"]


def test_packages_of_an_interrupted_installation_are_installed_again(checkout: Checkout) -> None:
    assert checkout.set_up(BREAKS="uv")[0] == -signal.SIGKILL
    checkout.did()
    assert checkout.set_up()[0] == 0
    assert checkout.did() == ["uv again"]


def test_a_whole_environment_gets_what_is_missing_only(checkout: Checkout) -> None:
    assert checkout.set_up()[0] == 0
    checkout.did()
    (checkout.folder / "constraints.txt").write_text("others")
    assert checkout.set_up()[0] == 0
    assert checkout.did() == ["uv"]


def test_what_was_whole_before_an_interrupted_change_is_not_taken_for_whole_after_it(checkout: Checkout) -> None:
    assert checkout.set_up()[0] == 0
    (checkout.folder / "constraints.txt").write_text("others")
    assert checkout.set_up(BREAKS="uv")[0] == -signal.SIGKILL
    (checkout.folder / "constraints.txt").write_text("constraints.txt")
    checkout.did()
    assert checkout.set_up()[0] == 0
    assert checkout.did() == ["uv again"]


def test_an_environment_on_another_disk_stays_there(checkout: Checkout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (checkout.folder / ".venv").symlink_to(elsewhere)
    assert checkout.set_up()[0] == 0
    assert (elsewhere / "bin" / "uv").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Checkout) -> None:
    assert checkout.set_up()[0] == 0
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    checkout.did()
    assert checkout.set_up()[0] == 0
    assert checkout.did() == ["venv", "pip", "uv again"]


def test_an_environment_whose_python_is_another_version_by_now_is_made_anew(checkout: Checkout) -> None:
    assert checkout.set_up()[0] == 0
    checkout.did()
    python = checkout.folder / ".venv" / "bin" / "python"
    newer = python.rename(checkout.folder / "python3.99")
    python.symlink_to(newer)
    (checkout.folder / ".venv" / "lib" / newer.name).mkdir(parents=True)
    assert checkout.set_up() == (0, "")
    (checkout.folder / ".venv" / "lib" / newer.name).rmdir()
    assert checkout.set_up()[0] == 0
    assert checkout.did() == ["venv", "pip", "uv again"]


def test_an_environment_that_is_active_is_made_anew_as_well(checkout: Checkout) -> None:
    assert checkout.set_up()[0] == 0
    checkout.did()
    venv, others = checkout.folder / ".venv", checkout.folder / "others"
    (venv / "begun").touch()
    shutil.copy(venv / "bin" / "python", venv / "bin" / "python3")
    others.mkdir()
    shutil.copy(venv / "bin" / "python", others / "python3")
    next(venv.glob("installed-*")).unlink()
    code, said = checkout.set_up(PYTHON="", VIRTUAL_ENV=str(venv), PATH=f"{venv}/bin:{others}:{os.defpath}")
    assert code == 0, said
    assert checkout.did() == ["venv", "pip", "uv again"]


def test_kernels_of_another_version_do_not_stay_where_these_cannot_be_compiled(checkout: Checkout) -> None:
    kernels = checkout.folder / "swarm_hpc" / "kernels" / "_native.so"
    assert "was not compiled" not in checkout.set_up()[1]
    assert kernels.exists()
    checkout.compiler.rename(checkout.folder / "elsewhere")
    code, said = checkout.set_up()
    assert code == 0
    assert "native.c was not compiled, so merges are slow: install a C compiler, try again" in said
    assert not kernels.exists()
    assert checkout.set_up() == (0, "")
    (checkout.folder / "elsewhere").rename(checkout.compiler)
    assert checkout.set_up()[0] == 0
    assert kernels.exists()
