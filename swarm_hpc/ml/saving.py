"""A program's own state, kept in a folder from job to job: how far it was, its model, its optimizer, what it adds.

The folder SWARM_STATE_DIR holds `saved/`, always a whole one: it is written beside and then takes the other's place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from swarm_hpc.errors import ConfigError, ProtocolError
from swarm_hpc.records import decode, encode

_SAVED: Final = "saved"
_OLD: Final = "old"
_STEP: Final = "step.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a program was when it saved."""

    contract: str = ""
    created_at: int = 0
    """When the contract was, `Session.created_at`; 0: an earlier version saved it."""
    round: int = 0
    """Its parameters grew from the result of this round; 0: of none."""
    num_batches: int = 0
    num_epochs: int = 0
    """Epochs that had ended."""
    batch: int = 0
    """Batches since the last of them."""
    since_merge: int = 0
    """Batches since the last merge."""
    interval: int = 0
    """Batches from merge to merge."""
    losses: list[float] = field(default_factory=list)
    """Of the merged models so far, for adaptive sync."""


class Store:
    """The folder. With None there is none: nothing is ever saved, nothing is there."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def step(self) -> Step | None:
        """How far the program was; None where nothing is saved. ConfigError: it cannot be read."""
        if self._folder is None:
            return None
        if (old := self._folder / _OLD).exists() and not self.saved.exists():
            old.rename(self.saved)  # the program died while the one took the other's place
        file = self.saved / _STEP
        if not file.exists():
            return None
        try:
            return decode(Step, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, ProtocolError) as exc:
            raise ConfigError(
                f"the saved state {file} cannot be read ({exc}): remove {self.saved} to start anew"
            ) from exc

    @property
    def saved(self) -> Path:
        """The folder of what is saved."""
        assert self._folder is not None, "step says whether something is there"
        return self._folder / _SAVED

    def save(self, step: Step, write: Callable[[Path], None]) -> bool:
        """Save, in place of what was saved before; False where there is no folder. After an error that one is there."""
        if self._folder is None:
            return False
        new, old = self._folder / "new", self._folder / _OLD
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            write(new)
            (new / _STEP).write_text(json.dumps(encode(step)), encoding="utf-8")
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)  # a full disk needs the room
            raise
        if self.saved.exists():
            self.saved.rename(old)
        new.rename(self.saved)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def drop(self) -> None:
        """Forget it: the training is over."""
        if self._folder is not None:
            shutil.rmtree(self.saved, ignore_errors=True)
