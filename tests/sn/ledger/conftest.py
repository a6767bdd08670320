"""Ledgers to test on: the embedded one and py-evm, both with a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.records import CheckIn, ContractSpec, MergeMethod, Platform
from swarm_hpc.sn.embedded import EmbeddedProvider
from swarm_hpc.sn.journal import Journal
from swarm_hpc.sn.ledger import Founder, Ledger

START = 1_900_000_000
FOUNDER = Founder(site="alpha", endpoint="alpha.test:30304", ca_fingerprint="aa" * 32)
MODEL = "11" * 32


class Chain(Protocol):
    """A chain whose time stands still until `wait`, but that each transaction takes one second."""

    provider: BaseProvider

    def wait(self, seconds: int) -> None: ...

    def account(self, number: int) -> LocalAccount: ...

    def close(self) -> None: ...


class EmbeddedChain:
    def __init__(self) -> None:
        self._not_before = START
        self.provider = EmbeddedProvider(Journal(None, 48125), clock=self._now)

    def _now(self) -> int:
        newest = self.provider.make_request("eth_getBlockByNumber", ["latest"])["result"]
        return max(self._not_before, int(newest["timestamp"], 16) + 1)

    def wait(self, seconds: int) -> None:
        self._not_before = self._now() + seconds

    def account(self, number: int) -> LocalAccount:
        return Account.from_key((1000 + number).to_bytes(32, "big"))

    def close(self) -> None:
        self.provider.close()


class PyEvmProvider(EthereumTesterProvider):
    """Answers a refused call as a node does, and serves one thread at a time."""

    def __init__(self, tester: EthereumTester) -> None:
        super().__init__(tester)
        self._serving = threading.RLock()

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        try:
            with self._serving:
                return super().make_request(method, params)
        except TransactionFailed as exc:
            reason = str(exc.args[0]).removeprefix("execution reverted: ")
            return {"jsonrpc": "2.0", "id": 1, "error": {"code": 3, "message": f"execution reverted: {reason}"}}


class PyEvmChain:
    def __init__(self) -> None:
        self._backend = PyEVMBackend()
        self._tester = EthereumTester(self._backend)
        self.provider = PyEvmProvider(self._tester)
        self._tester.time_travel(START)

    def wait(self, seconds: int) -> None:
        if seconds:
            newest = self._tester.get_block_by_number("latest")["timestamp"]
            self._tester.time_travel(newest + 1 + seconds)

    def account(self, number: int) -> LocalAccount:
        return Account.from_key(self._backend.account_keys[number].to_bytes())

    def close(self) -> None:
        """Nothing is open."""


CHAINS: dict[str, Callable[[], Chain]] = {"embedded": EmbeddedChain, "py-evm": PyEvmChain}


class Network:
    """One founded network: `alpha` belongs to account 0, further ledgers speak through other accounts."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.ledger = self.ledger_of(0)

    def ledger_of(self, account: int) -> Ledger:
        return Ledger(self.chain.provider, self.chain.account(account), kind="test", found=FOUNDER)

    def wait(self, seconds: int) -> None:
        self.chain.wait(seconds)


class Training(Network):
    """A network with a training contract `heart` and three nodes of site alpha in it."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self.nodes = [f"alpha/sl/sl-{i}" for i in (1, 2, 3)]
        self.ledger.create_contract(
            ContractSpec(
                name="heart",
                platform=Platform.PYTORCH,
                merge_method=MergeMethod.MEAN,
                min_peers=2,
                quorum_wait_s=30,
                leader_timeout_s=60,
                model=MODEL,
            )
        )
        for node in self.nodes:
            self.ledger.register_node(node, "", "instance")
            self.ledger.join("heart", node, 1, Platform.PYTORCH, MODEL)

    def check_in(self, *nodes: str, number: int = 1, blob: int = 1) -> None:
        for node in nodes:
            self.ledger.check_in("heart", number, 1, CheckIn(node=node, blob=f"{blob:064x}", weight=10))

    def merge_round(self, number: int) -> None:
        self.check_in(*self.nodes, number=number)
        self.ledger.claim("heart", number, self.nodes[0], 1)
        self.ledger.publish("heart", number, self.nodes[0], 1, f"{100 + number:064x}")


@pytest.fixture
def new_network() -> Iterator[Callable[[str], Network]]:
    """Founds networks on a kind of chain, `embedded` or `py-evm`."""
    chains: list[Chain] = []

    def found(kind: str) -> Network:
        chains.append(CHAINS[kind]())
        return Network(chains[-1])

    yield found
    for chain in chains:
        chain.close()


@pytest.fixture(params=["embedded", pytest.param("py-evm", marks=pytest.mark.slow)])
def chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    """A fresh chain of each kind in turn; one suite for all of them."""
    made = CHAINS[request.param]()
    yield made
    made.close()


@pytest.fixture
def network(chain: Chain) -> Network:
    """A founded network with nothing in it."""
    return Network(chain)


@pytest.fixture
def training(chain: Chain) -> Training:
    """Three nodes in a training contract: min_peers 2, quorum_wait_s 30, leader_timeout_s 60."""
    return Training(chain)
