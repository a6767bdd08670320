"""The embedded ledger's memory: raw transactions in SQLite, each chained to the one before by its hash.

A transaction is on disk before it is executed (embedded.py), so that a confirmed one survives kill -9 at any point.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from eth_utils.crypto import keccak

from swarm_hpc.errors import ConfigError, LedgerError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One journaled transaction, which is one block: its number (from 1), ledger time, signed bytes and block hash."""

    number: int
    at: int
    raw: bytes
    hash: bytes


def genesis_hash(chain_id: int) -> bytes:
    """Hash of block 0, the root of the chain of hashes."""
    return keccak(b"swarm-hpc ledger" + chain_id.to_bytes(8, "big"))


def next_hash(parent: bytes, number: int, at: int, raw: bytes) -> bytes:
    """keccak(parent | number | time | keccak(transaction)): the block's hash."""
    return keccak(parent + number.to_bytes(8, "big") + at.to_bytes(8, "big") + keccak(raw))


class Journal:
    """An append-only file of transactions. One process writes it; others may read it meanwhile.

    Every write is synced to disk before `append` returns. A changed, missing or additional entry is found when the
    entries are read; entries cut off at the very end cannot be told from entries never written.
    """

    def __init__(self, path: Path | None, chain_id: int | None, *, read_only: bool = False):
        """Open or create the journal; without a path it is kept in memory. `chain_id` None takes the file's own."""
        self.path = path
        self._lock: int | None = None
        if path is not None and not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(path.with_suffix(".lock"), path)
        try:
            with self._errors():
                self._db = _connect(path, read_only=read_only)
                if not read_only:
                    self._create(chain_id)
                self.chain_id = self._check_meta(chain_id)
        except BaseException:
            self._release()
            raise

    def __str__(self) -> str:
        return str(self.path or "the ledger in memory")

    def entries(self) -> Iterator[Entry]:
        """All transactions, oldest first; LedgerError names the first one that was altered."""
        parent = genesis_hash(self.chain_id)
        with self._errors():
            rows = self._db.execute("SELECT number, at, raw, hash FROM tx ORDER BY number")
            for expected, (number, at, raw, digest) in enumerate(rows, start=1):
                genuine = number == expected and isinstance(at, int) and isinstance(raw, bytes)
                if not genuine or next_hash(parent, number, at, raw) != digest:
                    raise LedgerError(f"{self}: transaction {expected} was altered or is missing; restore a backup")
                parent = digest
                yield Entry(number, at, raw, digest)

    def append(self, entry: Entry) -> None:
        """Put a transaction on disk; when this returns it is there to stay."""
        with self._errors():
            self._db.execute("INSERT INTO tx VALUES (?, ?, ?, ?)", (entry.number, entry.at, entry.raw, entry.hash))

    def close(self) -> None:
        """Release the file; a second time has no effect."""
        self._db.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _create(self, chain_id: int | None) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (format INTEGER NOT NULL, chain_id INTEGER NOT NULL)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS tx "
            "(number INTEGER PRIMARY KEY, at INTEGER NOT NULL, raw BLOB NOT NULL, hash BLOB NOT NULL)"
        )
        new = self._db.execute("SELECT (SELECT count(*) FROM meta) + (SELECT count(*) FROM tx)").fetchone() == (0,)
        if new and chain_id is not None:
            self._db.execute("INSERT INTO meta VALUES (?, ?)", (FORMAT, chain_id))
        self._db.execute("COMMIT")

    def _check_meta(self, chain_id: int | None) -> int:
        found = self._db.execute("SELECT format, chain_id FROM meta").fetchall()
        if len(found) != 1 or found[0][0] != FORMAT:
            raise LedgerError(f"{self}: no ledger of this version")
        have = int(found[0][1])
        if chain_id not in (None, have):
            raise ConfigError(f"ledger.chain_id: {chain_id}, but {self} belongs to chain {have}")
        return have

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise LedgerError(f"{self}: {exc}") from exc

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _connect(path: Path | None, *, read_only: bool) -> sqlite3.Connection:
    if path is None:
        return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    if not read_only:
        return sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    if not path.exists():
        raise LedgerError(f"{path}: no such file; is this the data folder of an SN?")
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    wal = path.with_name(path.name + "-wal")
    if not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size):
        # On a read-only copy SQLite cannot make the index of its write-ahead log; with an empty log it needs none.
        uri += "&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)


def _take_lock(lock: Path, journal: Path) -> int:
    # The kernel drops the lock with the process, however that ends: a leftover file means nothing.
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        owner = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LedgerError(f"{journal}: process {owner} has this ledger open; stop it or use another data_dir") from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
