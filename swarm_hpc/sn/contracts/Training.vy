# pragma version 0.4.3
# pragma evm-version london
"""
@title Training
@notice Training contracts, who takes part, and their rounds (docs/protocol.md 4). Whatever depends on time or on who is
        there is decided here and handed out with the records: nobody else holds a copy of these rules.
        A revert reason is the name of an exception of errors.py, then what to say after it.
"""

MAX_PARTICIPANTS: constant(uint256) = 256
MAX_NUM_NODES: constant(uint256) = 65535

# States of a round; a participant's way of having finished.
OPEN: constant(uint256) = 0
CLAIMED: constant(uint256) = 1
PUBLISHED: constant(uint256) = 2

NOT_FINISHED: constant(uint256) = 0
INACTIVE: constant(uint256) = 1
LAST_MODE: constant(uint256) = 3

interface Registry:
    def authorize(node: String[135], incarnation: uint256, account: address) -> uint256: view
    def authorize_away(node: String[135], account: address) -> uint256: view
    def is_member(account: address) -> bool: view

struct Spec:
    name: String[63]
    platform: String[16]
    merge: String[96]
    min_peers: uint256
    quorum_wait_s: uint256
    leader_timeout_s: uint256
    model: bytes32
    image: String[71]

struct Contract:
    spec: Spec
    completed: bool
    round: uint256
    created_at: uint256
    num_participants: uint256

struct Participant:
    node: String[135]
    active: bool
    finished: uint256

struct ContractView:
    spec: Spec
    completed: bool
    round: uint256
    created_at: uint256
    participants: DynArray[Participant, MAX_PARTICIPANTS]

struct Entry:
    blob: bytes32
    weight: uint256
    num_nodes: uint256
    loss: int256
    metric: int256
    epoch: uint256
    job: String[64]
    image: String[71]
    cpu_ms: uint256
    gpu_ms: uint256

struct CheckIn:
    participant: uint256
    entry: Entry
    at: uint256

struct Round:
    state: uint256
    num_check_ins: uint256
    quorum_at: uint256
    num_active: uint256
    leader: uint256
    leader_due: uint256
    merged: bytes32
    published_at: uint256

struct CheckInView:
    node: String[135]
    entry: Entry
    at: uint256

struct RoundView:
    number: uint256
    state: uint256
    check_ins: DynArray[CheckInView, MAX_PARTICIPANTS]
    num_active: uint256
    min_peers: uint256
    closable: bool
    below_min_peers: bool
    closes_in_s: uint256
    leader: String[135]
    leader_due_in_s: int256
    replaceable: bool
    orphaned: bool
    merged: bytes32
    published_at: uint256

event ContractReset:
    key: indexed(bytes32)
    contract: String[63]
    archive: String[63]

event ContractCreated:
    key: indexed(bytes32)
    contract: String[63]

event Joined:
    key: indexed(bytes32)
    contract: String[63]
    node: String[135]

event Away:
    key: indexed(bytes32)
    contract: String[63]
    node: String[135]

event Finished:
    key: indexed(bytes32)
    contract: String[63]
    node: String[135]
    mode: uint256

event CheckedIn:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256
    node: String[135]
    blob: bytes32

event Claimed:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256
    node: String[135]
    due: uint256

event Dropped:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256
    node: String[135]
    absent: String[135]

event Published:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256
    node: String[135]
    merged: bytes32

event Completed:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256

registry: public(immutable(Registry))
num_contracts: public(uint256)

# Numbers of contracts, participants, rounds and check-ins start at 1, so that 0 means "none".
contracts: HashMap[uint256, Contract]
contract_number: HashMap[String[63], uint256]
participants: HashMap[uint256, HashMap[uint256, Participant]]
participant_number: HashMap[uint256, HashMap[uint256, uint256]]
participant_named: HashMap[uint256, HashMap[String[135], uint256]]
rounds: HashMap[uint256, HashMap[uint256, Round]]
check_ins: HashMap[uint256, HashMap[uint256, HashMap[uint256, CheckIn]]]
check_in_number: HashMap[uint256, HashMap[uint256, HashMap[uint256, uint256]]]
dropped: HashMap[uint256, HashMap[uint256, HashMap[uint256, bool]]]


@deploy
def __init__(at: address):
    registry = Registry(at)


# --- who is asked about ---


@internal
@view
def _now() -> uint256:
    # Seconds since 1970; the ledger's blocks are stamped in milliseconds, so that many fit into a second.
    return block.timestamp // 1000


@internal
@view
def _contract(name: String[63]) -> uint256:
    number: uint256 = self.contract_number[name]
    assert number != 0, "NotFound: no such training contract"
    return number


@internal
@view
def _participant(contract: uint256, node: String[135], incarnation: uint256, account: address) -> uint256:
    number: uint256 = self.participant_number[contract][staticcall registry.authorize(node, incarnation, account)]
    assert number != 0, "NotFound: the node has not joined this training contract"
    return number


# --- training contracts ---


@external
def create_contract(spec: Spec):
    """
    @notice Create a training contract. The same again has no effect; other settings under its name are refused.
    """
    assert staticcall registry.is_member(msg.sender), "NotMember: the account speaks for no active site"
    number: uint256 = self.contract_number[spec.name]
    if number != 0:
        self._compare(self.contracts[number].spec, spec)
        return
    assert len(spec.name) > 0, "ConfigError: a training contract needs a name"
    assert spec.min_peers >= 1 and spec.min_peers <= MAX_PARTICIPANTS, "ConfigError: min_peers lies in 1-256"
    assert spec.leader_timeout_s >= 1, "ConfigError: leader_timeout_s is at least 1"
    number = self.num_contracts + 1
    self.num_contracts = number
    self.contract_number[spec.name] = number
    self.contracts[number].spec = spec
    self.contracts[number].round = 1
    self.contracts[number].created_at = self._now()
    log ContractCreated(key=keccak256(spec.name), contract=spec.name)


@external
def reset_contract(name: String[63], archive: String[63]):
    """
    @notice Make the name of a completed contract free for another training. The old one stays as `archive`.
    """
    assert staticcall registry.is_member(msg.sender), "NotMember: the account speaks for no active site"
    id: uint256 = self._contract(name)
    assert self.contracts[id].completed, "ContractBusy: the training contract is not completed"
    assert len(archive) > 0, "ConfigError: the old contract needs a name"
    assert self.contract_number[archive] == 0, "AlreadyExists: another training contract has the name of the archive"
    self.contract_number[name] = 0
    self.contract_number[archive] = id
    self.contracts[id].spec.name = archive
    log ContractReset(key=keccak256(name), contract=name, archive=archive)


@internal
@pure
def _compare(ours: Spec, theirs: Spec):
    assert ours.platform == theirs.platform, "ContractMismatch: platform"
    assert ours.model == theirs.model, "ModelMismatch: the model has other tensors"
    assert ours.merge == theirs.merge, "ContractMismatch: merge"
    assert ours.min_peers == theirs.min_peers, "ContractMismatch: min_peers"
    assert ours.quorum_wait_s == theirs.quorum_wait_s, "ContractMismatch: quorum_wait_s"
    assert ours.leader_timeout_s == theirs.leader_timeout_s, "ContractMismatch: leader_timeout_s"
    assert ours.image == theirs.image, "ContractMismatch: image"


@external
def join(contract: String[63], node: String[135], incarnation: uint256, platform: String[16], model: bytes32):
    """
    @notice Take part, or take part again: the participant is active and trains.
    """
    number: uint256 = self._contract(contract)
    node_number: uint256 = staticcall registry.authorize(node, incarnation, msg.sender)
    assert self.contracts[number].spec.platform == platform, "ContractMismatch: platform"
    assert self.contracts[number].spec.model == model, "ModelMismatch: the model has other tensors"
    assert not self.contracts[number].completed, "TrainingOver: the training contract is completed"
    who: uint256 = self.participant_number[number][node_number]
    if who == 0:
        who = self.contracts[number].num_participants + 1
        assert who <= MAX_PARTICIPANTS, "LedgerError: a training contract has at most 256 participants"
        self.contracts[number].num_participants = who
        self.participant_number[number][node_number] = who
        self.participant_named[number][node] = who
        self.participants[number][who].node = node
    elif self.participants[number][who].active and self.participants[number][who].finished == NOT_FINISHED:
        return
    self.participants[number][who].finished = NOT_FINISHED
    self.participants[number][who].active = True
    log Joined(key=keccak256(contract), contract=contract, node=node)


@external
def set_away(contract: String[63], node: String[135]):
    """
    @notice Rounds no longer wait for this participant, until it checks in or joins again.
    """
    number: uint256 = self._contract(contract)
    who: uint256 = self.participant_number[number][staticcall registry.authorize_away(node, msg.sender)]
    assert who != 0, "NotFound: the node has not joined this training contract"
    if not self.participants[number][who].active:
        return
    self.participants[number][who].active = False
    log Away(key=keccak256(contract), contract=contract, node=node)
    self._complete_if_done(number)


@external
def finish(contract: String[63], node: String[135], incarnation: uint256, mode: uint256):
    """
    @notice The participant trains no more: 1 inactive, 2 snapshot, 3 active.
    """
    assert mode != NOT_FINISHED and mode <= LAST_MODE, "ConfigError: no such mode"
    number: uint256 = self._contract(contract)
    who: uint256 = self._participant(number, node, incarnation, msg.sender)
    if self.participants[number][who].finished == mode:
        return
    self.participants[number][who].finished = mode
    log Finished(key=keccak256(contract), contract=contract, node=node, mode=mode)
    self._complete_if_done(number)


@internal
def _complete_if_done(contract: uint256):
    num_participants: uint256 = self.contracts[contract].num_participants
    min_peers: uint256 = self.contracts[contract].spec.min_peers
    if self.contracts[contract].completed or num_participants < min_peers:
        return
    remaining: uint256 = 0
    num_active: uint256 = 0
    num_training: uint256 = 0
    num_active_training: uint256 = 0
    for who: uint256 in range(1, num_participants + 1, bound=MAX_PARTICIPANTS):
        finished: uint256 = self.participants[contract][who].finished
        if finished != INACTIVE:
            remaining += 1
        if finished == NOT_FINISHED:
            num_training += 1
        if self.participants[contract][who].active:
            num_active += 1
            if finished == NOT_FINISHED:
                num_active_training += 1
    number: uint256 = self.contracts[contract].round
    # With everybody away nothing is over: they come back. Hence num_active > 0.
    over: bool = num_training == 0 or (num_active > 0 and num_active_training == 0)
    if remaining < min_peers or (over and self.rounds[contract][number].num_check_ins == 0):
        self.contracts[contract].completed = True
        name: String[63] = self.contracts[contract].spec.name
        log Completed(key=keccak256(name), contract=name, round=number)


# --- rounds ---


@internal
@view
def _awaited(contract: uint256, number: uint256) -> (uint256, uint256):
    # Participants that the round waits for, and how many of them have not checked in.
    awaited: uint256 = 0
    missing: uint256 = 0
    for who: uint256 in range(1, self.contracts[contract].num_participants + 1, bound=MAX_PARTICIPANTS):
        if self.participants[contract][who].active and self.participants[contract][who].finished != INACTIVE:
            awaited += 1
            if self.check_in_number[contract][number][who] == 0:
                missing += 1
    return awaited, missing


@internal
@view
def _waits_until(contract: uint256, number: uint256) -> uint256:
    # When the wait for stragglers is over; asked once min_peers have checked in.
    return self.rounds[contract][number].quorum_at + self.contracts[contract].spec.quorum_wait_s


@internal
@view
def _replaceable(contract: uint256, number: uint256) -> bool:
    leader: uint256 = self.rounds[contract][number].leader
    return self._now() > self.rounds[contract][number].leader_due or not self.participants[contract][leader].active


@internal
@view
def _orphaned(contract: uint256, number: uint256) -> bool:
    # Nobody who checked in is there to lead: all are away, or train no more and contribute nothing.
    for i: uint256 in range(1, self.rounds[contract][number].num_check_ins + 1, bound=MAX_PARTICIPANTS):
        who: uint256 = self.check_ins[contract][number][i].participant
        if self.participants[contract][who].active and self.participants[contract][who].finished != INACTIVE:
            return False
    return True


@external
def check_in(contract: String[63], number: uint256, node: String[135], incarnation: uint256, entry: Entry):
    """
    @notice The node's parameters for this round have this hash.
    """
    id: uint256 = self._contract(contract)
    who: uint256 = self._participant(id, node, incarnation, msg.sender)
    current: uint256 = self.contracts[id].round
    assert number >= 1 and number <= current, "NotFound: the round has not begun"
    mine: uint256 = self.check_in_number[id][number][who]
    state: uint256 = self.rounds[id][number].state
    same: bool = mine != 0 and self.check_ins[id][number][mine].entry.blob == entry.blob
    if state != OPEN:
        assert same, "RoundClosed: the round went on without this node"
        return
    assert not self.contracts[id].completed, "TrainingOver: the training contract is completed"
    assert self.participants[id][who].finished != INACTIVE, "TrainingOver: the node has finished its training"
    assert entry.weight >= 1 and entry.weight <= 100, "ConfigError: a weight lies in 1-100"
    assert entry.num_nodes >= 1 and entry.num_nodes <= MAX_NUM_NODES, "ConfigError: num_nodes lies in 1-65535"
    assert entry.blob != empty(bytes32), "ConfigError: the blob's hash is missing"
    if self.contracts[id].spec.image != "":
        assert entry.image == self.contracts[id].spec.image, "ImageRefused: the contract names another container image"
    if not self.participants[id][who].active:
        self.participants[id][who].active = True
        log Joined(key=keccak256(contract), contract=contract, node=node)
    if same:
        return
    if mine == 0:
        mine = self.rounds[id][number].num_check_ins + 1
        self.rounds[id][number].num_check_ins = mine
        self.check_in_number[id][number][who] = mine
        self.dropped[id][number][who] = False
        if mine == self.contracts[id].spec.min_peers:
            self.rounds[id][number].quorum_at = self._now()
    self.check_ins[id][number][mine] = CheckIn(participant=who, entry=entry, at=self._now())
    log CheckedIn(key=keccak256(contract), contract=contract, round=number, node=node, blob=entry.blob)


@external
def claim(contract: String[63], number: uint256, node: String[135], incarnation: uint256):
    """
    @notice Lead the round: the first to claim a closable one does, or who replaces an overdue or absent leader.
    """
    id: uint256 = self._contract(contract)
    who: uint256 = self._participant(id, node, incarnation, msg.sender)
    assert number >= 1 and number <= self.contracts[id].round, "NotFound: the round has not begun"
    state: uint256 = self.rounds[id][number].state
    assert state != PUBLISHED, "RoundClosed: the round is published"
    assert not self.contracts[id].completed, "TrainingOver: the training contract is completed"
    if state == CLAIMED:
        replaceable: bool = self._replaceable(id, number)
        if self.rounds[id][number].leader == who and not replaceable:
            return
        if self.check_in_number[id][number][who] == 0:
            stands_in: bool = replaceable and self.participants[id][who].active and self._orphaned(id, number)
            assert stands_in, "RoundClosed: the round went on without this node"
        assert replaceable, "RoundClaimed: another node leads the round"
    else:
        assert self.check_in_number[id][number][who] != 0, "NotEnoughPeers: check in before claiming"
        assert self.rounds[id][number].num_check_ins >= self.contracts[id].spec.min_peers, "NotEnoughPeers: fewer check-ins than min_peers"
        awaited: uint256 = 0
        missing: uint256 = 0
        awaited, missing = self._awaited(id, number)
        assert missing == 0 or self._now() >= self._waits_until(id, number), "NotEnoughPeers: stragglers are awaited"
        self.rounds[id][number].state = CLAIMED
        self.rounds[id][number].num_active = awaited
    due: uint256 = self._now() + self.contracts[id].spec.leader_timeout_s
    self.rounds[id][number].leader = who
    self.rounds[id][number].leader_due = due
    log Claimed(key=keccak256(contract), contract=contract, round=number, node=node, due=due)


@external
def drop(contract: String[63], number: uint256, node: String[135], incarnation: uint256, absent: String[135]):
    """
    @notice The leader states that the blob of `absent`, which is away, cannot be had: the round goes on without it, or
            opens again where fewer than min_peers are left. Only the leader changes what it is about to merge.
    """
    id: uint256 = self._contract(contract)
    who: uint256 = self._participant(id, node, incarnation, msg.sender)
    assert number >= 1 and number <= self.contracts[id].round, "NotFound: the round has not begun"
    lost: uint256 = self.participant_named[id][absent]
    assert lost != 0, "NotFound: the absent node has not joined this training contract"
    state: uint256 = self.rounds[id][number].state
    if self.dropped[id][number][lost]:
        return
    assert state != PUBLISHED, "RoundClosed: the round is published"
    assert not self.contracts[id].completed, "TrainingOver: the training contract is completed"
    assert state == CLAIMED, "NotLeader: claim the round before dropping a node from it"
    assert self.rounds[id][number].leader == who, "NotLeader: another node leads the round"
    mine: uint256 = self.check_in_number[id][number][lost]
    assert mine != 0, "NotFound: the absent node has not checked in to this round"
    assert not self.participants[id][lost].active, "RoundError: the node is there, and only a node that is away can be dropped"
    self._remove_check_in(id, number, mine)
    self.dropped[id][number][lost] = True
    log Dropped(key=keccak256(contract), contract=contract, round=number, node=node, absent=absent)
    if self.rounds[id][number].num_check_ins < self.contracts[id].spec.min_peers:
        self.rounds[id][number].state = OPEN
        self.rounds[id][number].quorum_at = 0
        self.rounds[id][number].leader = 0
        self.rounds[id][number].leader_due = 0
        self._complete_if_done(id)


@internal
def _remove_check_in(contract: uint256, number: uint256, gap: uint256):
    # The last one takes its place: check-ins are numbered without gaps, and their order means nothing.
    last: uint256 = self.rounds[contract][number].num_check_ins
    self.check_in_number[contract][number][self.check_ins[contract][number][gap].participant] = 0
    if gap != last:
        self.check_ins[contract][number][gap] = self.check_ins[contract][number][last]
        self.check_in_number[contract][number][self.check_ins[contract][number][gap].participant] = gap
    self.check_ins[contract][number][last] = empty(CheckIn)
    self.rounds[contract][number].num_check_ins = last - 1


@external
def publish(contract: String[63], number: uint256, node: String[135], incarnation: uint256, merged: bytes32):
    """
    @notice The leader states the hash of the merged parameters; the next round begins.
    """
    id: uint256 = self._contract(contract)
    who: uint256 = self._participant(id, node, incarnation, msg.sender)
    assert number >= 1 and number <= self.contracts[id].round, "NotFound: the round has not begun"
    state: uint256 = self.rounds[id][number].state
    assert state != OPEN, "NotLeader: claim the round before publishing"
    assert self.rounds[id][number].leader == who, "NotLeader: another node leads the round"
    if state == PUBLISHED:
        assert self.rounds[id][number].merged == merged, "RoundClosed: the round is published with another hash"
        return
    assert not self.contracts[id].completed, "TrainingOver: the training contract is completed"
    assert merged != empty(bytes32), "ConfigError: the merged blob's hash is missing"
    self.rounds[id][number].state = PUBLISHED
    self.rounds[id][number].merged = merged
    self.rounds[id][number].published_at = self._now()
    self.contracts[id].round = number + 1
    log Published(key=keccak256(contract), contract=contract, round=number, node=node, merged=merged)
    self._complete_if_done(id)


# --- what there is ---


@external
@view
def contract_name(number: uint256) -> String[63]:
    return self.contracts[number].spec.name


@external
@view
def contract_view(name: String[63]) -> ContractView:
    id: uint256 = self._contract(name)
    everybody: DynArray[Participant, MAX_PARTICIPANTS] = []
    for who: uint256 in range(1, self.contracts[id].num_participants + 1, bound=MAX_PARTICIPANTS):
        everybody.append(self.participants[id][who])
    return ContractView(
        spec=self.contracts[id].spec,
        completed=self.contracts[id].completed,
        round=self.contracts[id].round,
        created_at=self.contracts[id].created_at,
        participants=everybody,
    )


@external
@view
def round_view(contract: String[63], number: uint256) -> RoundView:
    id: uint256 = self._contract(contract)
    assert number >= 1 and number <= self.contracts[id].round, "NotFound: the round has not begun"
    round: Round = self.rounds[id][number]
    min_peers: uint256 = self.contracts[id].spec.min_peers
    view: RoundView = empty(RoundView)
    view.number = number
    view.state = round.state
    view.min_peers = min_peers
    view.below_min_peers = round.num_check_ins < min_peers
    view.num_active = round.num_active
    view.merged = round.merged
    view.published_at = round.published_at
    for i: uint256 in range(1, round.num_check_ins + 1, bound=MAX_PARTICIPANTS):
        one: CheckIn = self.check_ins[id][number][i]
        view.check_ins.append(CheckInView(node=self.participants[id][one.participant].node, entry=one.entry, at=one.at))
    if round.state == OPEN:
        missing: uint256 = 0
        view.num_active, missing = self._awaited(id, number)
        if not view.below_min_peers:
            until: uint256 = self._waits_until(id, number)
            if missing > 0 and until > self._now():
                view.closes_in_s = until - self._now()
            view.closable = view.closes_in_s == 0 and not self.contracts[id].completed
    else:
        view.leader = self.participants[id][round.leader].node
    if round.state == CLAIMED:
        view.leader_due_in_s = convert(round.leader_due, int256) - convert(self._now(), int256)
        view.replaceable = self._replaceable(id, number)
        view.orphaned = view.replaceable and self._orphaned(id, number)
    return view
