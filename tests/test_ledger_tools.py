"""scripts/install_ledger_tools.sh with a stand-in for Go, which takes milliseconds instead of minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_ledger_tools.sh"
GO = """#!/bin/sh
[ "$*" = "env GOVERSION" ] && echo go1.26.8 && exit
for target; do :; done
echo "$target" >>"$GO_LOG"
[ -z "$GO_FAILS" ] || { echo downloading; echo no route to anywhere; exit 1; }
case $target in
*/geth@v*) name=geth text="Version: ${target##*@v}-stable" ;;
*/cometbft@v*) name=cometbft text=${target##*@v} ;;
esac
case $1 in
mod)
    source=$GOMODCACHE/$target/types/time
    mkdir -p "$source" && echo "return Canonical($CLOCK)" >"$source/time.go"
    exit
    ;;
build)
    grep -q "Add(shift())" types/time/time.go && [ -e types/time/shift.go ] || exit 1
    name=cometbft-shifted
    ;;
esac
mkdir -p "$GOMODCACHE/locked" && chmod a-w "$GOMODCACHE/locked"
printf '#!/bin/sh\\necho %s\\n' "$text" >"$GOBIN/$name" && chmod +x "$GOBIN/$name"
"""


@dataclass
class Host:
    """A host with an empty cache and a Go that notes what it is asked to build."""

    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.folder / "path"
        self.path.mkdir()
        self.put("go", GO)
        self.env = {
            "PATH": os.pathsep.join([str(self.path), os.defpath, str(Path(sys.executable).parent)]),
            "SWARM_HPC_CACHE": str(self.folder / "cache"),
            "GO_LOG": str(self.folder / "go.log"),
            "CLOCK": "time.Now()",
        }

    def put(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *args], env=self.env | env, text=True, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )

    def install(self, *args: str, **env: str) -> tuple[int, str]:
        """Exit code and what it said."""
        with self.start(*args, **env) as process:
            said = process.communicate()[1]
        return process.returncode, said

    def built(self) -> list[str]:
        log = self.folder / "go.log"
        return [Path(line).name for line in log.read_text().splitlines()] if log.exists() else []

    def cached(self) -> list[str]:
        """Everything in the cache but its lock."""
        cache = self.folder / "cache"
        return sorted(
            str(file.relative_to(cache)) for file in cache.rglob("*") if file.is_file() and file.name != "lock"
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_both_are_built_once_and_nothing_else_is_left(host: Host) -> None:
    code, said = host.install()
    assert code == 0, said
    assert [name.partition("@")[0] for name in host.built()] == ["geth", "cometbft"]
    versions = sorted(name.replace("@v", "-") for name in host.built())
    assert host.cached() == [f"bin/{name}" for name in versions]
    assert host.install() == (0, "")
    assert len(host.built()) == 2


def test_two_at_once_build_once(host: Host) -> None:
    with host.start() as first, host.start() as second:
        for process in (first, second):
            assert process.wait(60) == 0
    assert len(host.built()) == 2


def test_programs_on_path_are_taken_if_their_versions_are(host: Host) -> None:
    host.put("geth", "#!/bin/sh\necho Version: 1.17.9-stable\n")
    host.put("cometbft", "#!/bin/sh\necho 0.37.0\n")
    code, said = host.install()
    assert code == 0, said
    assert [name.partition("@")[0] for name in host.built()] == ["cometbft"]


def test_a_named_program_that_cannot_be_used_is_an_error(host: Host) -> None:
    code, said = host.install(GETH_BINARY="/nowhere/geth")
    assert (code, host.built()) == (1, [])
    assert "/nowhere/geth (GETH_BINARY) cannot be run" in said


def test_a_failed_build_shows_its_log_and_leaves_nothing(host: Host) -> None:
    code, said = host.install(GO_FAILS="yes")
    assert (code, host.cached()) == (1, [])
    assert "no route to anywhere" in said
    assert not (host.folder / "cache" / "build").exists()
    assert host.install()[0] == 0


def test_an_optional_build_may_fail_except_in_ci(host: Host) -> None:
    code, said = host.install("--optional", GO_FAILS="yes")
    assert code == 0
    assert "no route to anywhere" in said
    assert "are skipped" in said
    assert host.install("--optional", GO_FAILS="yes", CI="true")[0] == 1


def test_an_optional_build_may_fail_for_its_cache_as_well(host: Host) -> None:
    cache = host.folder / "cache"
    cache.mkdir()
    (cache / "build").symlink_to("gone")
    code, said = host.install("--optional")
    assert (code, host.built()) == (0, [])
    assert "are skipped" in said
    assert host.install()[0] == 1


def test_a_cache_that_cannot_be_locked_is_told_with_what_to_do(host: Host) -> None:
    (host.folder / "cache" / "lock").mkdir(parents=True)
    code, said = host.install()
    assert code == 1
    assert "set SWARM_HPC_CACHE to a folder that can be written to" in said


def test_what_a_killed_build_left_is_not_built_on(host: Host) -> None:
    left = host.folder / "cache" / "build" / "cometbft-shifted"
    left.mkdir(parents=True)
    (left / "half").touch()
    left.chmod(0o500)
    assert host.install("--for-tests")[0] == 0
    assert not left.exists()


def test_the_program_with_another_clock_is_made_for_tests_only(host: Host) -> None:
    assert host.install("--for-tests")[0] == 0
    assert [name.partition("-")[0] for name in host.cached()] == ["bin/cometbft", "bin/cometbft", "bin/geth"]
    assert any(name.startswith("bin/cometbft-shifted-0.") for name in host.cached())
    assert host.install("--for-tests") == (0, "")


def test_a_source_whose_clock_is_read_otherwise_is_refused(host: Host) -> None:
    code, said = host.install("--for-tests", CLOCK="elsewhere()")
    assert code == 1
    assert "types/time/time.go of version 0.38" in said


def test_an_unknown_option_is_a_usage_error(host: Host) -> None:
    assert host.install("--optimal")[0] == 2
    assert host.built() == []
