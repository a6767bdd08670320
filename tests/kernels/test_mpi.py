"""The ranks of a real MPI job: messages, a wrong launcher, a rank that is killed. And the choice of a transfer."""

import json
import subprocess
import sys

import pytest

from swarm_hpc.errors import RankLost

pytestmark = pytest.mark.mpi


@pytest.mark.slow
def test_messages_of_any_length_arrive_in_order(job, tmp_path):
    done = job("messages", 3)
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        before = (rank - 1) % 3
        assert json.loads((tmp_path / f"messages.{rank}").read_text()) == [
            [before, "short", 5],
            [before, "lllll", 3_000_000],
        ]


def test_a_launcher_that_mpi_does_not_understand_is_named_with_the_remedy(job):
    done = job("messages", 1, said=3)
    assert done.returncode == 2
    assert "MPI sees 1 rank, the job has 3" in done.stderr
    assert "srun --mpi=pmi2" in done.stderr


def test_without_mpi4py_the_error_names_what_to_install():
    code = "import sys; sys.modules['mpi4py'] = None; import swarm_hpc.kernels.mpi"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: ranks=mpi: mpi4py or its MPI library cannot be loaded" in done.stderr
    assert "install swarm-hpc[mpi]" in done.stderr


@pytest.mark.slow
def test_when_a_rank_is_gone_the_others_get_an_error_within_the_deadline(job, tmp_path):
    done = job("lost", 3, timeout_s=3.0)
    assert done.returncode == RankLost.exit_code
    for rank in (0, 2):
        said = (tmp_path / f"lost.{rank}").read_text()
        assert "within 3 s (ranks.timeout_s): a rank is lost or hangs" in said


@pytest.mark.parametrize(
    ("device", "kinds", "cuda_support", "expected"),
    [
        ("cpu", "", None, "as it is"),
        ("cpu", "mpi,system", False, "as it is"),
        ("cuda", "mpi,system", None, "pinned"),
        ("cuda:1", "", None, "pinned"),
        ("cuda:1", "", False, "pinned"),
        ("cuda:1", "", True, "as it is"),
        ("cuda", "mpi,system,cuda", None, "as it is"),
        ("cuda", "system, cuda:device:managed", None, "as it is"),
        ("xpu", "mpi,system,cuda", True, "pinned"),
    ],
)
def test_gpu_memory_goes_straight_into_mpi_only_where_the_library_says_so(device, kinds, cuda_support, expected):
    from swarm_hpc.kernels.mpi import choose_transfer

    assert choose_transfer(device, kinds, cuda_support=cuda_support) == expected


def test_the_library_at_hand_says_which_memory_it_takes(job):
    code = (
        "from swarm_hpc.kernels.mpi import Ranks, choose_transfer, memory_kinds; ranks = Ranks.start(1, 10.0);"
        "print(choose_transfer('cuda', memory_kinds())); ranks.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("pinned", "as it is")
