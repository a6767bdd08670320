"""From the blobs of a round's check-ins to the merged blob: headers checked, participants in sorted order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from swarm_hpc.errors import BlobCorrupt, MergeError
from swarm_hpc.kernels import cpu
from swarm_hpc.kernels.plan import Layout, ReadableBuffer, Shard, check_same, parse, shards, values
from swarm_hpc.records import CheckIn, Merge
from swarm_hpc.transport.blobs import hash_bytes

CHUNK_BYTES: Final = 8 << 20
"""Of each peer's model, about so much is merged at a time where not all of it is in memory."""


def merge_blobs(
    layout: Layout,
    merge: Merge,
    check_ins: Sequence[CheckIn],
    blobs: Mapping[str, ReadableBuffer],
    out: memoryview,
) -> str:
    """Merge the check-ins' blobs (`blobs`: hash -> bytes whose hash has been verified) into `out`; the result's hash.

    The same check-ins give the same bytes on any machine, in whatever order they come. A blob of another model than
    `layout` is ModelMismatch, one that is no blob BlobCorrupt; both name the node. Blocks.
    """
    ordered = in_order(check_ins)
    buffers = [blobs[check_in.blob] for check_in in ordered]
    for check_in, buffer in zip(ordered, buffers, strict=True):
        check_blob(layout, buffer, check_in.node)
    weights = [effective_weight(check_in) for check_in in ordered]
    cpu.merge(layout, merge, buffers, weights, out, threads=cpu.usable_threads())
    return hash_bytes(out)


def merge_pieces(
    layout: Layout,
    merge: Merge,
    check_ins: Sequence[CheckIn],
    chunks: Sequence[Shard],
    piece: Callable[[int, CheckIn, Shard], memoryview],
    out: memoryview,
) -> str:
    """As `merge_blobs`, chunk by chunk, by a method that takes each element by itself.

    `piece`: the chunk's bytes of a check-in's model; they are not needed any more when those of the next chunk are
    asked for. The int is the check-in's place among all.
    """
    ordered = in_order(check_ins)
    weights = [effective_weight(check_in) for check_in in ordered]
    out[: len(layout.header)] = layout.header
    for chunk in chunks:
        pieces = [piece(number, check_in, chunk) for number, check_in in enumerate(ordered)]
        target = out[chunk.start : chunk.stop]
        cpu.merge_shard(layout, merge, chunk, pieces, weights, target, threads=cpu.usable_threads())
    return hash_bytes(out)


def cut(layout: Layout, grain: int, chunk_bytes: int = CHUNK_BYTES) -> tuple[Shard, ...]:
    """All values in chunks of about `chunk_bytes`, none empty."""
    whole = values(layout)
    count = max(1, -(-whole.size_bytes // chunk_bytes))
    return tuple(chunk for chunk in shards(layout, count, grain) if chunk.size_bytes)


def in_order(check_ins: Sequence[CheckIn]) -> list[CheckIn]:
    """As they are merged: by node. MergeError where there are none."""
    if not check_ins:
        raise MergeError("a round without check-ins has nothing to merge")
    return sorted(check_ins, key=lambda check_in: check_in.node)


def effective_weight(check_in: CheckIn) -> float:
    """A node that merged several nodes of its site counts as that many."""
    return float(check_in.weight * check_in.num_nodes)


def check_blob(layout: Layout, buffer: ReadableBuffer, node: str) -> None:
    """BlobCorrupt or ModelMismatch, naming the node, unless the bytes are a whole blob of that layout."""
    check_header(layout, buffer, node)
    if len(memoryview(buffer).cast("B")) != layout.size_bytes:
        raise BlobCorrupt(f"{node}: a header without tensors instead of a blob of {layout.size_bytes} bytes")


def check_header(layout: Layout, buffer: ReadableBuffer, node: str) -> None:
    """BlobCorrupt or ModelMismatch, naming the node, unless a header, alone or of a whole blob, is the layout's."""
    try:
        theirs = parse(buffer)
    except BlobCorrupt as exc:
        raise BlobCorrupt(f"{node}: {exc}") from exc
    check_same(layout, theirs, node)
