"""What tasks have made in a folder of the site (images, volumes), so that a repeat is recognised and nothing else of
the site's is ever replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, TimedOut
from swarm_hpc.locks import lock

_MAKING: Final = ".making-"


@dataclass(frozen=True, slots=True)
class Claim:
    """That `name` in `folder` is made by tasks. It is a hidden file beside."""

    folder: Path
    name: str
    """Of the file or folder."""

    def key(self) -> str:
        """Of what was made and is finished; empty: nothing is."""
        return self._read().get("key", "")

    def take(self, outcome: str) -> None:
        """From now on it is being made. ConfigError: there is such a thing that no task has made, or of another
        outcome."""
        known = self._read().get("outcome")
        if known is None and (self.folder / self.name).exists():
            raise ConfigError(
                f"{self.folder / self.name} is there and no task has made it: it stays; give the task another Outcome"
            )
        if known not in (None, outcome):
            raise ConfigError(f"{outcome!r} and {known!r} would both be {self.folder / self.name}: rename one")
        self._write(outcome, "")

    def finish(self, outcome: str, key: str) -> None:
        """It is made, and what from has that key."""
        self._write(outcome, key)

    @property
    def _file(self) -> Path:
        return self.folder / f".{self.name}.task.json"

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise ConfigError(f"{self._file} is damaged: remove it together with {self.name}, and try again")
        return found

    def _write(self, outcome: str, key: str) -> None:
        write(self._file, json.dumps({"outcome": outcome, "key": key}).encode() + b"\n")


@contextmanager
def turn(folder: Path, wait_s: float) -> Iterator[Path]:
    """A working folder inside of `folder`, while no other task works there; what killed ones have left is removed.
    TimedOut."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            lock(file.fileno(), wait_s)
        except TimeoutError as exc:
            raise TimedOut(f"{folder}: another task has been at work there for {wait_s:g} s") from exc
        except OSError as exc:
            raise ConfigError(f"{folder} cannot be locked ({exc.strerror}): take another file system") from exc
        for left in folder.glob(f"{_MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)
        with TemporaryDirectory(dir=folder, prefix=_MAKING, ignore_cleanup_errors=True) as work:
            yield Path(work)
