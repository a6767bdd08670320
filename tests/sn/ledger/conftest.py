"""Ledgers to test on: the embedded one, py-evm and four sites of geth, all with a clock that the test moves."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from eth_account import Account
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.errors import NotReachable
from swarm_hpc.records import CheckIn, ContractSpec, Merge, Platform
from swarm_hpc.sn.consensus import Programs
from swarm_hpc.sn.contracts import TICKS_PER_S
from swarm_hpc.sn.embedded import EmbeddedProvider
from swarm_hpc.sn.journal import Journal
from swarm_hpc.sn.ledger import Founder, Ledger
from tests.conftest import find_ledger_programs
from tests.lab import geth as lab

START = 1_900_000_000
FOUNDER = Founder(site="alpha", endpoint="alpha.test:30304", ca_fingerprint="aa" * 32)
MODEL = "11" * 32


class Chain(Protocol):
    """A chain whose time stands still until `wait`, but that each transaction takes a tick."""

    def ledger(self, number: int) -> Ledger:
        """The ledger as account `number` uses it; the first one founds it."""
        ...

    def wait(self, seconds: int) -> None: ...

    def close(self) -> None: ...


class EmbeddedChain:
    def __init__(self) -> None:
        self._not_before = START
        self.provider = EmbeddedProvider(Journal(None, 48125), clock=self._now)

    def _now(self) -> float:
        newest = self.provider.make_request("eth_getBlockByNumber", ["latest"])["result"]
        return max(self._not_before, (int(newest["timestamp"], 16) + 1) / TICKS_PER_S)

    def wait(self, seconds: int) -> None:
        self._not_before = int(self._now()) + seconds

    def ledger(self, number: int) -> Ledger:
        account = Account.from_key((1000 + number).to_bytes(32, "big"))
        return Ledger(self.provider, account, kind="test", found=FOUNDER)

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
        # Not the tester's own: it takes seconds of our century only.
        self._backend.time_travel(START * TICKS_PER_S)

    def wait(self, seconds: int) -> None:
        if seconds:
            now = self._tester.get_block_by_number("pending")["timestamp"]
            self._backend.time_travel((now // TICKS_PER_S + seconds) * TICKS_PER_S)

    def ledger(self, number: int) -> Ledger:
        account = Account.from_key(self._backend.account_keys[number].to_bytes())
        return Ledger(self.provider, account, kind="test", found=FOUNDER)

    def close(self) -> None:
        """Nothing is open."""


class MovedClock:
    """One clock for all sites of a network: a tick after the newest block of the site that asks, or later."""

    def __init__(self) -> None:
        self.not_before = START

    def __call__(self, site: lab.LabSite) -> float:
        return max(self.not_before, (site.block_time_ms() + 1) / TICKS_PER_S)


class InStepProvider(BaseProvider):
    """A site's provider that answers when the site has all that any site has confirmed.

    A write is final everywhere when it returns, but other sites execute its block some milliseconds later.
    """

    def __init__(self, site: lab.LabSite, newest: list[int]) -> None:
        super().__init__()
        self._site, self._newest, self._here = site, newest, 0
        self._provider = site.provider()

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        deadline = time.monotonic() + 30.0
        while self._here < self._newest[0]:
            self._here = self._site.block_number()
            if time.monotonic() > deadline:
                raise NotReachable(f"{self._site.name} is at block {self._here}, others at {self._newest[0]}")
        answer = self._provider.make_request(method, params)
        if method == "eth_getTransactionReceipt" and answer.get("result"):
            self._newest[0] = max(self._newest[0], int(cast(Any, answer)["result"]["blockNumber"], 16))
        return answer

    def halted(self) -> str:
        return self._provider.halted()


class GethChain:
    """A contract set of its own on the running network: as good as an empty ledger. Account n speaks at site n."""

    def __init__(self, network: lab.GethNetwork, clock: MovedClock) -> None:
        self._network, self._clock = network, clock
        geth, account = network.sites[0].consensus.geth, lab.account(0).address
        network.await_height(newest := network.sites[0].block_number())
        self._newest = [newest]
        nonce = int(geth.call("eth_getTransactionCount", account, "latest"), 16)
        self._registry = lab.contract_address(account, nonce)

    def ledger(self, number: int) -> Ledger:
        site = self._network.sites[number % len(self._network.sites)]
        provider = InStepProvider(site, self._newest)
        return Ledger(provider, lab.account(number), kind="geth", found=FOUNDER, registry=self._registry)

    def wait(self, seconds: int) -> None:
        self._clock.not_before = self._network.sites[0].consensus.now_ms() // TICKS_PER_S + seconds

    def close(self) -> None:
        """The network goes on."""


CHAINS: dict[str, Callable[[], Chain]] = {"embedded": EmbeddedChain, "py-evm": PyEvmChain}


class Network:
    """One founded network: `alpha` belongs to account 0, further ledgers speak through other accounts."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.ledger = self.ledger_of(0)

    def ledger_of(self, account: int) -> Ledger:
        return self.chain.ledger(account)

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
                merge=Merge(),
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


@pytest.fixture(scope="package")
def geth_chain() -> Iterator[Callable[[], Chain]]:
    """Makes empty ledgers on one network of four sites, which is started once for all tests here."""
    programs, clock = find_ledger_programs(), MovedClock()
    assert not isinstance(programs, str), programs
    folder = Path(tempfile.mkdtemp(prefix="swarm-lab-"))
    try:
        network = lab.GethNetwork(folder, Programs(geth=programs.geth, cometbft=programs.cometbft), clock=clock)
        with network:
            yield lambda: GethChain(network, clock)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def new_chain(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Chain]]:
    """Makes fresh chains of a kind: `embedded`, `py-evm` or `geth`."""
    chains: list[Chain] = []

    def make(kind: str) -> Chain:
        chains.append(request.getfixturevalue("geth_chain")() if kind == "geth" else CHAINS[kind]())
        return chains[-1]

    yield make
    for chain in chains:
        chain.close()


@pytest.fixture
def new_network(new_chain: Callable[[str], Chain]) -> Callable[[str], Network]:
    """Founds networks on a kind of chain, at the same time on each."""
    networks: list[Network] = []

    def found(kind: str) -> Network:
        networks.append(Network(new_chain(kind)))
        latest = max(one.ledger.now() for one in networks)
        for one in networks:
            one.wait(latest - one.ledger.now())
        return networks[-1]

    return found


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("py-evm", marks=pytest.mark.slow),
        pytest.param("geth", marks=pytest.mark.geth),
    ]
)
def chain(request: pytest.FixtureRequest, new_chain: Callable[[str], Chain]) -> Chain:
    """A fresh chain of each kind in turn; one suite for all of them."""
    return new_chain(request.param)


@pytest.fixture
def network(chain: Chain) -> Network:
    """A founded network with nothing in it."""
    return Network(chain)


@pytest.fixture
def training(chain: Chain) -> Training:
    """Three nodes in a training contract: min_peers 2, quorum_wait_s 30, leader_timeout_s 60."""
    return Training(chain)
