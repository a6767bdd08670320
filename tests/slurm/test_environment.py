"""What Slurm says to a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_hpc.errors import NotInJob
from swarm_hpc.slurm.environment import Task, read_inherited, read_task

ENV = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "1"}


def test_a_task_knows_itself() -> None:
    more = {"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "8", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "n7"}
    found = read_task(ENV | more, Path("/here"))
    assert found == Task(job="12", rank=1, num_tasks=4, num_cpus=8, num_restarts=2, node="n7", cwd=Path("/here"))


def test_what_slurm_leaves_out_is_one_cpu_and_no_restart() -> None:
    assert read_task(ENV, Path()) == Task(job="12", rank=1, num_tasks=1)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "SLURM_JOB_ID is not set"),
        ({"SLURM_JOB_ID": "12"}, "SLURM_PROCID is not set"),
        (ENV | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
    ],
)
def test_a_process_that_is_no_task_is_told_so(env: dict[str, str], expected: str) -> None:
    with pytest.raises(NotInJob, match=expected):
        read_task(env, Path())


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"ROCR_VISIBLE_DEVICES": "3"}, 1),
    ],
)
def test_a_task_knows_how_many_gpus_it_has(env: dict[str, str], expected: int) -> None:
    assert read_task(ENV | env, Path()).num_gpus == expected


def test_the_file_that_srun_hands_to_mpi_is_known() -> None:
    assert read_inherited({"PMI_FD": "13"}) == (13,)
    assert read_inherited({}) == ()
