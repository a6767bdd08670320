"""Which training contracts a blob belongs to, and the round it came in: a table that survives kill -9."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from swarm_hpc.errors import BlobError, DiskFull


class Owners:
    """The table in memory, and in a SQLite file before any change is answered. Thread-safe."""

    def __init__(self, file: Path) -> None:
        """Open the file, or make it. `close` ends it. BlobError names a file that cannot be used."""
        self._lock = threading.Lock()
        self._rounds: dict[str, dict[str, int]] = {}
        try:
            # One connection for all threads: the lock serialises them.
            self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            try:
                self._load()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as exc:
            raise _failed(f"{file}: {exc}", exc) from exc

    def _load(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS owners (blob TEXT, contract TEXT, round INTEGER, PRIMARY KEY (blob, contract))"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS renamed (archive TEXT PRIMARY KEY)")
        self._renamed = {archive for (archive,) in self._db.execute("SELECT archive FROM renamed")}
        for blob, contract, number in self._db.execute("SELECT blob, contract, round FROM owners"):
            self._rounds.setdefault(blob, {})[contract] = number

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def of(self, blob: str) -> frozenset[str]:
        """The contracts that the blob belongs to."""
        return frozenset(self._rounds.get(blob, ()))

    def contracts(self) -> frozenset[str]:
        """All contracts that a blob belongs to."""
        with self._lock:
            return frozenset(name for rounds in self._rounds.values() for name in rounds)

    def blobs(self, contract: str, before: int) -> tuple[str, ...]:
        """Blobs of the contract that last came in in a round lower than `before`."""
        with self._lock:
            return tuple(b for b, rounds in self._rounds.items() if rounds.get(contract, before) < before)

    def add(self, blob: str, contract: str, number: int) -> None:
        """The blob came in (again) for that round of the contract."""
        with self._lock:
            self._write("INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", blob, contract, number)
            self._rounds.setdefault(blob, {})[contract] = number

    def remove(self, blob: str, contract: str) -> bool:
        """The contract has no more use for the blob; whether nobody has."""
        with self._lock:
            self._write("DELETE FROM owners WHERE blob = ? AND contract = ?", blob, contract)
            rounds = self._rounds.get(blob, {})
            rounds.pop(contract, None)
            if not rounds:
                self._rounds.pop(blob, None)
            return not rounds

    def rename(self, contract: str, archive: str) -> None:
        """What belongs to the contract belongs to `archive` from now on; that it was done is noted."""
        with self._lock:
            self._write("UPDATE OR REPLACE owners SET contract = ? WHERE contract = ?", archive, contract)
            self._write("INSERT OR IGNORE INTO renamed VALUES (?)", archive)
            self._renamed.add(archive)
            for rounds in self._rounds.values():
                if contract in rounds:
                    rounds[archive] = rounds.pop(contract)

    def has_renamed(self, archive: str) -> bool:
        """Whether something was renamed to `archive`. In doubt (a table of an older version) where it owns a blob."""
        return archive in self._renamed or archive in self.contracts()

    def _write(self, statement: str, *values: str | int) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as exc:
            raise _failed(f"the owners of the blobs could not be written: {exc}", exc) from exc


def _failed(text: str, exc: sqlite3.Error) -> BlobError:
    code = getattr(exc, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(text)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        text += "; restore it from a backup, or delete it: then all blobs that are here go, too"
    return BlobError(text)
