"""Sweeps of `swarm-hpc submit -m`: one job per combination, each with a training contract of its own. Pure names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from swarm_hpc.cli.settings import Combination
from swarm_hpc.errors import ConfigError

CONTRACT: Final = "round.contract"
_EXPERIMENT: Final = "experiment"
_MOST: Final = 63
"""Characters of a label."""
_HASH: Final = 8


def suffix(combination: Combination) -> str:
    """What tells a combination's names from the others': `merge-mean-seed-1`; empty where nothing is swept.

    The same at every site that is given the same words, in any order. The experiment is left out: it is in the names
    anyway.
    """
    swept = sorted(combination.swept)
    pairs = [(key.lstrip("+~"), word.partition("=")[2]) for key, word in swept if key != _EXPERIMENT]
    exact = "-".join(f"{key}-{value}" for key, value in pairs)
    return _label(exact, exact)


def contract_name(base: str, combination: Combination) -> str:
    """The combination's training contract: `digits-merge-mean`, or `base` where the user has named it."""
    added = suffix(combination)
    if not added or CONTRACT in combination.named:
        return base
    return _label(f"{base}-{added}", f"{base}-{sorted(combination.swept)}")


def check_names(contracts: Sequence[str], combinations: Iterable[Combination]) -> None:
    """ConfigError where two jobs would share a training contract: they would train as one."""
    seen: dict[str, str] = {}
    for contract, combination in zip(contracts, combinations, strict=True):
        words = " ".join(word for _, word in combination.swept)
        if contract in seen:
            raise ConfigError(
                f"{CONTRACT}: {seen[contract]!r} and {words!r} both have the name {contract}, and would train as one; "
                f"leave {CONTRACT} out, or give it a value that differs, such as '{CONTRACT}=${{experiment.name}}-"
                "${merge.method}'"
            )
        seen[contract] = words


def _label(text: str, exact: str) -> str:
    """The text with the characters and the length of a label; what that costs is made up for by a hash of `exact`."""
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if made == text and len(made) <= _MOST:
        return made
    digest = hashlib.sha256(exact.encode()).hexdigest()[:_HASH]
    return f"{made[: _MOST - _HASH - 1].rstrip('-._')}-{digest}".lstrip("-")
