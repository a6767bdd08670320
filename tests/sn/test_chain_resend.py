"""Transactions whose blocks do not come, or whose nonces others took: nothing is done twice, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from web3.providers.base import BaseProvider

from swarm_hpc.errors import LedgerError, LedgerHalted
from swarm_hpc.sn import chain as chain_file
from swarm_hpc.sn.chain import Chain

REGISTRY = to_checksum_address("0x" + "12" * 20)
ACCOUNT = Account.from_key("0x" + "01" * 32)


class Scripted(BaseProvider):
    """A chain that puts a sent transaction into a block when `minable` says so, in the order of the nonces."""

    def __init__(self) -> None:
        super().__init__()
        self.nonce = 0
        self.sent: list[str] = []
        self.mined: set[str] = set()
        self.minable: Callable[[str], bool] = lambda _digest: True
        self.refusal = ""
        self.why_halted = ""
        self.num_reverted = 0
        """So many transactions are refused in their blocks, though the trial before and after went well."""

    def make_request(self, method: str, params: Any) -> Any:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
        try:
            return answer | {"result": getattr(self, method)(*params)}
        except ValueError as exc:
            return answer | {"error": {"code": -32000, "message": str(exc)}}

    def halted(self) -> str:
        return self.why_halted

    def eth_chainId(self) -> str:
        return "0x5"

    def eth_gasPrice(self) -> str:
        return "0x0"

    def eth_getBlockByNumber(self, _number: str, _full: bool) -> dict[str, Any]:
        return {"number": "0x1", "timestamp": "0x1", "baseFeePerGas": "0x7"}

    def eth_call(self, *_: Any) -> str:
        return "0x"

    def eth_getTransactionCount(self, _account: str, _block: str) -> str:
        self._mine()
        return hex(self.nonce)

    def eth_sendRawTransaction(self, raw: str) -> str:
        if self.refusal:
            refusal, self.refusal = self.refusal, ""
            raise ValueError(refusal)
        digest = "0x" + keccak(bytes.fromhex(raw[2:])).hex()
        self.sent.append(digest)
        return digest

    def eth_getTransactionReceipt(self, digest: str) -> dict[str, Any] | None:
        if digest not in self.mined:
            return None
        reverted, self.num_reverted = self.num_reverted > 0, max(0, self.num_reverted - 1)
        return {
            "status": "0x0" if reverted else "0x1",
            "blockNumber": "0x1",
            "transactionHash": digest,
            "contractAddress": None,
        }

    def _mine(self) -> None:
        for digest in self.sent:
            if digest not in self.mined and self.minable(digest):
                self.mined.add(digest)
                self.nonce += 1
                return


@pytest.fixture
def provider() -> Scripted:
    return Scripted()


@pytest.fixture
def chain(provider: Scripted, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(chain_file, "RECEIPT_TIMEOUT_S", 0.05)
    made = Chain(provider, ACCOUNT)
    made.attach("Registry", REGISTRY)
    return made


def announce(chain: Chain, endpoint: str) -> None:
    chain.send("Registry", "announce", endpoint, what=f"announcing {endpoint}")


def test_a_transaction_is_done_when_it_is_in_a_block(chain, provider):
    announce(chain, "a:1")
    assert len(provider.sent) == 1
    assert provider.nonce == 1


def test_a_transaction_without_a_block_is_told_as_a_halt_with_its_reason(chain, provider):
    def halted_by_now(_digest):
        provider.why_halted = "the ledger stands still: beta is missing"
        return False

    provider.minable = halted_by_now
    with pytest.raises(LedgerHalted, match="announcing a:1: the ledger stands still: beta is missing"):
        announce(chain, "a:1")


def test_a_block_that_does_not_come_for_no_known_reason_is_a_halt_too(chain, provider):
    provider.minable = lambda _: False
    with pytest.raises(LedgerHalted, match="no block took the transaction within"):
        announce(chain, "a:1")


def test_nothing_is_sent_while_the_ledger_stands_still(chain, provider):
    provider.why_halted = "beta is missing"
    with pytest.raises(LedgerHalted, match="announcing a:1: beta is missing"):
        announce(chain, "a:1")
    assert provider.sent == []


def test_the_next_request_settles_the_transaction_that_is_under_way_before_its_own(chain, provider):
    provider.minable = lambda _: False
    with pytest.raises(LedgerHalted):
        announce(chain, "a:1")
    provider.minable = lambda _: True
    announce(chain, "a:2")
    first, again, second = provider.sent
    assert first == again  # the very same one: whatever became of it, it counts once
    assert second != first
    assert provider.mined == {first, second}
    assert provider.nonce == 2


def test_a_transaction_that_is_still_under_way_keeps_the_next_one_back(chain, provider):
    provider.minable = lambda _: False
    for endpoint in ("a:1", "a:2"):
        with pytest.raises(LedgerHalted):
            announce(chain, endpoint)
    assert len(set(provider.sent)) == 1
    provider.minable = lambda _: True
    announce(chain, "a:3")
    assert provider.nonce == 2
    assert len(provider.mined) == 2


def test_a_transaction_under_way_whose_nonce_another_took_is_given_up(chain, provider):
    provider.minable = lambda _: False
    with pytest.raises(LedgerHalted):
        announce(chain, "a:1")
    lost = provider.sent[0]
    provider.nonce = 1  # an earlier process's transaction was in the mempools
    provider.minable = lambda digest: digest != lost
    announce(chain, "a:2")
    assert lost not in provider.mined
    assert provider.nonce == 2


@pytest.mark.parametrize(
    "refusal", ["nonce too low: next nonce 1, tx nonce 0", "replacement transaction underpriced", "already known"]
)
def test_a_nonce_that_another_transaction_took_is_followed_by_the_next_one(chain, provider, refusal):
    def refuse_first(*_: Any) -> str:
        provider.nonce = 1
        provider.eth_sendRawTransaction = send
        raise ValueError(refusal)

    send, provider.eth_sendRawTransaction = provider.eth_sendRawTransaction, refuse_first
    announce(chain, "a:1")
    assert len(provider.sent) == 1
    assert provider.nonce == 2


def test_a_transaction_that_is_refused_for_another_reason_leaves_nothing_to_settle(chain, provider):
    provider.refusal = "insufficient funds for gas"
    with pytest.raises(LedgerError, match=r"announcing a:1: insufficient funds for gas$"):
        announce(chain, "a:1")
    announce(chain, "a:2")
    assert len(provider.sent) == 1


def test_what_was_refused_in_its_block_but_is_possible_after_it_is_sent_again(chain, provider):
    provider.num_reverted = 2
    announce(chain, "a:1")
    assert provider.nonce == 3


def test_it_is_not_sent_for_ever(chain, provider):
    provider.num_reverted = 100
    with pytest.raises(LedgerError, match="refused 5 times"):
        announce(chain, "a:1")
    assert provider.nonce == chain_file.ATTEMPTS
