"""Waiting for a file that another process has locked."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from typing import Final

_POLL_S: Final = 0.2


def lock(fd: int, timeout_s: float, *, waiting: Callable[[], None] | None = None) -> None:
    """Lock the open file, until it is closed. `waiting` is called, once, where somebody else has it.

    TimeoutError: they still have it after `timeout_s`. Another OSError: its file system knows no locks.
    """
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                raise TimeoutError from exc
        if waiting and not told:
            waiting()
            told = True
        time.sleep(_POLL_S)
