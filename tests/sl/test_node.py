"""Whole SL nodes against a real SN: rounds, late nodes, lost leaders, mismatches, the end of training."""

import asyncio
import os
import signal
import sys

import pytest

from swarm_hpc.config import JobConfig, TransferMode
from swarm_hpc.errors import (
    ContractMismatch,
    DuplicateNode,
    Fenced,
    ImageRefused,
    ModelMismatch,
    NotReachable,
    ProgramFailed,
    ProtocolError,
    TimedOut,
)
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import ContractState, FinishMode, MergeMethod, Platform
from swarm_hpc.sl.channel import MlChannel, OpenRequest
from swarm_hpc.sl.node import live, run
from swarm_hpc.sl.participant import Participant
from swarm_hpc.sn.ledger import Ledger
from tests.sl.conftest import TENSORS

gateway_only = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


@pytest.mark.slow
@gateway_only
@pytest.mark.parametrize("finished", [False, True], ids=["in a round", "finished"])
async def test_a_node_that_only_waits_says_when_the_ledger_stands_still(swarm, monkeypatch, finished):
    async with swarm.node("alpha"), swarm.node("beta"), swarm.node("gamma"):
        alpha, beta, gamma = map(swarm.program, ("alpha", "beta", "gamma"))
        for one in (alpha, beta, gamma):
            await one.open()
        waiting = asyncio.create_task(alpha.finish(FinishMode.INACTIVE) if finished else alpha.sync())
        await _until(lambda: any("beta/sl/sl" in reason for reason in alpha.reasons))
        monkeypatch.setattr(Ledger, "halted", lambda _self: "the ledger stands still; missing: delta")
        beta.close()  # news, so that alpha looks
        await _until(lambda: any("missing: delta" in reason for reason in alpha.reasons))
        alpha.close()
        with pytest.raises(NotReachable):
            await waiting


async def _until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("transfer", TransferMode, indirect=True)
async def test_three_nodes_end_each_round_with_the_weighted_mean(swarm):
    async with swarm.node("alpha", min_peers=3), swarm.node("beta", min_peers=3), swarm.node("gamma", min_peers=3):
        programs = [swarm.program(site) for site in ("alpha", "beta", "gamma")]
        for program, value, weight in zip(programs, (1.0, 2.0, 6.0), (1, 2, 3), strict=True):
            await program.open(value, node_weight=weight)
        for number, mean in ((1, 23 / 6), (2, 23 / 6 + 1)):
            answers = await asyncio.gather(*(program.sync(add=float(number - 1), loss=0.5) for program in programs))
            assert [(answer.round, answer.num_peers, answer.late) for answer in answers] == [(number, 3, False)] * 3
            for program in programs:
                assert program.weight == pytest.approx([mean] * 5, rel=1e-6)
            assert len({bytes(program.session.arena.buffer) for program in programs}) == 1


@pytest.mark.slow
async def test_a_node_that_comes_later_resumes_with_the_merged_parameters(swarm):
    async with swarm.node("alpha"), swarm.node("beta"), swarm.node("gamma"):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        session = await gamma.open(100.0)
        assert (session.resume, session.round) == (True, 2)
        assert gamma.weight == pytest.approx([2.0] * 5)


@pytest.mark.slow
async def test_a_late_node_takes_the_result_and_goes_on_with_the_next_round(swarm):
    rules = {"quorum_wait_s": 0}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        for program, value in ((alpha, 1.0), (beta, 3.0), (gamma, 100.0)):
            await program.open(value)
        await asyncio.gather(alpha.sync(), beta.sync())
        late = await gamma.sync()
        assert (late.round, late.late, late.num_peers) == (1, True, 2)
        assert gamma.weight == pytest.approx([2.0] * 5)
        answers = await asyncio.gather(alpha.sync(), gamma.sync(add=2.0))
        assert [(answer.round, answer.late) for answer in answers] == [(2, False)] * 2
        assert alpha.weight == pytest.approx([3.0] * 5)


@pytest.mark.slow
async def test_the_round_goes_on_when_its_leader_is_lost(swarm, monkeypatch):
    leading, lead = asyncio.Queue(), Participant._lead

    async def first_leader_hangs(self, round_, mine):
        if leading.empty():
            leading.put_nowait(round_.leader)
            await asyncio.Event().wait()
        await lead(self, round_, mine)

    monkeypatch.setattr(Participant, "_lead", first_leader_hangs)
    rules = {"min_peers": 3, "leader_timeout_s": 1}
    sites = ("alpha", "beta", "gamma")
    async with swarm.node("alpha", **rules) as a, swarm.node("beta", **rules) as b, swarm.node("gamma", **rules) as c:
        programs = {site: swarm.program(site) for site in sites}
        for value, program in enumerate(programs.values()):
            await program.open(float(value))
        syncs = {site: asyncio.create_task(program.sync()) for site, program in programs.items()}
        while leading.empty():
            await asyncio.sleep(0.01)
        lost = leading.get_nowait()
        leading.put_nowait(lost)
        node = dict(zip(sites, (a, b, c), strict=True))[lost.split("/")[0]]
        if swarm.transfer is TransferMode.GATEWAY:
            node.cancel()
        for site, sync in syncs.items():
            if lost.startswith(site):
                continue
            answer = await sync
            assert (answer.round, answer.num_peers, answer.late) == (1, 3, False)
            assert programs[site].weight == pytest.approx([1.0] * 5)
        if swarm.transfer is TransferMode.GATEWAY:
            with pytest.raises(NotReachable, match="SL is gone"):
                await next(sync for site, sync in syncs.items() if lost.startswith(site))
        else:
            node.cancel()
            await asyncio.wait([sync for site, sync in syncs.items() if lost.startswith(site)])


@gateway_only
@pytest.mark.slow
async def test_a_merge_that_takes_longer_than_leaders_have_is_not_begun_again_and_again(swarm, monkeypatch):
    merge, merges = Participant._merge, []

    async def merge_slowly(self, round_, mine, **how):
        merges.append(self._member.name)
        await asyncio.sleep(3.5)
        return await merge(self, round_, mine, **how)

    monkeypatch.setattr(Participant, "_merge", merge_slowly)
    rules = {"leader_timeout_s": 1}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open(1.0)
        await beta.open(3.0)
        async with asyncio.timeout(20):
            answers = await asyncio.gather(alpha.sync(), beta.sync())
        assert [(answer.num_peers, answer.late) for answer in answers] == [(2, False)] * 2
        assert alpha.weight == pytest.approx([2.0] * 5)
        assert sorted(merges) == ["alpha/sl/sl", "beta/sl/sl"]


@pytest.mark.slow
async def test_nodes_below_min_peers_wait_and_say_for_whom(swarm):
    async with swarm.node("alpha", max_wait_s=0.5), swarm.node("beta", max_wait_s=0.5):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open()
        await beta.open()
        with pytest.raises(TimedOut, match=r"1 of 2 peers checked in \(min_peers 2\); waiting for beta/sl/sl"):
            await alpha.sync()


async def test_another_model_is_refused_with_the_tensor_that_differs(swarm):
    async with swarm.node("alpha"), swarm.node("beta"):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open()
        tensors = (TensorSpec("weight", "F32", (7,)), TensorSpec("steps", "I64", ()))
        with pytest.raises(ModelMismatch, match=r"digits.*'weight' is F32 \[5\]; here it is F32 \[7\]"):
            await beta.open(tensors=tensors)


@gateway_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"platform": Platform.KERAS}, "digits is for pytorch; this node runs keras; choose another contract name"),
        ({"merge_method": MergeMethod.GEOMEDIAN}, "merge.method mean; this node asks for geomedian"),
        ({"min_peers": 3}, "min_peers 2; this node asks for 3"),
    ],
)
async def test_other_settings_than_the_contracts_are_refused_by_name(swarm, asked, message):
    async with swarm.node("alpha"), swarm.node("beta"):
        await swarm.program("alpha").open()
        with pytest.raises(ContractMismatch, match=message):
            await swarm.program("beta").open(**asked)


@gateway_only
@pytest.mark.slow
async def test_each_check_in_says_which_job_and_image_it_is_from_and_how_long_gpus_were_held(swarm):
    image = f"sha256:{'ab' * 32}"
    jobs = {site: JobConfig(id=site, image=image, num_gpus=gpus) for site, gpus in (("alpha", 0), ("beta", 2))}
    rules = {"min_peers": 2, "image": image}
    async with swarm.node("alpha", job=jobs["alpha"], **rules), swarm.node("beta", job=jobs["beta"], **rules):
        programs = [swarm.program(site) for site in jobs]
        for program in programs:
            await program.open()
        await asyncio.gather(*(program.sync() for program in programs))
        async with swarm.client() as client:
            first = (await client.rounds("digits"))[0]
        used = {one.node.partition("/")[0]: one.resources for one in first.check_ins}
        assert {site: (each.job, each.image) for site, each in used.items()} == {
            site: (job.id, image) for site, job in jobs.items()
        }
        assert used["alpha"].gpu_s == 0
        assert used["beta"].gpu_s > 0


@pytest.mark.slow
@gateway_only
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("", "in no container image with a digest"),
        (f"sha256:{'cd' * 32}", f"in image sha256:{'cd' * 32}: set container=apptainer"),
    ],
)
async def test_a_program_in_another_image_than_the_contract_names_is_refused(swarm, own, message):
    async with swarm.node("alpha", image=f"sha256:{'ab' * 32}", job=JobConfig(image=own)):
        with pytest.raises(ImageRefused, match=message):
            await swarm.program("alpha").open()


@pytest.mark.slow
@pytest.mark.parametrize("mode", FinishMode)
async def test_a_finished_node_helps_the_others_to_their_end(swarm, mode):
    rules = {"min_peers": 2 if mode is not FinishMode.INACTIVE else 1}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        finishing = asyncio.create_task(alpha.finish(mode))
        if mode is not FinishMode.INACTIVE:
            await beta.sync()  # alpha's last one
        peers = [(await beta.sync(add=2.0)).num_peers for _ in range(2)]
        last = await beta.finish(FinishMode.INACTIVE)
        assert await finishing == last
        assert bytes(alpha.session.arena.buffer) == bytes(beta.session.arena.buffer)
        if mode is FinishMode.INACTIVE:
            assert peers == [1, 1] and alpha.weight == pytest.approx([6.0] * 5)
        else:
            # snapshot: alpha stays at 2; active: it follows, and only beta's steps count
            assert peers == [2, 2] and alpha.weight == pytest.approx([3.5 if mode is FinishMode.SNAPSHOT else 4.0] * 5)
        async with swarm.client() as sn:
            assert (await sn.contract("digits")).state is ContractState.COMPLETED


@gateway_only
@pytest.mark.slow
async def test_the_ledgers_rounds_can_be_replayed(swarm):
    async with swarm.node("alpha"), swarm.node("beta"):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open(1.0)
        await beta.open(3.0)
        for _ in range(2):
            await asyncio.gather(alpha.sync(add=1.5), beta.sync())
    await swarm.verify(2)


@gateway_only
@pytest.mark.slow
async def test_a_node_that_was_taken_for_lost_comes_back(swarm):
    async with swarm.node("alpha"), swarm.node("beta"):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open(1.0)
        await beta.open(3.0)
        async with swarm.client() as sn:
            before = {status.node.name: status.node for status in await sn.nodes()}["alpha/sl/sl"]
            await sn.leave("alpha/sl/sl", before.incarnation)
            while not (now := {s.node.name: s.node for s in await sn.nodes()}["alpha/sl/sl"]).active:
                await asyncio.sleep(0.05)
            assert now.incarnation == before.incarnation + 1
        answers = await asyncio.gather(alpha.sync(), beta.sync())
        assert [answer.num_peers for answer in answers] == [2, 2]


@gateway_only
async def test_a_second_node_of_the_same_name_is_refused(swarm):
    async with swarm.node("alpha") as first:
        await swarm.program("alpha").open()
        config = swarm.config("alpha")
        config.state_dir = str(swarm.folder / "other")
        with pytest.raises(DuplicateNode):
            await live(config)
        assert not first.done()


@gateway_only
async def test_a_second_program_is_refused_while_the_first_has_its_session(swarm):
    async with swarm.node("alpha"):
        await swarm.program("alpha").open()
        with pytest.raises(ProtocolError, match="another program"):
            await swarm.program("alpha").open()


@gateway_only
@pytest.mark.parametrize("finished", [False, True])
async def test_a_program_may_open_another_session_as_soon_as_it_has_closed_its_last_one(swarm, finished):
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    async with swarm.node("alpha", command=sleeps, min_peers=1):
        first, second = swarm.program("alpha"), swarm.program("alpha")
        await first.open()
        if finished:
            await first.finish(FinishMode.INACTIVE)
        first.close()
        # without a pause in which the node could hear of that
        second.channel = MlChannel.connect(str(second.socket))
        request = OpenRequest(platform=Platform.PYTORCH, tensors=TENSORS, contract="another")
        session = await asyncio.to_thread(second.channel.open, request)
        assert session.contract == "another"


@gateway_only
async def test_a_program_by_hand_that_goes_away_ends_its_node(swarm):
    async with swarm.node("alpha") as node:
        alpha = swarm.program("alpha")
        await alpha.open()
        alpha.close()
        with pytest.raises(ProgramFailed, match="before its training was finished"):
            await node
    async with swarm.client() as sn:
        [status] = await sn.nodes()
        assert not status.node.active


@gateway_only
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('no data'); sys.exit(3)", r"(?s)exit code 3.*no data"),
        ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL"),
        ("", "on_train_begin"),
    ],
)
async def test_a_program_that_fails_ends_its_node_with_the_reason(swarm, code, message):
    config = swarm.config("alpha", command=[sys.executable, "-c", code])
    config.program.log = str(swarm.folder / "ml.log")
    with pytest.raises(ProgramFailed, match=message):
        await live(config)


@gateway_only
@pytest.mark.slow
async def test_a_restarted_node_takes_over_from_the_process_before_it(swarm):
    async with swarm.node("alpha") as first, swarm.client() as sn:
        while not await sn.nodes():
            await asyncio.sleep(0.01)
        async with swarm.node("alpha") as second:
            with pytest.raises(Fenced, match="alpha/sl/sl"):
                await first
            await swarm.program("alpha").open()
            assert not second.done()


@gateway_only
async def test_sigterm_stops_the_program_and_leaves(swarm):
    started = swarm.folder / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    running = asyncio.create_task(run(swarm.config("alpha", command=[sys.executable, "-c", code])))
    while not started.exists():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    async with swarm.client() as sn:
        [status] = await sn.nodes()
        assert not status.node.active


@gateway_only
@pytest.mark.slow
async def test_a_program_trains_beside_its_node_from_start_to_end(swarm):
    code = """
import os
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, Platform
from swarm_hpc.sl.channel import MlChannel, OpenRequest
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    tensors = (TensorSpec("weight", "F32", (5,)),)
    session = channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=tensors, min_peers=1))
    session.arena.array("weight")[:] = 4.0
    assert channel.sync(loss=0.25, epoch=1, batch=3).num_peers == 1
    assert channel.finish(FinishMode.INACTIVE).round == 1
"""
    await live(swarm.config("alpha", command=[sys.executable, "-c", code]))
    async with swarm.client() as sn:
        [check_in] = (await sn.rounds("digits", 1, 1))[0].check_ins
        assert (check_in.loss, check_in.epoch) == (0.25, 1) and check_in.resources.cpu_s >= 0
        assert (await sn.contract("digits")).state is ContractState.COMPLETED
