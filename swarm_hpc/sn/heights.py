"""What the ABCI application remembers of each CometBFT height: the Ethereum block and the standing after it.

geth does not know CometBFT's heights; after a crash this table says up to which one geth has come.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from swarm_hpc.errors import LedgerError
from swarm_hpc.sn.powers import Standing


class Heights:
    """The table, in a SQLite file. Thread-safe. A row is on disk before geth moves its head."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS heights "
            "(height INTEGER PRIMARY KEY, block TEXT NOT NULL, standing TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_block ON heights (block)")

    def put(self, height: int, block: str, standing: Standing) -> None:
        """Remember the outcome of a height; again, when it is replayed, with the same."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO heights VALUES (?, ?, ?)", (height, block, standing.as_json()))

    def of_block(self, block: str) -> int | None:
        """The highest height after which that block was the head."""
        with self._lock:
            row = self._db.execute("SELECT max(height) FROM heights WHERE block = ?", (block,)).fetchone()
        return None if row[0] is None else int(row[0])

    def newest(self) -> str | None:
        """The block after the highest height; None while there is none."""
        with self._lock:
            row = self._db.execute("SELECT block FROM heights ORDER BY height DESC LIMIT 1").fetchone()
        return None if row is None else str(row[0])

    def standing(self, height: int) -> Standing:
        """The standing after that height; LedgerError where it is not known."""
        with self._lock:
            row = self._db.execute("SELECT standing FROM heights WHERE height = ?", (height,)).fetchone()
        if row is None:
            raise LedgerError(f"{self._path}: height {height} is missing")
        return Standing.from_json(row[0])

    def clear(self) -> None:
        """Forget everything: geth starts from its genesis."""
        with self._lock:
            self._db.execute("DELETE FROM heights")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
