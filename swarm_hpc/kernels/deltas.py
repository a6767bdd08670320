"""Parameters as rounded differences from an earlier model, in fewer bytes (`merge.wire`), and back. In numpy.

Never of the parameters themselves: rounding those to 8 bits of precision costs more than a round of training changes.
Going back has the same bits on every machine, so that any site can check a merge. Of a tensor that is not floating, or
has no more bits than its difference would, the values travel as they are.

int8: a block of BLOCK differences has one scale, its largest magnitude / 127, and whole multiples of it. What the
rounding leaves out is added to the next differences (error feedback: Seide et al., 1-Bit SGD, 2014; Karimireddy et al.,
Error Feedback Fixes SignSGD, 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels.arena import DTYPES, Array
from swarm_hpc.kernels.plan import (
    WIDTHS,
    Layout,
    ReadableBuffer,
    Rule,
    Segment,
    Shard,
    TensorSpec,
    clipped,
    place,
    segments,
    values,
)
from swarm_hpc.records import Wire

BLOCK: Final = 1024
"""int8: differences with one scale."""
_CHUNK: Final = 32 * BLOCK
"""Elements worked on at a time: they stay in the cache."""
_MOST: Final = 127
_LARGEST: Final = {code: float(ml_dtypes.finfo(DTYPES[code]).max) for code in ("F64", "F32", "F16", "BF16")}
"""Finite values."""

_Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment of the model, and where its compact form lies (byte offsets in the compact blob)."""

    segment: Segment
    size: int
    """Elements."""
    wide: np.dtype[Any] | None
    """What differences are computed in; None: the values travel as they are."""
    start: int
    scales: int
    """int8: where the blocks' scales are."""
    first: int
    """Elements with differences in the segments before it."""


class Deltas:
    """The compact form of models of one layout. A compact blob is a blob as well, of the layout `layout`."""

    def __init__(self, model: Layout, wire: Wire) -> None:
        assert wire is not Wire.EXACT, "nothing is compact then"
        self._model = model
        self._wire = wire
        specs = []
        for segment in segments(model):
            size = (segment.stop - segment.start) // WIDTHS[segment.dtype]
            specs.append(TensorSpec(segment.dtype, self._sent_as(segment), (size,)))
            if self._sent_as(segment) == "I8" and segment.rule is Rule.MERGE:
                specs.append(TensorSpec(_scales(segment), "F32", (-(-size // BLOCK),)))
        self.layout = place(specs)
        """One tensor per dtype of the model, under its name, and `.scales` of it."""
        self._parts = tuple(self._place())
        self.num_differences = sum(part.size for part in self._parts if part.wide is not None)

    def encode(
        self,
        model: ReadableBuffer,
        base: ReadableBuffer,
        out: memoryview,
        *,
        left: _Float | None = None,
    ) -> bool:
        """Write the compact form of `model` as seen from `base` (whole blobs) into `out`, with `left` added.

        `left`: [num_differences], what earlier rounding left out. A difference that is not finite makes its block NaN
        (bf16: itself alone). False where that is so for a value that only `base` has not finite: no difference leads
        from there to a finite one. MergeError where a buffer has another size.
        """
        self._check(model, base, out)
        out[: len(self.layout.header)] = self.layout.header
        gone = False

        def work(part: _Part, begin: int, end: int) -> None:
            nonlocal gone
            new = _values(model, part.segment, begin, end)
            if part.wide is None:
                _raw(out, part, begin, end)[...] = new
                return
            old = _values(base, part.segment, begin, end)
            difference, unreachable = self._difference(part, new, old, left, begin)
            gone = gone or unreachable
            if self._wire is Wire.BF16:
                _canonical(difference)
                _bfloats(out, part, begin, end)[...] = difference
            else:
                _round_blocks(difference, _bytes(out, part, begin, end), _scales_of(out, part, begin, end))

        self._run(work)
        return not gone

    def decode(self, compact: ReadableBuffer, base: ReadableBuffer, out: memoryview) -> None:
        """Write the model that a compact blob of `layout` stands for, seen from `base`, into `out`.

        `out` may be `base`. MergeError where a buffer has another size.
        """
        self._check(out, base, compact)
        whole = values(self._model)
        out[: whole.start] = self._model.header
        self.decode_shard(compact, base, whole, out[whole.start :])

    def decode_shard(self, compact: ReadableBuffer, base: ReadableBuffer, shard: Shard, out: memoryview) -> None:
        """The same for the bytes of a shard of `plan.shards` with a grain that is a multiple of BLOCK."""

        def work(part: _Part, begin: int, end: int) -> None:
            dtype = DTYPES[part.segment.dtype]
            offset = part.segment.start + begin * dtype.itemsize - shard.start
            target = np.frombuffer(out, dtype, end - begin, offset)
            if part.wide is None:
                target[...] = _raw(compact, part, begin, end)
                return
            target[...] = self._total(compact, part, begin, _values(base, part.segment, begin, end))

        self._run(work, shard)

    def leave(self, model: ReadableBuffer, base: ReadableBuffer, compact: ReadableBuffer, left: _Float) -> None:
        """`compact` was made of these with `left` added, and has arrived: make `left` what the next one has to add."""
        self._check(model, base, compact)

        def work(part: _Part, begin: int, end: int) -> None:
            if part.wide is None:
                return
            new, old = _values(model, part.segment, begin, end), _values(base, part.segment, begin, end)
            difference, _ = self._difference(part, new, old, left, begin)
            # as it is read, rounded to the dtype
            read = self._total(compact, part, begin, old).astype(old.dtype)
            difference -= np.subtract(read, old, dtype=part.wide).astype(np.float32, copy=False)
            # nothing is to be made up for where a value is lost for good
            difference[~np.isfinite(difference)] = 0
            left[part.first + begin : part.first + end] = difference

        self._run(work)

    def _total(self, compact: ReadableBuffer, part: _Part, begin: int, old: Array) -> Array:
        """What is read, before it is rounded to the dtype; where that is finite on both sides, it is here."""
        difference = self._differences(compact, part, begin, begin + len(old))
        total = old.astype(part.wide)
        total += difference
        _saturate(total, _LARGEST[part.segment.dtype], old, difference)
        _canonical(total)
        return total

    def _difference(self, part: _Part, new: Array, old: Array, left: _Float | None, begin: int) -> tuple[_Float, bool]:
        """The difference, and whether in it there is one of a finite value from one that is not."""
        wide = np.subtract(new, old, dtype=part.wide)
        if left is not None:
            wide += left[part.first + begin : part.first + begin + len(new)]
        limit, unreachable = _LARGEST["BF16" if self._wire is Wire.BF16 else "F32"], False
        if not (np.abs(wide) <= limit).all():
            # nothing changes where both are infinite alike
            wide[~np.isfinite(wide) & ((new == old) | (np.isnan(new) & np.isnan(old)))] = 0
            _saturate(wide, limit, new, old)
            unreachable = bool((np.isfinite(new) & ~np.isfinite(old)).any())
        return wide.astype(np.float32, copy=False), unreachable

    def _differences(self, compact: ReadableBuffer, part: _Part, begin: int, end: int) -> _Float:
        if self._wire is Wire.BF16:
            return _bfloats(compact, part, begin, end).astype(np.float32)
        found = np.zeros(-(-(end - begin) // BLOCK) * BLOCK, np.float32)
        found[: end - begin] = _bytes(compact, part, begin, end)
        blocks = found.reshape(-1, BLOCK)
        blocks *= _scales_of(compact, part, begin, end)[:, None]
        np.clip(found, -_LARGEST["F32"], _LARGEST["F32"], out=found)
        return found[: end - begin]

    def _sent_as(self, segment: Segment) -> str:
        sent = "BF16" if self._wire is Wire.BF16 else "I8"
        return sent if segment.rule is Rule.MERGE and WIDTHS[segment.dtype] > WIDTHS[sent] else segment.dtype

    def _place(self) -> Iterator[_Part]:
        starts = {placed.spec.name: placed.start for placed in self.layout.tensors}
        first = 0
        for segment in segments(self._model):
            size = (segment.stop - segment.start) // WIDTHS[segment.dtype]
            as_it_is = self._sent_as(segment) == segment.dtype
            wide = np.dtype(np.float64 if segment.dtype == "F64" else np.float32)
            yield _Part(
                segment, size, None if as_it_is else wide, starts[segment.dtype], starts.get(_scales(segment), 0), first
            )
            first += 0 if as_it_is else size

    def _check(self, model: ReadableBuffer, base: ReadableBuffer, compact: ReadableBuffer) -> None:
        for buffer, layout in ((model, self._model), (base, self._model), (compact, self.layout)):
            if (found := memoryview(buffer).nbytes) != layout.size_bytes:
                raise MergeError(f"a blob of {found} bytes instead of {layout.size_bytes}")

    def _run(self, work: Callable[[_Part, int, int], None], shard: Shard | None = None) -> None:
        """`work` for chunks that cover every part, as far as it is in the shard, and begin at multiples of BLOCK."""
        with np.errstate(all="ignore"):
            for part in self._parts:
                width, start = WIDTHS[part.segment.dtype], part.segment.start
                inside = clipped(part.segment, shard or values(self._model))
                if inside is not None:
                    stop = (inside.stop - start) // width
                    for begin in range((inside.start - start) // width, stop, _CHUNK):
                        work(part, begin, min(begin + _CHUNK, stop))


def _scales(segment: Segment) -> str:
    return f"{segment.dtype}.scales"


def _values(blob: ReadableBuffer, segment: Segment, begin: int, end: int) -> Array:
    dtype = DTYPES[segment.dtype]
    return np.frombuffer(blob, dtype, end - begin, segment.start + begin * dtype.itemsize)


def _raw(compact: ReadableBuffer, part: _Part, begin: int, end: int) -> Array:
    dtype = DTYPES[part.segment.dtype]
    return np.frombuffer(compact, dtype, end - begin, part.start + begin * dtype.itemsize)


def _bfloats(compact: ReadableBuffer, part: _Part, begin: int, end: int) -> Array:
    return np.frombuffer(compact, DTYPES["BF16"], end - begin, part.start + 2 * begin)


def _bytes(compact: ReadableBuffer, part: _Part, begin: int, end: int) -> Array:
    return np.frombuffer(compact, np.int8, end - begin, part.start + begin)


def _scales_of(compact: ReadableBuffer, part: _Part, begin: int, end: int) -> Array:
    return np.frombuffer(compact, DTYPES["F32"], -(-(end - begin) // BLOCK), part.scales + begin // BLOCK * 4)


def _saturate(values: Array, limit: float, *sources: Array) -> None:
    """To at most `limit`, where all that the values come from is finite."""
    beyond = np.flatnonzero(~(np.abs(values) <= limit))
    for source in sources:
        beyond = beyond[np.isfinite(source[beyond])]
    if len(beyond):
        values[beyond] = np.clip(values[beyond], -limit, limit)


def _canonical(values: Array) -> None:
    """Every NaN gets one sign and payload: they differ between processors."""
    found = np.isnan(values)
    if found.any():
        values[found] = np.nan


def _round_blocks(difference: _Float, out: Array, scales: Array) -> None:
    blocks = np.zeros((len(scales), BLOCK), np.float32)
    blocks.reshape(-1)[: len(difference)] = difference
    np.divide(np.abs(blocks).max(axis=1), np.float32(_MOST), out=scales)
    scales[~np.isfinite(scales)] = np.nan
    usable = scales > 0
    blocks /= np.where(usable, scales, np.float32(np.inf))[:, None]
    blocks[~usable] = 0
    np.clip(np.rint(blocks, out=blocks), -_MOST, _MOST, out=blocks)
    out[...] = blocks.reshape(-1)[: len(difference)]
