"""Shared memory with the bytes of one blob: an ML program writes its parameters where SL reads them, without a copy.

An arena is a memfd, passed over a Unix socket by file descriptor. Its layout is fixed; it can neither shrink nor grow.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import BlobCorrupt, DiskFull, ModelMismatch
from swarm_hpc.kernels.plan import Layout, Placed

Array = npt.NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
"""The numpy dtype of each safetensors code of `plan.WIDTHS`."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Arena:
    """A mapped memfd with one blob. Use it as a context manager, or call `close`."""

    def __init__(self, fd: int, layout: Layout) -> None:
        """Map `fd`, which is this object's from now on; for `create` and `attach`."""
        self.fd = fd
        """The memfd, to be sent to the other process; -1 once closed."""
        self.layout = layout
        self._placed: dict[str, Placed] = {placed.spec.name: placed for placed in layout.tensors}
        self._placed |= {alias: self._placed[stored] for alias, stored in layout.aliases}
        try:
            os.set_inheritable(fd, False)
            self._map: mmap.mmap | None = mmap.mmap(fd, layout.size_bytes)
        except BaseException:
            self._close_fd()
            raise
        self.buffer = memoryview(self._map)
        """The whole blob, writable, header included; empty once closed."""

    @classmethod
    def create(cls, layout: Layout) -> Self:
        """A new arena: header in place, all values zero, all memory reserved. DiskFull where there is not enough."""
        fd = os.memfd_create("swarm-hpc-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.size_bytes)
            # Reserved now: a page that is missing later is a SIGBUS, here it is an error.
            os.posix_fallocate(fd, 0, layout.size_bytes)
            # A peer that shrinks the file would kill us by SIGBUS as well.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as exc:
            os.close(fd)
            need = f"{layout.size_bytes / (1 << 20):.0f} MiB"
            raise DiskFull(f"no memory for an arena of {need}: {exc.strerror}; ask for more (Slurm: --mem)") from exc
        arena = cls(fd, layout)
        arena.buffer[: len(layout.header)] = layout.header
        return arena

    @classmethod
    def attach(cls, fd: int, layout: Layout) -> Self:
        """Map an arena that another process made, and take over `fd` (it is closed on error, too).

        BlobCorrupt unless it is a sealed memfd of the layout's size that holds the layout's header.
        """
        try:
            _check_sealed(fd, layout.size_bytes)
        except BlobCorrupt:
            os.close(fd)
            raise
        arena = cls(fd, layout)
        try:
            arena.check_header()
        except BlobCorrupt:
            arena.close()
            raise
        return arena

    def check_header(self) -> None:
        """BlobCorrupt where the program on the other side has overwritten the header."""
        if self.buffer[: len(self.layout.header)] != self.layout.header:
            raise BlobCorrupt("the arena's header is not the model's: something wrote beyond its tensor")

    def array(self, name: str) -> Array:
        """The tensor (or alias) as a writable view of the shared memory, bfloat16 as ml_dtypes' type.

        ModelMismatch where there is none of that name.
        """
        placed = self._placed.get(name)
        if placed is None:
            raise ModelMismatch(f"tensor {name!r} is not in the arena's model")
        assert self._map is not None, "the arena is closed"
        return np.ndarray(placed.spec.shape, DTYPES[placed.spec.dtype], self._map, placed.start)

    def close(self) -> None:
        """Close the descriptor and give the memory back. May be repeated.

        Arrays that are still in use stay valid: the memory is given back when the last of them is gone.
        """
        self._close_fd()
        # Never mmap.close(): arrays of numpy and torch keep a reference, not an export, and would point to nowhere.
        self.buffer, self._map = memoryview(b""), None

    def _close_fd(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_sealed(fd: int, size_bytes: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise BlobCorrupt(f"file descriptor {fd} is no arena: it cannot be sealed ({exc.strerror})") from exc
    if not seals & fcntl.F_SEAL_SHRINK:
        raise BlobCorrupt(f"file descriptor {fd} is no arena: it is not sealed, and may shrink")
    found = os.fstat(fd).st_size
    if found != size_bytes:
        raise BlobCorrupt(f"the arena has {found} bytes, the model {size_bytes}")
