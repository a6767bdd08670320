"""The one part that a SWOP node is doing, on disk: a SWOP that was killed finds out what it had begun."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from swarm_hpc.durable import write
from swarm_hpc.errors import ConfigError, DuplicateNode, ProtocolError
from swarm_hpc.records import decode, encode
from swarm_hpc.swop.part import Part

_FILE: Final = "part.json"
_LOCK: Final = "lock"


class Journal:
    """One file, replaced as a whole; a write is on the disk when it returns."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / _FILE
        state_dir.mkdir(parents=True, exist_ok=True)

    def read(self) -> Part | None:
        """The part at hand; None: nothing is begun. ConfigError: the file was written by somebody else."""
        try:
            return decode(Part, json.loads(self._file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, ProtocolError) as exc:
            raise ConfigError(
                f"{self._file}: not a journal of this version ({exc}); end what it names, then remove the file"
            ) from exc

    def write(self, part: Part) -> None:
        """Replace what was there."""
        write(self._file, json.dumps(encode(part)).encode())

    def clear(self) -> None:
        """Nothing is begun any more."""
        self._file.unlink(missing_ok=True)
        number = os.open(self._file.parent, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """While the block runs, no other SWOP of this host works with that folder. DuplicateNode: one does already."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise DuplicateNode(f"state_dir: {state_dir}: another SWOP works with it; give each its own") from exc
        yield
