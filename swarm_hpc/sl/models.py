"""The results of rounds in a node's memory, and in which form they and its own parameters travel (`merge.wire`).

Exact: as they are. Else a check-in is the difference from the result of the round before, where the node has that, and
so is the result of a round with such a check-in, unless the contract says whole. Nothing but the round's number, which
the ledger has, says from what a difference is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from swarm_hpc.errors import BlobCorrupt, BlobNotFound
from swarm_hpc.kernels.deltas import BLOCK, Deltas
from swarm_hpc.kernels.mixture import METHODS as MIXTURES
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, Shard
from swarm_hpc.kernels.rooms import room as place
from swarm_hpc.records import CheckIn, Merge, Wire
from swarm_hpc.sl.merge import CHUNK_BYTES, check_blob, cut, in_order, merge_blobs, merge_pieces
from swarm_hpc.transport.blobs import hash_bytes

_RESULT_WIRE: Final = Wire.BF16
"""Of a result, whatever the check-ins' is. Who merges changes from round to round, and nobody else knows what its
rounding leaves out: so it keeps 8 bits of each difference, however small beside others, and loses none for good."""


NOTHING: Final = (0, "")
"""The round and blob of no result."""


class Forms:
    """What blobs of a contract may look like. Pure."""

    def __init__(self, layout: Layout, merge: Merge) -> None:
        exact = merge.wire is Wire.EXACT
        self.layout = layout
        self.merge = merge
        self.check_in = None if exact else Deltas(layout, merge.wire)
        self.result = None if exact else Deltas(layout, _RESULT_WIRE)

    @property
    def sizes_bytes(self) -> tuple[int, ...]:
        """Of check-ins' blobs."""
        compact = (self.check_in.layout.size_bytes,) if self.check_in is not None else ()
        return tuple(dict.fromkeys((*compact, self.layout.size_bytes)))

    def is_difference(self, blob: ReadableBuffer, form: Deltas | None) -> bool:
        """Whether the blob is a difference in that form; else it is whole, or not of this contract."""
        if form is None or memoryview(blob).nbytes != form.layout.size_bytes:
            return False
        header = form.layout.header
        return memoryview(blob).cast("B")[: len(header)] == header

    def check(self, blob: ReadableBuffer, form: Deltas | None, node: str, number: int) -> None:
        """BlobCorrupt or ModelMismatch, naming the node, unless the blob is a difference in that form, or a model.

        In round 1 there is nothing that a difference could be seen from.
        """
        if not self.is_difference(blob, form):
            check_blob(self.layout, blob, node)
        elif number == 1:
            raise BlobCorrupt(f"{node}: a difference in round 1 instead of a model")

    def differences(self, check_ins: Mapping[str, ReadableBuffer]) -> set[str]:
        """Which of the check-ins' blobs are no whole models."""
        return {name for name, blob in check_ins.items() if self.is_difference(blob, self.check_in)}

    def result_form(self, number: int, check_ins: Mapping[str, ReadableBuffer]) -> Deltas | None:
        """That of a round's result, by its check-ins' blobs; None: whole.

        Whole as well where every check-in is: then it may be that nobody has the result of the round before any more.
        """
        return self.of_result(number) if self.differences(check_ins) else None

    def of_result(self, number: int) -> Deltas | None:
        """What that round's result may be beside a model; None where the contract has it whole."""
        return self.result if len(self.merge.chain(number)) > 1 else None


class Models:
    """The latest result, what it is seen from, and the memory for both, kept from round to round. Blocks."""

    def __init__(self, layout: Layout, merge: Merge, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.forms = Forms(layout, merge)
        self.spare = memoryview(bytearray(layout.size_bytes))
        """Room for one more model beside the arena: results are made whole before they count."""
        self.result = NOTHING
        """Round and published blob of what is in `spare`. A blob alone does not tell: differences may be equal."""
        self._chunks = cut(layout, BLOCK, chunk_bytes)
        self._slots: list[memoryview] = []
        self._base, self._base_round = memoryview(b""), 0
        self._difference = memoryview(b"")
        """Room for a result in compact form."""
        self._compact = False
        """Whether it has that of `spare`, or of the base."""
        self._sent = memoryview(b"")
        self._left = np.zeros(0, np.float32)
        self._doubtful = self._left
        """`left` if what was sent last should turn out to have been merged; as a rule there is no doubt."""
        if self.forms.check_in is not None and self.forms.result is not None:
            self._base = memoryview(bytearray(layout.size_bytes))
            self._difference = memoryview(bytearray(self.forms.result.layout.size_bytes))
            self._sent = memoryview(bytearray(self.forms.check_in.layout.size_bytes))
            self._left = np.zeros(self.forms.check_in.num_differences, np.float32)

    @property
    def exact(self) -> bool:
        """Whether everything travels as it is."""
        return self.forms.check_in is None

    def has(self, number: int) -> bool:
        """Whether the result of that round is kept, as what others are seen from."""
        return number > 0 and self._base_round == number

    def needed(self, number: int) -> range:
        """The rounds before `number` whose results lead to its own: each may be seen from the one before."""
        chain = self.forms.merge.chain(number)
        return range(max(chain.start, min(self._base_round, number - 1) + 1), number)

    def leads_nowhere(self, number: int, result: ReadableBuffer) -> bool:
        """Whether that published result of a round is seen from the one before, which is not here."""
        return self.forms.is_difference(result, self.forms.of_result(number)) and not self.has(number - 1)

    def needs_base(self, number: int, check_ins: Mapping[str, ReadableBuffer]) -> bool:
        """Whether merging these takes the result of the round before, and that is not here."""
        return number > 1 and not self.has(number - 1) and bool(self.forms.differences(check_ins))

    # --- the node's own parameters ---

    def outgoing(self, number: int, model: memoryview) -> memoryview:
        """What the node checks in with; to be left alone until the round is over."""
        if self.forms.check_in is None or not self.has(number - 1):
            return model
        # whole as well where the result has a value that is not finite, and the model has it again
        return self._sent if self.forms.check_in.encode(model, self._base, self._sent, left=self._left) else model

    def arrived(self, number: int, model: memoryview, sent: memoryview) -> None:
        """`outgoing` made `sent` of the model, and it was merged: note what it left out."""
        self._leave(number, model, sent, self._left)

    def doubt(self, number: int, model: memoryview, sent: memoryview) -> None:
        """As `arrived`, where only `decided` will tell whether it was merged."""
        self._doubtful = self._left.copy()
        self._leave(number, model, sent, self._doubtful)

    def decided(self, merged: bool) -> None:
        """What there was doubt of was merged, or will never be."""
        if merged:
            self._left = self._doubtful
        self._doubtful = self._left

    def _leave(self, number: int, model: memoryview, sent: memoryview, left: npt.NDArray[np.float32]) -> None:
        if self.forms.check_in is None:
            return
        if self.forms.is_difference(sent, self.forms.check_in):
            if self.has(number - 1):
                self.forms.check_in.leave(model, self._base, sent, left)
        elif not self.has(number - 1):
            # the model never was a result: it has all that was left out
            left[:] = 0

    # --- merging ---

    def merge(
        self,
        number: int,
        check_ins: Sequence[CheckIn],
        blobs: Mapping[str, ReadableBuffer],
        room: Callable[[int], memoryview],
    ) -> str:
        """Merge the check-ins' blobs into `spare`, and make of it what everybody gets; the hash to publish.

        `room`: memory for a model, where one is needed for each peer. BlobNotFound if `needs_base`, else as
        `merge.merge_blobs`.
        """
        forms, named = self.forms, {check_in.blob: blobs[check_in.blob] for check_in in check_ins}
        if self.needs_base(number, named):
            raise BlobNotFound(f"the result of round {number - 1}, from which peers' parameters differ, cannot be had")
        for check_in in () if self.exact else in_order(check_ins):
            forms.check(named[check_in.blob], forms.check_in, check_in.node, number)
        if forms.check_in is None:
            merged = merge_blobs(forms.layout, forms.merge, check_ins, named, self.spare)
        elif forms.merge.method in MIXTURES:
            models = self._whole(named, forms.check_in, room)
            merged = merge_blobs(forms.layout, forms.merge, check_ins, models, self.spare)
        else:
            merged = self._merge_pieces(check_ins, named, forms.check_in)
        form = forms.result_form(number, named)
        self._compact = form is not None
        if form is None:
            return merged
        form.encode(self.spare, self._base, self._difference)
        form.decode(self._difference, self._base, self.spare)
        return hash_bytes(self._difference)

    def _whole(
        self, blobs: Mapping[str, ReadableBuffer], form: Deltas, room: Callable[[int], memoryview]
    ) -> dict[str, ReadableBuffer]:
        """The models that the blobs stand for."""
        models = dict(blobs)
        for name in self.forms.differences(blobs):
            models[name] = model = room(self.forms.layout.size_bytes)
            form.decode(blobs[name], self._base, model)
        return models

    def _merge_pieces(self, check_ins: Sequence[CheckIn], blobs: Mapping[str, ReadableBuffer], form: Deltas) -> str:
        """One chunk of each peer's model after the other."""
        differ = self.forms.differences(blobs)
        largest = max((chunk.size_bytes for chunk in self._chunks), default=0)
        while len(self._slots) < len(check_ins):
            self._slots.append(place(largest, len(self._slots)))

        def piece(number: int, check_in: CheckIn, chunk: Shard) -> memoryview:
            if check_in.blob not in differ:
                return memoryview(blobs[check_in.blob]).cast("B")[chunk.start : chunk.stop]
            found = self._slots[number][: chunk.size_bytes]
            form.decode_shard(blobs[check_in.blob], self._base, chunk, found)
            return found

        return merge_pieces(self.forms.layout, self.forms.merge, check_ins, self._chunks, piece, self.spare)

    # --- results ---

    @property
    def rooms(self) -> tuple[memoryview, ...]:
        """Where the published form of a result may go; then `open` is to be called."""
        if len(self._difference) == len(self.spare):
            return (self._difference,)
        return (self.spare,) if self.exact else (self._difference, self.spare)

    def open(self, number: int, result: memoryview) -> None:
        """A room holds the published form of that round's result: have what it stands for in `spare`.

        BlobNotFound: it is seen from the result of the round before, and that is not here.
        """
        if self.leads_nowhere(number, result):
            raise BlobNotFound(f"round {number} differs from the result of the one before, which cannot be had")
        self._compact = self.forms.is_difference(result, self.forms.of_result(number))
        if self._compact and self.forms.result is not None:
            self.forms.result.decode(result, self._base, self.spare)
        elif len(result) == len(self.spare):
            if result.obj is not self.spare.obj:
                self.spare[:] = result
        else:  # what is no difference has no header, either
            self.spare[: len(self.forms.layout.header)] = bytes(len(self.forms.layout.header))

    def keep(self, number: int) -> None:
        """`spare` has the result of that round: keep it as what the next one is seen from."""
        if not self.exact:
            self._base, self.spare, self._base_round = self.spare, self._base, number
            self.result = NOTHING

    def take(self, number: int, target: memoryview) -> None:
        """Copy the result of that round, from `spare` unless it is kept already, to `target`, and keep it."""
        if self.has(number):
            target[:] = self._base
        else:
            target[:] = self.spare
            self.keep(number)

    def published(self, model: memoryview) -> memoryview:
        """The published form of the result that was taken last, which `model` still holds."""
        return self._difference if self._compact else model
