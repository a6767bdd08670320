"""Joining through members that answer what a test says, over the real mutual TLS."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import pytest
from aiohttp import web

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import ConfigError, NotAuthorized, NotReachable
from swarm_hpc.records import SiteApplication, SiteList, SiteRecord, decode, encode
from swarm_hpc.sn import joining
from swarm_hpc.sn.network import Network
from swarm_hpc.transport.server import application, body, serve

ASKS = SiteApplication(
    site="beta", account="0x" + "Be" * 20, endpoint="beta.test:1", consensus_key="bb" * 32, p2p_id="bb" * 20
)


def site(name: str, endpoint: str, **changes) -> SiteRecord:
    record = SiteRecord(
        name=name,
        account="0x0",
        endpoint=endpoint,
        ca_fingerprint="",
        consensus_key="aa" * 32,
        p2p_id="",
        active=True,
        joined_at=0,
        announced=1,
    )
    return replace(record, **changes)


def beta(**changes) -> SiteRecord:
    values = {"account": ASKS.account, "consensus_key": ASKS.consensus_key, "announced": 0}
    return site("beta", ASKS.endpoint, **(values | changes))


@dataclass
class Member:
    """One that knows a network, and a list of sites that grows longer with each time it is asked."""

    network: Network
    address: str = ""
    lists: list[list[SiteRecord]] = field(default_factory=list)
    asked: list[SiteApplication] = field(default_factory=list)
    refuses: bool = False

    def app(self) -> web.Application:
        app = application()
        app.add_routes([web.get("/v1/network", self.get_network), web.post("/v1/sites", self.apply)])
        return app

    async def get_network(self, request: web.Request) -> web.Response:
        return web.json_response({"network": self.network.text(), "epochs": []})

    async def apply(self, request: web.Request) -> web.Response:
        if self.refuses:
            raise NotAuthorized("256 sites ask this SN already")
        self.asked.append(decode(SiteApplication, (await body(request))["application"]))
        sites = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return web.json_response(encode(SiteList(sites=tuple(sites))))


@pytest.fixture
def network() -> Network:
    return Network.found(LedgerConfig(), "alpha", "0x" + "01" * 20, "aa" * 32)


@pytest.fixture
async def start(consortium, network, monkeypatch) -> AsyncIterator[Callable[..., Awaitable[Member]]]:
    monkeypatch.setattr(joining, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(joining, "_CONNECT_S", 0.1)
    async with AsyncExitStack() as stack:

        async def make(**values) -> Member:
            member = Member(**({"network": network} | values))
            serving = serve(member.app(), consortium.identity("alpha/sn/sn"), "127.0.0.1", 0)
            member.address = f"127.0.0.1:{await stack.enter_async_context(serving)}"
            return member

        yield make


@pytest.fixture
def nobody() -> str:
    """An address that nobody answers at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def own(consortium):
    return consortium.identity("beta/sn/sn")


async def test_the_network_comes_from_the_first_member_that_answers(start, own, network, nobody):
    member = await start()
    config = LedgerConfig(join=[nobody, member.address], network=network.id())
    assert await joining.fetch_network(config, own) == (network, ())


async def test_another_network_than_the_one_that_was_named_is_refused_at_once(start, own, network):
    member = await start(network=Network.found(LedgerConfig(), "alpha", "0x" + "01" * 20, "aa" * 32))
    config = LedgerConfig(join=[member.address], network=network.id())
    with pytest.raises(ConfigError, match=r"ledger\.network: the member answers with network"):
        await joining.fetch_network(config, own)


async def test_a_network_of_another_chain_is_refused(start, own):
    member = await start()
    with pytest.raises(ConfigError, match=r"ledger\.chain_id: 5"):
        await joining.fetch_network(LedgerConfig(join=[member.address], chain_id=5), own)


async def test_members_that_never_answer_are_given_up_and_named(start, own, nobody, monkeypatch):
    monkeypatch.setattr(joining, "_FIRST_ANSWER_S", 0.0)
    with pytest.raises(NotReachable, match=rf"ledger\.join: no member answered .*{nobody}"):
        await joining.fetch_network(LedgerConfig(join=[nobody]), own)


async def test_a_site_asks_until_it_is_a_member(start, own):
    member = await start()
    alpha = site("alpha", member.address)
    member.lists = [[alpha], [alpha], [alpha, beta()]]
    told: list[str] = []
    sites = await joining.be_admitted(LedgerConfig(join=[member.address]), own, ASKS, told.append)
    assert [one.name for one in sites] == ["alpha", "beta"]
    assert member.asked == [ASKS] * 3
    assert told == ["waiting to be admitted by more than half of 1 sites"] * 2


async def test_it_asks_all_members_that_it_hears_of(start, own):
    first, second = await start(), await start()
    both = [site("alpha", first.address), site("gamma", second.address)]
    first.lists, second.lists = [both, both, [*both, beta()]], [both]
    await joining.be_admitted(LedgerConfig(join=[first.address]), own, ASKS, lambda _: None)
    assert len(first.asked) == 3
    assert len(second.asked) == 2


@pytest.mark.parametrize(
    "known", [beta(consensus_key="cc" * 32), beta(account="0x0"), beta(active=False)], ids=["key", "account", "removed"]
)
async def test_a_record_of_other_keys_or_a_removed_one_is_no_membership(start, own, known):
    member = await start()
    alpha = site("alpha", member.address)
    member.lists = [[alpha, known], [alpha, known], [alpha, beta()]]
    await joining.be_admitted(LedgerConfig(join=[member.address]), own, ASKS, lambda _: None)
    assert len(member.asked) == 3


async def test_who_is_away_or_refuses_is_told_of_while_the_others_decide(start, own, nobody):
    first, second = await start(), await start(refuses=True)
    alpha = site("alpha", first.address)
    first.lists = [[alpha], [alpha, beta()]]
    told: list[str] = []
    join = [first.address, second.address, nobody]
    sites = await joining.be_admitted(LedgerConfig(join=join), own, ASKS, told.append)
    assert len(sites) == 2
    [text] = told
    assert "256 sites ask this SN already" in text
    assert nobody in text


async def test_the_newest_list_counts_where_members_lag_behind(start, own):
    first, second = await start(), await start()
    alpha, gamma = site("alpha", first.address), site("gamma", second.address)
    first.lists, second.lists = [[alpha, gamma, beta()]], [[alpha, gamma, site("delta", "d:1"), site("zeta", "z:1")]]
    sites = await joining.be_admitted(LedgerConfig(join=[second.address, first.address]), own, ASKS, lambda _: None)
    assert [one.name for one in sites] == ["alpha", "gamma", "beta"]
