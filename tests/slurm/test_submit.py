"""`swarm-hpc submit` on the command line: what it shows, what it hands to a real Slurm, and how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from swarm_hpc import cli, settings_file
from swarm_hpc.cli.settings import load
from swarm_hpc.cli.submit import task_settings
from swarm_hpc.config import SubmitConfig
from tests.lab.slurm import Cluster
from tests.slurm.stand_ins import calls, put

PROFILE = {
    "defaults": ["generic", "_self_"],
    "name": "alpha",
    "sn": "127.0.0.1:1",
    "identity": {"cert": "c.pem", "key": "k.pem", "bundle": "b.json"},
    "partition": "main",
}


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with the profile of site alpha; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("SWARM_HPC_SITE", "SWARM_HPC_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "profiles"
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "alpha.yaml").write_text(yaml.safe_dump(PROFILE, sort_keys=False))
    return str(folder)


@pytest.fixture
def sbatch_is(profiles: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script in the place of sbatch."""
    folder = Path("bin").absolute()
    put(folder / "srun", "")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return lambda script: put(folder / "sbatch", script)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def submit(capsys: pytest.CaptureFixture[str], profiles: str, *words: str) -> tuple[int, str, str]:
    return run(capsys, "submit", "site=alpha", "--config-dir", profiles, *words)


def test_a_dry_run_shows_the_script_and_all_settings(capsys: pytest.CaptureFixture[str], profiles: str) -> None:
    code, out, _ = submit(capsys, profiles, "experiment=digits", "merge=geomedian", "site.time=1:00:00", "--dry-run")
    assert code == 0
    script, _, settings = out.partition("# The settings, all of them:\n")
    assert "#SBATCH --partition=main\n#SBATCH --time=1:00:00\n" in script
    words = f"site=alpha experiment=digits merge=geomedian site.time=1:00:00 --config-dir {profiles}"
    assert f" swarm-hpc sl --task {words} &\n" in script
    shown = yaml.safe_load("\n".join(line.removeprefix("#   ") for line in settings.splitlines()))
    assert (shown["merge"]["method"], shown["site"]["name"], shown["site"]["mpi"]) == ("geomedian", "alpha", "none")
    subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    assert [path.name for path in Path().iterdir()] == ["profiles"]


def test_a_dry_run_for_machines(capsys: pytest.CaptureFixture[str], profiles: str) -> None:
    code, out, _ = submit(capsys, profiles, "--dry-run", "--json")
    shown = json.loads(out)
    assert (code, shown["script"].splitlines()[0], shown["settings"]["round"]["contract"]) == (
        0,
        "#!/bin/bash",
        "digits",
    )


def test_a_time_that_yaml_takes_for_a_number_is_named_with_its_file(
    capsys: pytest.CaptureFixture[str], profiles: str
) -> None:
    profile = Path(profiles, "site", "alpha.yaml")
    whole = profile.read_text()
    profile.write_text(f"{whole}time: 1:30:00\n")
    code, _, err = submit(capsys, profiles, "--dry-run")
    line = len(whole.splitlines()) + 1
    assert code == 2
    assert f'alpha.yaml, line {line}: 1:30:00 is a number to YAML: put it in quotes, "1:30:00"' in err
    profile.write_text(f'{whole}time: "1:30:00"\n')
    assert "#SBATCH --time=1:30:00\n" in submit(capsys, profiles, "--dry-run")[1]


def test_the_cluster_may_say_which_site_it_is_and_where_its_profile_lies(
    capsys: pytest.CaptureFixture[str], profiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_HPC_SITE", "alpha")
    monkeypatch.setenv("SWARM_HPC_CONFIG_DIR", profiles)
    code, out, _ = run(capsys, "submit", "experiment=digits", "--dry-run")
    assert code == 0
    assert f" sl --task site=alpha experiment=digits --config-dir {profiles} &" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["site=aleph"], "site=aleph: no such choice; did you mean alpha?"),
        (["site=alpha", "site.nodes=0"], "site.nodes: 0 must be at least 1"),
        (["site=alpha", "node_weight=101"], "node_weight: 101 is outside 1-100"),
        (["site=alpha", "site.partitoin=x"], "did you mean site.partition?"),
        ([], "site.name: no value"),
    ],
)
def test_what_cannot_be_is_refused_before_slurm_hears_of_it(
    capsys: pytest.CaptureFixture[str], profiles: str, words: list[str], expected: str
) -> None:
    code, out, err = run(capsys, "submit", "--config-dir", profiles, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_without_slurm_it_says_so(
    capsys: pytest.CaptureFixture[str], profiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", profiles)
    code, out, err = submit(capsys, profiles)
    assert (code, out) == (4, "")
    assert "there is no Slurm on this host" in err


def test_a_run_dir_that_takes_no_script_is_named(
    capsys: pytest.CaptureFixture[str], profiles: str, sbatch_is: Callable[[str], Path]
) -> None:
    sbatch = sbatch_is('echo "$@" >>"$0.calls"')
    code, out, err = submit(capsys, profiles, "site.run_dir=/proc/self")
    assert (code, out, err.count("\n"), calls(sbatch)) == (2, "", 1, [])
    assert "/proc/self: the job's script cannot be written there" in err


def test_a_job_that_slurm_has_taken_is_told_although_its_script_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], profiles: str, sbatch_is: Callable[[str], Path]
) -> None:
    sbatch_is("echo Submitted batch job 12")
    Path("runs/12_submission.sh").mkdir(parents=True)  # or a file system without links, or a quota that is used up
    code, out, err = submit(capsys, profiles)
    assert (code, out) == (0, "12\n")
    assert "job 12: its script is not kept" in err


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        ("12;alpha", 0, "12\n"),
        ("12", 0, "12\n"),
        ("", 1, "Slurm has taken the job, but sbatch does not say its ID (it said ''): see squeue"),
    ],
)
def test_a_job_is_known_however_sbatch_says_that_it_has_taken_it(
    capsys: pytest.CaptureFixture[str], profiles: str, sbatch_is: Callable[[str], Path], said: str, code: int, told: str
) -> None:
    sbatch_is(f"echo '{said}'")
    found, out, err = submit(capsys, profiles)
    assert (found, told in out + err) == (code, True), err


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "Socket timed out on send/recv operation",
            "; it may have taken the job: see squeue before you try again",
        ),
        ("Unable to contact slurm controller (connect failure)", ""),
    ],
)
def test_a_job_that_slurm_may_have_taken_is_not_just_missing(
    capsys: pytest.CaptureFixture[str], profiles: str, sbatch_is: Callable[[str], Path], said: str, hint: str
) -> None:
    sbatch_is(f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    code, out, err = submit(capsys, profiles)
    assert (code, out) == (4, "")
    assert err.endswith(f"{said}{hint}\n")


def test_a_swops_task_has_the_site_of_its_settings_whatever_site_the_cluster_says_it_is(
    profiles: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = ["site=alpha", "site.name=gamma"]
    words = settings_file.write(tmp_path / "slot", "submit", "node", load(SubmitConfig, "submit", site, profiles))[1:]
    for name, value in {"SWARM_HPC_SITE": "alpha", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    options = cli.COMMANDS["sl"].parser("sl").parse_intermixed_args(["--task", *words])
    assert task_settings(options).name == "gamma/sl/job-7-0"


def test_a_process_outside_of_a_job_is_no_task(
    capsys: pytest.CaptureFixture[str], profiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    code, _, err = run(capsys, "sl", "--task", "site=alpha", "--config-dir", profiles)
    assert code == 2
    assert "SLURM_JOB_ID is not set" in err


@pytest.mark.slurm
def test_a_submitted_job_is_in_the_queue_with_the_script_of_the_dry_run(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    words = ["site.sbatch=[--hold]", "site.run_dir=all my runs", "site.time=5", "site.mem=600M"]
    script = json.loads(submit(capsys, profiles, *words, "--dry-run", "--json")[1])["script"]
    code, out, err = submit(capsys, profiles, *words, "--json")
    assert code == 0, err
    made = json.loads(out)
    job = made["job"]
    assert made == {"job": job, "site": "alpha", "contract": "digits", "log": f"all my runs/slurm-{job}.log"}
    shown = alpha.describe(job)
    for text in ("JobName=swarm-digits", "Partition=main", "TimeLimit=00:05:00", "Requeue=1", "MinMemoryNode=600M"):
        assert text in shown
    assert f"StdOut={Path.cwd()}/all my runs/slurm-{job}.log" in shown
    assert Path("all my runs", f"{job}_submission.sh").read_text() == script
    assert alpha.run("scontrol", "write", "batch_script", job, "-").strip() == script.strip()
    alpha.cancel_all()


@pytest.mark.slurm
def test_what_a_job_asks_for_counts_more_than_what_the_user_asks_sbatch_for_by_default(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = {"PARTITION": "urgent", "TIMELIMIT": "1", "JOB_NAME": "mine", "NO_REQUEUE": "1", "COMMENT": "hers"}
    for name, value in defaults.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    code, out, err = submit(capsys, profiles, "site.sbatch=[--hold, '--comment=its']", "site.time=5")
    assert code == 0, err
    shown = alpha.describe(out.strip())
    for text in ("Partition=main", "TimeLimit=00:05:00", "JobName=swarm-digits", "Requeue=1", "Comment=its"):
        assert text in shown
    alpha.cancel_all()


@pytest.mark.slurm
def test_what_slurm_does_not_take_is_told_in_its_words(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    code, out, err = submit(capsys, profiles, "site.partition=nope")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Slurm does not take the job: sbatch: error: Batch job submission failed: Invalid partition name" in err


@pytest.mark.slurm
def test_a_followed_job_that_fails_is_a_failure_with_its_log(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    command = f"{sys.executable} -m swarm_hpc.cli"
    code, out, err = submit(capsys, profiles, "--wait", "poll_s=0.3", f"site.command={command}")
    assert (code, out) == (1, "")
    assert re.search(r"job \d+: \w+", err)
    failure = err.splitlines()[-1]
    found = re.fullmatch(
        r"swarm-hpc: job (\d+) ended as FAILED, exit code 3; its log is (runs/slurm-\d+\.log)", failure
    )
    assert found, err
    assert "trust bundle b.json: No such file" in Path(found[2]).read_text()


@pytest.mark.slurm
def test_each_task_has_cpus_a_gpu_and_a_folder_on_its_nodes_disk_that_is_removed(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    program, scratch = Path("program").absolute(), Path("scratch").absolute()
    program.write_text(
        '#!/bin/bash\necho "$SLURMD_NODENAME $SLURM_CPUS_PER_TASK $CUDA_VISIBLE_DEVICES $TMPDIR" ; ls -d "$TMPDIR"\n'
    )
    program.chmod(0o755)
    words = ["site.nodes=2", "site.tasks_per_node=2", "site.gpus_per_task=1", "site.cpus_per_task=2"]
    words += [f"site.command={program}", f"site.scratch={scratch}", "poll_s=0.3"]
    code, out, err = submit(capsys, profiles, *words, "--wait")
    assert code == 0, err
    log = Path("runs", f"slurm-{out.strip()}.log").read_text()
    lines = [line for line in log.splitlines() if not line.startswith("srun:")]  # it may have to wait for the nodes
    tmpdir = scratch / f"swarm-{out.strip()}"
    tasks = [f"{node} 2 {gpu} {tmpdir}" for node in ("alpha1", "alpha2") for gpu in (0, 1)]
    assert sorted(lines) == sorted([*tasks, *[str(tmpdir)] * 4])
    assert list(scratch.iterdir()) == []


@pytest.mark.slurm
def test_one_task_that_fails_ends_the_whole_job(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    program = Path("program").absolute()
    program.write_text('#!/bin/bash\n[ "$SLURM_PROCID" = 0 ] || exit 7\nexec sleep 600\n')
    program.chmod(0o755)
    code, _, err = submit(capsys, profiles, "site.nodes=2", f"site.command={program}", "poll_s=0.3", "--wait")
    assert code == 1
    job = re.search(r"job (\d+) ended as FAILED", err)
    assert job, err
    assert alpha.processes_of(job[1]) == []
