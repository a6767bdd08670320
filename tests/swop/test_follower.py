"""A SWOP node and a real SN: tasks are done once, in order, and whatever interrupts it."""

from __future__ import annotations

import asyncio

import pytest

from swarm_hpc.errors import ConfigError, NotFound, TaskRefused
from swarm_hpc.records import TaskState
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swop import follower
from swarm_hpc.swop.executor import Standing
from swarm_hpc.swop.journal import Journal
from swarm_hpc.swop.part import Part, SlotState
from tests.conftest import LONG
from tests.swop.conftest import RUNNER, Bench, Site, ended, enrolled, make_task, until


class Killed(Exception):
    """Stands for the end of the process."""


COMPLETE, ERROR, RUNNING = TaskState.COMPLETE, TaskState.ERROR, TaskState.RUNNING


async def test_a_task_is_done_and_the_ledger_says_so(site: Site) -> None:
    ada, bench = await site.operator(), Bench(num_sl=2)
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        runner = await ended(ada)
    (mine,) = runner.peers
    assert (runner.state, mine.state, mine.num_done, mine.num_sl) == (COMPLETE, COMPLETE, 2, 2)
    assert mine.text.splitlines()[0] == "train: 2 done"
    assert sorted(bench.starts.values()) == [1, 1]


async def test_a_failure_is_told_with_its_reason_and_the_end_of_the_log(site: Site) -> None:
    ada, bench = await site.operator(), Bench()
    bench.standing = Standing(SlotState.FAILED, "job 7 failed: exit code 1")
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        (mine,) = (await ended(ada)).peers
    first, *_, last = mine.text.splitlines()
    assert first == "train: failed: node 0 of the profile: job 7 failed: exit code 1: no such file: data.csv"
    assert (mine.state, last) == (ERROR, "no such file: data.csv")


@pytest.mark.parametrize("refusal", [TaskRefused("author Ada is not taken here"), ConfigError("WorkingDir: no folder")])
async def test_what_the_site_does_not_do_is_an_error_and_starts_nothing(site: Site, refusal: Exception) -> None:
    ada, bench = await site.operator(), Bench()
    bench.refusal = refusal
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        (mine,) = (await ended(ada)).peers
    assert (mine.state, mine.text, bench.starts) == (ERROR, f"train: not done here: {refusal}", {})


@pytest.mark.slow
async def test_a_reset_ends_what_runs_and_the_next_task_is_done(site: Site) -> None:
    ada, bench = await site.operator(), Bench()
    bench.standing = Standing(SlotState.STARTED, "job 7 running")
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await until(ada, lambda runner: "job 7 running" in runner.peers[0].text)
        await ada.reset_taskrunner(RUNNER)
        bench.standing = Standing(SlotState.DONE, "done")
        await ada.assign(RUNNER, "train")
        assert (await ended(ada)).state is COMPLETE
    first, second = bench.starts
    assert bench.cancelled == [first]
    assert second != first


@pytest.mark.slow
async def test_a_swop_that_is_started_again_goes_on_with_what_it_had_begun(site: Site) -> None:
    ada, bench = await site.operator(), Bench()
    bench.standing = Standing(SlotState.STARTED, "job 7 running")
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await until(ada, lambda runner: "job 7 running" in runner.peers[0].text)
    bench.standing = Standing(SlotState.DONE, "done")
    async with site.swop(bench):
        assert (await ended(ada)).state is COMPLETE
    assert list(bench.starts.values()) == [1]


@pytest.mark.slow
async def test_a_reset_while_the_swop_is_down_is_heard_of_later(site: Site) -> None:
    ada, bench = await site.operator(), Bench()
    bench.standing = Standing(SlotState.STARTED, "job 7 running")
    await make_task(ada, "train")
    async with site.swop(bench):
        await enrolled(ada)
        await ada.assign(RUNNER, "train")
        await until(ada, lambda runner: "job 7 running" in runner.peers[0].text)
    await ada.reset_taskrunner(RUNNER)
    bench.standing = Standing(SlotState.DONE, "done")
    await ada.assign(RUNNER, "train")
    async with site.swop(bench):
        assert (await ended(ada)).state is COMPLETE
    assert bench.cancelled == [next(iter(bench.starts))]
    assert len(bench.starts) == 2


@pytest.mark.slow
async def test_a_task_for_another_node_is_left_alone_until_it_is_invited(site: Site) -> None:
    ada, one, two = await site.operator(), Bench(), Bench()
    one.standing = Standing(SlotState.STARTED, "job 7 running")
    await make_task(ada, "train")
    async with site.swop(one), site.swop(two, "swop2"):
        await enrolled(ada, 2)
        await ada.assign(RUNNER, "train", target="alpha/swop/swop1")
        await until(ada, lambda runner: any("job 7 running" in peer.text for peer in runner.peers))
        assert not two.starts
        await ada.assign(RUNNER, "train", target="alpha/swop/swop2")
        await until(ada, lambda runner: any(peer.state is COMPLETE for peer in runner.peers))
        one.standing = Standing(SlotState.DONE, "done")
        assert (await ended(ada)).state is COMPLETE
    assert (len(one.starts), len(two.starts)) == (1, 1)


@pytest.mark.slow
async def test_a_peer_that_failed_tries_again_when_it_is_told_to(site: Site) -> None:
    ada, one, two = await site.operator(), Bench(), Bench()
    one.standing = Standing(SlotState.FAILED, "exit code 1")
    two.standing = Standing(SlotState.STARTED, "running")
    await make_task(ada, "train")
    async with site.swop(one), site.swop(two, "swop2"):
        await enrolled(ada, 2)
        await ada.assign(RUNNER, "train")
        await until(ada, lambda runner: any(peer.state is ERROR for peer in runner.peers))
        one.standing = two.standing = Standing(SlotState.DONE, "done")
        await ada.assign(RUNNER, "train", target="alpha/swop/swop1")
        assert (await ended(ada)).state is COMPLETE
    assert len(one.starts) == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_written", [False, True])
async def test_a_swop_that_dies_at_any_write_of_its_journal_goes_on_after_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    ada, bench = await site.operator(), Bench(num_sl=2)
    await make_task(ada, "train")
    write, num_left, num_deaths = Journal.write, 0, 0

    def dying(journal: Journal, part: Part) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left != 0 or is_written:
            write(journal, part)
        if num_left == 0:
            raise Killed

    monkeypatch.setattr(Journal, "write", dying)
    async with site.swop(bench):
        await enrolled(ada)
    while num_left <= 0:
        num_deaths += 1
        num_left = num_deaths
        bench.starts.clear()
        await ada.assign(RUNNER, "train")
        async with site.swop(bench) as life:
            await asyncio.wait({life, ending := asyncio.create_task(ended(ada))}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                assert isinstance(life.exception(), Killed)
        async with site.swop(bench):
            runner = await ending
        assert (runner.state, len(bench.starts)) == (COMPLETE, 2)
    assert num_deaths > 4


async def test_a_second_swop_with_the_same_folder_is_refused(site: Site) -> None:
    async with site.swop(Bench()):
        await enrolled(await site.operator())
        second = asyncio.create_task(_second(site))
        with pytest.raises(Exception, match="another SWOP works with it"):
            await second


async def _second(site: Site) -> None:
    async with site.swop(Bench()) as life:
        await life


@pytest.mark.slow
async def test_a_run_that_has_peers_enough_is_asked_for_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    ada, one, two = await site.operator(), Bench(), Bench()
    one.standing = two.standing = Standing(SlotState.STARTED, "running")
    await make_task(ada, "train")
    with caplog.at_level("INFO", "swarm_hpc.swop.follower"):
        async with site.swop(one), site.swop(two, "swop2"):
            await enrolled(ada, 2)
            await ada.assign(RUNNER, "train", num_peers=1)
            await until(ada, lambda runner: any("running" in peer.text for peer in runner.peers))
            for number in range(5):
                one.standing = two.standing = Standing(SlotState.STARTED, f"epoch {number}")
                await until(ada, lambda runner, text=f"epoch {number}": any(text in one.text for one in runner.peers))
            one.standing = two.standing = Standing(SlotState.DONE, "done")
            assert (await ended(ada)).state is COMPLETE
    assert len(one.starts) + len(two.starts) == 1
    assert caplog.text.count("is not for us") <= 2, "as others begin, not as they report"


async def test_it_enrols_again_on_a_ledger_that_was_founded_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bench = await site.operator(), Bench()
    await make_task(ada, "train")
    enrol, look = SnClient.enrol, SnClient.taskrunner
    calls: list[str] = []

    async def counted(self: SnClient, *words: object) -> object:
        calls.append("enrol")
        return await enrol(self, *words)  # type: ignore[arg-type]

    async def lost(self: SnClient, *words: object, **more: object) -> object:
        if calls == ["enrol"]:
            raise NotFound("no such taskrunner")
        return await look(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(SnClient, "enrol", counted)
    monkeypatch.setattr(SnClient, "taskrunner", lost)
    monkeypatch.setattr(follower, "_FIRST_PAUSE_S", 0.01)
    async with site.swop(bench):
        async with asyncio.timeout(30):
            while len(calls) < 2:
                await asyncio.sleep(0.01)
        await ada.assign(RUNNER, "train")
        assert (await ended(ada)).state is COMPLETE


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_swops_do_many_tasks_one_after_the_other(site: Site) -> None:
    """200 with SWARM_HPC_LONG_TESTS=1, else 60."""
    num_tasks = 200 if LONG else 60
    ada = await site.operator()
    benches = {f"swop{number}": Bench(num_sl=2) for number in range(10)}
    for number in range(5):
        await make_task(ada, f"task-{number}")
    lives = [site.swop(bench, name) for name, bench in benches.items()]
    for life in lives:
        await life.__aenter__()
    try:
        await enrolled(ada, 10)
        for number in range(num_tasks):
            await ada.assign(RUNNER, f"task-{number % 5}", num_peers=4)
            assert (await ended(ada)).state is COMPLETE
    finally:
        for life in lives:
            await life.__aexit__(None, None, None)
    runs = await ada.task_runs(RUNNER)
    assert len(runs) == num_tasks
    assert sum(sum(peer.state is COMPLETE for peer in run.peers) for run in runs) == 2 * num_tasks
    starts = [count for bench in benches.values() for count in bench.starts.values()]
    assert set(starts) == {1}
    assert len(starts) == 4 * num_tasks
