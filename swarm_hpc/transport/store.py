"""A folder of blobs, each a file named by its BLAKE3 hash: written beside, verified, made durable, then renamed.

No network here. A kill at any moment leaves either the whole blob or a hidden file that the next start removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from blake3 import blake3

from swarm_hpc.errors import BlobCorrupt, BlobError, BlobNotFound, DiskFull, ProtocolError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BLOCK_BYTES: Final = 1 << 20
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_LEFTOVER: Final = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.part")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OTHER_FILE_SYSTEM: Final = frozenset({errno.EXDEV, errno.EACCES, errno.EPERM})
_HASH_THREADS: Final = 4


def hasher() -> blake3:
    """A BLAKE3 hasher for what comes block by block. In one thread: to wait for others takes a block longer."""
    return blake3()


def hash_bytes(data: ReadableBuffer) -> str:
    """BLAKE3 of a whole blob, 64 hex digits. In few threads: the training beside it wants the cores too."""
    view = memoryview(data)
    threads = min(_HASH_THREADS, os.cpu_count() or 1) if view.nbytes > BLOCK_BYTES else 1
    return blake3(max_threads=threads).update(view).hexdigest()


def blob_name(text: str) -> str:
    """The text, if it is a blob's hash; else ProtocolError. Guards every path that is made of a name."""
    if not _BLOB.fullmatch(text):
        raise ProtocolError(f"{text[:80]!r} is no blob: expected BLAKE3 in 64 lower-case hex digits")
    return text


class BlobWriter:
    """One file under way, in a hidden file beside its target until `commit`. Any thread may write, one at a time.

    As a context manager it commits at the end of the block, or leaves nothing when the block fails.
    """

    def __init__(
        self, target: Path, blob: str, size_bytes: int, *, min_free_bytes: int = 0, durable: bool = True
    ) -> None:
        self._target = target
        self._durable = durable
        self._blob = blob_name(blob)
        self._size_bytes = size_bytes
        self._min_free_bytes = min_free_bytes
        self._hash = hasher()
        self._written = 0
        self._lock = threading.Lock()
        self._done = False
        _check_room(target.parent, size_bytes, min_free_bytes)
        self._path, self._fd = _create_beside(target, blob)

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._written

    def write(self, chunk: ReadableBuffer) -> None:
        """Append a chunk. DiskFull when there is no room, BlobCorrupt when it is more than was announced."""
        view = memoryview(chunk).cast("B")
        with self._lock:
            if self._done:
                raise ValueError("the writer is closed")
            if self._written + len(view) > self._size_bytes:
                raise BlobCorrupt(f"blob {self._blob}: more than the {self._size_bytes} bytes that were announced")
            _check_room(self._target.parent, len(view), self._min_free_bytes)
            self._hash.update(view)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as exc:
                raise _failed(self._target.parent, exc) from exc
            self._written += memoryview(chunk).nbytes

    def restart(self) -> None:
        """Forget what was written: the sender starts from the first byte."""
        with self._lock:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._hash = hasher()
            self._written = 0

    def commit(self) -> None:
        """Verify, make durable if so asked, rename. BlobCorrupt leaves nothing. A second call does nothing."""
        with self._lock:
            if self._done:
                return
            try:
                self._verify()
                if self._durable:
                    os.fsync(self._fd)
                self._path.replace(self._target)
                if self._durable:
                    _sync_folder(self._target.parent)
            except OSError as exc:
                raise _failed(self._target.parent, exc) from exc
            finally:
                self._end()

    def abort(self) -> None:
        """Leave nothing. Does nothing after a commit."""
        with self._lock:
            if not self._done:
                self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()

    def _verify(self) -> None:
        if self._written != self._size_bytes:
            raise BlobCorrupt(f"blob {self._blob}: {self._written} of {self._size_bytes} bytes arrived")
        if (found := self._hash.hexdigest()) != self._blob:
            raise BlobCorrupt(f"blob {self._blob}: the bytes have the hash {found}; nothing was kept, send it again")

    def _end(self) -> None:
        self._done = True
        self._path.unlink(missing_ok=True)  # gone already after the rename
        os.close(self._fd)


class BlobStore:
    """Blobs in one folder. Several processes and threads may use it at once; it survives kill -9."""

    def __init__(self, folder: Path, *, min_free_bytes: int = 0) -> None:
        self.folder = folder
        self._min_free_bytes = min_free_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
        except OSError as exc:
            raise _failed(folder, exc) from exc

    def path(self, blob: str) -> Path:
        """The file that holds the blob; BlobNotFound."""
        path = self.folder / blob_name(blob)
        if not path.is_file():
            raise BlobNotFound(f"blob {blob}: not in {self.folder} (never put, or deleted after keep_rounds)")
        return path

    def has(self, blob: str) -> bool:
        """Whether the blob is there."""
        return (self.folder / blob_name(blob)).is_file()

    def put(self, data: ReadableBuffer, *, blob: str | None = None, durable: bool = True) -> str:
        """Store the bytes, return their hash. A repeat does nothing. BlobCorrupt if `blob` is given and differs.

        What is not `durable` may be gone, or damaged, after a loss of power.
        """
        if blob is None or self.has(blob):
            found = hash_bytes(data)
            if blob is not None and blob_name(blob) != found:
                raise BlobCorrupt(f"blob {blob}: the bytes have the hash {found}")
            blob = found
        if not self.has(blob):
            view = memoryview(data).cast("B")
            with self.writer(blob, len(view), durable=durable) as writer:
                for start in range(0, len(view), BLOCK_BYTES):
                    writer.write(view[start : start + BLOCK_BYTES])
        return blob

    def writer(self, blob: str, size_bytes: int, *, durable: bool = True) -> BlobWriter:
        """Write a blob piece by piece, as a context manager: it is in the store only once it is whole and verified."""
        target = self.folder / blob_name(blob)
        return BlobWriter(target, blob, size_bytes, min_free_bytes=self._min_free_bytes, durable=durable)

    def adopt(self, source: Path, blob: str) -> None:
        """Move a file in after verification: by rename, or by copy from another file system. A repeat does nothing.

        BlobNotFound when it is no regular file; BlobCorrupt leaves it where it is.
        """
        target = self.folder / blob_name(blob)
        try:
            if not target.is_file():
                self._move_in(source, target, blob)
        except BlobError:
            # nodes of a site that have the same parameters hand them in at the same time: another one was first
            if not target.is_file():
                raise
        _remove(source)

    def delete(self, blob: str) -> None:
        """Remove a blob; nothing happens if it is not there. A download under way goes on."""
        (self.folder / blob_name(blob)).unlink(missing_ok=True)

    def blobs(self) -> list[str]:
        """The hashes of all blobs, sorted."""
        return sorted(entry.name for entry in self.folder.iterdir() if _BLOB.fullmatch(entry.name))

    def _move_in(self, source: Path, target: Path, blob: str) -> None:
        size_bytes = _verify_file(source, blob)
        try:
            if _renamed(source, target):
                _sync_folder(self.folder)
            else:
                self._copy(source, blob, size_bytes)
        except OSError as exc:
            raise _failed(self.folder, exc) from exc

    def _copy(self, source: Path, blob: str, size_bytes: int) -> None:
        with source.open("rb", buffering=0) as file, self.writer(blob, size_bytes) as writer:
            while chunk := file.read(BLOCK_BYTES):
                writer.write(chunk)


def _renamed(source: Path, target: Path) -> bool:
    """Rename; False where they are on two file systems."""
    try:
        source.replace(target)
    except OSError as exc:
        if exc.errno not in _OTHER_FILE_SYSTEM:
            raise
        return False
    return True


def _create_beside(target: Path, blob: str) -> tuple[Path, int]:
    """A new hidden file in the target's folder. Its lock, which ends with the process, tells it from a leftover."""
    while True:
        path = target.with_name(f".{blob}.{secrets.token_hex(8)}.part")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            raise _failed(target.parent, exc) from exc
        with suppress(OSError):  # a file system without locks: its leftovers stay, since nobody can tell
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)  # another process cleaned up between open and lock


def _remove_leftovers(folder: Path) -> None:
    for entry in folder.iterdir():
        if _LEFTOVER.fullmatch(entry.name):
            _remove_if_stale(entry)


def _remove_if_stale(path: Path) -> None:
    try:
        # For writing, since NFS locks a file exclusively only then.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return  # its writer lives
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    with suppress(PermissionError):
        path.unlink(missing_ok=True)


def _verify_file(path: Path, blob: str) -> int:
    """Size of the regular file with that hash. No link is followed: it could point anywhere on the machine."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise BlobNotFound(
            f"blob {blob}: {path}: {exc.strerror}; is shared_dir the same folder for SL and SN?"
        ) from exc
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BlobNotFound(f"blob {blob}: {path} is no regular file")
        digest, size_bytes = hasher(), 0
        while chunk := file.read(BLOCK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
        if (found := digest.hexdigest()) != blob:
            raise BlobCorrupt(f"blob {blob}: {path} has the hash {found}")
        os.fsync(fd)
    return size_bytes


def _check_room(folder: Path, size_bytes: int, min_free_bytes: int) -> None:
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free - size_bytes < min_free_bytes:
        raise DiskFull(
            f"{folder}: {free} bytes are free, {size_bytes} more would leave less than {min_free_bytes} (min_free_mib);"
            " free some space there, choose another folder, or lower keep_rounds"
        )


def _failed(folder: Path, exc: OSError) -> BlobError:
    """The error to raise instead of `exc`: DiskFull where it means that."""
    if exc.errno in _FULL:
        return DiskFull(f"{folder}: {exc.strerror}; free some space there, choose another folder, or lower keep_rounds")
    return BlobError(f"{folder}: {exc.strerror}")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
