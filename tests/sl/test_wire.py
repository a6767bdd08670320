"""Rounds whose parameters travel as rounded differences from the round before."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from swarm_hpc.config import MergeConfig, TransferMode
from swarm_hpc.errors import BlobNotFound
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import FinishMode, MergeMethod, RoundState, Wire
from swarm_hpc.sl.exchange import DirectExchange
from swarm_hpc.sl.models import Forms, Models
from swarm_hpc.sl.participant import Participant
from swarm_hpc.sl.verify import verify_rounds
from swarm_hpc.transport.blobs import BlobStore

pytestmark = pytest.mark.slow

SITES = ("alpha", "beta", "gamma")
TENSORS = (TensorSpec("weight", "F32", (5000,)), TensorSpec("half", "BF16", (9,)), TensorSpec("steps", "I64", ()))
NUM_WHOLE = place(TENSORS).size_bytes

direct_only = pytest.mark.parametrize("transfer", [TransferMode.DIRECT], indirect=True)
gateway_only = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


def reader(blobs, missing):
    """Where those were not kept."""

    def read(blob):
        if blob in missing:
            raise BlobNotFound(f"blob {blob} was not kept")
        return blobs[blob]

    return read


async def sizes(swarm, number):
    """Bytes of the round's check-ins and of its result, as the SN has them."""
    async with swarm.client() as client:
        [round_] = await client.rounds("digits", number, number)
        check_ins = {len(await client.download(check_in.blob)) for check_in in round_.check_ins}
        return check_ins, len(await client.download(round_.merged))


def train(programs, number):
    """Each goes its own way, by steps that get smaller."""
    for site, program in enumerate(programs):
        step = np.random.default_rng([number, site]).standard_normal(program.weight.size, np.float32)
        program.weight[:] += step / np.float32(10 * number)
        program.session.arena.array("steps")[...] += 1


@pytest.mark.parametrize("wire", [Wire.BF16, Wire.INT8])
@pytest.mark.parametrize("method", [MergeMethod.MEAN, MergeMethod.GEOMEDIAN])
async def test_all_end_with_nearly_what_exact_parameters_merge_to(rounded, wire, method, transfer):
    swarm = rounded(wire, method)
    rules = {"min_peers": 3}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        programs = await swarm.open_all(TENSORS)
        for number in (1, 2, 3):
            train(programs, number)
            exact = np.mean([program.weight for program in programs], axis=0)
            await swarm.sync_all(programs, number, 3)
            if method is MergeMethod.MEAN:
                rounding = (0.01 if wire is Wire.BF16 else 0.05) * 2.0 / (10 * number)
                assert np.abs(programs[0].weight - exact).max() < (1e-6 if number == 1 else rounding)
            assert programs[0].session.arena.array("steps") == number
        await asyncio.gather(*(program.finish(FinishMode.INACTIVE) for program in programs))
        if transfer is TransferMode.GATEWAY:
            forms = Forms(place(TENSORS), MergeConfig(wire=wire))
            assert await sizes(swarm, 1) == ({NUM_WHOLE}, NUM_WHOLE)
            assert await sizes(swarm, 2) == ({forms.check_in.layout.size_bytes}, forms.result.layout.size_bytes)
            await swarm.verify(3)


async def test_what_is_rounded_off_comes_later(rounded):
    """Beside a block's large steps, small ones are less than half a unit: without memory they would all be lost."""
    swarm = rounded(Wire.INT8, whole_every=1000)
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        await swarm.sync_all(programs, 1, 2)
        for number in range(2, 22):
            for program in programs:
                program.weight[:] += np.float32(0.001)
                program.weight[::1000] += np.float32(1)
            await swarm.sync_all(programs, number, 2)
        weight = programs[0].weight
        assert weight[1] == pytest.approx(0.02, abs=0.5 / 127 + 0.001)
        assert weight[1] > 0.01
        assert weight[0] == pytest.approx(20.02, rel=0.01)


@pytest.mark.parametrize("whole_every", [10, 3])
async def test_a_node_that_comes_later_has_what_the_others_have(rounded, whole_every):
    swarm = rounded(Wire.BF16, whole_every=whole_every)
    rules = {"min_peers": 2, "quorum_wait_s": 0}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules):
        programs = [swarm.program(site) for site in SITES]
        for program in programs[:2]:
            await program.open(1.0, tensors=TENSORS)
        for number in range(1, 6):
            train(programs[:2], number)
            await swarm.sync_all(programs[:2], number, 2)
        async with swarm.node("gamma", **rules):
            await programs[2].open(tensors=TENSORS)
            assert programs[2].session.resume
            assert bytes(programs[2].session.arena.buffer) == bytes(programs[0].session.arena.buffer)
            train(programs, 6)
            answers = await asyncio.gather(*(program.sync() for program in programs))
            assert {answer.round for answer in answers} == {6}
            assert len({bytes(program.session.arena.buffer) for program in programs}) == 1


@direct_only
async def test_a_node_that_missed_rounds_goes_on_from_what_it_has(rounded, monkeypatch):
    swarm = rounded(Wire.INT8)
    rules = {"min_peers": 2, "quorum_wait_s": 0}
    fetched = []
    fetch = DirectExchange.fetch

    async def note(self, blob, holders, *buffers):
        fetched.append((self.endpoint, blob))
        return await fetch(self, blob, holders, *buffers)

    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        alpha, beta, gamma = programs = await swarm.open_all(TENSORS)
        await asyncio.gather(*(program.sync() for program in programs))
        for number in (2, 3, 4):
            train([alpha, beta], number)
            await asyncio.gather(alpha.sync(), beta.sync())
        monkeypatch.setattr(DirectExchange, "fetch", note)
        answer = await gamma.sync()
        assert answer.late and answer.num_peers == 2
        assert bytes(gamma.session.arena.buffer) == bytes(alpha.session.arena.buffer)
        async with swarm.client() as client:
            merged = [round_.merged for round_ in await client.rounds("digits")]
        assert set(merged[-3:]) <= {blob for _, blob in fetched} | {merged[-1]}


@direct_only
async def test_where_the_round_before_is_nowhere_everything_is_whole_again(rounded, caplog):
    """Results are in the nodes' stores only: both are emptied, with all nodes gone."""
    swarm = rounded(Wire.INT8, whole_every=1000)
    for attempt in (1, 2):
        async with swarm.node("alpha"), swarm.node("beta"):
            programs = [swarm.program(site) for site in SITES[:2]]
            for program in programs:
                await program.open(float(attempt), tensors=TENSORS)
                assert not program.session.resume
            for number in (2 * attempt - 1, 2 * attempt):
                train(programs, number)
                answers = await asyncio.gather(*(program.sync() for program in programs))
                assert [(a.round, a.num_peers, a.late) for a in answers] == [(number, 2, False)] * 2
            assert len({bytes(program.session.arena.buffer) for program in programs}) == 1
            for program in programs:
                program.close()
        for site in SITES[:2]:
            store = BlobStore(swarm.folder / site / "blobs")
            for blob in store.blobs():
                store.delete(blob)


@direct_only
async def test_results_are_kept_as_far_back_as_the_newest_whole_one(rounded):
    swarm = rounded(Wire.INT8, whole_every=4)
    tweak = swarm.tweak
    swarm.tweak = lambda config: replace(tweak(config), transfer=replace(config.transfer, keep_rounds=1))
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        for number in range(1, 10):
            train(programs, number)
            await swarm.sync_all(programs, number, 2)
            async with swarm.client() as client:
                rounds = await client.rounds("digits", 1, number)
            kept = set(BlobStore(swarm.folder / "alpha" / "blobs").blobs())
            merged = {round_.merged for round_ in rounds}
            # after a whole one, the older ones go with the round that they were last needed for
            wanted = {round_.merged for round_ in rounds if round_.number > (number - 1) // 4 * 4}
            assert wanted <= kept
            if number == 8:
                assert kept & merged == wanted
                assert len(kept - merged) == 1


@gateway_only
async def test_a_replay_finds_what_was_changed_and_goes_on_at_the_next_whole_result(rounded):
    swarm = rounded(Wire.BF16, whole_every=4)
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        for number in range(1, 7):
            train(programs, number)
            await swarm.sync_all(programs, number, 2)
        spec, rounds, blobs = await swarm.history()

    def report(**gone):
        missing = {rounds[number - 1].merged for number in gone.get("merged", ())}
        missing |= {c.blob for number in gone.get("check_ins", ()) for c in rounds[number - 1].check_ins}

        found = verify_rounds(spec, rounds, reader(blobs, missing))
        return found.rounds_checked, [one.round for one in found.mismatches], [one.round for one in found.skipped]

    assert report() == (6, [], [])
    # a result can be had from the check-ins, and the other way round it is as good
    assert report(merged=[2]) == (5, [], [2])
    assert report(check_ins=[2]) == (5, [], [2])
    # round 5's is whole, but its check-ins are not
    assert report(merged=[2], check_ins=[2]) == (2, [], [2, 3, 4, 5])
    changed = bytearray(blobs[rounds[2].check_ins[1].blob])
    changed[-1] ^= 1
    blobs[rounds[2].check_ins[1].blob] = changed
    assert report() == (6, [3], [])


@gateway_only
async def test_a_peer_that_cannot_have_the_round_before_checks_in_whole(rounded, monkeypatch):
    swarm = rounded(Wire.INT8)
    rules = {"min_peers": 3}
    async with swarm.node("alpha", **rules), swarm.node("beta", **rules), swarm.node("gamma", **rules):
        programs = await swarm.open_all(TENSORS)
        lost = []
        load = Participant._load

        async def lose(self, round_, mine):
            if round_.number == 1 and self._member.name == "gamma/sl/sl":
                lost.append(round_.number)
                raise BlobNotFound("as if nobody had it")
            return await load(self, round_, mine)

        monkeypatch.setattr(Participant, "_load", lose)
        answers = await asyncio.gather(*(program.sync() for program in programs))
        assert sorted(answer.num_peers for answer in answers) == [0, 3, 3] and lost
        for number in (2, 3):
            train(programs, number)
            await swarm.sync_all(programs, number, 3)
        await swarm.verify(3)
        check_ins, result = await sizes(swarm, 2)
        assert len(check_ins) == 2 and NUM_WHOLE in check_ins and result < NUM_WHOLE
        assert len((await sizes(swarm, 3))[0]) == 1


@gateway_only
async def test_a_replay_finds_the_layout_in_a_later_result(rounded):
    """Its own file, and the blobs of the first rounds, were not kept: of those that are left nothing is wrong."""
    swarm = rounded(Wire.BF16, whole_every=2)
    async with swarm.node("alpha"), swarm.node("beta"):
        programs = await swarm.open_two(TENSORS)
        for number in range(1, 5):
            train(programs, number)
            await swarm.sync_all(programs, number, 2)
        spec, rounds, blobs = await swarm.history()
    missing = {spec.model, *(blob for one in rounds[:2] for blob in (one.merged, *(c.blob for c in one.check_ins)))}
    report = verify_rounds(spec, rounds, reader(blobs, missing))
    assert report.mismatches == () and report.rounds_checked >= 1


@gateway_only
async def test_a_difference_from_nothing_is_refused_by_name_and_found_by_a_replay(rounded, monkeypatch):
    """Alpha checks in with one in round 1."""
    swarm, outgoing, made = rounded(Wire.INT8), Models.outgoing, []

    def lie(self, number, model):
        made.append(self)
        if self is not made[0]:
            return outgoing(self, number, model)
        self.forms.check_in.encode(model, model, self._sent)
        return self._sent

    monkeypatch.setattr(Models, "outgoing", lie)
    async with swarm.node("alpha", max_wait_s=5), swarm.node("beta", max_wait_s=5):
        alpha, beta = await swarm.open_two(TENSORS)
        first = asyncio.create_task(alpha.sync())
        while not made:
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(first, beta.sync(), return_exceptions=True)
        assert any("alpha/sl/sl: a difference in round 1" in str(answer) for answer in answers)
        async with swarm.client() as client:
            spec = (await client.contract("digits")).spec
            [round_] = await client.rounds("digits")
            blobs = {c.blob: await client.download(c.blob) for c in round_.check_ins}
            blobs[spec.model] = await client.download(spec.model)
    whole = next(c.blob for c in round_.check_ins if c.node.startswith("beta"))
    forged = replace(round_, state=RoundState.PUBLISHED, leader="alpha/sl/sl", merged=whole)
    report = verify_rounds(spec, [forged], blobs.__getitem__)
    assert [(one.round, one.node) for one in report.mismatches] == [(1, "alpha/sl/sl")]
