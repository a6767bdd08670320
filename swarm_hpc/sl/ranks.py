"""What the ranks of one job say to each other before, during and after a round, and what follows from it. Pure.

Rank 0 speaks for the site: the others tell it what their programs want, and it answers once all have. job.py carries
the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias

from swarm_hpc.errors import ConfigError, ContractMismatch, ProtocolError, SwarmError, by_name
from swarm_hpc.kernels.plan import Layout, check_same, parse
from swarm_hpc.records import ContractSpec, FinishMode, Merge, decode, encode
from swarm_hpc.sl.frames import LENGTH_BYTES, Failure, Finished, Synced, SyncRequest

MAX_WEIGHT: Final = 100


class Want(StrEnum):
    """What a program asks of its rank."""

    OPEN = "open"
    SYNC = "sync"
    FINISH = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A rank to rank 0: its program waits for this. Every wish has one outcome."""

    want: Want
    weight: int = 0
    """Of its parameters in the merge within the job; 0: they do not count."""
    loss: float | None = None
    metric: float | None = None
    used_cpu_s: float = 0.0
    """CPU time of the program so far."""
    mode: FinishMode | None = None
    spec: ContractSpec | None = None
    """open: the contract that its settings ask for."""
    layout: str = ""
    """open: its model, as in `Opened`."""
    error: Failure | None = None
    """It cannot: nobody can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Rank 0 to all: merge now."""

    merge: Merge
    weights: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Rank 0 to all: what became of their wishes. One of the first four is set."""

    opened_round: int | None = None
    synced: Synced | None = None
    finished: Finished | None = None
    error: Failure | None = None
    created_at: int = 0
    """Of the contract that was opened."""
    share: bool = False
    """Rank 0's parameters go to all, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life, and what the rank waits for."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The job cannot go on."""

    error: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A rank was told to leave: all leave. From rank 0 to all, and from another to it."""

    reason: str
    warned: bool
    """The job is to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """A rank to rank 0: it has nothing more to do. Rank 0 to all: nobody has."""


Message: TypeAlias = Wish | Go | Outcome | Beat | Broken | Leaving | Bye
_KINDS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in (Wish, Go, Outcome, Beat, Broken, Leaving, Bye)}


def pack(message: Message) -> bytes:
    """A message as bytes."""
    return json.dumps({"type": type(message).__name__} | encode(message), allow_nan=False).encode()


def unpack(data: bytes) -> Message:
    """The message in such bytes; ProtocolError where there is none."""
    try:
        fields = json.loads(data)
        kind = _KINDS[fields.pop("type")]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ProtocolError("ranks: a rank of the job sent what is no message: do all run the same version?") from exc
    message: Message = decode(kind, fields)
    return message


def failure(error: SwarmError, who: str = "") -> Failure:
    """An error as it travels; `who` had it."""
    return Failure(name=type(error).__name__, detail=f"{who}: {error}" if who else str(error))


def raised(found: Failure) -> SwarmError:
    """The error that travelled."""
    return by_name(found.name)(found.detail)


def check_wishes(wishes: Sequence[Wish]) -> None:
    """The first rank's error is everybody's."""
    for wish in wishes:
        if wish.error is not None:
            raise raised(wish.error)


def check_openings(wishes: Sequence[Wish], layout: Layout) -> None:
    """All programs of a job must want the same contract with the same model.

    ProtocolError, ContractMismatch or ModelMismatch names the rank and what differs; ConfigError a method
    that takes more ranks.
    """
    check_wishes(wishes)
    for rank, wish in enumerate(wishes):
        if wish.want is not Want.OPEN or wish.spec is None or wishes[0].spec is None:
            raise ProtocolError(f"rank {rank} is in the middle of a training that rank 0 begins: restart the whole job")
        text = wish.layout.encode()
        check_same(layout, parse(len(text).to_bytes(LENGTH_BYTES, "little") + text), f"rank {rank}")
        ours, theirs = wishes[0].spec.settings(), wish.spec.settings()
        for setting, value in ours.items():
            if theirs[setting] != value:
                raise ContractMismatch(
                    f"rank {rank} asks for {setting} {theirs[setting]}, rank 0 for {value}; "
                    "all ranks of a job train together"
                )
    assert wishes[0].spec is not None, "every rank's has been looked at"
    merge = wishes[0].spec.merge
    if len(wishes) < merge.least_peers:
        raise ConfigError(
            f"merge.method: the ranks of a job (ranks=mpi) merge among themselves as the nodes do, and {merge} takes "
            f"{merge.least_peers} of them, here are {len(wishes)}: start more, or set ranks=single"
        )


def check_modes(wishes: Sequence[Wish]) -> None:
    """ConfigError where programs that have finished want different modes of that."""
    modes = {wish.mode: rank for rank, wish in enumerate(wishes) if wish.mode is not None}
    if len(modes) > 1:
        told = ", ".join(f"{mode} at rank {rank}" for mode, rank in modes.items())
        raise ConfigError(f"checkin_on_train_end: {told}; all ranks of a job must have the same")


def is_over(wishes: Sequence[Wish]) -> bool:
    """Whether the programs of all ranks have finished their training."""
    return all(wish.want is Want.FINISH for wish in wishes)


def standing(weights: Sequence[int]) -> tuple[int, int]:
    """(weight, num_nodes) of the site's check-in: the mean weight of the ranks that count, and their number.

    A merge counts a check-in as weight x num_nodes, which is the sum of the ranks' weights, but for rounding.
    """
    present = [weight for weight in weights if weight > 0]
    mean = (2 * sum(present) + len(present)) // (2 * len(present))
    return min(max(mean, 1), MAX_WEIGHT), len(present)


def combined(wishes: Sequence[Wish], request: SyncRequest) -> SyncRequest:
    """Rank 0's request with the loss and metric of all ranks: their means by weight, of those that are known."""
    return replace(
        request,
        loss=_mean([(wish.loss, wish.weight) for wish in wishes]),
        metric=_mean([(wish.metric, wish.weight) for wish in wishes]),
    )


def _mean(figures: Sequence[tuple[float | None, int]]) -> float | None:
    known: list[tuple[float, int]] = [(value, weight) for value, weight in figures if value is not None and weight > 0]
    if not known:
        return None
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)


def header_text(layout: Layout) -> str:
    """A layout as it travels."""
    return layout.header[LENGTH_BYTES:].decode()
