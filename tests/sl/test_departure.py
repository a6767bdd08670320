"""A node that is told to leave: it is away at once, its program is asked to save, and both end in time."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from swarm_hpc.config import TransferMode
from swarm_hpc.errors import LedgerHalted, TrainingOver
from swarm_hpc.records import FinishMode
from swarm_hpc.sl import member
from swarm_hpc.sl.channel import LeaveAsked
from swarm_hpc.sl.departure import REASONS, Departure
from swarm_hpc.sl.node import live, run
from swarm_hpc.sn.membership import Membership

pytestmark = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)

OPENS = """
import os, signal, sys, time
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import Platform
from swarm_hpc.sl.channel import LeaveAsked, MlChannel, OpenRequest
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=(TensorSpec("weight", "F32", (5,)),), min_peers=1))
    print("open", flush=True)
"""
SAVES = """
    while channel.leave_reason() is None:
        time.sleep(0.01)
    channel.saved()
    sys.exit(75)
"""
SLEEPS = "    time.sleep(600)\n"
FINISHES = """
    channel.sync()
    from swarm_hpc.records import FinishMode
    channel.finish(FinishMode.INACTIVE)
print("finished", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
"""


@asynccontextmanager
async def leaving_node(swarm, site, **rules):
    """A node, and what tells it to leave; its life must have ended in order by the end of the block."""
    departure = Departure()
    life = asyncio.create_task(live(swarm.config(site, **rules), departure))
    yield departure
    async with asyncio.timeout(10):
        await life


async def active(swarm, site):
    async with swarm.client() as sn:
        return next(status.node.active for status in await sn.nodes() if status.node.name == f"{site}/sl/sl")


@pytest.mark.slow
@pytest.mark.parametrize("asks", ["sync", "finish"])
async def test_a_program_that_waits_in_a_round_is_told_and_the_others_do_not_wait_for_it(swarm, asks):
    rules = {"min_peers": 2}
    async with swarm.node("beta", **rules), swarm.node("gamma", **rules):
        async with leaving_node(swarm, "alpha", **rules) as departure:
            alpha, beta, gamma = map(swarm.program, ("alpha", "beta", "gamma"))
            for one in (alpha, beta, gamma):
                await one.open(1.0)
            waiting = asyncio.create_task(alpha.sync(add=1.0) if asks == "sync" else alpha.finish(FinishMode.SNAPSHOT))
            while not alpha.reasons:
                await asyncio.sleep(0.02)
            departure.ask(REASONS[signal.SIGUSR2], warned=True)
            with pytest.raises(LeaveAsked, match="time limit is near"):
                await waiting
            assert alpha.weight[0] == (2.0 if asks == "sync" else 1.0), "the arena is as the program left it"
            await asyncio.to_thread(alpha.channel.saved)
            alpha.close()
        assert not await active(swarm, "alpha")
        for answer in await asyncio.gather(beta.sync(), gamma.sync()):
            assert answer.round == 1


async def test_a_program_that_trains_is_told_at_its_next_look(swarm):
    async with swarm.node("beta"), leaving_node(swarm, "alpha") as departure:
        alpha = swarm.program("alpha")
        await alpha.open(1.0)
        assert alpha.channel.leave_reason() is None
        departure.ask(REASONS[signal.SIGTERM])
        while (reason := alpha.channel.leave_reason()) is None:
            await asyncio.sleep(0.02)
        assert reason == "the node is stopped (SIGTERM)"
        with pytest.raises(LeaveAsked):
            await alpha.sync()
        await asyncio.to_thread(alpha.channel.saved)
        alpha.close()


@pytest.mark.slow
async def test_a_node_whose_program_has_saved_does_not_wait_for_a_ledger_that_stands_still(swarm, monkeypatch):
    async def refuse(self, name, incarnation):
        raise LedgerHalted("the ledger stands still; missing: delta")

    monkeypatch.setattr(member, "_LEAVE_TIMEOUT_S", 0.1)
    async with leaving_node(swarm, "alpha") as departure:
        alpha = swarm.program("alpha")
        await alpha.open(1.0)
        monkeypatch.setattr(Membership, "leave", refuse)
        departure.ask(REASONS[signal.SIGUSR2], warned=True)
        with pytest.raises(LeaveAsked):
            await alpha.sync()
        await asyncio.to_thread(alpha.channel.saved)
        alpha.close()


@pytest.mark.slow
async def test_a_node_that_returns_takes_part_in_the_same_round_again(swarm):
    async with swarm.node("beta"):
        beta = swarm.program("beta")
        await beta.open(3.0)
        async with leaving_node(swarm, "alpha") as departure:
            alpha = swarm.program("alpha")
            await alpha.open(1.0)
            waiting = asyncio.create_task(alpha.sync())
            while not alpha.reasons:
                await asyncio.sleep(0.02)
            departure.ask(REASONS[signal.SIGTERM])
            with pytest.raises(LeaveAsked):
                await waiting
            alpha.close()
        async with swarm.node("alpha"):
            alpha = swarm.program("alpha")
            session = await alpha.open(1.0)
            assert (session.round, session.resume) == (1, False)
            answers = await asyncio.gather(alpha.sync(), beta.sync())
            assert {(answer.round, answer.num_peers) for answer in answers} == {(1, 2)}
            assert alpha.weight == pytest.approx([2.0] * 5)


@pytest.mark.slow
async def test_a_node_that_returns_when_the_others_have_ended_the_training_gets_the_final_model(swarm):
    rules = {"min_peers": 1}
    async with swarm.node("beta", **rules):
        beta = swarm.program("beta")
        async with leaving_node(swarm, "alpha", **rules) as departure:
            alpha = swarm.program("alpha")
            await alpha.open(1.0)
            await beta.open(3.0)
            await asyncio.gather(alpha.sync(), beta.sync())
            departure.ask(REASONS[signal.SIGUSR2], warned=True)
            with pytest.raises(LeaveAsked):
                await alpha.sync()
            await asyncio.to_thread(alpha.channel.saved)
            alpha.close()
        beta.weight[:] = 7.0
        last = await beta.finish(FinishMode.SNAPSHOT)
        async with swarm.node("alpha", **rules):
            with pytest.raises(TrainingOver, match="choose another name"):
                await swarm.program("alpha").open()
        async with swarm.node("alpha", **rules):
            alpha = swarm.program("alpha")
            session = await alpha.open(goes_on=True)
            assert session.resume and alpha.weight == pytest.approx([7.0] * 5)
            assert (await alpha.sync(add=1.0)).training_over
            assert await alpha.finish(FinishMode.SNAPSHOT) == last
            assert alpha.weight == pytest.approx([7.0] * 5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
async def test_a_signal_ends_node_and_program_once_it_has_saved(swarm, number, caplog):
    caplog.set_level(logging.INFO)
    log, left = swarm.folder / "ml.log", swarm.folder / "left"
    config = swarm.config("alpha", command=[sys.executable, "-c", OPENS + SAVES])
    config = replace(config, left_file=str(left), program=replace(config.program, log=str(log)))
    running = asyncio.create_task(run(config))
    await until_said(log, "open")
    os.kill(os.getpid(), number)
    await running
    assert "the ML program has saved its state" in caplog.text
    assert left.exists() == (number is signal.SIGUSR2), "so that its job comes back"
    assert not await active(swarm, "alpha")


@pytest.mark.slow
async def test_a_job_is_not_to_come_back_for_a_training_that_was_finished_before_the_warning(swarm, caplog):
    caplog.set_level(logging.INFO)
    log, left = swarm.folder / "ml.log", swarm.folder / "left"
    config = swarm.config("alpha", command=[sys.executable, "-c", OPENS + FINISHES])
    program = replace(config.program, log=str(log), cwd=str(swarm.folder))
    running = asyncio.create_task(run(replace(config, left_file=str(left), program=program)))
    await until_said(log, "finished")
    os.kill(os.getpid(), signal.SIGUSR2)
    while "leaving" not in caplog.text:
        await asyncio.sleep(0.02)
    (swarm.folder / "go").touch()
    await running
    assert not left.exists()


@pytest.mark.slow
async def test_a_program_that_does_not_look_is_ended_in_time_and_named(swarm, caplog):
    log = swarm.folder / "ml.log"
    config = swarm.config("alpha", command=[sys.executable, "-c", OPENS + SLEEPS])
    program = replace(config.program, log=str(log), save_timeout_s=0.3, stop_timeout_s=0.2)
    running = asyncio.create_task(run(replace(config, program=program)))
    await until_said(log, "open")
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await running
    assert "did not save its state within 0.3 s (program.save_timeout_s)" in caplog.text


async def until_said(log, word):
    async with asyncio.timeout(20):
        while not log.exists() or word not in log.read_text():
            await asyncio.sleep(0.02)
