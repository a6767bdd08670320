# pragma version 0.4.3
# pragma evm-version london
"""
@title Shards
@notice What the participants of a round tell each other while they merge it in shards (docs/protocol.md 4.1): hashes of
        blobs, by node and step. Nothing is decided here: a round's result is what its leader publishes in Training.
        A revert reason is the name of an exception of errors.py, then what to say after it.
"""

MAX_BLOBS: constant(uint256) = 256
MAX_STEPS: constant(uint256) = 16
MAX_NODES: constant(uint256) = 65535
PAGE: constant(uint256) = 64

interface Registry:
    def authorize(node: String[135], incarnation: uint256, account: address) -> uint256: view

# A node's latest statement of a step: its earlier ones are in the events alone.
struct Statement:
    round: uint256
    of: bytes32
    blobs: DynArray[bytes32, MAX_BLOBS]

struct Stated:
    node: String[135]
    blob: bytes32

event Shared:
    key: indexed(bytes32)
    contract: String[63]
    round: uint256
    node: String[135]
    step: uint256
    blobs: DynArray[bytes32, MAX_BLOBS]

registry: public(immutable(Registry))

# By training contract: its nodes, numbered from 1 in the order of their first statement, and what they state.
num_nodes: public(HashMap[String[63], uint256])
nodes: HashMap[String[63], HashMap[uint256, String[135]]]
number_of: HashMap[String[63], HashMap[uint256, uint256]]
statements: HashMap[String[63], HashMap[uint256, HashMap[uint256, Statement]]]


@deploy
def __init__(at: address):
    registry = Registry(at)


@external
def share(contract: String[63], round: uint256, node: String[135], incarnation: uint256, of: bytes32, step: uint256, blobs: DynArray[bytes32, MAX_BLOBS]):
    """
    @notice State the blobs of one step of a round; `of` says which check-ins are merged. The same again has no effect.
    """
    registered: uint256 = staticcall registry.authorize(node, incarnation, msg.sender)
    assert step < MAX_STEPS, "ConfigError: a round is merged in at most 16 steps"
    number: uint256 = self.number_of[contract][registered]
    if number == 0:
        number = self.num_nodes[contract] + 1
        assert number <= MAX_NODES, "LedgerError: too many nodes have merged shards in this training contract"
        self.num_nodes[contract] = number
        self.number_of[contract][registered] = number
        self.nodes[contract][number] = node
    known: Statement = self.statements[contract][number][step]
    if known.round == round and known.of == of and keccak256(abi_encode(known.blobs)) == keccak256(abi_encode(blobs)):
        return
    self.statements[contract][number][step] = Statement(round=round, of=of, blobs=blobs)
    log Shared(key=keccak256(contract), contract=contract, round=round, node=node, step=step, blobs=blobs)


@external
@view
def page(contract: String[63], round: uint256, of: bytes32, step: uint256, place: uint256, first: uint256) -> DynArray[Stated, PAGE]:
    """
    @notice Of the 64 nodes from number `first` (from 1) on, those that have stated the step, with their blob `place`.
    """
    found: DynArray[Stated, PAGE] = []
    for i: uint256 in range(PAGE):
        if first + i > self.num_nodes[contract]:
            break
        number: uint256 = first + i
        if self.statements[contract][number][step].round != round or self.statements[contract][number][step].of != of:
            continue
        if place < len(self.statements[contract][number][step].blobs):
            blob: bytes32 = self.statements[contract][number][step].blobs[place]
            found.append(Stated(node=self.nodes[contract][number], blob=blob))
    return found
