"""A job of several real MPI ranks, each with an ML program, against a real SN: merges, errors, losses, ends."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm_hpc.config import TransferMode
from swarm_hpc.errors import RankLost
from swarm_hpc.records import FinishMode

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.slow,
    pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True),
]

PROGRAM = Path(__file__).parent / "programs" / "rank.py"


class Job:
    """The ranks of site alpha."""

    def __init__(self, folder, num_ranks):
        self.folder, self.num_ranks = folder, num_ranks
        self.code, self.output = None, ""

    def answers(self, rank):
        return json.loads((self.folder / f"answers.{rank}").read_text())

    def last(self):
        return [self.answers(rank)[-1] for rank in range(self.num_ranks)]


@pytest.fixture
def job(swarm, mpiexec, tmp_path):
    """Runs a job with a plan per rank; only rank 0 has a certificate. Yields it, and waits for its end."""

    def words(identity, num_ranks, said, timeout_s, plan, rules):
        settings = {
            "name": "alpha/sl/sl",
            "sn": swarm.sn,
            "state_dir": str(tmp_path / "alpha"),
            "ranks": "mpi",
            "ranks.num_ranks": said,
            "ranks.timeout_s": timeout_s,
            "transfer.min_free_mib": 0,
            "round.contract": "digits",
            "round.quorum_wait_s": 60,
            **identity,
            **{f"round.{name}": value for name, value in rules.items()},
            "program.command": f"[{sys.executable},{PROGRAM}]",
            "program.stop_timeout_s": 2,
            "program.log": str(tmp_path / "program.log"),
            "+program.env.FOLDER": str(tmp_path),
            "+program.env.PLAN": json.dumps(json.dumps(plan)),
        }
        command = [sys.executable, "-m", "swarm_hpc.cli", "sl", *(f"{key}={value}" for key, value in settings.items())]
        return ["-n", str(num_ranks), *command]

    @asynccontextmanager
    async def run(plan, *, said=None, timeout_s=30, **rules):
        files = swarm.identities["alpha"]
        mine = {f"identity.{name}": getattr(files, name) for name in ("cert", "key", "bundle")}
        none = dict.fromkeys(mine, "/nowhere")
        count = len(plan)
        plan = {str(rank): steps for rank, steps in enumerate(plan)}
        rules = {"min_peers": 1} | rules
        command = [*mpiexec, *words(mine, 1, said or count, timeout_s, plan, rules)]
        if count > 1:
            command += [":", *words(none, count - 1, said or count, timeout_s, plan, rules)]
        this = Job(tmp_path, count)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            yield this
            async with asyncio.timeout(90):
                output, _ = await process.communicate()
            this.code, this.output = process.returncode, output.decode()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    return run


def sync(**fields):
    return ["sync", fields]


def opened(value, **fields):
    return ["open", {"value": value, **fields}]


def finish(mode=FinishMode.SNAPSHOT):
    return ["finish", mode]


async def test_the_ranks_merge_first_and_count_as_many_nodes(swarm, job):
    plan = [
        [opened(float(rank), node_weight=1 + rank), sync(loss=float(rank)), sync(add=float(rank)), finish()]
        for rank in range(3)
    ]
    async with swarm.node("beta", min_peers=2):
        beta = swarm.program("beta")
        await beta.open(10.0)
        async with job(plan, min_peers=2) as alpha:
            first = await beta.sync()
            assert (first.num_peers, first.late) == (2, False)
            # weights 1, 2, 3 with values 0, 1, 2, and 1 with 10
            assert beta.weight == pytest.approx([18 / 7] * 5)
            await beta.sync()
            assert beta.weight == pytest.approx([18 / 7 + 8 / 7] * 5)
            await beta.finish(FinishMode.SNAPSHOT)
    assert alpha.code == 0, alpha.output
    for number in (1, 2):
        results = [alpha.answers(rank)[number] for rank in range(3)]
        assert all((r["round"], r["num_peers"], r["late"]) == (number, 2, False) for r in results)
        assert all(r["bytes"] == results[0]["bytes"] for r in results)
    finished = alpha.last()
    assert all(one == finished[0] for one in finished)
    async with swarm.client() as client:
        rounds = await client.rounds("digits")
    check_in = next(c for c in rounds[0].check_ins if c.node == "alpha/sl/sl")
    assert (check_in.weight, check_in.num_nodes, check_in.loss) == (2, 3, pytest.approx((0 + 2 + 6) / 6))
    assert {c.node for one in rounds for c in one.check_ins} == {"alpha/sl/sl", "beta/sl/sl"}


@pytest.mark.parametrize("mode", FinishMode)
async def test_a_rank_that_has_finished_helps_the_others_to_their_end(swarm, job, mode):
    plan = [
        [opened(1.0), sync(), finish(mode)],
        [opened(3.0), sync(), sync(add=3.0), sync(), finish(mode)],
    ]
    async with job(plan) as alpha:
        pass
    assert alpha.code == 0, alpha.output
    second = {FinishMode.INACTIVE: 5.0, FinishMode.SNAPSHOT: 3.5, FinishMode.ACTIVE: 3.5}[mode]
    third = {FinishMode.INACTIVE: 5.0, FinishMode.SNAPSHOT: 2.75, FinishMode.ACTIVE: 3.5}[mode]
    assert [alpha.answers(1)[n]["weight"][0] for n in (1, 2, 3)] == pytest.approx([2.0, second, third])
    ends = alpha.last()
    assert ends[0] == ends[1]


async def test_a_restarted_job_resumes_with_the_newest_parameters_on_all_ranks(swarm, job):
    async with swarm.node("beta", min_peers=2):
        beta = swarm.program("beta")
        await beta.open(4.0)
        async with job([[opened(1.0), sync()], [opened(3.0), sync()]], min_peers=2) as alpha:
            await beta.sync()
        # its programs ended before their training was finished
        assert alpha.code != 0
        merged = beta.weight[0]
        again = [[opened(50.0), sync(), finish()], [opened(60.0), sync(), finish()]]
        async with job(again, min_peers=2) as alpha:
            await beta.sync()
            await beta.finish(FinishMode.SNAPSHOT)
    assert alpha.code == 0, alpha.output
    assert [alpha.answers(rank)[0]["resume"] for rank in range(2)] == [True, True]
    assert [alpha.answers(rank)[1]["weight"][0] for rank in range(2)] == pytest.approx([merged] * 2)


async def test_a_program_that_fails_ends_the_job_with_its_last_words_at_every_rank(swarm, job):
    plan = [
        [opened(1.0), sync(), sync()],
        [opened(1.0), sync(), ["fail", "out of memory"]],
        [opened(1.0), sync(), sync()],
    ]
    async with job(plan) as alpha:
        pass
    assert alpha.code not in (0, None)
    for rank in (0, 2):
        answer = alpha.answers(rank)[-1]
        assert answer["error"] == "ProgramFailed"
        assert answer["text"].startswith("rank 1: the ML program")
        assert "out of memory" in answer["text"]


@pytest.mark.parametrize("told", [0, 1])
async def test_all_ranks_leave_in_order_when_one_is_told_to(swarm, job, told):
    plans = [[opened(1.0), sync(), sync()] for _ in range(3)]
    plans[told][-1] = ["end_my_sl", None]
    async with job(plans) as alpha:
        pass
    assert alpha.code == 0, alpha.output
    for rank in range(3):
        assert alpha.answers(rank)[-1] == {"leave": "the node is stopped (SIGTERM)"}
    assert alpha.output.count("the ML program has saved its state") == 3
    assert "ending all processes" not in alpha.output


async def test_a_program_knows_its_rank_and_nothing_of_the_launcher(swarm, job):
    async with job([[["environment", None], opened(1.0), finish()] for _ in range(2)]) as alpha:
        pass
    assert alpha.code == 0, alpha.output
    for rank in range(2):
        found = alpha.answers(rank)[0]
        socket = found.pop("SWARM_SL_SOCKET")
        assert ("rank-1" in socket) == (rank == 1)
        assert found == {"SWARM_RANK": str(rank), "SWARM_NUM_RANKS": "2"}


async def test_the_speakers_error_reaches_the_programs_of_all_ranks(swarm, job):
    async with job([[opened(1.0), sync()], [opened(1.0), sync()]], min_peers=2, max_wait_s=1) as alpha:
        pass
    assert alpha.code not in (0, None)
    texts = {answer["text"] for answer in alpha.last()}
    assert [answer["error"] for answer in alpha.last()] == ["TimedOut", "TimedOut"]
    assert len(texts) == 1
    assert "gave up after 1 s (round.max_wait_s)" in texts.pop()


async def test_a_program_that_hangs_is_waited_for_no_longer_than_any_peer_and_then_ended(swarm, job):
    plan = [[opened(1.0), sync()], [opened(1.0), ["await_file", "never"], sync()]]
    async with job(plan, max_wait_s=10, timeout_s=10) as alpha:
        pass
    answer = alpha.answers(0)[-1]
    assert answer["error"] == "TimedOut"
    assert answer["text"] == "waiting for rank 1 of the job; gave up after 10 s (round.max_wait_s)"
    # not by what is said last: mpiexec may drop that when a rank calls MPI_Abort
    assert alpha.code not in (0, None)
    assert not (alpha.folder / "answers.1").exists()


async def test_another_model_at_one_rank_is_refused_at_all(swarm, job):
    async with job([[opened(1.0)], [opened(1.0, size=7)]]) as alpha:
        pass
    assert alpha.code not in (0, None)
    for answer in alpha.last():
        assert answer["error"] == "ModelMismatch"
        assert answer["text"] == "rank 1: tensor 'weight' is F32 [7]; here it is F32 [5]"


async def test_other_settings_at_one_rank_are_refused_at_all(swarm, job):
    async with job([[opened(1.0)], [opened(1.0, merge_method="geomedian")]]) as alpha:
        pass
    assert alpha.code not in (0, None)
    for answer in alpha.last():
        assert answer["error"] == "ContractMismatch"
        assert "rank 1 asks for merge.method geomedian, rank 0 for mean" in answer["text"]


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_rank_that_is_gone_is_an_error_at_the_others_within_the_deadline(swarm, job, gone):
    steps = [opened(1.0), sync(), sync()]
    plan = [[opened(1.0), sync(), ["stop_my_sl", None], sync()] if rank == gone else steps for rank in range(3)]
    async with job(plan, timeout_s=10) as alpha:
        pass
    assert alpha.code == RankLost.exit_code, alpha.output
    for rank in {0, 1, 2} - {gone}:
        answer = alpha.answers(rank)[-1]
        assert answer["error"] == "RankLost"
        assert f"nothing heard from rank {gone} of 3 for 10 s" in answer["text"]


async def test_a_launcher_that_mpi_does_not_understand_is_a_clear_error(swarm, job):
    async with job([[opened(1.0)]], said=3) as alpha:
        pass
    assert alpha.code == 2
    assert "MPI sees 1 rank, the job has 3" in alpha.output
    assert "srun --mpi=pmi2" in alpha.output
