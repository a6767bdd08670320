"""SnClient against a real SN: what it waits for, and what it does while nobody answers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from swarm_hpc.config import ConnectionConfig
from swarm_hpc.errors import LedgerHalted, NotAuthorized, NotReachable, ProtocolError
from swarm_hpc.records import Progress, RoundState, Statement
from swarm_hpc.sn.client import SnClient


async def test_a_round_is_answered_when_its_contract_has_an_event(swarm, new_spec):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    seen = await one.client.round("demo", 1)
    waiting = asyncio.create_task(one.client.round("demo", 1, after=seen.cursor, wait_s=30))
    await two.client.create_contract(new_spec(name="another"))
    await two.client.status()
    assert not waiting.done()
    await two.check_in(1)
    view = await waiting
    assert view.cursor > seen.cursor
    assert [each.node for each in view.round.check_ins] == [two.name]


async def test_a_round_is_answered_at_once_when_there_was_an_event_since(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    seen = await one.client.round("demo", 1)
    await two.check_in(1)
    view = await one.client.round("demo", 1, after=seen.cursor, wait_s=30)
    assert len(view.round.check_ins) == 1


async def test_a_round_without_news_is_answered_when_the_wait_is_over(swarm):
    (one,) = await swarm.joined("alpha/sl/one")
    seen = await one.client.round("demo", 1)
    assert await one.client.round("demo", 1, after=seen.cursor, wait_s=0.05) == seen


@pytest.mark.slow
async def test_a_round_is_answered_when_the_wait_for_stragglers_is_over(swarm):
    one, two, _ = await swarm.joined("alpha/sl/one", "alpha/sl/straggler-not", "beta/sl/straggler", quorum_wait_s=1)
    await one.check_in(1)
    await two.check_in(1)
    seen = await one.client.round("demo", 1)
    view = await one.client.round("demo", 1, after=seen.cursor, wait_s=30)
    assert view.cursor == seen.cursor, "time alone makes no event"
    assert (view.round.closable, view.round.closes_in_s) == (True, 0)
    assert (await one.claim(1)).leader == one.name


@pytest.mark.slow
async def test_a_round_is_answered_when_its_leader_is_overdue(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two", leader_timeout_s=1)
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    seen = await two.client.round("demo", 1)
    view = await two.client.round("demo", 1, after=seen.cursor, wait_s=30)
    assert view.round.replaceable
    assert (await two.claim(1)).leader == two.name


@pytest.mark.slow
async def test_a_deadline_that_passed_before_the_question_is_told_after_a_moment(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.check_in(1)
    await two.check_in(1)
    seen = await two.client.round("demo", 1)
    assert seen.round.closable
    assert await two.client.round("demo", 1, after=seen.cursor, wait_s=30) == seen


@pytest.mark.slow
async def test_many_may_wait_while_others_work(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    seen = await one.client.round("demo", 1)
    waiting = [asyncio.create_task(one.client.round("demo", 1, after=seen.cursor, wait_s=30)) for _ in range(100)]
    await two.check_in(1)
    assert all(len(view.round.check_ins) == 1 for view in await asyncio.gather(*waiting))


def statement(*numbers, of="ab" * 32, step=0):
    return Statement(of=of, step=step, blobs=tuple(f"{number:064x}" for number in numbers))


async def test_shares_are_answered_when_so_many_nodes_have_stated_them(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    first = await one.client.shared("demo", 1, "ab" * 32, 0, count=1, wait_s=0.05)
    assert (first.blobs, first.view.round.leader) == ({}, one.name)
    waiting = asyncio.create_task(one.client.shared("demo", 1, "ab" * 32, 0, place=1, count=2, wait_s=30))
    await one.client.share("demo", 1, one.name, 1, statement(10, 11))
    await two.client.share("demo", 1, two.name, 1, statement(20, 21, step=1))
    assert (await one.client.shared("demo", 1, "ab" * 32, 0, place=1)).blobs == {one.name: f"{11:064x}"}
    assert not waiting.done()
    await two.client.share("demo", 1, two.name, 1, statement(20, 21))
    assert (await waiting).blobs == {one.name: f"{11:064x}", two.name: f"{21:064x}"}


async def test_shares_of_nodes_that_are_not_in_the_round_do_not_count(swarm):
    one, two, three = await swarm.joined("alpha/sl/one", "beta/sl/two", "beta/sl/three", quorum_wait_s=0)
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    await three.client.share("demo", 1, three.name, 1, statement(30))
    waiting = asyncio.create_task(one.client.shared("demo", 1, "ab" * 32, 0, count=1, wait_s=30))
    assert (await one.client.shared("demo", 1, "ab" * 32, 0)).blobs == {}
    assert not waiting.done()
    await two.client.share("demo", 1, two.name, 1, statement(20))
    assert (await waiting).blobs == {two.name: f"{20:064x}"}


async def test_nobody_waits_for_shares_of_a_round_that_is_over(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    waiting = asyncio.create_task(two.client.shared("demo", 1, "ab" * 32, 1, count=2, wait_s=30))
    await one.publish(1)
    found = await waiting
    assert (found.blobs, found.view.round.state) == ({}, RoundState.PUBLISHED)


async def test_nobody_shares_for_a_node_of_another_site(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    with pytest.raises(NotAuthorized):
        await one.client.share("demo", 1, two.name, 1, statement(1))


async def test_events_come_in_order_and_wait_for_the_next(swarm, new_spec):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    page = await one.client.events(0, contract="demo")
    assert [event.name for event in page.events] == ["ContractCreated", "Joined", "Joined"]
    assert page.cursor == page.events[-1].cursor
    assert (await one.client.events(page.cursor, contract="demo")).events == ()
    waiting = asyncio.create_task(one.client.events(page.cursor, contract="demo", wait_s=30))
    await two.client.create_contract(new_spec(name="another"))
    await two.check_in(1)
    (event,) = (await waiting).events
    assert (event.name, event.facts["node"]) == ("CheckedIn", two.name)
    assert [each.name for each in (await one.client.events(page.cursor)).events] == ["ContractCreated", "CheckedIn"]


async def test_events_without_news_keep_the_cursor(swarm):
    one = await swarm.sl("alpha/sl/one")
    cursor = (await one.client.events(0)).cursor
    page = await one.client.events(cursor, wait_s=0.05)
    assert (page.cursor, page.events) == (cursor, ())


async def test_rounds_are_listed_up_to_the_newest(swarm):
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    for number in (1, 2):
        await one.check_in(number)
        await two.check_in(number)
        await one.claim(number)
        await one.publish(number)
    rounds = await one.client.rounds("demo")
    assert [each.number for each in rounds if each.state is RoundState.PUBLISHED] == [1, 2]
    assert [each.number for each in await one.client.rounds("demo", 2, 2)] == [2]


async def test_the_sn_of_another_site_is_refused_where_a_site_was_named(swarm):
    identity = swarm.consortium.identity("beta/sl/two")
    async with SnClient(identity, swarm.address, connection=swarm.connection, site="beta") as client:
        with pytest.raises(NotAuthorized, match="alpha/sn/sn"):
            await client.status()


async def test_nobody_there_is_not_reachable_and_says_where(consortium):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    identity = consortium.identity("alpha/sl/one")
    async with SnClient(identity, address, connection=ConnectionConfig(connect_timeout_s=0.1)) as client:
        with pytest.raises(NotReachable, match=address):
            await client.status()


async def test_an_answer_of_another_protocol_is_an_error(swarm, monkeypatch):
    client = await swarm.client("alpha/sl/one")

    async def answer(*args, **kwargs):
        return {"incarnation": 1}

    monkeypatch.setattr(client._api, "call", answer)
    with pytest.raises(ProtocolError, match="no field 'node'"):
        await client.register("alpha/sl/one", "", "i")
    with pytest.raises(ProtocolError, match="NetworkStatus"):
        await client.status()


async def test_who_waits_for_a_halted_ledger_says_why_until_it_goes_on_whatever_else_is_asked(swarm, monkeypatch):
    identity = swarm.consortium.identity("alpha/sl/one")
    async with SnClient(identity, swarm.address, connection=swarm.connection, halt_wait_s=30.0) as client:
        halted = asyncio.Event()

        async def answer(verb, path, **_):
            if path.endswith("/remove") and not halted.is_set():
                raise LedgerHalted("beta is missing")
            return {"lease_s": 9.0, "sites": []}

        monkeypatch.setattr(client._api, "call", answer)
        monkeypatch.setattr("swarm_hpc.sn.client._HALT_PAUSE_S", 0.01)
        waiting = asyncio.create_task(client.remove("beta"))
        while not client.halted:
            await asyncio.sleep(0)
        assert await client.heartbeat("alpha/sl/one", 1, Progress()) == 9.0
        assert client.halted == "beta is missing"
        halted.set()
        await waiting
        assert client.halted == ""
