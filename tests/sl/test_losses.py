"""Nodes that are lost in the middle of a round, and what becomes of the round without them."""

import asyncio
import shutil
import sys
from contextlib import asynccontextmanager

import pytest

from swarm_hpc.config import TransferMode
from swarm_hpc.errors import BlobCorrupt, ModelMismatch
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import CheckIn, Platform, RoundState
from swarm_hpc.sl.node import live
from swarm_hpc.sl.participant import Participant
from swarm_hpc.sn.client import SnClient
from swarm_hpc.transport.blobs import hash_bytes

direct_only = pytest.mark.parametrize("transfer", [TransferMode.DIRECT], indirect=True)
gateway_only = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


@pytest.fixture
def lease_s():
    return 2.0


@pytest.fixture
def killed(monkeypatch):
    """Ends a node as kill -9 does: its file server is gone, its lease runs on."""

    async def leave_not(self, name, incarnation):
        """A killed process says nothing."""

    async def kill(node):
        with monkeypatch.context() as patch:
            patch.setattr(SnClient, "leave", leave_not)
            node.cancel()
            await asyncio.wait({node})

    return kill


async def until(condition):
    """Wait until the coroutine function answers something true: that."""
    while not (found := await condition()):
        await asyncio.sleep(0.02)
    return found


async def look(sn, wanted):
    """Wait for a first round as wanted."""

    async def ask():
        round_ = await sn.round("digits", 1)
        return round_.round if wanted(round_.round) else None

    return await until(ask)


def sites_in(round_):
    return {check_in.node.split("/")[0] for check_in in round_.check_ins}


async def is_away(sn, site):
    participants = (await sn.contract("digits")).participants
    return not any(each.node == f"{site}/sl/sl" and each.active for each in participants)


@asynccontextmanager
async def two_and_a_lost_third(swarm, killed, **rules):
    """Gamma has checked in and is lost, alpha and beta have not yet; yields their two programs and an SN client."""
    async with swarm.client() as sn, swarm.node("alpha", **rules), swarm.node("beta", **rules):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        async with swarm.node("gamma", **rules) as lost:
            await alpha.open(1.0)
            await beta.open(3.0)
            await gamma.open(100.0)
            third = asyncio.create_task(gamma.sync())
            await look(sn, lambda round_: sites_in(round_) == {"gamma"})
            await killed(lost)
        await asyncio.wait({third})
        assert third.exception()
        gamma.close()
        yield (alpha, beta), sn


def start_syncs(*programs):
    return [asyncio.create_task(program.sync()) for program in programs]


@pytest.mark.slow
@direct_only
async def test_a_node_that_is_lost_with_its_parameters_is_dropped_from_the_round(swarm, killed):
    async with two_and_a_lost_third(swarm, killed, min_peers=2) as (programs, sn):
        for program, answer in zip(programs, await asyncio.gather(*start_syncs(*programs)), strict=True):
            assert (answer.round, answer.num_peers, answer.late) == (1, 2, False)
            assert program.weight == pytest.approx([2.0] * 5)
        [round_] = await sn.rounds("digits", 1, 1)
        assert (round_.state, sites_in(round_)) == (RoundState.PUBLISHED, {"alpha", "beta"})
        events = (await sn.events(0, contract="digits")).events
        assert [event.facts["absent"] for event in events if event.name == "Dropped"] == ["gamma/sl/sl"]
        async with swarm.node("gamma", min_peers=2):
            gamma = swarm.program("gamma")
            session = await gamma.open()
            assert (session.resume, session.round) == (True, 2)
            answers = await asyncio.gather(*start_syncs(*programs, gamma))
            assert [answer.num_peers for answer in answers] == [3, 3, 3]


@pytest.mark.slow
@direct_only
async def test_below_min_peers_the_others_say_so_and_go_on_when_the_lost_one_is_back(swarm, killed):
    async with two_and_a_lost_third(swarm, killed, min_peers=3) as (programs, sn):
        syncs = start_syncs(*programs)
        await look(sn, lambda round_: round_.state is RoundState.OPEN and sites_in(round_) == {"alpha", "beta"})

        async def reasons():
            waiting = {status.node.name: status.progress.waiting for status in await sn.nodes()}
            found = [waiting["alpha/sl/sl"], waiting["beta/sl/sl"]]
            return found if all("peers checked in" in reason for reason in found) else None

        wanted = "digits round 1: 2 of 2 peers checked in (min_peers 3); start 1 more SL node"
        assert await until(reasons) == [wanted] * 2
        assert not any(sync.done() for sync in syncs)
        async with swarm.node("gamma", min_peers=3):
            gamma = swarm.program("gamma")
            assert not (await gamma.open(5.0)).resume
            answers = await asyncio.gather(*syncs, gamma.sync())
            assert [(answer.round, answer.num_peers, answer.late) for answer in answers] == [(1, 3, False)] * 3
            for program in (*programs, gamma):
                assert program.weight == pytest.approx([3.0] * 5)


@direct_only
@pytest.mark.slow
async def test_a_node_that_is_back_without_its_parameters_lets_the_others_go_on(swarm, killed):
    async with two_and_a_lost_third(swarm, killed, min_peers=2) as (programs, sn):
        shutil.rmtree(swarm.folder / "gamma" / "blobs")
        async with swarm.node("gamma", min_peers=2):
            gamma = swarm.program("gamma")
            await gamma.open(50.0)
            syncs = start_syncs(*programs)
            await look(sn, lambda round_: round_.state is RoundState.CLAIMED)
            answers = await asyncio.gather(*syncs, gamma.sync())
            assert [(answer.num_peers, answer.late) for answer in answers] == [(2, False), (2, False), (2, True)]
            assert gamma.weight == pytest.approx([2.0] * 5)
            assert not await is_away(sn, "gamma")


@pytest.mark.slow
async def test_a_round_is_led_by_another_when_all_who_checked_in_are_lost(swarm, killed, monkeypatch):
    lead = Participant._lead

    async def hang(self, round_, mine):
        await asyncio.Event().wait()

    rules = {"min_peers": 2, "quorum_wait_s": 0}
    async with swarm.client() as sn, swarm.node("gamma", **rules):
        gamma = swarm.program("gamma")
        await gamma.open(100.0)
        async with swarm.node("alpha", **rules) as a, swarm.node("beta", **rules) as b:
            with monkeypatch.context() as patch:
                patch.setattr(Participant, "_lead", hang)
                alpha, beta = swarm.program("alpha"), swarm.program("beta")
                await alpha.open(1.0)
                await beta.open(3.0)
                lost = [asyncio.create_task(program.sync()) for program in (alpha, beta)]
                await look(sn, lambda round_: round_.state is RoundState.CLAIMED)
                await killed(a)
                await killed(b)
            await asyncio.wait(lost)
            assert all(sync.exception() for sync in lost)
            alpha.close()
        assert Participant._lead is lead
        syncing = asyncio.create_task(gamma.sync())
        if swarm.transfer is TransferMode.GATEWAY:
            answer = await syncing
            assert (answer.num_peers, answer.late) == (2, True)
            assert gamma.weight == pytest.approx([2.0] * 5)
        else:
            await look(sn, lambda round_: round_.state is RoundState.OPEN and sites_in(round_) == {"gamma"})
            async with swarm.node("alpha", **rules):
                back = swarm.program("alpha")
                await back.open(2.0)
                answers = await asyncio.gather(syncing, back.sync())
                assert [(answer.round, answer.num_peers, answer.late) for answer in answers] == [(1, 2, False)] * 2
                assert gamma.weight == pytest.approx([51.0] * 5)


@gateway_only
@pytest.mark.slow
async def test_nobody_waits_for_a_node_whose_program_has_closed_its_session(swarm):
    code = """
import os, time
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import Platform
from swarm_hpc.sl.channel import MlChannel, OpenRequest
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    tensors = (TensorSpec("weight", "F32", (5,)), TensorSpec("steps", "I64", ()))
    channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=tensors))
time.sleep(600)
"""
    rules = {"min_peers": 1, "quorum_wait_s": 3600}
    beta = asyncio.create_task(live(swarm.config("beta", command=[sys.executable, "-c", code], **rules)))
    try:
        async with swarm.client() as sn, swarm.node("alpha", **rules):
            alpha = swarm.program("alpha")
            await alpha.open()

            async def has_come_and_gone():
                events = (await sn.events(0, contract="digits")).events
                return any(event.name == "Away" for event in events)

            await until(has_come_and_gone)
            assert await is_away(sn, "beta") and not await is_away(sn, "alpha")
            assert (await alpha.sync()).num_peers == 1
            assert not beta.done()
            assert {s.node.name: s.node.active for s in await sn.nodes()} == {"alpha/sl/sl": True, "beta/sl/sl": True}
    finally:
        beta.cancel()
        await asyncio.wait({beta})


@gateway_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([TensorSpec("weight", "F32", (9,))], BlobCorrupt),
        ([TensorSpec("other-", "F32", (5,)), TensorSpec("steps", "I64", ())], ModelMismatch),
    ],
    ids=["another size", "the same size"],
)
async def test_parameters_of_another_model_end_the_leader_with_the_name_of_their_node(swarm, tensors, error):
    async with swarm.node("alpha", max_wait_s=60):
        alpha = swarm.program("alpha")
        await alpha.open()
        async with swarm.client("beta") as sn, swarm.client() as watch:
            record, _ = await sn.register("beta/sl/sl", "", "instance")
            spec = (await sn.contract("digits")).spec
            await sn.join("digits", record.name, record.incarnation, Platform.PYTORCH, spec.model)
            with Arena.create(place(tensors)) as other:
                blob = hash_bytes(other.buffer)
                await sn.upload(blob, other.buffer, "digits")
            await sn.check_in("digits", 1, record.incarnation, CheckIn(node=record.name, blob=blob, weight=1))
            with pytest.raises(error, match="beta/sl/sl"):
                await alpha.sync()
            [round_] = await watch.rounds("digits", 1, 1)
            assert (round_.state, round_.merged) == (RoundState.CLAIMED, "")


@pytest.mark.slow
@direct_only
async def test_a_result_that_is_lost_with_its_leader_costs_the_others_one_round(swarm, killed, monkeypatch):
    publish, leaders = SnClient.publish, asyncio.Queue()

    async def publish_and_die(self, contract, number, node, *rest):
        site = node.split("/")[0]
        if number == 1:
            shutil.rmtree(swarm.folder / site / "blobs")  # nobody is quick enough to fetch anything from it
        await publish(self, contract, number, node, *rest)
        if number == 1:
            await leaders.put(site)
            await asyncio.Event().wait()

    monkeypatch.setattr(SnClient, "publish", publish_and_die)
    values = {"alpha": 0.0, "beta": 1.0, "gamma": 5.0}  # none is their mean
    async with swarm.node("alpha") as alpha, swarm.node("beta") as beta, swarm.node("gamma") as gamma:
        nodes, programs = dict(zip(values, (alpha, beta, gamma), strict=True)), {}
        for site, value in values.items():
            programs[site] = swarm.program(site)
            await programs[site].open(value)
        syncs = dict(zip(values, start_syncs(*programs.values()), strict=True))
        dead = await leaders.get()
        await killed(nodes[dead])
        await asyncio.wait({syncs.pop(dead)})
        programs.pop(dead).close()
        answers = await asyncio.gather(*syncs.values())
        assert [(answer.round, answer.num_peers) for answer in answers] == [(1, 0)] * 2
        for site, program in programs.items():
            assert program.weight == pytest.approx([values[site]] * 5)
        answers = await asyncio.gather(*start_syncs(*programs.values()))
        assert [(answer.round, answer.num_peers) for answer in answers] == [(2, 2)] * 2
