"""`ledger=embedded`: an Ethereum chain inside the process, revm with a journal, behind web3's provider interface.

One block per transaction, final at once, stamped in milliseconds, no gas price. The state lives in memory; opening
replays the journal. It answers the standard JSON-RPC methods that chain.py uses and no others.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import rlp
from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from pyrevm import EVM, AccountInfo, BlockEnv, CfgEnv, Env
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.sn.contracts import ticks
from swarm_hpc.sn.journal import Entry, Journal, genesis_hash, next_hash

BLOCK_GAS = 30_000_000
CALL_GAS = 1_000_000_000
NOBODY = "0x" + "00" * 20
_ERROR_STRING = bytes.fromhex("08c379a0")
_NEWEST = ("latest", "pending", "safe", "finalized")


class RpcError(Exception):
    """An answer with an error, as JSON-RPC has it."""

    def __init__(self, message: str, code: int = -32000, data: str | None = None):
        super().__init__(message)
        self.answer: dict[str, Any] = {"code": code, "message": message} | ({"data": data} if data is not None else {})


class Transaction(NamedTuple):
    """A signed transaction, taken apart."""

    sender: str
    to: str | None
    data: bytes
    value: int
    nonce: int
    gas: int
    chain_id: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its hash and time (ms), and the one transaction in it (none in the genesis)."""

    hash: bytes
    at: int
    transaction: bytes | None
    logs: tuple[dict[str, Any], ...] = ()


class EmbeddedProvider(BaseProvider):
    """The chain of one journal. Safe to use from several threads. `close()` closes the journal, too."""

    def __init__(self, journal: Journal, *, read_only: bool = False, clock: Callable[[], float] = time.time):
        super().__init__()
        self._journal = journal
        self._read_only = read_only
        self._clock = clock
        self._lock = threading.RLock()
        self._evm = EVM(env=Env(cfg=CfgEnv(chain_id=journal.chain_id)), spec_id="LONDON")
        self._nonces: dict[str, int] = {}
        self._blocks = [Block(genesis_hash(journal.chain_id), 0, None)]
        self._receipts: dict[bytes, dict[str, Any]] = {}
        self._methods: dict[str, Callable[..., object]] = {
            "eth_chainId": lambda: hex(journal.chain_id),
            "net_version": lambda: str(journal.chain_id),
            "web3_clientVersion": lambda: "swarm-hpc/embedded",
            "eth_gasPrice": lambda: "0x0",
            "eth_blockNumber": lambda: hex(self._height()),
            "eth_getTransactionCount": lambda address, _block="latest": hex(self._nonces.get(address.lower(), 0)),
            "eth_getBalance": lambda _address, _block="latest": "0x0",
            "eth_getCode": lambda address, _block="latest": "0x" + bytes(self._evm.get_code(address) or b"").hex(),
            "eth_getBlockByNumber": self._get_block,
            "eth_getBlockTransactionCountByNumber": lambda block: hex(int(self._number(block) > 0)),
            "eth_getTransactionReceipt": lambda digest: self._receipts.get(bytes(HexBytes(digest))),
            "eth_getLogs": self._get_logs,
            "eth_call": self._call,
            "eth_sendRawTransaction": self._send,
        }
        for entry in journal.entries():
            self._execute(entry, _decode(entry.raw))

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Answer one JSON-RPC request."""
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
        try:
            if method not in self._methods:
                raise RpcError(f"the method {method} does not exist", -32601)
            with self._lock:
                answer["result"] = self._methods[method](*params)
        except RpcError as exc:
            answer["error"] = exc.answer
        return cast(RPCResponse, answer)

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether there is a chain: always."""
        return True

    def close(self) -> None:
        """Close the journal; a second time has no effect."""
        with self._lock:
            self._journal.close()

    # --- writing ---

    def _send(self, raw: str) -> str:
        data = bytes(HexBytes(raw))
        if self._read_only:
            raise RpcError("this ledger was opened for reading")
        try:
            tx = _decode(data)
        except Exception as exc:
            raise RpcError(f"not a signed transaction: {exc}") from exc
        expected = self._nonces.get(tx.sender, 0)
        if tx.chain_id != self._journal.chain_id:
            raise RpcError(f"invalid chain id {tx.chain_id}: this is chain {self._journal.chain_id}")
        if tx.nonce != expected:
            raise RpcError(f"nonce too {'low' if tx.nonce < expected else 'high'}: have {tx.nonce}, want {expected}")
        if tx.gas > BLOCK_GAS:
            raise RpcError(f"exceeds block gas limit: {tx.gas} > {BLOCK_GAS}")
        number, at = self._height() + 1, self._now()
        entry = Entry(number, at, data, next_hash(self._blocks[-1].hash, number, at, data))
        self._journal.append(entry)  # before it is executed: what is confirmed is on disk
        return "0x" + self._execute(entry, tx).hex()

    def _execute(self, entry: Entry, tx: Transaction) -> bytes:
        digest = keccak(entry.raw)
        self._set_block(entry.number, entry.at)
        created = None
        found: list[Any] = []
        try:
            if tx.to is None:
                # revm counts creations only; contract addresses follow from the sender's real nonce.
                self._evm.insert_account_info(tx.sender, AccountInfo(nonce=tx.nonce))
                created = to_checksum_address(self._evm.deploy(tx.sender, tx.data, tx.value, tx.gas, 0))
            else:
                self._evm.message_call(tx.sender, tx.to, tx.data, tx.value, tx.gas, 0)
            result = self._evm.result
            assert result is not None
            ok, gas_used, found = True, result.gas_used, result.logs or []
        except RuntimeError as exc:
            # Reverted, or out of gas: the transaction stays in its block and its nonce is used.
            used = re.search(r"gas_used: (\d+)", str(exc))
            ok, gas_used = False, int(used[1]) if used else tx.gas
        self._nonces[tx.sender] = tx.nonce + 1
        place = {
            "blockNumber": hex(entry.number),
            "blockHash": "0x" + entry.hash.hex(),
            "transactionHash": "0x" + digest.hex(),
            "transactionIndex": "0x0",
        }
        logs = tuple(place | _log(index, log) | {"blockTimestamp": hex(entry.at)} for index, log in enumerate(found))
        self._blocks.append(Block(entry.hash, entry.at, digest, logs))
        self._receipts[digest] = place | {
            "from": to_checksum_address(tx.sender),
            "to": to_checksum_address(tx.to) if tx.to else None,
            "contractAddress": created,
            "status": hex(ok),
            "gasUsed": hex(gas_used),
            "cumulativeGasUsed": hex(gas_used),
            "effectiveGasPrice": "0x0",
            "logs": list(logs),
            "logsBloom": "0x" + "00" * 256,
            "type": "0x0",
        }
        return digest

    # --- reading ---

    def _height(self) -> int:
        return len(self._blocks) - 1

    def _now(self) -> int:
        return max(ticks(self._clock()), self._blocks[-1].at)

    def _set_block(self, number: int, at: int) -> None:
        self._evm.set_block_env(BlockEnv(number=number, timestamp=at, gas_limit=BLOCK_GAS))

    def _number(self, block: str) -> int:
        if block in _NEWEST:
            return self._height()
        number = 0 if block == "earliest" else int(block, 16)
        if not 0 <= number <= self._height():
            raise RpcError(f"no such block: {number}")
        return number

    def _call(self, call: dict[str, Any], block: str = "latest", *_overrides: object) -> str:
        """Run a call on the newest state, as the next transaction would, and undo it."""
        if self._number(block) != self._height():
            raise RpcError("only the newest state is kept")
        self._set_block(self._height() + 1, self._now())
        data = bytes(HexBytes(call.get("data") or call.get("input") or "0x"))
        gas = int(call["gas"], 16) if "gas" in call else CALL_GAS
        before = self._evm.snapshot()
        try:
            return "0x" + bytes(self._evm.message_call(call.get("from", NOBODY), call["to"], data, 0, gas, 0)).hex()
        except RuntimeError as exc:
            raise _refusal(str(exc)) from exc
        finally:
            self._evm.revert(before)

    def _get_block(self, block: str, _full: bool = False) -> dict[str, Any]:
        number = self._number(block)
        one = self._blocks[number]
        answer: dict[str, Any] = {
            "number": hex(number),
            "hash": "0x" + one.hash.hex(),
            "parentHash": "0x" + (self._blocks[number - 1].hash if number else bytes(32)).hex(),
            "timestamp": hex(one.at),
            "transactions": ["0x" + one.transaction.hex()] if one.transaction else [],
            "gasLimit": hex(BLOCK_GAS),
            "baseFeePerGas": "0x0",
        }
        if block == "pending":
            answer |= {
                "number": hex(number + 1),
                "hash": None,
                "parentHash": "0x" + one.hash.hex(),
                "timestamp": hex(self._now()),
                "transactions": [],
            }
        return answer

    def _get_logs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        first, last = (self._number(query.get(key, "latest")) for key in ("fromBlock", "toBlock"))
        wanted = query.get("address") or []
        addresses = {address.lower() for address in ([wanted] if isinstance(wanted, str) else wanted)}
        topics = [{one} if isinstance(one, str) else set(one or ()) for one in query.get("topics") or []]
        return [
            log
            for block in self._blocks[first : last + 1]
            for log in block.logs
            if (not addresses or log["address"].lower() in addresses) and _matches(log["topics"], topics)
        ]


def _matches(topics: list[str], wanted: list[set[str]]) -> bool:
    return all(not some or (i < len(topics) and topics[i] in some) for i, some in enumerate(wanted))


def _decode(raw: bytes) -> Transaction:
    sender = Account.recover_transaction(raw).lower()
    if raw[0] <= 0x7F:
        typed = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        to = bytes(HexBytes(typed.get("to") or b""))
        data = bytes(HexBytes(typed["data"]))
        value, nonce, gas, chain_id = (int(typed[key]) for key in ("value", "nonce", "gas", "chainId"))
    else:
        fields = rlp.decode(raw)
        nonce, gas, value, v = (int.from_bytes(fields[i], "big") for i in (0, 2, 4, 6))
        to, data, chain_id = fields[3], fields[5], (v - 35) // 2
    return Transaction(sender, "0x" + to.hex() if to else None, data, value, nonce, gas, chain_id)


def _log(index: int, log: Any) -> dict[str, Any]:
    topics, data = log.data
    return {
        "logIndex": hex(index),
        "address": to_checksum_address(log.address),
        "topics": ["0x" + bytes(topic).hex() for topic in topics],
        "data": "0x" + bytes(data).hex(),
        "removed": False,
    }


def _refusal(message: str) -> RpcError:
    found = re.search(r"output: 0x([0-9a-f]*)", message)
    if found is None:
        return RpcError(f"execution failed: {message}")
    data = bytes.fromhex(found[1])
    reason = ""
    if data.startswith(_ERROR_STRING):
        try:
            reason = f": {decode(['string'], data[4:])[0]}"
        except DecodingError:
            reason = ""
    return RpcError(f"execution reverted{reason}", 3, "0x" + data.hex())
