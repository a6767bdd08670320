"""The arguments of every SwarmCallback, checked: each is right, or a ConfigError names it and says what to write."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Required, TypedDict

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL, FinishMode, MergeMethod
from swarm_hpc.sl.frames import SOCKET_VARIABLE, STATE_VARIABLE

LOOPBACK_VARIABLE: Final = "SWARM_LOOPBACK"


class Arguments(TypedDict, total=False):
    """The keyword arguments that all SwarmCallbacks share. None leaves the choice to the SL node's configuration."""

    sync_frequency: Required[int]
    """Merge with the other sites every so many batches."""
    min_peers: int | None
    """A round never closes with fewer nodes than this."""
    training_contract: str | None
    """Name of the training contract to take part in."""
    merge_method: MergeMethod | str | None
    """One of `records.MergeMethod`."""
    node_weight: int | None
    """Weight of this node in a merge, 1-100."""
    use_adaptive_sync: bool
    """Adapt the interval to the loss of the merged models (adaptive.py); needs ads_val_data."""
    ads_val_data: Any
    """Validation data: after each merge, loss and metric of the merged model on it are reported."""
    ads_val_batch_size: int | None
    """Batch size for it, where the framework cuts it into batches (Keras)."""
    checkin_on_train_end: FinishMode | str
    """What a finished node adds to later rounds: inactive (nothing), snapshot (its own last parameters), active."""
    total_epochs: int
    """For the progress display; 0: unknown."""
    save_every_s: int
    """The program's state is saved after a merge at least this long after the last time (saving.py), for the case that
    its node is lost; 0: only when it is told to leave."""
    save_state: Callable[[Path], None] | None
    """Called with a folder, to keep there what the program needs besides model, optimizer and step."""
    load_state: Callable[[Path], None] | None
    """Called with the folder when the program goes on from it."""
    logger: logging.Logger | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked arguments; meanings as in `Arguments`."""

    sync_frequency: int
    min_peers: int | None = None
    training_contract: str | None = None
    merge_method: MergeMethod | None = None
    node_weight: int | None = None
    use_adaptive_sync: bool = False
    ads_val_data: Any = field(default=None, repr=False)  # private data has no place in a log
    ads_val_batch_size: int | None = None
    checkin_on_train_end: FinishMode = FinishMode.SNAPSHOT
    total_epochs: int = 0
    save_every_s: int = 600
    save_state: Callable[[Path], None] | None = field(default=None, repr=False)
    load_state: Callable[[Path], None] | None = field(default=None, repr=False)
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("swarm_hpc.ml"), repr=False)


def check(arguments: Mapping[str, Any]) -> Settings:
    """Arguments as Settings. ConfigError names the first that is unknown, missing or not usable, and the remedy."""
    _check_names(arguments)
    values = {name: value for name, value in arguments.items() if value is not None}
    for name, least, most in _NUMBERS:
        _check_number(name, values.get(name, least), least, most)
    for name, kind in _KINDS:
        _check_kind(name, values.get(name), kind)
    for name, choices in _CHOICES:
        if name in values:
            values[name] = _choice(name, values[name], choices)
    contract = values.get("training_contract", "default")
    if not LABEL.fullmatch(contract):
        raise ConfigError(f"training_contract: {contract!r}: use letters, digits, '.', '_', '-', at most 63")
    if values.get("use_adaptive_sync") and "ads_val_data" not in values:
        raise ConfigError("use_adaptive_sync=True needs ads_val_data: pass validation data, or leave it out")
    _check_hooks(values)
    return Settings(**values)


def socket_path(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the SL node listens; None in loopback mode. ConfigError where the environment names neither."""
    loopback = environ.get(LOOPBACK_VARIABLE, "").strip().lower()
    if loopback not in ("", "true", "false"):
        raise ConfigError(f"{LOOPBACK_VARIABLE}={environ[LOOPBACK_VARIABLE]}: write TRUE or FALSE")
    if loopback == "true":
        return None
    path = environ.get(SOCKET_VARIABLE, "")
    if not path:
        raise ConfigError(
            f"no SL node: {SOCKET_VARIABLE} is not set; start the program through `swarm-hpc sl`, which sets it, "
            f"or set {LOOPBACK_VARIABLE}=TRUE to train without a swarm"
        )
    return path


def state_dir(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where the program's state is kept from job to job; None where SL does not say."""
    path = environ.get(STATE_VARIABLE, "")
    return Path(path) if path and socket_path(environ) is not None else None


_NUMBERS: Final = (
    ("sync_frequency", 1, None),
    ("min_peers", 1, None),
    ("node_weight", 1, 100),
    ("ads_val_batch_size", 1, None),
    ("total_epochs", 0, None),
    ("save_every_s", 0, None),
)
"""Argument, least, most."""
_KINDS: Final = (("training_contract", str), ("use_adaptive_sync", bool), ("logger", logging.Logger))
_CHOICES: Final[tuple[tuple[str, type[StrEnum]], ...]] = (
    ("merge_method", MergeMethod),
    ("checkin_on_train_end", FinishMode),
)


def _check_names(arguments: Mapping[str, Any]) -> None:
    known = [item.name for item in fields(Settings)]
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ConfigError(f"SwarmCallback has no argument {name!r}: {advice}")
    if arguments.get("sync_frequency") is None:
        raise ConfigError("SwarmCallback: sync_frequency is missing: say after how many batches to merge, such as 10")


def _check_hooks(values: Mapping[str, Any]) -> None:
    hooks = {name: values[name] for name in ("save_state", "load_state") if name in values}
    for name, hook in hooks.items():
        if not callable(hook):
            raise ConfigError(f"{name}: {hook!r}: pass a function that takes a folder (pathlib.Path)")
    if len(hooks) == 1:
        raise ConfigError("save_state and load_state go together: what the one keeps, the other one takes back")


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name}: {value!r}: pass a {kind.__name__}")


def _check_number(name: str, value: object, least: int, most: int | None) -> None:
    # bool is an int to isinstance
    if type(value) is not int or value < least or (most is not None and value > most):
        allowed = f"{least} to {most}" if most else f"{least} or more"
        raise ConfigError(f"{name}: {value!r}: write a whole number, {allowed}")


def _choice(name: str, value: object, choices: type[StrEnum]) -> StrEnum:
    """The choice of that name, in any case."""
    try:
        return choices(str(value).lower())
    except ValueError as exc:
        raise ConfigError(f"{name}: {value!r}: choose {', '.join(choices)}") from exc
