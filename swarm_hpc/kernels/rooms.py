"""Memory for peers' parameters, placed so that a merge reads them fast."""

from __future__ import annotations

from typing import Final

import numpy as np

_STEP: Final = 256
_PAGE: Final = 4096


def room(size_bytes: int, number: int) -> memoryview:
    """New memory, whose place within a page follows from `number`: 16 numbers in a row have 16 places.

    It holds anything, and takes none of the machine's memory before it is written to.
    Else large arrays all begin at the same place of a page. A merge reads the same element of all peers, which would
    then go to the same few places of the first cache (8 or 12 lines), and drive each other out.
    """
    memory = np.empty(size_bytes + _PAGE, np.uint8)
    skip = (number * _STEP - memory.ctypes.data) % _PAGE
    return memoryview(memory.data)[skip : skip + size_bytes]


def apart(size_bytes: int) -> int:
    """How far behind the start of a room of that size the next one begins, where they share one memory."""
    return -(-size_bytes // _PAGE) * _PAGE + _STEP
