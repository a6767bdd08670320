"""The ABCI application: what CometBFT asks of a site while it orders blocks, answered by means of geth.

A CometBFT block is empty, or a payload header (`P` and JSON) followed by the raw Ethereum transactions of that payload,
which are CometBFT's own transactions: its mempool spreads them, geth needs no p2p. Whatever goes wrong ends CometBFT's
connection; consensus.py then starts everything anew, and CometBFT replays what geth lacks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from swarm_hpc.errors import LedgerError
from swarm_hpc.records import SiteRecord
from swarm_hpc.sn import abci_pb2 as abci
from swarm_hpc.sn.contracts import TICKS_PER_S, ticks
from swarm_hpc.sn.geth import Engine, EngineFault, Payload, RpcRefused
from swarm_hpc.sn.heights import Heights
from swarm_hpc.sn.powers import Rule, Standing, Vote, step
from swarm_hpc.transport import document

log = logging.getLogger(__name__)

HEADER: Final = b"P"
MAX_AHEAD_S: Final = 60
"""A block may be so far ahead of a validator's clock: clocks differ."""
MAX_RECHECKS: Final = 30
"""A transaction that did not fit into so many blocks (a gap in the nonces) is dropped: it keeps CometBFT busy."""
_BUILD_S: Final = (0.015, 0.05, 0.15)
"""How long geth builds before it is asked: the answer stops it, and the first full block takes a moment."""
_HEADER_FIELDS: Final = frozenset(
    {
        "parentHash",
        "feeRecipient",
        "stateRoot",
        "receiptsRoot",
        "logsBloom",
        "prevRandao",
        "blockNumber",
        "gasLimit",
        "gasUsed",
        "timestamp",
        "extraData",
        "baseFeePerGas",
        "blockHash",
        "withdrawals",
        "blobGasUsed",
        "excessBlobGas",
    }
)
_QUANTITY: Final = re.compile("0x[0-9a-f]{1,16}")
_ACCEPT, _REJECT = 1, 2
_ABSENT: Final = 1
_RECHECK: Final = 1
_OFFER_REJECTED: Final = 3


class Members(Protocol):
    """Reads the Registry's sites after a block; None before there is a Registry."""

    def __call__(self, block: str) -> Sequence[SiteRecord] | None:
        """`block` is a hash."""
        ...


class Application:
    """Answers CometBFT's requests; the name of a method is that of the request. Called from four threads."""

    def __init__(
        self,
        engine: Engine,
        heights: Heights,
        *,
        genesis: Standing,
        base: tuple[int, str] | None = None,
        rule: Rule,
        members: Members,
        may_connect: Callable[[str], bool],
        committed: Callable[[int, Sequence[SiteRecord]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`committed` hears of every final height, and of the sites after it; `may_connect` decides about p2p IDs.

        `base` is the CometBFT height and the block that this CometBFT chain goes on from; None: the first chain.
        """
        self._engine, self._heights, self._genesis, self._rule = engine, heights, genesis, rule
        self._members, self._may_connect, self._committed, self._clock = members, may_connect, committed, clock
        # One at a time for what reads or moves the head; CheckTx and Query go on beside it.
        self._moving = threading.RLock()
        self._genesis_hash = engine.block_hash(0)
        self._base_height, self._base = base or (0, self._genesis_hash)
        self._head, self._timestamp = self._read_head()
        self._pending: tuple[int, str, Standing, Sequence[SiteRecord]] | None = None
        self._rechecks: dict[bytes, int] = {}

    def echo(self, request: abci.RequestEcho) -> abci.ResponseEcho:
        """CometBFT's check that we are there."""
        return abci.ResponseEcho(message=request.message)

    def flush(self, _request: abci.Empty) -> abci.Empty:
        """Answers are never held back."""
        return abci.Empty()

    def info(self, _request: abci.Empty) -> abci.ResponseInfo:
        """The height that geth itself has come to: a killed one may have lost its newest blocks."""
        with self._moving:
            self._head, self._timestamp = self._read_head()
            height = self._heights.of_block(self._head)
            if height is None and self._head != self._base:
                raise EngineFault(f"geth's head {self._head} is not known here")
            log.info("geth is at height %d, block %s", height or self._base_height, self._head[:10])
            if height is None or height <= self._base_height:
                return abci.ResponseInfo(data="swarm-hpc", version="1")
            return abci.ResponseInfo(
                data="swarm-hpc", version="1", last_block_height=height, last_block_app_hash=self._app_hash()
            )

    def init_chain(self, _request: abci.RequestInitChain) -> abci.ResponseInitChain:
        """The height before the first one: the validators of the genesis."""
        self._heights.put(self._base_height, self._base, self._genesis)
        return abci.ResponseInitChain(app_hash=self._app_hash())

    def query(self, request: abci.RequestQuery) -> abci.ResponseQuery:
        """Whether a p2p connection is wanted. Addresses are all loopback: the tunnels'."""
        wanted, _, subject = request.path.removeprefix("/p2p/filter/").partition("/")
        refused = wanted == "id" and not self._may_connect(subject)
        return abci.ResponseQuery(code=int(refused), log="not the ID of a member site" if refused else "")

    def check_tx(self, request: abci.RequestCheckTx) -> abci.ResponseCheckTx:
        """A transaction for the mempool: geth's own pool takes it, or says why not."""
        raw = request.tx
        if raw[:1] in (HEADER, b"\x03", b""):
            return abci.ResponseCheckTx(code=1, log="no plain Ethereum transaction")
        try:
            self._engine.rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcRefused as exc:
            if "already known" not in str(exc):
                self._rechecks.pop(raw, None)
                return abci.ResponseCheckTx(code=1, log=str(exc))
            if request.type == _RECHECK and self._is_stuck(raw):
                return abci.ResponseCheckTx(code=1, log="not executable: a gap in the nonces?")
        return abci.ResponseCheckTx()

    def prepare_proposal(self, request: abci.RequestPrepareProposal) -> abci.ResponsePrepareProposal:
        """Our turn to propose: let geth build a block of the mempool's transactions."""
        with self._moving:
            if not request.txs:
                return abci.ResponsePrepareProposal()
            # geth may have been restarted since CheckTx.
            self._engine.rpc.batch([("eth_sendRawTransaction", ["0x" + raw.hex()]) for raw in request.txs])
            payload = self._build()
            txs = encode_block(payload) if payload is not None else []
            if sum(map(len, txs)) + 16 * len(txs) > request.max_tx_bytes:
                log.error("the block that geth built is larger than CometBFT allows; proposing an empty one")
                txs = []
            return abci.ResponsePrepareProposal(txs=txs)

    def process_proposal(self, request: abci.RequestProcessProposal) -> abci.ResponseProcessProposal:
        """Another's proposal, or our own: it must be a valid block on top of our head."""
        with self._moving:
            fault = self._fault(request.txs)
        if fault:
            log.warning("proposal for height %d refused: %s", request.height, fault)
        return abci.ResponseProcessProposal(status=_REJECT if fault else _ACCEPT)

    def finalize_block(self, request: abci.RequestFinalizeBlock) -> abci.ResponseFinalizeBlock:
        """A decided block: execute it and say what becomes of the validators. May be repeated after a crash."""
        with self._moving:
            before = self._heights.standing(request.height - 1)
            payload = decode_block(request.txs)
            head = self._head if payload is None else payload["blockHash"]
            if payload is not None and (fault := self._engine.execute(payload)):
                raise LedgerError(f"block {request.height} was decided, but geth finds it invalid: {fault}")
            sites = self._members_after(head)
            standing = before
            if sites is not None:
                standing = step(before, sites, _votes(request), request.time.seconds, self._rule)
            self._pending = (request.height, head, standing, sites or ())
            if payload is not None:
                self._timestamp = int(payload["timestamp"], 16)
            updates = before.updates(standing)
            if updates:
                log.info("height %d changes the voting power: %s", request.height, _shown(updates, sites or ()))
            return abci.ResponseFinalizeBlock(
                tx_results=[abci.ExecTxResult() for _ in request.txs],
                validator_updates=[_update(key, power) for key, power in sorted(updates.items())],
                app_hash=self._app_hash(),
            )

    def commit(self, _request: abci.Empty) -> abci.Empty:
        """The executed block becomes geth's head, and final."""
        with self._moving:
            if self._pending is None:
                raise LedgerError("CometBFT commits a block that was not finalised")
            height, head, standing, sites = self._pending
            self._heights.put(height, head, standing)
            if head != self._head:
                self._engine.finalize(head)
                self._head = head
        self._committed(height, sites)
        return abci.Empty()

    def list_snapshots(self, _request: abci.Empty) -> abci.Empty:
        """There are none: a site replays all blocks."""
        return abci.Empty()

    def offer_snapshot(self, _request: abci.Empty) -> abci.ResponseOfferSnapshot:
        """None is taken."""
        return abci.ResponseOfferSnapshot(result=_OFFER_REJECTED)

    def now_ms(self) -> int:
        """Ledger time, milliseconds since 1970: what a block made now would be stamped with, at the least."""
        return max(self._timestamp, ticks(self._clock()))

    def release(self) -> None:
        """The calling thread asks no more."""
        self._engine.rpc.close()

    def _read_head(self) -> tuple[str, int]:
        block = self._engine.head()
        return str(block["hash"]), int(block["timestamp"], 16)

    def _app_hash(self) -> bytes:
        # Constant, since a changing one would cost an empty block after each: a decided block names its Ethereum block
        # hash, which stands for the whole state.
        return bytes.fromhex(self._genesis_hash[2:])

    def _members_after(self, head: str) -> Sequence[SiteRecord] | None:
        try:
            return self._members(head)
        except RpcRefused as exc:
            # A killed geth may have kept a block and lost its state: it executes it again when it becomes the head.
            log.info("geth recovers the state of block %s: %s", head[:10], exc)
            self._engine.finalize(head)
            return self._members(head)

    def _is_stuck(self, raw: bytes) -> bool:
        self._rechecks[raw] = self._rechecks.get(raw, 0) + 1
        if self._rechecks[raw] <= MAX_RECHECKS:
            return False
        del self._rechecks[raw]
        return True

    def _build(self) -> Payload | None:
        """A block of what is in geth's pool; None where nothing there is executable."""
        timestamp = max(self._timestamp + 1, ticks(self._clock()))
        for wait_s in _BUILD_S:
            payload_id = self._engine.begin(self._head, timestamp, "0x" + os.urandom(32).hex())
            time.sleep(wait_s)
            payload = self._engine.built(payload_id)
            if payload["transactions"]:
                return payload
        return None

    def _fault(self, txs: Sequence[bytes]) -> str:
        try:
            payload = decode_block(txs)
        except ValueError as exc:
            return str(exc)
        if payload is None:
            return ""
        if payload["parentHash"] != self._head:
            return f"its parent is {payload['parentHash'][:10]}, the head {self._head[:10]}"
        ahead_ms = int(payload["timestamp"], 16) - max(self._timestamp + 1, ticks(self._clock()))
        if ahead_ms > TICKS_PER_S * MAX_AHEAD_S:
            return f"its time is {ahead_ms // TICKS_PER_S} s ahead of the clock here"
        try:
            return self._engine.execute(payload)
        except RpcRefused as exc:  # a field that geth cannot read
            return str(exc)


def encode_block(payload: Payload) -> list[bytes]:
    """A payload as the transactions of a CometBFT block."""
    raws = [bytes.fromhex(raw[2:]) for raw in payload["transactions"]]
    header = {key: value for key, value in payload.items() if key != "transactions"}
    return [HEADER + json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), *raws]


def decode_block(txs: Sequence[bytes]) -> Payload | None:
    """The payload of a CometBFT block, None of an empty one; ValueError says what is malformed."""
    if not txs:
        return None
    if txs[0][:1] != HEADER:
        raise ValueError("the block does not begin with a payload header")
    if len(txs) == 1 or any(raw[:1] in (HEADER, b"") for raw in txs[1:]):
        raise ValueError("the block holds no transactions, or another header")
    header: Any = document.parse(txs[0][1:])
    if not isinstance(header, dict) or header.keys() != _HEADER_FIELDS:
        raise ValueError("the payload header has other fields than an ExecutionPayloadV3")
    strings = all(isinstance(value, str) for key, value in header.items() if key != "withdrawals")
    if not strings or header["withdrawals"] != []:
        raise ValueError("the payload header has a field of another kind")
    if not _QUANTITY.fullmatch(header["timestamp"]):
        raise ValueError("the payload header's timestamp is no number of 64 bits")
    return cast(Payload, header | {"transactions": ["0x" + raw.hex() for raw in txs[1:]]})


def _votes(request: abci.RequestFinalizeBlock) -> list[Vote]:
    return [
        Vote(address=one.validator.address, present=one.block_id_flag != _ABSENT)
        for one in request.decided_last_commit.votes
    ]


def _update(key: str, power: int) -> abci.ValidatorUpdate:
    return abci.ValidatorUpdate(pub_key=abci.PublicKey(ed25519=bytes.fromhex(key)), power=power)


def _shown(updates: dict[str, int], sites: Sequence[SiteRecord]) -> str:
    names = {site.consensus_key: site.name for site in sites}
    return ", ".join(f"{names.get(key, key[:10])} {power}" for key, power in sorted(updates.items()))
