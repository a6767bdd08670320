"""Addresses of Unix sockets: one that fits, however long the path is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """What to give bind or connect for a socket at that path, valid in the block.

    An address may have 107 bytes on Linux (unix(7)), a path on a cluster's file system often has more; by way of a
    descriptor of its folder it is short. OSError where there is no such folder.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
