"""What each task of a job runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from swarm_hpc.cli import settings
from swarm_hpc.config import JobConfig, RanksConfig, RanksKind, SubmitConfig
from swarm_hpc.records import MergeMethod
from swarm_hpc.slurm.environment import Task
from swarm_hpc.slurm.plan import job_name, node_prefix, plan_task

SITE = ["name=alpha", "sn=sn:30304", "identity.cert=c.pem", "identity.key=k.pem", "identity.bundle=b.json"]
TASK = Task(job="12", rank=1, num_tasks=2, num_cpus=3, cwd=Path("/home/me"))


def load(*words: str) -> SubmitConfig:
    return settings.load(SubmitConfig, "submit", [*(f"site.{word}" for word in SITE), *words])


def test_a_task_is_a_node_of_its_site_with_the_training_program_as_its_child() -> None:
    sl = plan_task(load("merge=geomedian", "round.min_peers=3", "seed=7"), TASK, Path("/examples"))
    assert (sl.name, sl.sn, sl.identity.cert) == ("alpha/sl/job-12-1", "sn:30304", "c.pem")
    assert (sl.merge.method, sl.round.contract, sl.round.min_peers) == (MergeMethod.GEOMEDIAN, "digits", 3)
    assert sl.program.command == [sys.executable, "/examples/digits/train.py"]
    folder = "/home/me/runs/job-12/task-1"
    assert (sl.state_dir, sl.program.cwd, sl.program.log) == (f"{folder}/sl", folder, f"{folder}/ml.log")
    assert sl.program.env == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "MAX_EPOCHS": "10",
        "SITE": "alpha",
        "SEED": "7",
        "DATA_DIR": "/home/me/data/digits",
        "SCRATCH_DIR": folder,
    }


def test_with_mpi_the_tasks_of_a_job_are_one_node() -> None:
    config = load("site.mpi=pmi2")
    first, second = (plan_task(config, replace(TASK, rank=rank), Path()) for rank in (0, 1))
    assert first.name == second.name == "alpha/sl/job-12-0"
    assert first.ranks == second.ranks == RanksConfig(kind=RanksKind.MPI, num_ranks=2)
    assert first.state_dir != second.state_dir
    assert first.program.cwd != second.program.cwd


def test_the_ledger_hears_of_the_job_and_of_all_its_gpus() -> None:
    task = replace(TASK, num_gpus=2)
    assert plan_task(load(), task, Path()).job == JobConfig(id="12", num_gpus=2)
    assert plan_task(load("site.mpi=pmi2"), task, Path()).job == JobConfig(id="12", num_gpus=4)


def test_in_a_container_the_program_is_the_image_s_own() -> None:
    sl = plan_task(load("container=apptainer", "container.sl=host"), TASK, Path("/examples"))
    assert (sl.container.kind, sl.container.image, sl.container.sl) == ("apptainer", "sl-pytorch", "host")
    assert sl.program.command == ["python3", "/opt/swarm-hpc/examples/digits/train.py"]


def test_a_single_task_needs_no_mpi() -> None:
    assert plan_task(load("site.mpi=pmi2"), replace(TASK, rank=0, num_tasks=1), Path()).ranks == RanksConfig()


def test_a_requeued_job_is_the_same_nodes_with_the_same_state() -> None:
    config = load()
    first, again = (plan_task(config, task, Path()) for task in (TASK, replace(TASK, num_restarts=1, node="other")))
    assert first == again


def test_tasks_and_jobs_do_not_share_a_node() -> None:
    config = load()
    others = [TASK, replace(TASK, rank=0), replace(TASK, job="13")]
    names = {(sl.name, sl.state_dir) for sl in (plan_task(config, task, Path()) for task in others)}
    assert len(names) == len(others)


def test_a_jobs_nodes_are_found_by_how_their_names_begin() -> None:
    name = plan_task(load(), TASK, Path()).name
    assert name.startswith(node_prefix("alpha", "12"))
    assert not name.startswith(node_prefix("alpha", "1"))


def test_folders_can_be_anywhere() -> None:
    sl = plan_task(load("site.run_dir=/scratch/runs", "data_dir=/data/x"), TASK, Path())
    assert sl.state_dir == "/scratch/runs/job-12/task-1/sl"
    assert sl.program.env["DATA_DIR"] == "/data/x"


def test_a_job_is_named_after_its_experiment() -> None:
    assert job_name(load()) == "swarm-digits"


def test_the_defaults_in_yaml_are_those_of_the_dataclasses() -> None:
    config = load()
    assert config.site == type(config.site)(name="alpha", sn="sn:30304", identity=config.site.identity)
    bare = SubmitConfig(experiment=config.experiment, site=config.site, data_dir=config.data_dir)
    bare.round.contract = "digits"
    assert config == bare


def test_without_a_folder_of_data_the_program_keeps_its_own_default() -> None:
    assert "DATA_DIR" not in plan_task(load("data_dir=''"), TASK, Path()).program.env
