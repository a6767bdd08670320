"""Memory for peers' parameters, placed so that a merge reads them fast."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import numpy as np

_STEP: Final = 256
_PAGE: Final = 4096


def room(size_bytes: int, number: int) -> memoryview:
    """New memory, whose place within a page follows from `number`: 16 numbers in a row have 16 places.

    Else large arrays all begin at the same place of a page. A merge reads the same element of all peers, which would
    then go to the same few places of the first cache (8 or 12 lines), and drive each other out. A room holds anything,
    and takes none of the machine's memory before it is written to.
    """
    memory = np.empty(size_bytes + _PAGE, np.uint8)
    skip = (number * _STEP - memory.ctypes.data) % _PAGE
    return memoryview(memory.data)[skip : skip + size_bytes]


class Rooms:
    """Rooms of one size, which are used again. For any thread."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._spare: list[memoryview] = []
        self._num_made = 0
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """One that nobody uses."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
            self._num_made += 1
            return room(self._size_bytes, self._num_made)

    def give_back(self, rooms: Iterable[memoryview]) -> None:
        """Nobody uses these any more."""
        with self._lock:
            self._spare += rooms


def apart(size_bytes: int) -> int:
    """How far behind the start of a room of that size the next one begins, where they share one memory."""
    return -(-size_bytes // _PAGE) * _PAGE + _STEP
