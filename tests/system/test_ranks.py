"""A site whose training job has several MPI ranks: they merge among themselves and check in as one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_hpc.config import (
    ExperimentConfig,
    LocalConfig,
    MergeConfig,
    ProgramConfig,
    RanksConfig,
    RanksKind,
    RoundConfig,
)
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import Swarm, fetch_rounds
from swarm_hpc.records import MergeMethod, Platform, RoundState

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.mpi, pytest.mark.timeout(300)]

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
# Each rank has data of its own, and a place of its own for its result.
OF_RANK = 'DATA_DIR="$DATA_DIR$SWARM_RANK" SCRATCH_DIR="$SCRATCH_DIR/$SWARM_RANK" exec "$0" "$@"'


@pytest.fixture
def digits(tmp_path):
    """Makes a swarm of sites alpha and beta whose SN runs, and the digits for three ranks and a single one."""
    swarms = []

    def make(method, num_ranks=3):
        config = LocalConfig(
            experiment=ExperimentConfig(
                name="digits", metric="accuracy", platform=Platform.PYTORCH, prepare=[], train=[]
            ),
            sites=2,
            merge=MergeConfig(method=method),
            round=RoundConfig(contract="digits", min_peers=2, quorum_wait_s=60),
        )
        config.transfer.keep_rounds = 0
        folder = RunFolder.create(tmp_path / "run")
        swarm = Swarm(config, folder, ["alpha", "beta"])
        swarms.append(swarm)
        swarm.make_certificates()
        swarm.launch_sns()
        names = [*(f"alpha{rank}" for rank in range(num_ranks)), "beta"]
        words = [str(folder.data), "--sites", str(len(names)), "--names", ",".join(names)]
        subprocess.run([sys.executable, str(DIGITS / "prepare.py"), *words], check=True, capture_output=True)
        swarm.await_sns()
        return swarm

    yield make
    for swarm in swarms:
        swarm.stop()


def program(swarm, site, *before):
    scratch = swarm.folder.scratch(site, "swarm")
    scratch.mkdir(parents=True)
    env = {"DATA_DIR": str(swarm.folder.data / site), "SCRATCH_DIR": str(scratch), "MAX_EPOCHS": "10"}
    log = str(swarm.folder.log(f"{site}-ml"))
    return ProgramConfig(command=[*before, sys.executable, str(DIGITS / "train.py")], env=env, log=log)


# With 3/4 of the weight at one of two sites, the geometric median of the two is that site's model: all that the other
# one knows is missing.
@pytest.mark.parametrize(("method", "least"), [(MergeMethod.MEAN, 0.93), (MergeMethod.GEOMEDIAN, 0.91)])
def test_three_ranks_of_a_site_count_as_three_nodes_and_gain_from_the_other_site(digits, mpiexec, method, least):
    swarm = digits(method)
    ranks = RanksConfig(kind=RanksKind.MPI, num_ranks=3)
    swarm.start_sl("alpha", program(swarm, "alpha", "sh", "-c", OF_RANK), launcher=[*mpiexec, "-n", "3"], ranks=ranks)
    swarm.start_sl("beta", program(swarm, "beta"))
    swarm.wait(["alpha", "beta"], 240)

    rounds = [one for one in fetch_rounds(swarm.client(), "digits") if one.state is RoundState.PUBLISHED]
    assert len(rounds) >= 30
    for one in rounds:
        assert {c.node: (c.weight, c.num_nodes) for c in one.check_ins} == {
            "alpha/sl/sl-1": (1, 3),
            "beta/sl/sl-1": (1, 1),
        }
    scratches = [swarm.folder.scratch("alpha", "swarm") / str(rank) for rank in range(3)]
    results = [
        json.loads((folder / "result.json").read_text())
        for folder in [*scratches, swarm.folder.scratch("beta", "swarm")]
    ]
    assert [result["value"] for result in results[1:]] == [results[0]["value"]] * 3, "all have the same model"
    assert results[0]["value"] > least

    swarm.stop()
    words = [sys.executable, "-m", "swarm_hpc.cli", "verify", str(swarm.folder.root), "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rounds_checked"], report["mismatches"]) == (len(rounds), 0)
