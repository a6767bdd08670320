"""Where web3's requests go: reads to geth, transactions to CometBFT; and what a restart in between does to them."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from eth_utils.crypto import keccak

from swarm_hpc.errors import NotReachable
from swarm_hpc.sn.geth import RpcRefused
from swarm_hpc.sn.geth_provider import GethProvider

RAW = "0xf86b01"


class Geth:
    """Answers with what it was asked; does not for the first `down` calls."""

    def __init__(self) -> None:
        self.down = 0
        self.asked: list[tuple[str, list[Any]]] = []
        self.result: Any = "0x1"

    def answer(self, method: str, params: list[Any]) -> dict[str, Any]:
        if self.down:
            self.down -= 1
            raise NotReachable("geth does not answer")
        self.asked.append((method, params))
        return {"jsonrpc": "2.0", "id": 1, "result": self.result}

    def call(self, method: str, *params: Any) -> Any:
        return self.answer(method, list(params))["result"]


class Comet:
    """A mempool that takes everything, or what `outcome` says."""

    def __init__(self) -> None:
        self.outcome: dict[str, Any] | Exception = {"code": 0, "log": ""}
        self.taken: list[bytes] = []

    def call(self, method: str, tx: str) -> dict[str, Any]:
        assert method == "broadcast_tx_sync"
        self.taken.append(base64.b64decode(tx))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Backend:
    def __init__(self) -> None:
        self.geth, self.comet = Geth(), Comet()
        self.comes_back, self.waited = True, 0
        self.why_halted = ""

    def now_ms(self) -> int:
        return 1000

    def halted(self) -> str:
        return self.why_halted

    def await_running(self, timeout_s: float) -> bool:
        self.waited += 1
        return self.comes_back


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def provider(backend: Backend) -> GethProvider:
    return GethProvider(backend)


@pytest.mark.parametrize(
    ("method", "params"),
    [("eth_blockNumber", []), ("eth_getLogs", [{"fromBlock": "0x1"}]), ("eth_getTransactionReceipt", ["0xab"])],
)
def test_reads_go_to_geth_as_they_are(provider, backend, method, params):
    assert provider.make_request(method, params)["result"] == "0x1"
    assert backend.geth.asked == [(method, params)]


def test_a_transaction_goes_to_the_mempool_and_has_the_hash_that_ethereum_gives_it(provider, backend):
    answer = provider.make_request("eth_sendRawTransaction", [RAW])
    assert answer["result"] == "0x" + keccak(bytes.fromhex(RAW[2:])).hex()
    assert backend.comet.taken == [bytes.fromhex(RAW[2:])]
    assert backend.geth.asked == []


def test_a_transaction_that_the_mempool_has_already_was_sent(provider, backend):
    backend.comet.outcome = RpcRefused("Internal error: tx already exists in cache")
    assert "result" in provider.make_request("eth_sendRawTransaction", [RAW])


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ({"code": 1, "log": "nonce too low"}, {"code": -32000, "message": "nonce too low"}),
        (RpcRefused("mempool is full", code=-32603), {"code": -32603, "message": "mempool is full"}),
    ],
)
def test_a_refused_transaction_is_an_error_with_its_reason(provider, backend, outcome, error):
    backend.comet.outcome = outcome
    assert provider.make_request("eth_sendRawTransaction", [RAW])["error"] == error


def test_a_pending_call_is_one_on_the_final_state_at_the_time_of_now(provider, backend):
    provider.make_request("eth_call", [{"to": "0x1"}, "pending"])
    assert backend.geth.asked == [("eth_call", [{"to": "0x1"}, "latest", {}, {"time": hex(1000)}])]


@pytest.mark.parametrize(("params", "block"), [([{}], "latest"), ([{}, "0x7"], "0x7"), ([{}, "latest"], "latest")])
def test_other_calls_are_on_the_block_they_name(provider, backend, params, block):
    provider.make_request("eth_call", params)
    assert backend.geth.asked == [("eth_call", [{}, block])]


def test_the_pending_block_is_the_newest_one_at_the_time_of_now(provider, backend):
    backend.geth.result = {"number": "0x5", "timestamp": "0x1"}
    answer = provider.make_request("eth_getBlockByNumber", ["pending", False])
    assert answer["result"] == {"number": "0x5", "timestamp": hex(1000)}
    assert backend.geth.asked == [("eth_getBlockByNumber", ["latest", False])]


def test_a_nonce_is_counted_on_the_chain_and_not_in_the_pool(provider, backend):
    provider.make_request("eth_getTransactionCount", ["0xab", "pending"])
    assert backend.geth.asked == [("eth_getTransactionCount", ["0xab", "latest"])]


def test_a_request_during_a_restart_is_made_again_after_it(provider, backend):
    backend.geth.down = 1
    assert provider.make_request("eth_blockNumber", [])["result"] == "0x1"
    assert backend.waited == 2, "before the request, and after it had failed"


def test_a_restart_that_takes_too_long_is_told(provider, backend):
    backend.geth.down, backend.comes_back = 1, False
    with pytest.raises(NotReachable):
        provider.make_request("eth_blockNumber", [])


def test_a_request_is_made_twice_at_most(provider, backend):
    backend.geth.down = 2
    with pytest.raises(NotReachable):
        provider.make_request("eth_blockNumber", [])
    assert backend.waited == 2


def test_it_says_whether_geth_answers_and_why_nothing_goes_on(provider, backend):
    assert provider.is_connected()
    backend.geth.down = 1
    assert not provider.is_connected()
    backend.why_halted = "two sites are missing"
    assert provider.halted() == "two sites are missing"
