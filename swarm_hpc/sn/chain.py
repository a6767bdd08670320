"""Calls, transactions and events of the ledger's contracts over web3: any provider, standard JSON-RPC only.

Knows accounts, nonces, receipts and how a revert becomes one of our exceptions; knows nothing of rounds or tasks.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from eth_abi.exceptions import EncodingError
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import TransactionIndexingInProgress, TransactionNotFound, Web3Exception
from web3.providers.base import BaseProvider
from web3.types import LogReceipt, TxParams, TxReceipt

from swarm_hpc.errors import ConfigError, ImageRefused, LedgerError, LedgerHalted, SwarmError, by_name
from swarm_hpc.sn.contracts import TICKS_PER_S, Artifact, artifact

GAS = 10_000_000
"""Gas limit of every transaction: the dearest ones, deployments, take about half of it."""
LEAST_GAS_PRICE = 10**9
"""An idle chain's base fee falls to next to nothing, and could be more than doubled by a burst of full blocks."""
RECEIPT_TIMEOUT_S = 20.0
"""How long a block may take: long enough for some lost proposers, shorter than an API client waits for its answer."""
RESEND_S = 4.0
ATTEMPTS = 5
"""How often a transaction is sent that is refused in its block and possible right after it."""
_NONCE_TAKEN = re.compile("already known|nonce too low|underpriced|already exists", re.IGNORECASE)
_REASON = re.compile(r"(?:execution reverted: ?)?([A-Z][A-Za-z]+): (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One event as the chain has it, decoded."""

    name: str
    block: int
    index: int
    at: int
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Attached:
    address: ChecksumAddress
    code: Artifact


@dataclass(frozen=True, slots=True)
class _Sent:
    """A transaction that was handed in."""

    digest: HexBytes
    raw: HexBytes
    nonce: int


class Chain:
    """The contracts of one ledger as one account sees them. Safe to use from several threads."""

    def __init__(self, provider: BaseProvider, account: LocalAccount):
        self._provider = provider
        # web3's own middleware (names, price strategies, attribute access) would take most of a call's time.
        self._w3 = Web3(provider, middleware=[])
        self._account = account
        self._sending = threading.Lock()
        self._contracts: dict[str, _Attached] = {}
        self._times: dict[int, int] = {}
        self._unsettled: _Sent | None = None
        self.chain_id = int(self._w3.eth.chain_id)

    @property
    def account(self) -> str:
        """Address of the account that sends."""
        return str(self._account.address)

    def close(self) -> None:
        """Release the provider, where it holds something."""
        close = getattr(self._provider, "close", None)
        if close is not None:
            close()

    # --- contracts ---

    def deploy(self, name: str, *arguments: object) -> str:
        """Create a contract and return its address."""
        code = artifact(name)
        data = code.bytecode + code.functions["__init__"].encode(arguments)
        receipt = self._transact({"data": data}, f"creating {name}")
        if receipt["status"] != 1:
            raise LedgerError(f"creating {name} failed in block {receipt['blockNumber']}")
        return str(receipt["contractAddress"])

    def attach(self, name: str, address: str) -> None:
        """Use the contract `name` (Registry, Training, Tasks, Shards) that lives at the address."""
        self._contracts[name] = _Attached(to_checksum_address(address), artifact(name))

    def has_code(self, address: str) -> bool:
        """Whether a contract lives at the address."""
        return bool(self._w3.eth.get_code(to_checksum_address(address)))

    def first_contract(self) -> str | None:
        """Address of the contract that the chain's first transaction created; None where there is none yet."""
        for number in range(1, self.height() + 1):
            for digest in self._w3.eth.get_block(number)["transactions"]:
                receipt = self._w3.eth.get_transaction_receipt(cast(HexBytes, digest))
                return str(receipt["contractAddress"]) if receipt.get("contractAddress") else None
        return None

    # --- reading ---

    def call(self, contract: str, function: str, *arguments: object, what: str = "") -> Any:
        """What a view of the contract returns: one value, a struct as a dict by its fields' names."""
        answer = self._call(self._request(contract, function, arguments, what), what or function)
        return self._contracts[contract].code.functions[function].decode(answer)

    def height(self) -> int:
        """Number of the newest block."""
        return int(self._w3.eth.block_number)

    def now(self) -> int:
        """Time that the next transaction would have, in seconds since 1970."""
        return int(self._w3.eth.get_block("pending")["timestamp"]) // TICKS_PER_S

    def block_hash(self, number: int) -> str:
        """Hash of that block, in hex."""
        return str(Web3.to_hex(self._w3.eth.get_block(number)["hash"]))

    def num_transactions(self, first: int, last: int) -> int:
        """How many transactions these blocks hold."""
        count = getattr(self._provider, "count_transactions", None)
        if count is not None:
            return int(count(first, last))
        return sum(int(self._w3.eth.get_block_transaction_count(number)) for number in range(first, last + 1))

    def logs(self, first: int, last: int, key: str | None = None) -> Iterator[LogEntry]:
        """Events of our contracts in these blocks, oldest first; with `key` only those that concern this contract."""
        topics: list[Any] = [None, Web3.to_hex(keccak(text=key))] if key is not None else []
        addresses = [one.address for one in self._contracts.values()]
        found = self._w3.eth.get_logs({"fromBlock": first, "toBlock": last, "address": addresses, "topics": topics})
        return map(self._decode, found)

    def _decode(self, log: LogReceipt) -> LogEntry:
        code = next(one.code for one in self._contracts.values() if one.address == log["address"])
        event = code.events[bytes(log["topics"][0])]
        arguments = event.decode(bytes(log["data"]))
        return LogEntry(event.name, log["blockNumber"], log["logIndex"], self._time(log), arguments)

    def _time(self, log: LogReceipt) -> int:
        stamp = cast(dict[str, Any], log).get("blockTimestamp")
        if stamp is not None:
            return (int(stamp, 16) if isinstance(stamp, str) else int(stamp)) // TICKS_PER_S
        number = log["blockNumber"]
        if number not in self._times:
            self._times[number] = int(self._w3.eth.get_block(number)["timestamp"]) // TICKS_PER_S
        return self._times[number]

    # --- writing ---

    def send(self, contract: str, function: str, *arguments: object, what: str) -> None:
        """Change the ledger; returns when that is final. Raises the exception that a refusal names.

        `what` says what was asked for. A refused call usually costs no transaction: it is tried as a call first.
        """
        request = self._request(contract, function, arguments, what)
        self._call(request, what)
        self._send(request, what)

    def send_untried(self, contract: str, function: str, *arguments: object, what: str) -> None:
        """As `send`, without the trial: a refusal is a reverted transaction."""
        self._send(self._request(contract, function, arguments, what), what)

    def _request(self, contract: str, function: str, arguments: tuple[object, ...], what: str) -> TxParams:
        target = self._contracts[contract]
        try:
            data = target.code.functions[function].encode(arguments)
        except (EncodingError, ValueError, TypeError) as exc:
            raise ConfigError(f"{what or function}: a value does not fit the ledger: {exc}") from exc
        return {"to": target.address, "data": data}

    def _call(self, request: TxParams, what: str) -> bytes:
        try:
            return bytes(self._w3.eth.call({**request, "from": self._account.address}, "pending"))
        except (Web3Exception, ValueError) as exc:
            raise refusal(exc, what) from exc

    def _send(self, request: TxParams, what: str) -> None:
        for _ in range(ATTEMPTS):
            receipt = self._transact(request, what)
            if receipt["status"] == 1:
                return
            # The state was another one in its block than in the trial: ask again why. Where it is possible by now, as
            # when a node joined and checked in between, it is sent again.
            self._call(request, what)
        raise LedgerError(f"{what}: refused {ATTEMPTS} times, but possible each time after that; repeat it")

    def _transact(self, request: TxParams, what: str) -> TxReceipt:
        # One at a time: the next transaction's nonce is certain only when this one's is used.
        with self._sending:
            try:
                deadline = time.monotonic() + RECEIPT_TIMEOUT_S
                self._settle(what, deadline)
                return self._send_until(request, what, deadline)
            except (Web3Exception, ValueError) as exc:
                raise refusal(exc, what) from exc

    def _send_until(self, request: TxParams, what: str, deadline: float) -> TxReceipt:
        """Send it, again with a new nonce where an earlier process's transaction took the nonce."""
        fixed: TxParams = {"value": cast(Any, 0), "gas": GAS, "chainId": self.chain_id}
        while True:
            self._check_running(what)
            nonce = self._nonce()
            numbered = {**request, **fixed, "gasPrice": self._gas_price(), "nonce": nonce}
            signed = self._account.sign_transaction(cast(dict[str, Any], numbered))
            sent = _Sent(signed.hash, signed.raw_transaction, nonce)
            try:
                self._w3.eth.send_raw_transaction(sent.raw)
            except (Web3Exception, ValueError) as exc:
                if not _NONCE_TAKEN.search(str(exc)):
                    raise
            else:
                self._unsettled = sent
            receipt = self._outcome(sent, what, deadline)
            self._unsettled = None
            if receipt is not None:
                return receipt

    def _settle(self, what: str, deadline: float) -> None:
        """Wait for the transaction of an earlier request, whose block did not come in its time."""
        if self._unsettled is None:
            return
        self._check_running(what)
        self._resend(self._unsettled)
        self._outcome(self._unsettled, what, deadline)
        self._unsettled = None

    def _outcome(self, sent: _Sent, what: str, deadline: float) -> TxReceipt | None:
        """The receipt of a transaction; None when another one has used its nonce."""
        pause_s, again_at = 0.005, time.monotonic() + RESEND_S
        while True:
            used = self._nonce() > sent.nonce
            try:
                return self._w3.eth.get_transaction_receipt(sent.digest)
            except (TransactionNotFound, TransactionIndexingInProgress):
                if used:
                    return None
            if time.monotonic() > deadline:
                why = self.halted() or f"no block took the transaction within {RECEIPT_TIMEOUT_S:.0f} s"
                raise LedgerHalted(f"{what}: {why}")
            if time.monotonic() > again_at:
                again_at += RESEND_S
                self._resend(sent)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)

    def _resend(self, sent: _Sent) -> None:
        """A mempool lives in memory: a process that was killed has lost it."""
        with suppress(Web3Exception, ValueError):
            self._w3.eth.send_raw_transaction(sent.raw)

    def _gas_price(self) -> int:
        """Twice the base fee, which may grow until a block takes the transaction; 0 where there is none (embedded).

        Not eth_gasPrice: geth derives that from what was paid before, so that each SN that starts would double it.
        """
        base = int(self._w3.eth.get_block("latest").get("baseFeePerGas", 0))
        return max(2 * base, LEAST_GAS_PRICE) if base else 0

    def _nonce(self) -> int:
        return int(self._w3.eth.get_transaction_count(self._account.address, "latest"))

    def _check_running(self, what: str) -> None:
        if why := self.halted():
            raise LedgerHalted(f"{what}: {why}")

    def halted(self) -> str:
        """Why no block can be made now; empty while they can."""
        ask = getattr(self._provider, "halted", None)
        return str(ask()) if ask is not None else ""


def refusal(exc: Exception, what: str) -> SwarmError:
    """Our exception for a revert whose reason is `Name: hint`; LedgerError for anything else."""
    if isinstance(exc, SwarmError):
        return exc
    # web3 makes the message of most errors the whole answer.
    answer = cast(dict[str, Any], getattr(exc, "rpc_response", None) or {})
    text = str(answer.get("error", {}).get("message") or getattr(exc, "message", None) or exc)
    found = _REASON.fullmatch(text)
    cls = by_name(found[1]) if found else SwarmError
    if found is None or not issubclass(cls, LedgerError | ConfigError | ImageRefused):
        return LedgerError(f"{what}: {text}")
    return cls(f"{what}: {found[2]}")
