"""A job's script: each setting of the site profile in its place, the committed files, and what bash makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from swarm_hpc.cli import settings
from swarm_hpc.config import ExperimentConfig, IdentityConfig, SiteConfig, SlConfig, SubmitConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.records import Platform
from swarm_hpc.slurm.environment import Task
from swarm_hpc.slurm.plan import PREFIX, plan_job, plan_sn, plan_task
from swarm_hpc.slurm.script import script
from tests.slurm.stand_ins import calls, put

GOLDEN = Path(__file__).parents[2] / "sbatch"
TASK = Task(job="12", rank=0, num_tasks=1)
EXPERIMENT = ExperimentConfig(name="digits", metric="f1", platform=Platform.PYTORCH, prepare=[], train=["true"])


def profile(**changes: Any) -> SiteConfig:
    identity = IdentityConfig(cert="c.pem", key="k.pem", bundle="b.json")
    return SiteConfig(**{"name": "alpha", "sn": "sn:30304", "identity": identity, **changes})


def text(*words: str, **changes: Any) -> str:
    return script(plan_job(profile(**changes), name="swarm-digits", log="runs/slurm-%j.log", words=words))


def test_the_committed_script_is_that_of_the_default_profile_with_the_words_of_sbatch() -> None:
    plan = plan_job(profile(), name=PREFIX, log=f"{PREFIX}-%j.log", words=None)
    assert (GOLDEN / "swarm_run.sbatch").read_text() == script(plan)


def test_the_committed_script_of_an_sn_is_the_one_that_is_planned() -> None:
    assert (GOLDEN / "sn.sbatch").read_text() == script(plan_sn())


def test_an_empty_profile_asks_for_nothing_that_a_cluster_may_not_have() -> None:
    lines = [line.removeprefix("#SBATCH ") for line in text().splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "--job-name=swarm-digits",
        "--output=runs/slurm-%j.log",
        "--open-mode=append",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--signal=B:USR2@120",
        "--requeue",
    ]


# An example value of each field of SiteConfig, and what it makes of the script.
IN_SCRIPT: dict[str, tuple[Any, str]] = {
    "command": ("python -m swarm_hpc.cli", " python -m swarm_hpc.cli sl --task "),
    "partition": ("gpu", "#SBATCH --partition=gpu\n"),
    "account": ("p123", "#SBATCH --account=p123\n"),
    "qos": ("long", "#SBATCH --qos=long\n"),
    "time": ("2-00:00:00", "#SBATCH --time=2-00:00:00\n"),
    "constraint": ("a100|h100", "#SBATCH --constraint='a100|h100'\n"),
    "reservation": ("night", "#SBATCH --reservation=night\n"),
    "licenses": ("swarm:1", "#SBATCH --licenses=swarm:1\n"),
    "nodes": (3, "#SBATCH --nodes=3\n"),
    "tasks_per_node": (4, "#SBATCH --ntasks-per-node=4\n"),
    "cpus_per_task": (8, "#SBATCH --cpus-per-task=8\n"),
    "mem": ("64G", "#SBATCH --mem=64G\n"),
    "gpus_per_task": (1, "#SBATCH --gpus-per-task=1\n"),
    "gres": ("gpu:a100:4", "#SBATCH --gres=gpu:a100:4\n"),
    "sbatch": (["--exclusive", "--mail-type=FAIL"], "#SBATCH --exclusive\n#SBATCH --mail-type=FAIL\n"),
    "modules": (["gcc/12", "cuda"], "\nset -e\nmodule load gcc/12\nmodule load cuda\n"),
    "setup": (["source v/bin/activate"], "\nset -e\nsource v/bin/activate\n"),
    "mpi": ("pmi2", "\nsrun --mpi=pmi2 "),
    "scratch": ("/local/$USER", '\nscratch="/local/$USER/swarm-$SLURM_JOB_ID"\n'),
    "requeue": (False, "#SBATCH --no-requeue\n"),
    "warning_s": (300, "#SBATCH --signal=B:USR2@300\n"),
}
# Those that the job's tasks read themselves: an example, and where it arrives. test_plan.py has more of them.
IN_TASK: dict[str, tuple[Any, Callable[[SlConfig], str]]] = {
    "name": ("gamma", lambda sl: sl.program.env["SITE"]),
    "sn": ("login:1", lambda sl: sl.sn),
    "identity": (IdentityConfig(cert="other.pem", key="k.pem", bundle="b.json"), lambda sl: sl.identity.cert),
    "run_dir": ("/srv/runs", lambda sl: sl.program.cwd),
}
# Where else: `find_sn` reads sn_file (test_endpoint.py), conf/submit.yaml draws on data_dir (below).
ELSEWHERE = {"sn_file", "data_dir"}


@pytest.mark.parametrize("field", IN_SCRIPT)
def test_a_setting_of_the_profile_is_found_in_the_script(field: str) -> None:
    value, expected = IN_SCRIPT[field]
    assert expected in text(**{field: value})
    assert expected not in text()


@pytest.mark.parametrize("field", IN_TASK)
def test_a_setting_of_the_profile_reaches_the_tasks(field: str) -> None:
    value, arrives = IN_TASK[field]
    words = SubmitConfig(experiment=EXPERIMENT, site=profile(**{field: value}), data_dir="data")
    expected = value.cert if isinstance(value, IdentityConfig) else value
    assert arrives(plan_task(words, TASK, Path())).startswith(expected)


def test_the_folder_of_data_is_the_profiles_with_the_experiments_name() -> None:
    identity = [f"site.identity.{key}=f" for key in ("cert", "key", "bundle")]
    words = ["site.name=alpha", "site.sn=s:1", *identity, "site.data_dir=/srv/data"]
    assert settings.load(SubmitConfig, "submit", words).data_dir == "/srv/data/digits"


def test_every_setting_of_the_profile_is_in_one_of_these_tables() -> None:
    assert sorted([*IN_SCRIPT, *IN_TASK, *ELSEWHERE]) == sorted(field.name for field in fields(SiteConfig))


def test_every_setting_of_the_profile_is_explained_where_its_default_stands() -> None:
    lines = (settings.CONF / "site" / "generic.yaml").read_text().splitlines()
    keys = {line.partition(":")[0]: number for number, line in enumerate(lines) if line[:1].isalpha()}
    assert list(keys) == [field.name for field in fields(SiteConfig)]
    assert [key for key, number in keys.items() if not lines[number - 1].startswith("# ")] == []


def test_the_modules_come_before_the_lines_of_bash() -> None:
    made = text(modules=["cuda"], setup=["source v/bin/activate"])
    assert "module load cuda\nsource v/bin/activate\n" in made


def test_a_job_that_is_warned_tells_its_tasks_and_goes_back_into_the_queue_when_they_have_left() -> None:
    assert "\ntrap 'kill -USR2 $! || true' USR2\n" in text()
    assert text().endswith('    scontrol requeue "$SLURM_JOB_ID"\nfi\nexit "$status"\n')


@pytest.mark.parametrize("code", [0, 1])
def test_an_sn_that_is_warned_goes_back_into_the_queue_and_is_not_ended_where_it_may_not(
    tmp_path: Path, code: int
) -> None:
    put(tmp_path / "srun", "kill -USR2 $PPID; sleep 0.2; exit 7")
    scontrol = put(tmp_path / "scontrol", f'echo "$@" >>"$0.calls"; exit {code}')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    done = subprocess.run(["bash", "-c", script(plan_sn())], env=env, cwd=tmp_path, timeout=30)
    assert (done.returncode, calls(scontrol)) == (7, ["requeue 12"])


@pytest.mark.parametrize("changes", [{"warning_s": 0}, {"requeue": False, "warning_s": 120}])
def test_a_job_that_may_not_requeue_itself_gets_no_warning(changes: dict[str, Any]) -> None:
    assert "USR2" not in text(**changes)


@pytest.mark.parametrize("time", ["1", "2", "2:00", "0:01:59", "00:02:00", "0-0:2", "0-0:1:30"])
def test_a_job_that_would_be_warned_when_it_has_just_begun_is_refused(time: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"site\.time: {time} is no longer than the warning .* or set site\.warning_s=0"
    ):
        text(time=time)
    assert f"#SBATCH --time={time}\n" in text(time=time, warning_s=0)
    assert f"#SBATCH --time={time}\n" in text(time=time, requeue=False)


@pytest.mark.parametrize(
    "time", ["3", "2:01", "0:02:01", "1:00:00", "0-1", "1-0", "0-0:3", "0-0:2:1", "UNLIMITED", "", "0", "0:00", "0-0"]
)
def test_a_job_with_time_before_its_warning_is_planned(time: str) -> None:
    assert "#SBATCH --signal=B:USR2@120\n" in text(time=time)


def test_words_reach_the_tasks_as_they_were_typed() -> None:
    made = text("experiment=digits", "experiment.train=[python, 'my train.py']", "+experiment.env.X=$HOME")
    line = next(line for line in made.splitlines() if line.startswith("srun"))
    words = line.partition("--task ")[2].removesuffix(" &")
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [
        "experiment=digits",
        "experiment.train=[python, 'my train.py']",
        "+experiment.env.X=$HOME",
    ]


@pytest.mark.parametrize("changes", [{}, {"scratch": "/local", "modules": ["m"], "setup": ["true"], "warning_s": 9}])
def test_bash_can_read_it(changes: dict[str, Any]) -> None:
    subprocess.run(["bash", "-n"], input=text("a=b", **changes), text=True, check=True)


@pytest.mark.parametrize(("task", "requeued"), [("true", []), ('touch "$SWARM_LEFT_FILE"', ["requeue 12"])])
def test_a_scratch_folder_that_cannot_be_removed_changes_nothing_about_the_job(
    tmp_path: Path, task: str, requeued: list[str]
) -> None:
    put(tmp_path / "srun", f'case " $* " in *" rm "*) echo "rm: no" >&2; exit 1 ;; *" --task "*) {task} ;; esac')
    scontrol = put(tmp_path / "scontrol", 'echo "$@" >>"$0.calls"')
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "1"}
    made = text(scratch=str(tmp_path))
    done = subprocess.run(["bash", "-c", made], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr, calls(scontrol)) == (0, "rm: no\n", requeued)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"partition": "gpu\n#SBATCH --uid=0"}, "partition: "),
        ({"setup": ["true", "a\nb"]}, "setup: "),
        ({"sbatch": ["exclusive"]}, "sbatch.0: 'exclusive' is no option of sbatch"),
        ({"nodes": 0}, "nodes: 0 must be at least 1"),
        ({"warning_s": -1}, "warning_s: -1 must be at least 0"),
        ({"name": "a b"}, "name: 'a b'"),
        ({"sn": ""}, "sn: give the host:port of the site's SN, or sn_file"),
        ({"sn_file": "endpoint.json"}, "but not both"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(changes: dict[str, Any], expected: str) -> None:
    values = {"name": "alpha", "sn": "s", "identity": IdentityConfig(cert="c", key="k", bundle="b"), **changes}
    with pytest.raises(ConfigError) as caught:
        SiteConfig(**values)
    assert expected in str(caught.value)
