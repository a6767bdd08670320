"""What a node does next in a round: a pure decision from what the ledger says. participant.py acts on it.

No clock, no socket. The ledger alone knows what is closable and who may replace a leader: its rules are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from swarm_hpc.records import (
    ContractState,
    FinishMode,
    Participant,
    Round,
    RoundState,
    TrainingContract,
)

LOOK_AGAIN_S: Final = 30.0
"""The longest wait without looking at the ledger again."""
_SOON_S: Final = 0.5
"""The shortest wait for a deadline that the ledger counts in whole seconds."""


@dataclass(frozen=True, slots=True)
class CheckIn:
    """State the hash of the node's parameters."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Try to lead: the round can close, or its leader can be replaced."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Lead: merge the blobs of the check-ins and publish the result."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Be away: the blob of the own check-in is lost, so the leader, if it has no copy, has to drop this node."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again when something has happened, after `at_most_s` at the latest."""

    reason: str
    at_most_s: float


@dataclass(frozen=True, slots=True)
class Take:
    """The round has a result. `late`: this node's parameters are not part of it."""

    merged: str
    late: bool


@dataclass(frozen=True, slots=True)
class Over:
    """The contract is completed, and this round will have no result."""


Action: TypeAlias = CheckIn | Claim | Merge | Withdraw | Wait | Take | Over


def decide(
    view: Round, contract: TrainingContract, me: str, blob: str | None, *, standing: bool = False, lost: bool = False
) -> Action:
    """What node `me` does next about a round.

    `blob` is the hash of the parameters it wants in the round; None: it only waits for a result. A node that is
    `standing` has finished its training: it hands its blob in once others have opened the round. `lost`: the blob of
    its check-in is gone.
    """
    if view.state is RoundState.PUBLISHED:
        return Take(view.merged, late=not is_checked_in(view, me))
    if contract.state is ContractState.COMPLETED:
        return Over()
    if view.state is RoundState.CLAIMED:
        present = any(participant.node == me and participant.active for participant in contract.participants)
        return Withdraw() if lost and present else _while_claimed(view, me)
    if standing and not view.check_ins:
        return Wait(why_standing(contract), LOOK_AGAIN_S)
    if blob is not None and not is_checked_in(view, me, blob):
        return CheckIn()
    if view.closable and is_checked_in(view, me):
        return Claim()
    return Wait(_why_open(view, contract), _at_most(view.closes_in_s))


def is_checked_in(view: Round, me: str, blob: str | None = None) -> bool:
    """Whether the node has checked in, with that blob if one is given."""
    return any(check_in.node == me and blob in (None, check_in.blob) for check_in in view.check_ins)


def why_standing(contract: TrainingContract) -> str:
    """Why a node that has finished its training still waits."""
    active = [participant for participant in contract.participants if participant.active]
    training = [participant.node for participant in active if participant.finished is None]
    return f"{contract.spec.name}: {len(training)} of {len(active)} nodes still train: {', '.join(training) or 'none'}"


def _while_claimed(view: Round, me: str) -> Action:
    if view.leader == me:
        return Merge()
    if view.orphaned or (view.replaceable and is_checked_in(view, me)):
        return Claim()
    left = view.leader_due_in_s
    due = "" if left is None else f" ({max(left, 0)} s left)" if left >= 0 else " (overdue)"
    reason = f"{_name(view)}: {view.leader} merges the parameters of {len(view.check_ins)} peers{due}"
    return Wait(reason, _at_most(left))


def _why_open(view: Round, contract: TrainingContract) -> str:
    have = f"{_name(view)}: {len(view.check_ins)} of {view.num_active} peers checked in"
    checked_in = {check_in.node for check_in in view.check_ins}
    missing = [p.node for p in contract.participants if _is_waited_for(p) and p.node not in checked_in]
    if len(view.check_ins) >= view.min_peers:
        closing = f"closes in {view.closes_in_s or 0} s"
        return f"{have}; {closing} without {', '.join(missing)}" if missing else f"{have}; closing"
    lacking = f"{have} (min_peers {view.min_peers})"
    if view.num_active < view.min_peers:
        more = view.min_peers - view.num_active
        lacking = f"{lacking}; start {more} more SL node{'s' if more > 1 else ''}"
    return f"{lacking}; waiting for {', '.join(missing)}" if missing else lacking


def _is_waited_for(participant: Participant) -> bool:
    return participant.active and participant.finished is not FinishMode.INACTIVE


def _name(view: Round) -> str:
    return f"{view.contract} round {view.number}"


def _at_most(deadline_in_s: int | None) -> float:
    if deadline_in_s is None:
        return LOOK_AGAIN_S
    return min(max(float(deadline_in_s), _SOON_S), LOOK_AGAIN_S)
