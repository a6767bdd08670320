"""The ABCI application on a geth in memory: CometBFT's requests in its order, crashes at every point between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from swarm_hpc.config import PowerRule
from swarm_hpc.errors import LedgerError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn import abci
from swarm_hpc.sn import abci_pb2 as wire
from swarm_hpc.sn.abci import MAX_AHEAD_S, MAX_RECHECKS, Application, encode_block
from swarm_hpc.sn.geth import Engine, EngineFault, RpcRefused
from swarm_hpc.sn.heights import Heights
from swarm_hpc.sn.powers import UNIT, Rule, Standing, address_of

NOW = 1_900_000_000
NOW_MS = 1000 * NOW
ALPHA, BETA = "aa" * 32, "bb" * 32
ACCEPT, REJECT = 1, 2
CHECK, RECHECK = 0, 1


def site(name: str, key: str, announced: int = 1) -> SiteRecord:
    return SiteRecord(
        name=name,
        account="0x0",
        endpoint="h:1",
        ca_fingerprint="",
        consensus_key=key,
        p2p_id="",
        active=True,
        joined_at=0,
        announced=announced,
    )


FOUNDED = [site("alpha", ALPHA)]
JOINED = [*FOUNDED, site("beta", BETA)]


class MemoryGeth:
    """geth's JSON-RPC as far as the Engine uses it. `bad...` makes a block invalid, `gap...` fits into none."""

    def __init__(self) -> None:
        genesis = {"blockNumber": "0x0", "parentHash": "0x" + "00" * 32, "timestamp": "0x0", "transactions": []}
        self.genesis = self._seal(genesis)
        self.blocks = {self.genesis["blockHash"]: self.genesis}
        self.head = self.genesis["blockHash"]
        self.pool: list[bytes] = []
        self.building: dict[str, dict[str, Any]] = {}
        self.moves: list[str] = []

    def call(self, method: str, *params: Any) -> Any:
        return getattr(self, method)(*params)

    def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        for method, params in calls:
            try:
                self.call(method, *params)
            except RpcRefused:
                continue

    def close(self) -> None:
        pass

    def eth_getBlockByNumber(self, number: str, _full: bool) -> dict[str, Any]:
        at = self.head
        while number != "latest" and self.blocks[at]["blockNumber"] != number:
            at = self.blocks[at]["parentHash"]
        return {"hash": at, "timestamp": self.blocks[at]["timestamp"], "number": self.blocks[at]["blockNumber"]}

    def eth_sendRawTransaction(self, raw: str) -> str:
        data = bytes.fromhex(raw[2:])
        if data in self.pool:
            raise RpcRefused("already known")
        if data.startswith(b"old"):
            raise RpcRefused("nonce too low")
        self.pool.append(data)
        return "0x"

    def engine_forkchoiceUpdatedV3(self, state: dict[str, str], attributes: dict[str, Any] | None) -> dict[str, Any]:
        head = state["headBlockHash"]
        if head not in self.blocks:
            return {"payloadStatus": {"status": "SYNCING"}}
        if attributes is None:
            self.head = head
            self.moves.append(head)
            return {"payloadStatus": {"status": "VALID"}}
        fitting = [raw for raw in self.pool if not raw.startswith(b"gap")]
        self.building[attributes["prevRandao"]] = self._block(head, attributes, fitting)
        return {"payloadStatus": {"status": "VALID"}, "payloadId": attributes["prevRandao"]}

    def engine_getPayloadV3(self, payload_id: str) -> dict[str, Any]:
        return {"executionPayload": self.building.pop(payload_id)}

    def engine_newPayloadV3(self, payload: dict[str, Any], _blobs: list[str], _root: str) -> dict[str, Any]:
        if payload["gasUsed"] == "nonsense":
            raise RpcRefused("invalid argument 0: cannot unmarshal", code=-32602)
        if payload["parentHash"] not in self.blocks:
            return {"status": "SYNCING"}
        if self._seal(payload)["blockHash"] != payload["blockHash"]:
            return {"status": "INVALID", "validationError": "blockhash mismatch"}
        if any(bytes.fromhex(raw[2:]).startswith(b"bad") for raw in payload["transactions"]):
            return {"status": "INVALID", "validationError": "invalid merkle root"}
        self.blocks[payload["blockHash"]] = payload
        return {"status": "VALID"}

    def block(self, *transactions: bytes, **changes: Any) -> dict[str, Any]:
        """A block on the head that another site's geth would build."""
        time = max(NOW_MS, int(self.blocks[self.head]["timestamp"], 16) + 1)
        return self._seal(
            self._block(self.head, {"timestamp": hex(time), "prevRandao": "0x07"}, transactions) | changes
        )

    def rewind(self) -> None:
        """Lose the newest block, as a geth that was killed does."""
        lost = self.blocks.pop(self.head)
        self.head = lost["parentHash"]
        self.pool.clear()

    def _block(self, parent: str, attributes: dict[str, Any], transactions: Sequence[bytes]) -> dict[str, Any]:
        fixed = dict.fromkeys(
            ("feeRecipient", "stateRoot", "receiptsRoot", "logsBloom", "gasLimit", "gasUsed", "extraData"), "0x"
        )
        fixed |= dict.fromkeys(("baseFeePerGas", "blobGasUsed", "excessBlobGas"), "0x0")
        return self._seal(
            fixed
            | {
                "parentHash": parent,
                "blockNumber": hex(int(self.blocks[parent]["blockNumber"], 16) + 1),
                "timestamp": attributes["timestamp"],
                "prevRandao": attributes["prevRandao"],
                "withdrawals": [],
                "transactions": ["0x" + raw.hex() for raw in transactions],
            }
        )

    @staticmethod
    def _seal(block: dict[str, Any]) -> dict[str, Any]:
        bare = {key: value for key, value in block.items() if key != "blockHash"}
        return bare | {"blockHash": "0x" + sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


class Node:
    """One site's application, and what CometBFT would say to it."""

    def __init__(self, folder: Path) -> None:
        self.geth = MemoryGeth()
        self.heights = Heights(folder / "heights.sqlite")
        self.registry: dict[str, Sequence[SiteRecord] | None] = {}
        self.stateless: set[str] = set()
        """Blocks that geth knows, without their state: until they are its head."""
        self.told: list[tuple[int, Sequence[SiteRecord]]] = []
        self.now = float(NOW)
        self.restart()
        self.app.init_chain(wire.RequestInitChain(chain_id="x", initial_height=1))

    def restart(self) -> None:
        """The application anew, as after any crash."""
        self.app = Application(
            Engine(self.geth),
            self.heights,
            genesis=Standing(powers={ALPHA: UNIT}),
            rule=Rule(power=PowerRule.SENIOR, jail_after_s=60),
            members=self._members,
            may_connect=lambda p2p_id: p2p_id == "ab" * 20,
            committed=lambda height, sites: self.told.append((height, sites)),
            clock=lambda: self.now,
        )

    def _members(self, block: str) -> Sequence[SiteRecord] | None:
        if block in self.stateless and self.geth.head != block:
            raise RpcRefused(f"historical state {block[2:]} is not available")
        return self.registry.get(block, FOUNDED)

    def check(self, raw: bytes, kind: int = CHECK) -> wire.ResponseCheckTx:
        return self.app.check_tx(wire.RequestCheckTx(tx=raw, type=kind))

    def propose(self, *raws: bytes, max_tx_bytes: int = 1 << 20) -> list[bytes]:
        request = wire.RequestPrepareProposal(max_tx_bytes=max_tx_bytes, txs=raws)
        return list(self.app.prepare_proposal(request).txs)

    def judge(self, txs: Sequence[bytes]) -> int:
        return self.app.process_proposal(wire.RequestProcessProposal(txs=txs, height=1)).status

    def finalize(self, height: int, txs: Sequence[bytes], *absent: str, at: int = NOW) -> dict[str, int]:
        """The changes of voting power by key."""
        votes = [
            wire.VoteInfo(
                validator=wire.Validator(address=address_of(key), power=UNIT), block_id_flag=1 if key in absent else 2
            )
            for key in (ALPHA, BETA)
        ]
        answer = self.app.finalize_block(
            wire.RequestFinalizeBlock(
                txs=txs,
                height=height,
                time=wire.Timestamp(seconds=at),
                decided_last_commit=wire.CommitInfo(votes=votes if height > 1 else []),
            )
        )
        assert len(answer.tx_results) == len(txs)
        assert answer.app_hash == bytes.fromhex(self.geth.genesis["blockHash"][2:])
        return {one.pub_key.ed25519.hex(): one.power for one in answer.validator_updates}

    def commit(self) -> None:
        self.app.commit(wire.Empty())

    def decide(self, height: int, *raws: bytes) -> str:
        """A whole height with these transactions; the new head."""
        txs = encode_block(self.geth.block(*raws)) if raws else []
        self.finalize(height, txs)
        self.commit()
        return self.geth.head

    def height(self) -> int:
        """What Info answers."""
        return self.app.info(wire.Empty()).last_block_height


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.heights.close()


# --- transactions ---


def test_a_transaction_is_taken_when_geth_takes_it(node):
    assert node.check(b"\xf8one").code == 0
    assert node.geth.pool == [b"\xf8one"]
    assert node.check(b"\xf8one").code == 0
    refused = node.check(b"old")
    assert (refused.code, refused.log) == (1, "nonce too low")


@pytest.mark.parametrize("raw", [b"", b"P{}", b"\x03blob"])
def test_what_is_no_plain_transaction_never_comes_to_geth(node, raw):
    assert node.check(raw).code == 1
    assert node.geth.pool == []


def test_a_transaction_that_fits_into_no_block_is_dropped_after_many(node):
    assert node.check(b"gap").code == 0
    assert [node.check(b"gap", RECHECK).code for _ in range(MAX_RECHECKS)] == [0] * MAX_RECHECKS
    dropped = node.check(b"gap", RECHECK)
    assert (dropped.code, dropped.log) == (1, "not executable: a gap in the nonces?")
    assert node.check(b"gap", RECHECK).code == 0  # whoever sends it again has as many tries


# --- proposals ---


def test_a_proposal_is_a_block_of_what_is_in_the_mempool(node):
    txs = node.propose(b"\xf8one", b"\xf8two")
    assert txs[1:] == [b"\xf8one", b"\xf8two"]
    assert node.judge(txs) == ACCEPT


def test_an_empty_mempool_makes_an_empty_block(node):
    assert node.propose() == []
    assert node.judge([]) == ACCEPT


def test_transactions_of_which_none_can_be_executed_make_an_empty_block(node):
    assert node.propose(b"gap") == []


def test_a_block_that_is_too_large_for_comet_is_not_proposed(node):
    assert node.propose(b"\xf8" * 1000, max_tx_bytes=1000) == []


def test_two_proposals_for_one_height_differ_as_geth_would_answer_the_first_one_for_ever(node):
    assert node.propose(b"\xf8one")[0] != node.propose(b"\xf8one")[0]


def test_blocks_are_stamped_by_the_proposers_clock_and_each_later_than_the_one_before(node):
    stamps = []
    # The third one: a clock that was set back does not stop the ledger.
    for height, now in enumerate((NOW + 0.25, NOW + 0.25, NOW - 100.0, NOW + 10.0), start=1):
        node.now = now
        txs = node.propose(b"\xf8%d" % height)
        stamps.append(int(abci.decode_block(txs)["timestamp"], 16) - NOW_MS)
        node.finalize(height, txs)
        node.commit()
    assert stamps == [250, 251, 252, 10_000]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda node: [b"\xf8one"], id="no header"),
        pytest.param(lambda node: encode_block(node.geth.block(b"bad")), id="invalid"),
        pytest.param(lambda node: encode_block(node.geth.block(b"\xf8") | {"stateRoot": "0x1"}), id="other hash"),
        pytest.param(lambda node: encode_block(node.geth.block(b"\xf8", gasUsed="nonsense")), id="unreadable"),
        pytest.param(lambda node: encode_block(node.geth.block(b"\xf8", parentHash="0x" + "77" * 32)), id="parent"),
        pytest.param(
            lambda node: encode_block(node.geth.block(b"\xf8", timestamp=hex(NOW_MS + 1000 * MAX_AHEAD_S + 1))),
            id="future",
        ),
        pytest.param(lambda node: encode_block(node.geth.block(b"\xf8", timestamp="0xffffffffffffffff")), id="never"),
    ],
)
def test_a_wrong_proposal_is_refused_and_does_no_harm(node, spoil):
    assert node.judge(spoil(node)) == REJECT
    assert node.geth.head == node.geth.genesis["blockHash"]
    assert node.judge(encode_block(node.geth.block(b"\xf8"))) == ACCEPT


def test_a_block_on_another_block_than_the_head_is_refused(node):
    stale = encode_block(node.geth.block(b"\xf8one"))
    node.decide(1, b"\xf8two")
    assert node.judge(stale) == REJECT


def test_clocks_may_differ_by_a_minute(node):
    assert node.judge(encode_block(node.geth.block(b"\xf8", timestamp=hex(NOW_MS + 1000 * MAX_AHEAD_S)))) == ACCEPT


# --- final blocks ---


def test_a_decided_block_becomes_the_head_at_its_commit(node):
    block = node.geth.block(b"\xf8one")
    node.finalize(1, encode_block(block))
    assert node.geth.head == node.geth.genesis["blockHash"]
    node.commit()
    assert node.geth.head == block["blockHash"]
    assert node.told == [(1, FOUNDED)]
    assert node.height() == 1


def test_an_empty_height_leaves_the_head_and_is_told_of(node):
    node.decide(1, b"\xf8one")
    moves = list(node.geth.moves)
    node.decide(2)
    assert node.geth.moves == moves
    assert [height for height, _ in node.told] == [1, 2]
    assert node.height() == 2


def test_the_height_is_on_disk_before_the_head_moves(node):
    block = node.geth.block(b"\xf8one")
    known_when_moved = []
    move = node.geth.engine_forkchoiceUpdatedV3

    def watched(state, attributes):
        known_when_moved.append(node.heights.of_block(state["headBlockHash"]))
        return move(state, attributes)

    node.geth.engine_forkchoiceUpdatedV3 = watched
    node.finalize(1, encode_block(block))
    node.commit()
    assert known_when_moved == [1]


def test_a_decided_block_that_geth_finds_invalid_ends_the_application(node):
    with pytest.raises(LedgerError, match="block 1 was decided, but geth finds it invalid"):
        node.finalize(1, encode_block(node.geth.block(b"bad")))


def test_a_commit_without_a_block_ends_the_application(node):
    with pytest.raises(LedgerError, match="not finalised"):
        node.commit()


def test_a_site_that_has_announced_itself_gets_its_power_with_the_next_but_one_block(node):
    block = node.geth.block(b"\xf8announce")
    node.registry[block["blockHash"]] = JOINED
    assert node.finalize(1, encode_block(block)) == {ALPHA: 3 * UNIT, BETA: UNIT}
    node.commit()
    assert node.told[-1] == (1, JOINED)
    node.registry[node.geth.head] = JOINED
    assert node.finalize(2, []) == {}


def test_an_absent_site_loses_its_power_by_the_blocks_times(node):
    block = node.geth.block(b"\xf8announce")
    node.registry[block["blockHash"]] = JOINED
    node.finalize(1, encode_block(block))
    node.commit()
    assert node.finalize(2, [], BETA, at=NOW) == {}
    node.commit()
    assert node.finalize(3, [], BETA, at=NOW + 60) == {ALPHA: UNIT, BETA: 0}


def test_before_there_is_a_registry_the_founder_has_all_power(node):
    block = node.geth.block(b"\xf8deploy")
    node.registry[block["blockHash"]] = None
    assert node.finalize(1, encode_block(block)) == {}
    node.commit()
    assert node.told == [(1, ())]


# --- crashes ---


def test_a_new_network_is_at_height_zero(node):
    node.restart()
    answer = node.app.info(wire.Empty())
    assert (answer.last_block_height, answer.last_block_app_hash) == (0, b"")


def test_a_height_that_is_finalised_again_after_a_crash_has_the_same_outcome(node):
    block = node.geth.block(b"\xf8announce")
    node.registry[block["blockHash"]] = JOINED
    first = node.finalize(1, encode_block(block))
    node.restart()
    assert node.height() == 0
    assert node.finalize(1, encode_block(block)) == first
    node.commit()
    assert node.height() == 1


def test_a_crash_between_the_row_and_the_head_is_mended_by_a_replay(node):
    block = node.geth.block(b"\xf8one")
    node.geth.engine_forkchoiceUpdatedV3, move = None, node.geth.engine_forkchoiceUpdatedV3
    node.finalize(1, encode_block(block))
    with pytest.raises(TypeError):
        node.commit()  # the process dies here
    node.geth.engine_forkchoiceUpdatedV3 = move
    node.restart()
    assert node.height() == 0
    node.finalize(1, encode_block(block))
    node.commit()
    assert (node.height(), node.geth.head) == (1, block["blockHash"])


def test_info_says_what_a_geth_has_that_lost_its_newest_blocks_and_the_replay_ends_in_the_same(node):
    blocks = []
    for height, raw in enumerate([b"\xf8one", b"\xf8two", b"\xf8three"], 1):
        blocks.append(encode_block(node.geth.block(raw)))
        node.finalize(height, blocks[-1])
        node.commit()
    head, standing = node.geth.head, node.heights.standing(3)
    node.geth.rewind()
    node.geth.rewind()
    node.restart()
    assert node.height() == 1
    for height in (2, 3):
        node.finalize(height, blocks[height - 1])
        node.commit()
    assert (node.geth.head, node.height(), node.heights.standing(3)) == (head, 3, standing)


def test_a_geth_that_kept_a_block_and_lost_its_state_recovers_it_in_the_replay(node):
    head = node.decide(1, b"\xf8one")
    block = node.geth.block(b"\xf8two")
    node.stateless.add(block["blockHash"])
    node.restart()
    assert (node.height(), node.geth.head) == (1, head)
    node.finalize(2, encode_block(block))
    node.commit()
    assert (node.height(), node.geth.head) == (2, block["blockHash"])


def test_a_geth_that_lost_everything_is_at_height_zero_again(node):
    node.decide(1, b"\xf8one")
    node.geth.rewind()
    node.heights.clear()
    node.restart()
    assert node.height() == 0


def test_empty_heights_after_a_lost_block_are_replayed_too(node):
    node.decide(1, b"\xf8one")
    node.decide(2)
    node.decide(3, b"\xf8two")
    node.geth.rewind()
    node.restart()
    assert node.height() == 2


def test_a_head_that_no_height_led_to_cannot_be_used(node):
    block = node.geth.block(b"\xf8one")
    node.geth.blocks[block["blockHash"]] = block
    node.geth.head = block["blockHash"]
    with pytest.raises(EngineFault, match="is not known here"):
        node.height()


def test_a_geth_without_the_parent_of_a_decided_block_has_to_be_built_anew(node):
    orphan = node.geth.block(b"\xf8one", parentHash="0x" + "77" * 32)
    with pytest.raises(EngineFault, match="lacks the parent"):
        node.finalize(1, encode_block(orphan))


# --- connections and time ---


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/p2p/filter/id/{'ab' * 20}", 0),
        (f"/p2p/filter/id/{'cd' * 20}", 1),
        ("/p2p/filter/addr/127.0.0.1:7", 0),
    ],
)
def test_only_members_are_connected_to(node, path, code):
    assert node.app.query(wire.RequestQuery(path=path)).code == code


def test_ledger_time_never_runs_behind_the_newest_block(node):
    assert node.app.now_ms() == NOW_MS
    node.decide(1, b"\xf8one")
    node.now = NOW - 50.0
    assert node.app.now_ms() == NOW_MS


def test_snapshots_are_not_for_this_application(node):
    assert node.app.list_snapshots(wire.Empty()) == wire.Empty()
    assert node.app.offer_snapshot(wire.Empty()).result == 3
