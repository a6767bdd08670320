"""Replay of a contract's merges: each round's result is computed anew from its check-ins' blobs and compared.

Pure but for the callable that reads blobs, so that it serves a run folder as well as a live SN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, MergeError, ModelMismatch
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, model_hash, parse
from swarm_hpc.records import CheckIn, ContractSpec, Round, RoundState, Wire
from swarm_hpc.sl.models import Models
from swarm_hpc.transport.blobs import hash_bytes

ReadBlob = Callable[[str], ReadableBuffer]
"""The bytes of a blob by its hash, verified or not. BlobNotFound: not kept. BlobCorrupt: damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A round that is not as the ledger has it, or that could not be checked; `node` where one is to blame."""

    contract: str
    round: int
    node: str
    reason: str

    def __str__(self) -> str:
        culprit = f", {self.node}" if self.node else ""
        return f"{self.contract} round {self.round}{culprit}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replay found."""

    rounds_checked: int
    """Rounds with all their blobs, and those in which something is wrong."""
    mismatches: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Rounds that nobody can check (in full) any more: their blobs were not kept. One finding each."""


def verify_rounds(spec: ContractSpec, rounds: Iterable[Round], read_blob: ReadBlob) -> Report:
    """Check the published rounds of the contract, and that the blobs of the others are whole.

    The model layout is the first part of every blob: where its own file is damaged, which counts as a mismatch of the
    first round, or was not kept, it is taken from a check-in.
    """
    rounds = tuple(rounds)
    replay = _Replay(spec, read_blob, _layout(spec, rounds, read_blob))
    replay.look_at_layout()
    for round_ in rounds:
        replay.look_at(round_)
    return Report(
        rounds_checked=len(replay.checked), mismatches=tuple(replay.mismatches), skipped=tuple(replay.skipped)
    )


class _Replay:
    """The findings so far. A round is checked, or skipped, or (in part damaged, in part not kept) both."""

    def __init__(self, spec: ContractSpec, read_blob: ReadBlob, layout: Layout | None) -> None:
        self.checked: set[int] = set()
        self.mismatches: list[Finding] = []
        self.skipped: list[Finding] = []
        self._spec = spec
        self._read_blob = read_blob
        self._models = Models(layout, spec.merge) if layout is not None else None

    def look_at_layout(self) -> None:
        """Its own file, if it was kept, is whole."""
        try:
            _read(self._spec.model, self._read_blob)
        except BlobCorrupt as exc:
            self._wrong(1, "", f"the model layout is damaged: {exc}")
        except BlobNotFound:
            pass  # it is needed for nothing: each blob begins with it

    def look_at(self, round_: Round) -> None:
        """Its check-ins, its merge, and the merged blob."""
        before = len(self.mismatches)
        blobs, missing = self._check_ins(round_)
        if round_.state is not RoundState.PUBLISHED:
            return
        if not missing and len(self.mismatches) == before:
            missing = self._merge(round_, blobs)
        try:
            self._take(round_, _read(round_.merged, self._read_blob))
        except (BlobCorrupt, ModelMismatch) as exc:
            self._wrong(round_.number, round_.leader, f"the merged parameters: {exc}")
        except BlobNotFound as exc:
            missing = missing or f"the merged parameters: {exc}"
        if missing:
            self._skip(round_, missing)
        else:
            self.checked.add(round_.number)

    def _check_ins(self, round_: Round) -> tuple[dict[str, ReadableBuffer], str]:
        """The bytes of the check-ins' blobs, and what is missing of them."""
        blobs: dict[str, ReadableBuffer] = {}
        missing = ""
        for check_in in round_.check_ins:
            try:
                blobs[check_in.blob] = self._read_check_in(round_.number, check_in)
            except BlobNotFound as exc:
                missing = missing or f"{check_in.node}: {exc}"
            except (BlobCorrupt, ModelMismatch) as exc:
                self._wrong(round_.number, check_in.node, str(exc))
        return blobs, missing

    def _read_check_in(self, number: int, check_in: CheckIn) -> ReadableBuffer:
        data = _read(check_in.blob, self._read_blob)
        if self._models is None:
            if self._spec.merge.wire is not Wire.EXACT:
                raise BlobNotFound(f"blob {check_in.blob} may be a difference, and the model layout was not kept")
            raise ModelMismatch(f"{check_in.node}: blob {check_in.blob} is not of the contract's model")
        self._models.forms.check(data, self._models.forms.check_in, check_in.node, number)
        return data

    def _merge(self, round_: Round, blobs: dict[str, ReadableBuffer]) -> str:
        """What is missing to merge them."""
        # without a layout there is a mismatch, or nothing to read
        assert self._models is not None
        try:
            merged = self._models.merge(
                round_.number, round_.check_ins, blobs, lambda size_bytes: memoryview(bytearray(size_bytes))
            )
        except BlobNotFound as exc:
            return str(exc)
        except MergeError as exc:
            self._wrong(round_.number, "", str(exc))
            return ""
        if merged == round_.merged:
            self._models.keep(round_.number)
        else:
            reason = f"published {round_.merged}, but the check-ins merge to {merged}"
            self._wrong(round_.number, round_.leader, reason)
        return ""

    def _take(self, round_: Round, result: ReadableBuffer) -> None:
        """Keep what the next round is seen from. BlobNotFound, ModelMismatch: this is not it."""
        if self._models is None or self._models.exact or self._models.has(round_.number):
            return
        forms = self._models.forms
        forms.check(result, forms.of_result(round_.number), round_.leader, round_.number)
        self._models.open(round_.number, memoryview(result))
        self._models.keep(round_.number)

    def _wrong(self, number: int, node: str, reason: str) -> None:
        self.checked.add(number)
        self.mismatches.append(Finding(contract=self._spec.name, round=number, node=node, reason=reason))

    def _skip(self, round_: Round, reason: str) -> None:
        self.skipped.append(Finding(contract=self._spec.name, round=round_.number, node="", reason=reason))


def _layout(spec: ContractSpec, rounds: Sequence[Round], read_blob: ReadBlob) -> Layout | None:
    """From its own blob, or the first whole one of a check-in or a result that has it; None where there is none."""
    blobs = (blob for round_ in rounds for blob in (*(check_in.blob for check_in in round_.check_ins), round_.merged))
    for blob in filter(None, (spec.model, *blobs)):
        try:
            found = parse(_read(blob, read_blob))
        except (BlobNotFound, BlobCorrupt):
            continue
        if model_hash(found) == spec.model:
            return found
    return None


def _read(blob: str, read_blob: ReadBlob) -> ReadableBuffer:
    """The blob's bytes; BlobCorrupt where they are not those that it is named by."""
    data = read_blob(blob)
    if (found := hash_bytes(data)) != blob:
        raise BlobCorrupt(f"blob {blob} was changed: its bytes now have the hash {found}")
    return data
