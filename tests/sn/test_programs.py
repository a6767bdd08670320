from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from swarm_hpc.errors import ConfigError
from swarm_hpc.sn import programs
from swarm_hpc.sn.programs import find_program

PROJECT = Path(__file__).parents[2]
GETH = "echo Geth; echo Version: {}-stable; echo Architecture: amd64; echo Go Version: go1.26.8"


def put(file: Path, *lines: str) -> Path:
    """An executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return file


def geth(file: Path, version: str = "1.17.8") -> Path:
    return put(file, GETH.format(version))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing is found yet."""
    return {"PATH": str(tmp_path / "path"), "SWARM_HPC_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}


def test_the_order_is_setting_variable_cache_path(tmp_path: Path, env: dict[str, str]) -> None:
    on_path = geth(tmp_path / "path" / "geth")
    assert find_program("geth", "", env) == on_path
    cached = geth(tmp_path / "cache" / "bin" / "geth-1.17.8")
    assert find_program("geth", "", env) == cached
    named = geth(tmp_path / "named")
    env["GETH_BINARY"] = str(named)
    assert find_program("geth", "", env) == named
    configured = geth(tmp_path / "configured")
    assert find_program("geth", str(configured), env) == configured


@pytest.mark.parametrize("version", ["1.17.8", "1.17.10"])
def test_geth_of_the_accepted_versions_is_taken(tmp_path: Path, env: dict[str, str], version: str) -> None:
    found = geth(tmp_path / "path" / "geth", version)
    assert find_program("geth", "", env) == found


@pytest.mark.parametrize("version", ["1.13.15", "1.17.7", "1.18.0", "2.17.8"])
def test_geth_of_other_versions_is_refused_with_the_remedy(tmp_path: Path, env: dict[str, str], version: str) -> None:
    found = geth(tmp_path / "path" / "geth", version)
    with pytest.raises(ConfigError) as refusal:
        find_program("geth", "", env)
    assert str(refusal.value) == (
        f"geth: {found} (on PATH) is version {version}; wanted is 1.17.8 or newer, below 1.18: "
        "run `make geth` or set ledger.geth=/path/to/geth"
    )


@pytest.mark.parametrize("version", ["0.38.17", "0.38.26", "v0.38.17+1a2b3c", "0.38.100"])
def test_cometbft_of_the_accepted_versions_is_taken(tmp_path: Path, env: dict[str, str], version: str) -> None:
    found = put(tmp_path / "path" / "cometbft", f"echo {version}")
    assert find_program("cometbft", "", env) == found


@pytest.mark.parametrize("version", ["0.37.17", "0.38.16", "0.39.0", "1.0.1"])
def test_cometbft_of_other_versions_is_refused(tmp_path: Path, env: dict[str, str], version: str) -> None:
    put(tmp_path / "path" / "cometbft", f"echo {version}")
    with pytest.raises(ConfigError, match=f"is version {re.escape(version)}; wanted is 0.38.17 or newer, below 0.39"):
        find_program("cometbft", "", env)


def test_what_the_user_named_is_never_passed_over(tmp_path: Path, env: dict[str, str]) -> None:
    geth(tmp_path / "path" / "geth")
    env["GETH_BINARY"] = str(geth(tmp_path / "old", "1.16.0"))
    with pytest.raises(ConfigError, match=r"old \(GETH_BINARY\) is version 1\.16\.0.*correct GETH_BINARY"):
        find_program("geth", "", env)
    with pytest.raises(
        ConfigError, match=r"nowhere \(ledger\.geth\) cannot be run \(No such file.*correct ledger\.geth"
    ):
        find_program("geth", str(tmp_path / "nowhere"), env)


def test_the_newest_accepted_version_in_the_cache_is_taken(tmp_path: Path, env: dict[str, str]) -> None:
    cache = tmp_path / "cache" / "bin"
    for version in ("1.16.0", "1.17.9", "1.17.10", "1.18.0"):
        geth(cache / f"geth-{version}", version)
    geth(cache / "geth-1.17.11.partial", "1.17.11")
    assert find_program("geth", "", env) == cache / "geth-1.17.10"


def test_the_cache_lies_where_the_xdg_rules_say(tmp_path: Path, env: dict[str, str]) -> None:
    del env["SWARM_HPC_CACHE"]
    in_home = geth(tmp_path / "home" / ".cache" / "swarm-hpc" / "bin" / "geth-1.17.8")
    assert find_program("geth", "", env) == in_home
    env["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    in_xdg = geth(tmp_path / "xdg" / "swarm-hpc" / "bin" / "geth-1.17.8")
    assert find_program("geth", "", env) == in_xdg


def test_nothing_found_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path, env: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_program("cometbft", "", env)
    assert str(refusal.value) == (
        f"cometbft: not found by the setting ledger.cometbft, COMETBFT_BINARY, in {tmp_path}/cache/bin or on PATH; "
        "wanted is 0.38.17 or newer, below 0.39: run `make geth` or set ledger.cometbft=/path/to/cometbft"
    )


def test_another_program_of_that_name_is_refused(tmp_path: Path, env: dict[str, str]) -> None:
    put(tmp_path / "path" / "geth", "echo geth: usage: geth FILE >&2; exit 2")
    with pytest.raises(ConfigError, match=r"is no geth \(`version` answers 'geth: usage: geth FILE'\)"):
        find_program("geth", "", env)
    put(tmp_path / "path" / "cometbft")
    with pytest.raises(ConfigError, match=r"is no cometbft \(`version` answers 'nothing'\)"):
        find_program("cometbft", "", env)


def test_a_damaged_program_of_the_cache_is_to_be_deleted(tmp_path: Path, env: dict[str, str]) -> None:
    (damaged := geth(tmp_path / "cache" / "bin" / "geth-1.17.8")).write_bytes(b"\x7fELF cut short")
    with pytest.raises(ConfigError, match=r"cannot be run \(Exec format error\).*: delete it and run `make geth`"):
        find_program("geth", "", env)
    assert damaged.exists()


@pytest.mark.slow
def test_a_program_that_does_not_answer_is_given_up_with_all_it_started(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_ANSWER_WAIT_S", 0.5)
    os.mkfifo(tmp_path / "held")
    put(tmp_path / "path" / "geth", f"exec 3>{tmp_path / 'held'}; sleep 1000 & wait")
    env["PATH"] += f":{os.defpath}"
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ConfigError, match="did not tell its version within"):
        find_program("geth", "", env)
    os.set_blocking(held, True)
    assert os.read(held, 1) == b""  # returns when nobody holds the other end any more
    os.close(held)


def test_what_make_geth_builds_is_accepted(tmp_path: Path, env: dict[str, str]) -> None:
    script = (PROJECT / "scripts" / "install_ledger_tools.sh").read_text()
    pinned = dict(re.findall(r"^(geth|cometbft)_version=(\S+)$", script, re.MULTILINE))
    cache = tmp_path / "cache" / "bin"
    built = [
        geth(cache / f"geth-{pinned['geth']}", pinned["geth"]),
        put(cache / f"cometbft-{pinned['cometbft']}", f"echo {pinned['cometbft']}"),
    ]
    assert [find_program("geth", "", env), find_program("cometbft", "", env)] == built
