"""Finds geth and CometBFT on this host and checks that they have a version that the ledger is tested with.

`make geth` builds both into a cache folder outside the checkout; this file never builds, downloads or starts a node.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile

from swarm_hpc.cache import cache_folder
from swarm_hpc.errors import ConfigError

Version = tuple[int, int, int]

_ANSWER_WAIT_S = 30.0  # a cold file system of a busy login node takes its time over 60 MB
_ANSWER_BYTES = 4096


class LedgerProgram(StrEnum):
    """The two programs of `ledger=geth`; the value is the name of the executable."""

    GETH = "geth"
    COMETBFT = "cometbft"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which versions are taken, and how a program says its own."""

    least: Version
    below: Version
    answer: re.Pattern[str]

    def __contains__(self, version: Version) -> bool:
        return self.least <= version < self.below

    def __str__(self) -> str:
        return f"{_text(self.least)} or newer, below {self.below[0]}.{self.below[1]}"


_NUMBERS = r"(\d+)\.(\d+)\.(\d+)"
_WANTED = {
    LedgerProgram.GETH: _Wanted((1, 17, 8), (1, 18, 0), re.compile(rf"^Version: {_NUMBERS}", re.MULTILINE)),
    LedgerProgram.COMETBFT: _Wanted((0, 38, 17), (0, 39, 0), re.compile(rf"^v?{_NUMBERS}", re.MULTILINE)),
}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be the program, and who named it."""

    path: Path
    source: str
    remedy: str


def find_program(name: str, configured: str, env: Mapping[str, str]) -> Path:
    """Absolute path of `geth` or `cometbft`, whose version has been asked for and is accepted.

    Looked at in this order: `configured` (the setting ledger.<name>), GETH_BINARY or COMETBFT_BINARY, what `make geth`
    left in the cache folder, PATH. The first that is there decides: one that cannot be used is an error, never passed
    over in silence. Nothing is remembered between calls; a call runs the program once, within 30 s.
    ConfigError names what was found, which version is wanted, and the remedy.
    """
    program = LedgerProgram(name)
    candidate = next(_candidates(program, configured, env), None)
    if candidate is None:
        raise ConfigError(
            f"{program}: not found by the setting ledger.{program}, {_variable(program)}, "
            f"in {cache_folder(env) / 'bin'} or on PATH; wanted is {_WANTED[program]}: "
            f"run `make geth` or set ledger.{program}=/path/to/{program}"
        )
    version = _version(program, candidate, env)
    if version not in _WANTED[program]:
        raise _unusable(program, candidate, f"is version {_text(version)}")
    return candidate.path


def _candidates(program: LedgerProgram, configured: str, env: Mapping[str, str]) -> Iterator[_Candidate]:
    variable, setting = _variable(program), f"ledger.{program}"
    build = f"run `make geth` or set {setting}=/path/to/{program}"
    if configured:
        yield _Candidate(
            Path(configured).absolute(), setting, f"correct {setting}, or leave it empty and run `make geth`"
        )
    if named := env.get(variable):
        yield _Candidate(Path(named).absolute(), variable, f"correct {variable}, or unset it and run `make geth`")
    if cached := _newest_cached(program, cache_folder(env) / "bin"):
        yield _Candidate(
            cached, "built by `make geth`", f"delete it and run `make geth`, or set {setting}=/path/to/{program}"
        )
    if found := shutil.which(program, path=env.get("PATH", "")):
        yield _Candidate(Path(found).absolute(), "on PATH", build)


def _newest_cached(program: LedgerProgram, folder: Path) -> Path | None:
    """The newest accepted version by file name; other checkouts may have left older and newer ones."""
    versions: dict[Version, Path] = {}
    for file in folder.glob(f"{program}-*"):
        match = re.fullmatch(_NUMBERS, file.name.removeprefix(f"{program}-"))
        if match and (version := _numbers(match)) in _WANTED[program]:
            versions[version] = file
    return versions[max(versions)] if versions else None


def _version(program: LedgerProgram, candidate: _Candidate, env: Mapping[str, str]) -> Version:
    try:
        answer = _answer([str(candidate.path), "version"], env)
    except subprocess.TimeoutExpired as exc:
        raise _unusable(program, candidate, f"did not tell its version within {_ANSWER_WAIT_S:.0f} s") from exc
    except OSError as exc:
        raise _unusable(program, candidate, f"cannot be run ({exc.strerror})") from exc
    match = _WANTED[program].answer.search(answer)
    if match is None:
        first = next(iter(answer.strip().splitlines()), "nothing")
        raise _unusable(program, candidate, f"is no {program} (`version` answers {first[:100]!r})")
    return _numbers(match)


def _answer(command: list[str], env: Mapping[str, str]) -> str:
    """The beginning of what a program prints; it and all that it started are gone afterwards."""
    # into a file: a pipe would be waited for as long as any child of a wrapper script holds it
    with TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            process.wait(_ANSWER_WAIT_S)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
                process.wait()
        output.seek(0)
        return output.read(_ANSWER_BYTES).decode(errors="replace")


def _unusable(program: LedgerProgram, candidate: _Candidate, what: str) -> ConfigError:
    return ConfigError(
        f"{program}: {candidate.path} ({candidate.source}) {what}; wanted is {_WANTED[program]}: {candidate.remedy}"
    )


def _variable(program: LedgerProgram) -> str:
    return f"{program.upper()}_BINARY"


def _numbers(match: re.Match[str]) -> Version:
    major, minor, patch = (int(number) for number in match.groups())
    return major, minor, patch


def _text(version: Version) -> str:
    return ".".join(map(str, version))
