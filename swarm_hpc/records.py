"""The values that travel between files, over the wire and from the ledger. No behaviour beyond checks and names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from swarm_hpc.errors import ConfigError, ProtocolError

T = TypeVar("T")

LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""What a site, node, contract or task may be called: letters, digits, dot, underscore, hyphen; at most 63."""
IMAGE_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
"""How a container image is named beyond doubt: the SHA-256 of its SIF file."""


class Kind(StrEnum):
    """What a node is."""

    SN = "sn"
    SL = "sl"
    ML = "ml"
    SWOP = "swop"
    SWCI = "swci"
    UI = "ui"
    LICENSE = "license"


class Platform(StrEnum):
    """The framework of a training contract: one per contract."""

    PYTORCH = "pytorch"
    KERAS = "keras"
    HUGGINGFACE = "huggingface"


class MergeMethod(StrEnum):
    """How floating-point tensors of the peers become one."""

    MEAN = "mean"
    COORDMEDIAN = "coordmedian"
    GEOMEDIAN = "geomedian"
    TRIMMEDMEAN = "trimmedmean"
    KRUM = "krum"
    MULTIKRUM = "multikrum"
    CENTREDCLIP = "centredclip"


class MergePlan(StrEnum):
    """Who merges a round: its leader all of it, or each peer one shard."""

    LEADER = "leader"
    SHARDED = "sharded"


class Wire(StrEnum):
    """How parameters travel: as they are, or as differences from the round before, rounded (kernels/deltas.py)."""

    EXACT = "exact"
    BF16 = "bf16"
    INT8 = "int8"


class FinishMode(StrEnum):
    """What a node that has finished its training still contributes to later rounds."""

    INACTIVE = "inactive"
    SNAPSHOT = "snapshot"
    ACTIVE = "active"


class RoundState(StrEnum):
    """OPEN takes check-ins; CLAIMED has a leader that merges; PUBLISHED has a result."""

    OPEN = "open"
    CLAIMED = "claimed"
    PUBLISHED = "published"


class ContractState(StrEnum):
    """TRAINING takes rounds; COMPLETED has its final model."""

    TRAINING = "training"
    COMPLETED = "completed"


class TaskType(StrEnum):
    """What SWOP nodes can be told to do; ROOT_TASK is the prerequisite of first tasks and does nothing."""

    ROOT_TASK = "ROOT_TASK"
    RUN_SWARM = "RUN_SWARM"
    MAKE_USER_CONTAINER = "MAKE_USER_CONTAINER"
    MAKE_SWARM_USER_CONTENT = "MAKE_SWARM_USER_CONTENT"
    PULL_IMAGE = "PULL_IMAGE"


class TaskState(StrEnum):
    """How far a taskrunner is with its task, and how far each of its peers is."""

    IDLE = "IDLE"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    RESET = "RESET"
    """Of a past run alone: it was given up, by a reset of the taskrunner."""


@dataclass(frozen=True, slots=True, order=True)
class NodeName:
    """A node's name, `site/kind/name`: the path of its SPIFFE ID."""

    site: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.site}/{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> NodeName:
        """`alpha/sl/sl-1` as a NodeName; ValueError says what is wrong."""
        parts = text.split("/")
        if len(parts) != 3:
            raise ValueError(f"{text!r} is not a node name: expected site/kind/name, such as alpha/sl/sl-1")
        site, kind, name = parts
        for part in (site, name):
            if not LABEL.fullmatch(part):
                raise ValueError(f"{part!r} in {text!r}: use letters, digits, '.', '_', '-', at most 63 characters")
        if kind not in set(Kind):
            raise ValueError(f"{kind!r} in {text!r} is not a kind of node: {', '.join(Kind)}")
        return cls(site, Kind(kind), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """An institution on the ledger. `account` is the Ethereum address that speaks for it."""

    name: str
    account: str
    endpoint: str
    ca_fingerprint: str
    consensus_key: str
    """Ed25519 public key that its CometBFT signs with (64 hex digits); empty on the embedded ledger."""
    p2p_id: str
    """ID of its CometBFT's p2p key (40 hex digits); empty on the embedded ledger."""
    active: bool
    joined_at: int
    announced: int
    """How often its SN has said on the ledger that it is there."""
    lost: bool = False
    """More than half of the other sites miss its SN: any of them may mark its nodes away, until it announces itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node on the ledger. A higher `incarnation` fences off every lower one."""

    name: str
    endpoint: str
    instance: str
    incarnation: int
    active: bool
    since: int


MERGE_PARAMETERS: Final[Mapping[MergeMethod, tuple[str, ...]]] = {
    MergeMethod.MEAN: (),
    MergeMethod.COORDMEDIAN: (),
    MergeMethod.GEOMEDIAN: (),
    MergeMethod.TRIMMEDMEAN: ("trim",),
    MergeMethod.KRUM: ("num_byzantine",),
    MergeMethod.MULTIKRUM: ("num_byzantine", "num_selected"),
    MergeMethod.CENTREDCLIP: ("clip_radius", "clip_iterations"),
}
"""The fields of `Merge` that a method takes."""
MAX_PEERS: Final = 256
"""Participants of a training contract (Training.vy)."""
MAX_CLIP_ITERATIONS: Final = 1000
MAX_WHOLE_EVERY: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """How the peers' parameters become one: a method with its parameters.

    ConfigError, naming the field, where a value is out of its range.
    """

    method: MergeMethod = MergeMethod.MEAN
    trim: float = 0.1
    """trimmedmean: the share of the whole weight that is dropped at each end, from 0 to below 0.5."""
    num_byzantine: int = 1
    """krum, multikrum: how many peers may send anything whatever."""
    num_selected: int = 0
    """multikrum: how many peers are averaged; 0: all but num_byzantine."""
    clip_radius: float = 1.0
    """centredclip: how far one peer can pull, in multiples of the peers' spread."""
    clip_iterations: int = 5
    plan: MergePlan = MergePlan.LEADER
    """Who merges: the round's leader all of it, or each peer one shard. The result is the same, bit by bit."""
    wire: Wire = Wire.EXACT
    """How parameters travel. bf16: half the bytes; int8: a quarter to the leader, half from it. What a node's rounding
    leaves out is added to what it sends in the next round."""
    whole_every: int = 10
    """bf16, int8: every so many rounds, from the first on, the result travels as it is. Who comes late starts there, so
    results since then are kept."""

    def __post_init__(self) -> None:
        for name in ("trim", "clip_radius"):
            # one way to write each number: 1 as 1.0, -0.0 as 0.0
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"trim: {self.trim} must be at least 0 and below 0.5: that much is dropped at each end")
        if not (self.clip_radius > 0 and math.isfinite(self.clip_radius)):
            raise ConfigError(f"clip_radius: {self.clip_radius} must be greater than 0, and finite")
        bounds = {"num_byzantine": (0, MAX_PEERS), "num_selected": (0, MAX_PEERS)}
        bounds |= {"clip_iterations": (1, MAX_CLIP_ITERATIONS), "whole_every": (1, MAX_WHOLE_EVERY)}
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside {least}-{most}")
        if self.wire is not Wire.EXACT and self.plan is not MergePlan.LEADER:
            raise ConfigError(f"wire: {self.wire} needs plan=leader: shards travel as they are, with wire=exact")

    def __str__(self) -> str:
        """As the ledger has it: the method, the parameters that it takes, then plan and wire where not as usual."""
        words = [f"{name}={getattr(self, name)}" for name in MERGE_PARAMETERS[self.method]]
        if self.plan is not MergePlan.LEADER:
            words.append(f"plan={self.plan}")
        if self.wire is not Wire.EXACT:
            words += [f"wire={self.wire}", f"whole_every={self.whole_every}"]
        return " ".join([self.method, *words])

    @classmethod
    def parse(cls, text: str) -> Merge:
        """The merge that is written so, all other fields at their defaults; ProtocolError where str() writes it not."""
        method, *words = text.split(" ")
        pairs = [word.partition("=") for word in words]
        merge = decode(cls, {name: value for name, _, value in pairs} | {"method": method})
        if str(merge) != text:
            raise ProtocolError(f"merge: {text!r} is not how a merge is written; this one is {str(merge)!r}")
        return merge

    @property
    def least_peers(self) -> int:
        """How many peers a round must have to be merged."""
        if self.method not in (MergeMethod.KRUM, MergeMethod.MULTIKRUM):
            return 1
        num_selected = self.num_selected if self.method is MergeMethod.MULTIKRUM else 1
        return max(self.num_byzantine + 3, num_selected)

    def chain(self, number: int) -> range:
        """The rounds whose published blobs make up the result of round `number`, from one that is whole on."""
        if self.wire is Wire.EXACT:
            return range(number, number + 1)
        return range(number - (number - 1) % self.whole_every, number + 1)

    def agreed(self) -> Merge:
        """The same without what its method does not take: two are equal where they merge the same way."""
        return Merge.parse(str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractSpec:
    """What a training contract is created with; the same for every participant."""

    name: str
    platform: Platform
    merge: Merge
    min_peers: int
    quorum_wait_s: int
    leader_timeout_s: int
    model: str
    """BLAKE3 of the model's layout: the names, dtypes and shapes of its tensors (64 hex digits)."""
    image: str = ""
    """Digest (sha256:...) of the container image that participants must run, or empty."""

    def settings(self) -> dict[str, Any]:
        """All that is agreed on, by the settings' names: `merge.trim` and the like are entries of their own."""
        flat: dict[str, Any] = {}
        for name, value in encode(self).items():
            flat |= {f"merge.{each}": part for each, part in value.items()} if name == "merge" else {name: value}
        return flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A node in a training contract. An inactive one is away: rounds do not wait for it."""

    node: str
    active: bool
    finished: FinishMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingContract:
    """A training contract as the ledger has it. `round` is the number of the round now open or claimed (from 1)."""

    spec: ContractSpec
    state: ContractState
    round: int
    created_at: int
    participants: tuple[Participant, ...]

    @property
    def newest_chain(self) -> range:
        """`Merge.chain` of the newest result; of round 1 where there is none yet."""
        return self.spec.merge.chain(max(1, self.round - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredContract:
    """A name that was set aside for a training contract; the first node that takes part says what it is."""

    name: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a node used since its last check-in, and where."""

    job: str = ""
    """ID of its Slurm job, or empty."""
    image: str = ""
    """Digest (sha256:...) of the container image that its program runs in, or empty."""
    cpu_s: float = 0.0
    """CPU time of its program."""
    gpu_s: float = 0.0
    """Time of the GPUs that its job held, used or not: their number times the seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn:
    """A node's statement «my parameters for this round have this hash»."""

    node: str
    blob: str
    """BLAKE3 of the parameters' blob (64 hex digits)."""
    weight: int
    """The node's weight, 1-100."""
    num_nodes: int = 1
    """How many nodes were merged into this blob inside the site."""
    loss: float | None = None
    metric: float | None = None
    epoch: int = 0
    resources: Resources = field(default_factory=Resources)
    at: int = 0
    """Ledger time (s since 1970) of the check-in; 0 until it is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round as the ledger sees it now. The ledger alone decides what is closable or replaceable."""

    contract: str
    number: int
    state: RoundState
    check_ins: tuple[CheckIn, ...]
    num_active: int
    """Participants that the round waits for."""
    min_peers: int
    closable: bool
    closes_in_s: int | None
    """Seconds until the wait for stragglers is over; None while below min_peers, or not open."""
    leader: str
    leader_due_in_s: int | None
    """Seconds that the leader has left; None unless claimed. May be negative."""
    replaceable: bool
    """Claimed, and the leader is overdue or away: a participant may claim."""
    orphaned: bool
    """Replaceable, and nobody who checked in is there to lead: a participant without a check-in may claim."""
    merged: str
    """BLAKE3 of the merged blob; empty until published."""
    published_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a node that merges a round in shards tells the others: the blobs of one step."""

    of: str
    """Which check-ins are merged: BLAKE3 of them (sl/shards.py)."""
    step: int
    """From 0; below 16."""
    blobs: tuple[str, ...]
    """One for each peer, in sorted order, or a single one for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task on the ledger. Only a finalised one can be assigned; it never changes again."""

    name: str
    type: TaskType
    author: str
    prereq: str
    """Name of a finalised task: ROOTTASK where nothing has to come first."""
    outcome: str
    """What the task makes: an image's or a volume's name."""
    finalised: bool
    created_at: int
    site: str
    """The site whose operator created it, as its own SN vouches for; empty for ROOTTASK."""
    body: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskrunnerPeer:
    """A SWOP node in a taskrunner, and what it reported about the current assignment."""

    node: str
    num_sl: int
    """How many SL nodes it can start."""
    state: TaskState
    text: str
    num_done: int
    """RUN_SWARM: how many of its SL nodes have done their part."""
    at: int
    """Ledger time of its report; 0 where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taskrunner:
    """A group of SWOP nodes that does one task at a time."""

    name: str
    state: TaskState
    task: str
    """Name of the task at hand or done last; empty when nothing was assigned since the reset."""
    counts_sl: bool
    """num_peers counts SL nodes (RUN_SWARM); else SWOP nodes."""
    num_peers: int
    target: str
    """The only node that the task is for; empty: any."""
    assigned_at: int
    ended_at: int
    run: int
    """Number of the run (from 1) that `task` and all the rest is about; 0: nothing was assigned since the reset."""
    num_runs: int
    version: int
    """Grows with every change: ask for what is newer."""
    reachable: bool
    """False where the peers that have not failed are too few for num_peers, though some of them may be at work."""
    peers: tuple[TaskrunnerPeer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """One assignment of a task to a taskrunner, past or at hand. `state` is never IDLE."""

    taskrunner: str
    number: int
    task: str
    state: TaskState
    counts_sl: bool
    num_peers: int
    target: str
    assigned_at: int
    ended_at: int
    peers: tuple[TaskrunnerPeer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something the ledger recorded. `cursor` grows with time: ask for what comes `after` it."""

    cursor: int
    name: str
    contract: str
    block: int
    at: int
    facts: dict[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an ML program is; kept by the SN while the node lives, never on the ledger."""

    contract: str = ""
    epoch: int = 0
    total_epochs: int = 0
    batch: int = 0
    loss: float | None = None
    metric: float | None = None
    metric_name: str = ""
    waiting: str = ""
    """What the node waits for, in words; empty while it trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """The ledger behind an SN."""

    kind: str
    chain_id: int
    height: int
    transactions: int
    blocks: int
    genesis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteApplication:
    """What a site says of itself when it asks to be a member of a network."""

    site: str
    account: str
    endpoint: str
    consensus_key: str
    p2p_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteList:
    """The member sites as an SN's ledger has them, and those that ask it to become members."""

    sites: tuple[SiteRecord, ...]
    applications: tuple[SiteApplication, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStatus:
    """How far the operators are in agreeing to go on without some sites."""

    epoch: str
    """ID of what they agree to."""
    number: int
    without: tuple[str, ...]
    approved: tuple[str, ...]
    missing: tuple[str, ...]
    """Sites whose operators have not agreed yet; empty: the network goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVotes:
    """What a site's CometBFT has seen of the votes of another one."""

    site: str
    """Who answers."""
    height: int
    """The newest final height here."""
    powers: dict[str, int]
    """Voting power by site after it."""
    vote_height: int
    """The asker's newest vote for a height that is not final yet: height, round and step; zeros for none."""
    vote_round: int
    vote_step: int
    last_signed: int
    """The newest final height whose commit has the asker's vote, of the last few; 0 for none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorStatus:
    """A member site in the consensus, as one SN sees it."""

    site: str
    power: int
    """Its voting power; 0 while it has none."""
    connected: bool
    last_seen_s: float | None
    """Seconds since there was a connection to it; 0 while there is, None where this SN has not seen any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsensusStatus:
    """The consensus of `ledger=geth`, as one SN sees it."""

    network: str
    height: int
    last_block_age_s: float
    behind: int
    """How many heights the best connected peer is ahead."""
    validators: tuple[ValidatorStatus, ...]
    halted: str
    """Why no block can be made now; empty while they can."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node with what the SN alone knows: when it was last heard of and how far it is."""

    node: NodeRecord
    last_seen_s: float | None
    """Seconds since the last heartbeat; None where this SN has heard none."""
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """What `GET /v1/status` answers."""

    site: str
    node: str
    version: str
    uptime_s: float
    ledger: LedgerStatus
    sites: tuple[SiteRecord, ...]
    nodes: tuple[NodeStatus, ...]
    contracts: tuple[TrainingContract, ...]
    consensus: ConsensusStatus | None = None


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def encode(record: object) -> Any:
    """A record as plain JSON values (dicts, lists, numbers, strings)."""
    return _adapter(cast("Any", type(record))).dump_python(record, mode="json")


def decode(cls: type[T], data: object) -> T:
    """Plain JSON values as a record of that class; ProtocolError names the first field that does not fit."""
    try:
        value: T = _adapter(cast("Any", cls)).validate_python(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise ProtocolError(f"{cls.__name__}: {where}: {first['msg']}") from exc
    return value
