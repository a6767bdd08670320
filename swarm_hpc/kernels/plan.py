"""Where each tensor of a model lies in a blob, and by which rule each stretch of it is merged. Pure: no memory.

A blob is a safetensors file in one canonical form (docs/protocol.md 2.2), so that equal models have equal headers and
a whole dtype is one contiguous run of bytes. What does not have exactly that form is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Any, Final, TypeAlias

from blake3 import blake3

from swarm_hpc.errors import BlobCorrupt, ConfigError, ModelMismatch

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview

WIDTHS: Final[Mapping[str, int]] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "U16": 2,
    "BOOL": 1,
    "I8": 1,
    "U8": 1,
}
"""Bytes per element of every dtype that can be merged, by its safetensors code."""

ALIGNMENT: Final = 64
"""The data starts on a multiple of this: a cache line, and the widest vector register."""
MAX_HEADER_BYTES: Final = 4 << 20
"""Longest header, padding included: some 30 000 tensors. To parse a hostile one takes up to 30 times its memory."""
MAX_NAME_CHARS: Final = 512
MAX_DIMENSIONS: Final = 64
MAX_DATA_BYTES: Final = 1 << 48

_PREFIX_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_VERSION: Final = ("swarm_hpc", "1")
_ALIAS: Final = "alias:"
_NO_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[^][{}"]++', re.DOTALL)
_BRACKETS: Final = re.compile(rb"\{(?:\{(?:\[\])*+\})*+\}")
"""What is left of a header's JSON without strings, numbers and separators: {{[][]}{[][]}...{}}."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values. `dtype` is a safetensors code, one of `WIDTHS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and its place: byte offsets in the whole blob, header included."""

    spec: TensorSpec
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a blob: everything but the values. Two layouts are equal exactly where their headers are."""

    tensors: tuple[Placed, ...]
    """In the order of the blob: wider dtypes first, then by dtype code, then by name."""
    aliases: tuple[tuple[str, str], ...]
    """(name, name of the stored tensor) of tensors that share memory with a stored one, by name."""
    header: bytes
    """The blob's first bytes: length prefix, JSON, padding."""
    size_bytes: int
    """Of the whole blob."""


class Rule(StrEnum):
    """How the values of the peers become one: by the contract's method, the largest, or the first peer's."""

    MERGE = "merge"
    MAX = "max"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Segment:
    """All tensors of one dtype: a contiguous run of bytes (offsets in the whole blob), never empty."""

    dtype: str
    rule: Rule
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A stretch of a blob's values (byte offsets in the whole blob), which one peer merges. May be empty."""

    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.stop - self.start


def place(tensors: Iterable[TensorSpec], aliases: Mapping[str, str] | None = None) -> Layout:
    """Lay out a model. The order of `tensors` does not matter; `aliases` maps a shared tensor to the stored one.

    ConfigError names the tensor that cannot be stored: unknown dtype (complex, float8, ...), name twice, bad shape.
    """
    ordered = sorted(tensors, key=_checked)
    names = {spec.name for spec in ordered}
    if len(names) != len(ordered):
        raise ConfigError(f"tensor {_first_repeated(ordered)!r} is there twice")
    pairs = tuple(sorted((aliases or {}).items()))
    for alias, stored in pairs:
        _check_name(alias)
        if alias in names or stored not in names:
            raise ConfigError(
                f"tensor {alias!r} is an alias of {stored!r}: the first must not be stored, the second must"
            )
    offsets = [0, *accumulate(map(_size_bytes, ordered))]
    if offsets[-1] > MAX_DATA_BYTES:
        raise ConfigError(f"the model has {offsets[-1]} bytes; at most {MAX_DATA_BYTES} can be placed")
    spans = list(pairwise(offsets))
    header = _header(ordered, spans, pairs)
    if len(header) > MAX_HEADER_BYTES:
        raise ConfigError(f"the model's header has {len(header)} bytes; at most {MAX_HEADER_BYTES} can be placed")
    base = len(header)
    placed = tuple(Placed(spec, base + start, base + stop) for spec, (start, stop) in zip(ordered, spans, strict=True))
    return Layout(placed, pairs, header, base + offsets[-1])


def parse(header: ReadableBuffer) -> Layout:
    """The layout of a blob from an untrusted source: its header alone, or the whole blob.

    BlobCorrupt, with the reason, on whatever `place` would not have written byte for byte, and on a blob that is too
    short or too long.
    """
    raw = memoryview(header).cast("B")
    text = _header_text(raw)
    # Before json sees it: json recurses, and a deep nest of brackets ends the process where the limit was raised.
    if not _BRACKETS.fullmatch(_NO_BRACKET.sub(b"", text)):
        raise BlobCorrupt("no blob of swarm_hpc: the header is no JSON object of tensors")
    try:
        # in UTF-8 alone: of bytes, json would guess another encoding, in which other brackets may be structure
        words = text.decode()
        fields = json.loads(words, object_pairs_hook=_object, parse_float=_no_number, parse_constant=_no_number)
        layout = _layout(fields)
    # ConfigError, JSONDecodeError and UnicodeDecodeError are ValueErrors
    except ValueError as exc:
        raise BlobCorrupt(f"no blob of swarm_hpc: {exc}") from exc
    if raw[: len(layout.header)] != layout.header:
        raise BlobCorrupt(f"no blob of swarm_hpc: {_first_difference(fields, layout)}")
    if len(raw) not in (len(layout.header), layout.size_bytes):
        raise BlobCorrupt(f"the blob has {len(raw)} bytes; its header speaks of {layout.size_bytes}")
    return layout


def model_hash(layout: Layout) -> str:
    """BLAKE3 of the header: what a training contract knows its model by."""
    return blake3(layout.header).hexdigest()


def check_same(ours: Layout, theirs: Layout, who: str) -> None:
    """ModelMismatch names the first tensor, by name, that `who` lacks, has extra, or has in another shape or dtype."""
    if ours.header == theirs.header:
        return
    here = {placed.spec.name: str(placed.spec) for placed in ours.tensors}
    there = {placed.spec.name: str(placed.spec) for placed in theirs.tensors}
    here |= {name: f"shared with {stored!r}" for name, stored in ours.aliases}
    there |= {name: f"shared with {stored!r}" for name, stored in theirs.aliases}
    for name in sorted(here.keys() | there.keys()):
        if name not in there:
            raise ModelMismatch(f"{who}: tensor {name!r} is missing; here it is {here[name]}")
        if name not in here:
            raise ModelMismatch(f"{who}: tensor {name!r} is extra ({there[name]}); it is not in the model here")
        if here[name] != there[name]:
            raise ModelMismatch(f"{who}: tensor {name!r} is {there[name]}; here it is {here[name]}")
    raise AssertionError("two canonical headers differ, but no tensor does")


def rule(dtype: str) -> Rule:
    """Floating point is merged, integers (counters) take the largest, booleans the first peer's."""
    if dtype in ("F64", "F32", "F16", "BF16"):
        return Rule.MERGE
    return Rule.FIRST if dtype == "BOOL" else Rule.MAX


def segments(layout: Layout) -> tuple[Segment, ...]:
    """The runs of one dtype, in the order of the blob; dtypes without any element are left out."""
    runs = []
    for dtype, group in groupby(layout.tensors, key=lambda placed: placed.spec.dtype):
        members = list(group)
        if members[0].start < members[-1].stop:
            runs.append(Segment(dtype, rule(dtype), members[0].start, members[-1].stop))
    return tuple(runs)


def values(layout: Layout) -> Shard:
    """All of a blob but its header."""
    return Shard(len(layout.header), layout.size_bytes)


def shards(layout: Layout, count: int, grain: int) -> tuple[Shard, ...]:
    """Cut all values into `count` shards of about the same size, between elements.

    Within a segment, shards begin at multiples of `grain` elements from its start.
    """
    whole = values(layout)
    targets = (whole.start + whole.size_bytes * number // count for number in range(1, count))
    cuts = [whole.start, *(_cut(layout, target, grain) for target in targets), whole.stop]
    return tuple(Shard(start, stop) for start, stop in pairwise(cuts))


def _cut(layout: Layout, target: int, grain: int) -> int:
    """The nearest place to `target` where a shard may begin."""
    for segment in segments(layout):
        if segment.start <= target < segment.stop:
            step = grain * WIDTHS[segment.dtype]
            below = segment.start + (target - segment.start) // step * step
            above = min(below + step, segment.stop)
            return below if target - below <= above - target else above
    return target


def clipped(segment: Segment, shard: Shard) -> Segment | None:
    """The part of the segment that lies in the shard; None where there is none."""
    start, stop = max(segment.start, shard.start), min(segment.stop, shard.stop)
    return replace(segment, start=start, stop=stop) if start < stop else None


def _checked(spec: TensorSpec) -> tuple[int, str, str]:
    """The sort key of a tensor, once nothing speaks against storing it."""
    _check_name(spec.name)
    if spec.dtype not in WIDTHS:
        raise ConfigError(f"tensor {spec.name!r} has dtype {spec.dtype!r}; only {', '.join(WIDTHS)} can be merged")
    if len(spec.shape) > MAX_DIMENSIONS:
        raise ConfigError(
            f"tensor {spec.name!r} has {len(spec.shape)} dimensions; at most {MAX_DIMENSIONS} can be placed"
        )
    if not all(isinstance(size, int) and 0 <= size <= MAX_DATA_BYTES for size in spec.shape):
        raise ConfigError(f"tensor {spec.name!r} has the impossible shape {list(spec.shape)}")
    # numpy refuses shapes whose other sizes overflow even where one of them is 0
    if prod(max(size, 1) for size in spec.shape) > MAX_DATA_BYTES:
        raise ConfigError(f"tensor {spec.name!r} is too large: {list(spec.shape)}")
    return -WIDTHS[spec.dtype], spec.dtype, spec.name


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARS or name == _METADATA:
        raise ConfigError(
            f"{name[:40]!r} ({len(name)} characters) cannot name a tensor: 1 to {MAX_NAME_CHARS}, not {_METADATA}"
        )
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise ConfigError(f"{name!r} cannot name a tensor: it is no valid Unicode")


def _first_repeated(ordered: list[TensorSpec]) -> str:
    seen: set[str] = set()
    for spec in ordered:
        if spec.name in seen:
            return spec.name
        seen.add(spec.name)
    raise AssertionError("no name is repeated")


def _size_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * WIDTHS[spec.dtype]


def _header(ordered: list[TensorSpec], spans: list[tuple[int, int]], aliases: tuple[tuple[str, str], ...]) -> bytes:
    fields: dict[str, object] = {
        spec.name: {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": span}
        for spec, span in zip(ordered, spans, strict=True)
    }
    fields[_METADATA] = dict([_VERSION]) | {_ALIAS + alias: stored for alias, stored in aliases}
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(_PREFIX_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(_PREFIX_BYTES, "little") + text


def _header_text(raw: memoryview) -> bytes:
    if len(raw) < _PREFIX_BYTES:
        raise BlobCorrupt(f"the blob has {len(raw)} bytes: too short for a header")
    length = int.from_bytes(raw[:_PREFIX_BYTES], "little")
    if _PREFIX_BYTES + length > min(len(raw), MAX_HEADER_BYTES):
        raise BlobCorrupt(
            f"the header speaks of {length} bytes; the blob has {len(raw)}, at most {MAX_HEADER_BYTES} are read"
        )
    return bytes(raw[_PREFIX_BYTES : _PREFIX_BYTES + length])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text[:40]} is no whole number")


def _layout(fields: dict[str, Any]) -> Layout:
    """What `place` makes of the tensors and aliases in a decoded header; ValueError where they are none."""
    metadata = fields.get(_METADATA)
    if not isinstance(metadata, dict) or _VERSION not in metadata.items():
        raise ValueError(f"{_METADATA} lacks {_VERSION[0]}={_VERSION[1]}")
    aliases = {}
    for key, stored in metadata.items():
        if key == _VERSION[0]:
            continue
        if not key.startswith(_ALIAS) or not isinstance(stored, str):
            raise ValueError(f"{_METADATA} holds {key[:40]!r}")
        aliases[key.removeprefix(_ALIAS)] = stored
    return place((_spec(name, field) for name, field in fields.items() if name != _METADATA), aliases)


def _spec(name: str, field: object) -> TensorSpec:
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:40]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:40]!r} has a dtype, shape or data_offsets of the wrong type")
    return TensorSpec(name, dtype[:40], tuple(shape))


def _whole_numbers(value: object) -> bool:
    # bool is an int to isinstance
    return isinstance(value, list) and all(type(item) is int for item in value)


def _first_difference(fields: dict[str, Any], layout: Layout) -> str:
    base = len(layout.header)
    for placed in layout.tensors:
        offsets = fields[placed.spec.name]["data_offsets"]
        if offsets != [placed.start - base, placed.stop - base]:
            return f"tensor {placed.spec.name!r} is not where the order puts it, or has another size than its shape"
    return "the header is not in the canonical form"
