"""Replay of a contract's merges: each round's result is computed anew from its check-ins' blobs and compared.

Pure but for the two callables that read blobs, so that it serves a run folder as well as a live SN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, MergeError, ModelMismatch
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, parse
from swarm_hpc.records import CheckIn, MergeMethod, Round, RoundState
from swarm_hpc.sl.merge import check_blob, merge_blobs
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
    mismatches: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    """Rounds that nobody can check any more: their blobs were not kept."""


def verify_rounds(
    rounds: Iterable[Round], read_layout: Callable[[], ReadableBuffer], read_blob: ReadBlob, method: MergeMethod
) -> Report:
    """Check the published rounds of one contract. `read_layout` gives the blob that `ContractSpec.model` names.

    BlobNotFound, BlobCorrupt: the layout itself is not there or damaged.
    """
    layout = parse(read_layout())
    mismatches, skipped, rounds_checked = [], [], 0
    for round_ in rounds:
        if round_.state is not RoundState.PUBLISHED:
            continue
        try:
            found = _verify(round_, layout, read_blob, method)
        except BlobNotFound as exc:
            skipped.append(Finding(contract=round_.contract, round=round_.number, node="", reason=str(exc)))
            continue
        rounds_checked += 1
        mismatches += found
    return Report(rounds_checked=rounds_checked, mismatches=tuple(mismatches), skipped=tuple(skipped))


def _verify(round_: Round, layout: Layout, read_blob: ReadBlob, method: MergeMethod) -> list[Finding]:
    def finding(node: str, reason: object) -> Finding:
        return Finding(contract=round_.contract, round=round_.number, node=node, reason=str(reason))

    blobs: dict[str, ReadableBuffer] = {}
    found = []
    for check_in in round_.check_ins:
        try:
            blobs[check_in.blob] = _read(check_in, layout, read_blob)
        except (BlobCorrupt, ModelMismatch) as exc:
            found.append(finding(check_in.node, exc))
    if found:
        return found
    out = memoryview(bytearray(layout.size_bytes))
    try:
        merged = merge_blobs(layout, method, round_.check_ins, blobs, out)
    except MergeError as exc:
        return [finding("", exc)]
    if merged != round_.merged:
        return [finding(round_.leader, f"published {round_.merged}, but the check-ins merge to {merged}")]
    return _verify_kept(round_, read_blob, finding)


def _read(check_in: CheckIn, layout: Layout, read_blob: ReadBlob) -> ReadableBuffer:
    data = read_blob(check_in.blob)
    _check_hash(check_in.blob, data)
    check_blob(layout, data, check_in.node)
    return data


def _verify_kept(round_: Round, read_blob: ReadBlob, finding: Callable[[str, object], Finding]) -> list[Finding]:
    """The merged blob, where it was kept, has the bytes that the ledger names."""
    try:
        _check_hash(round_.merged, read_blob(round_.merged))
    except BlobNotFound:
        return []
    except BlobCorrupt as exc:
        return [finding(round_.leader, exc)]
    return []


def _check_hash(blob: str, data: ReadableBuffer) -> None:
    if (found := hash_bytes(data)) != blob:
        raise BlobCorrupt(f"blob {blob} was changed: its bytes now have the hash {found}")
