"""The arithmetic of native.c, compiled when the package is installed, for the instructions that this processor has."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import plain
from swarm_hpc.kernels.arena import DTYPES, Array
from swarm_hpc.kernels.plain import Measure, Order, Rows

_DTYPES: Final = {DTYPES[name]: number for number, name in enumerate(("F64", "F32", "BF16", "F16"))}
_MEASURES: Final = {measure: number for number, measure in enumerate(Measure)}
SETS: Final = ("plain", "avx2", "avx512")


class _Rows(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int64),
        ("num_peers", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
    )


class _Order(ctypes.Structure):
    _fields_ = (
        ("counts", ctypes.c_void_p),
        ("lower", ctypes.c_int64),
        ("upper", ctypes.c_int64),
        ("unit", ctypes.c_double),
        ("num_comparators", ctypes.c_int64),
        ("comparators", ctypes.c_void_p),
    )


def sets() -> tuple[str, ...]:
    """The instruction sets, of `SETS`, that are compiled and usable here, the best last; none without a compiler."""
    library = _library()
    return () if library is None else SETS[: library.swarm_best() + 1]


class Native:
    """`plain.Plain` in C: the same numbers, and the same bits. Holds no lock of Python's while it works."""

    def __init__(self, instructions: str) -> None:
        if instructions not in sets():
            raise MergeError(f"no kernels for {instructions} here; there are {', '.join(sets()) or 'none'}")
        self.name = f"native ({instructions})"
        self._set = SETS.index(instructions)

    def mean(self, rows: Rows, parts: Sequence[float], out: Array) -> None:
        """`plain.Backend.mean`"""
        self._fill(out, "mean", rows, np.array(parts, np.float64))

    def median(self, rows: Rows, order: Order, out: Array) -> None:
        """`plain.Backend.median`"""
        self._ordered("median", rows, order, out)

    def trimmed_mean(self, rows: Rows, order: Order, out: Array) -> None:
        """`plain.Backend.trimmed_mean`"""
        self._ordered("trimmed_mean", rows, order, out)

    def sums(self, rows: Rows, measure: Measure, centre: int) -> npt.NDArray[np.float64]:
        """`plain.Backend.sums`"""
        num_blocks = -(-len(rows[0]) // plain.BLOCK)
        table = np.zeros((num_blocks, len(rows), len(rows)))
        self._call("sums", rows, ctypes.c_int(_MEASURES[measure]), ctypes.c_int64(centre), table)
        return table

    def bounded(self, rows: Rows, limit: float) -> list[bool]:
        """`plain.Backend.bounded`"""
        found = np.zeros(len(rows), np.uint8)
        self._call("bounded", rows, ctypes.c_double(limit), found)
        return [bool(flag) for flag in found]

    def _ordered(self, function: str, rows: Rows, order: Order, out: Array) -> None:
        counts = np.array(order.counts, np.int64)
        comparators = np.array(plain.comparators(len(rows)), np.int64).reshape(-1, 2)
        described = _Order(
            counts.ctypes.data, order.lower, order.upper, order.unit, len(comparators), comparators.ctypes.data
        )
        self._fill(out, function, rows, ctypes.byref(described))

    def _fill(self, out: Array, function: str, rows: Rows, argument: Any) -> None:
        _check_like(rows, out)
        # C stores whole lines from where one begins, and counts on whole elements before that
        target = out if out.flags.aligned else np.empty_like(out)
        self._call(function, rows, argument, target)
        if target is not out:
            np.copyto(out, target)

    def _call(self, function: str, rows: Rows, *arguments: Any) -> None:
        # the compiler may count on whole elements lying where the dtype wants them
        rows = [np.require(row, requirements=("C", "A")) for row in rows]
        pointers = np.array([row.ctypes.data for row in rows], np.uint64)
        described = _Rows(_DTYPES[rows[0].dtype], len(rows), len(rows[0]), pointers.ctypes.data)
        passed = [ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else one for one in arguments]
        library = _library()
        assert library is not None, "Native is made where there is one"
        if not getattr(library, f"swarm_{function}")(self._set, ctypes.byref(described), *passed):
            raise MemoryError("no memory for the scratch of a merge")


def _check_like(rows: Rows, out: Array) -> None:
    """MergeError unless `out` can take what comes of the rows: C would write beyond it."""
    lengths = {len(row) for row in rows}
    if {row.dtype for row in rows} != {out.dtype} or lengths != {len(out)} or not out.flags.c_contiguous:
        raise MergeError(f"an array of {len(out)} {out.dtype} cannot take a merge of {lengths} {rows[0].dtype}")


@cache
def _library() -> ctypes.CDLL | None:
    found = sorted(Path(__file__).parent.glob("_native*.so"))
    # this Python's own first: a checkout may have another one's from before native.c was changed
    for path in sorted(found, key=lambda path: not path.name.endswith(EXTENSION_SUFFIXES[0])):
        # made for another kind of machine, or a newer C library than this one
        with suppress(OSError):
            return ctypes.CDLL(str(path))
    return None
