"""What ML and SL say to each other (docs/protocol.md 3), as values and as bytes.

No socket here: channel.py has the program's end, listener.py SL's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from swarm_hpc.errors import ProtocolError
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, MergeMethod, Platform, Progress, decode, encode

SOCKET_VARIABLE: Final = "SWARM_SL_SOCKET"
"""Environment variable in which the program finds the socket of its SL node."""
STATE_VARIABLE: Final = "SWARM_STATE_DIR"
"""Where the program keeps its own state, to go on with when its node comes back."""
PREFIX_BYTES: Final = 4
"""Every frame starts with its length, big-endian."""
LENGTH_BYTES: Final = 8
"""The length prefix of a blob's header, which `Opened.layout` leaves out."""
MAX_FRAME_BYTES: Final = 64 << 20
"""Longest frame: the tensors of the largest model that `kernels.plan` places fit several times."""
WAITING_EVERY_S: Final = 5.0
"""SL speaks at least this often while it works on an answer."""
SILENCE_S: Final = 60.0
"""ML gives up when it has heard nothing for this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a program is about to train. None means: as SL's configuration says."""

    platform: Platform
    tensors: tuple[TensorSpec, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    """Tensors that share memory with a stored one: name -> name of the stored one."""
    contract: str | None = None
    min_peers: int | None = None
    merge_method: MergeMethod | None = None
    node_weight: int | None = None
    checkin_on_train_end: FinishMode = FinishMode.SNAPSHOT
    total_epochs: int = 0
    goes_on: bool = False
    """The program took part before, and goes on from what it has saved: it comes for the final model, if need be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """The arena holds the program's parameters: merge them with those of the peers."""

    loss: float | None = None
    metric: float | None = None
    epoch: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """Training is over; the arena holds the program's last parameters."""

    mode: FinishMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Answer to Leave: the program has kept what it needs to go on later, and ends. SL answers Ok."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Answer to OpenRequest; the arena's file descriptor comes with it."""

    layout: str
    """The blob's header without its length prefix."""
    size_bytes: int
    resume: bool
    contract: str
    min_peers: int
    merge_method: MergeMethod
    node_weight: int
    round: int
    created_at: int = 0
    """When the contract was: another training under its name has another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """Answer to SyncRequest: the arena holds the merged parameters of round `round`."""

    round: int
    num_peers: int
    """How many nodes' parameters were merged; 0 where the arena still holds the program's own."""
    training_over: bool
    """The contract is completed: stop training."""
    late: bool
    """The round had closed before this node checked in, so its own parameters are not part of it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What the round cost this SL node: wall-clock seconds by phase (laps.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Answer to FinishRequest: the arena holds the final model; `merged` is its hash, empty without any."""

    round: int
    merged: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ok:
    """Answer to Progress and Saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The request failed: the name of an exception of errors.py, and its text."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """SL still works on the answer, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Save your state at the next end of a batch, and end. Comes once, at any time; open, sync and finish get no answer
    afterwards."""

    reason: str


Request: TypeAlias = OpenRequest | SyncRequest | Progress | FinishRequest | Saved
Answer: TypeAlias = Opened | Synced | Finished | Ok | Failure | Waiting | Leave

REQUESTS: Final[Mapping[str, type]] = {
    "open": OpenRequest,
    "sync": SyncRequest,
    "progress": Progress,
    "finish": FinishRequest,
    "saved": Saved,
}
ANSWERS: Final[Mapping[str, type]] = {
    "opened": Opened,
    "synced": Synced,
    "finished": Finished,
    "ok": Ok,
    "error": Failure,
    "waiting": Waiting,
    "leave": Leave,
}
_TYPES: Final = {cls: name for name, cls in ({**REQUESTS, **ANSWERS}).items()}


def finite(number: float | None) -> float | None:
    """A figure as it may travel: NaN and infinity, which JSON does not have, are unknown."""
    return number if number is not None and math.isfinite(number) else None


def pack(message: Request | Answer) -> bytes:
    """A message as a frame, length included. ProtocolError where it would be too long."""
    fields = encode(message)
    if isinstance(message, OpenRequest):
        fields["tensors"] = [[spec.name, spec.dtype, list(spec.shape)] for spec in message.tensors]
    payload = json.dumps({"type": _TYPES[type(message)]} | fields, separators=(",", ":"), allow_nan=False).encode()
    return check_length(len(payload)).to_bytes(PREFIX_BYTES, "big") + payload


def check_length(length: int) -> int:
    """The length of a frame, or ProtocolError where no frame has it."""
    if not 2 <= length <= MAX_FRAME_BYTES:
        raise ProtocolError(f"channel: a frame of {length} bytes; frames have 2 to {MAX_FRAME_BYTES}")
    return length


def unpack(payload: bytes | bytearray, kinds: Mapping[str, type]) -> Any:
    """The message in a frame (without its length), one of `kinds`; ProtocolError on anything else."""
    try:
        fields = json.loads(payload)
    # RecursionError: a deep nest of brackets
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"channel: a frame is not JSON: {exc}") from exc
    kind = fields.pop("type", None) if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ProtocolError(f"channel: a frame of type {str(kind)[:40]!r}; expected one of {', '.join(kinds)}")
    if kind == "open":
        fields["tensors"] = _tensors(fields.get("tensors"))
    return decode(kinds[kind], fields)


def _tensors(rows: object) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise ProtocolError("channel: open: tensors must be a list of [name, dtype, shape]")
    return [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in rows]
