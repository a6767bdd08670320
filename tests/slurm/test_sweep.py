"""`swarm-hpc submit -m`: hydra's grammar of several values, and the names of what comes out of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_hpc import cli
from swarm_hpc.cli.settings import split_sweep
from swarm_hpc.cli.sweep import contract_name, suffix
from swarm_hpc.errors import ConfigError
from swarm_hpc.records import LABEL
from tests.lab.slurm import Cluster


def names(*words: str, base: str = "digits") -> list[str]:
    return [contract_name(base, one) for one in split_sweep("submit", words)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["merge=mean,geomedian"], ["digits-merge-mean", "digits-merge-geomedian"]),
        (["merge=choice(mean,geomedian)"], ["digits-merge-mean", "digits-merge-geomedian"]),
        (["seed=range(1,4)"], ["digits-seed-1", "digits-seed-2", "digits-seed-3"]),
        (["merge=glob(*median)"], ["digits-merge-coordmedian", "digits-merge-geomedian"]),
        (["merge=choice(mean)"], ["digits-merge-mean"]),
        (["merge=mean", "seed=3"], ["digits"]),
        (["merge=mean,geomedian", "seed=1"], ["digits-merge-mean", "digits-merge-geomedian"]),
        (["+experiment.env.X=1,2"], ["digits-experiment.env.X-1", "digits-experiment.env.X-2"]),
        (["round.contract=a,b"], ["digits", "digits"]),
        (["round.contract=mine", "seed=1,2"], ["digits", "digits"]),
    ],
)
def test_several_values_make_a_contract_each(words: list[str], expected: list[str]) -> None:
    assert names(*words) == expected


def test_two_sweeps_make_every_combination_whatever_their_order() -> None:
    words = ["merge=mean,geomedian", "seed=1,2"]
    made = [f"digits-merge-{merge}-seed-{seed}" for merge, seed in itertools.product(("mean", "geomedian"), (1, 2))]
    assert names(*words) == made
    assert sorted(names(*words[::-1])) == sorted(made)


def test_a_sites_own_words_do_not_change_the_names() -> None:
    assert names("site=alpha", "merge=mean,geomedian") == names("merge=mean,geomedian", "site.time=5", "site=beta")


@pytest.mark.parametrize("words", [["data_dir=/a/b,/a-b"], ["experiment.train=[a],[b]"], ["data_dir='a b','a,b'"]])
def test_values_that_are_no_label_get_a_hash_and_stay_apart(words: list[str]) -> None:
    made = names(*words)
    assert len(set(made)) == 2
    assert all(LABEL.fullmatch(name) for name in made)
    assert names(*words) == made


def test_long_names_are_cut_to_a_label_and_stay_apart() -> None:
    made = names(f"data_dir={'x' * 80}1,{'x' * 80}2", base="b" * 63)
    assert len(set(made)) == 2
    assert {len(name) for name in made} == {63}


def test_the_words_of_a_job_have_one_value_each_and_the_others_as_they_were_typed() -> None:
    first, second = split_sweep("submit", ["experiment.train=[a, 'b c']", "merge=mean,geomedian", "~seed"])
    assert first.words == ("experiment.train=[a, 'b c']", "~seed", "merge=mean")
    assert second.words == ("experiment.train=[a, 'b c']", "~seed", "merge=geomedian")
    assert (suffix(first), suffix(second)) == ("merge-mean", "merge-geomedian")


def test_the_experiment_is_in_the_names_anyway() -> None:
    assert [suffix(one) for one in split_sweep("submit", ["experiment=digits,thyroid"])] == ["", ""]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["digits"], "'digits' is not a setting"),
        (["seed=[1"], "no viable alternative"),
        (["seed=range(1,1)"], "seed: no values to choose from"),
        (["seed=1,2", "seed=3"], "seed: given twice"),
        (["seed=interval(0,1)"], "does not support sweep type"),
    ],
)
def test_words_that_cannot_be_are_refused(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        split_sweep("submit", words)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with the profiles of sites alpha and beta and a merge of its own; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("SWARM_HPC_SITE", "SWARM_HPC_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "profiles"
    (folder / "site").mkdir(parents=True)
    for site in ("alpha", "beta"):
        identity = {"cert": "c.pem", "key": "k.pem", "bundle": "b.json"}
        profile = {"defaults": ["generic", "_self_"], "name": site, "sn": "127.0.0.1:1", "identity": identity}
        (folder / "site" / f"{site}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    (folder / "merge").mkdir()
    (folder / "merge" / "mine.yaml").write_text("# @package merge\nmethod: geomedian\n")
    return str(folder)


def submit(capsys: pytest.CaptureFixture[str], profiles: str, *words: str, site: str = "alpha") -> tuple[int, str, str]:
    code = cli.main(["submit", f"site={site}", "--config-dir", profiles, *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def dry_run(capsys: pytest.CaptureFixture[str], profiles: str, *words: str, site: str = "alpha") -> Any:
    code, out, err = submit(capsys, profiles, *words, "--dry-run", "--json", site=site)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_each_job_has_its_name_its_contract_and_its_words(
    capsys: pytest.CaptureFixture[str], profiles: str, flag: str
) -> None:
    jobs = dry_run(capsys, profiles, flag, "merge=mean,geomedian", "experiment=digits", "seed=7")
    assert [job["settings"]["merge"]["method"] for job in jobs] == ["mean", "geomedian"]
    for job, merge in zip(jobs, ("mean", "geomedian"), strict=True):
        assert job["settings"]["round"]["contract"] == f"digits-merge-{merge}"
        assert f"#SBATCH --job-name=swarm-digits-merge-{merge}\n" in job["script"]
        words = f"site=alpha experiment=digits seed=7 merge={merge} round.contract=digits-merge-{merge}"
        assert f" sl --task {words} --config-dir {profiles} &\n" in job["script"]


@pytest.mark.slow
def test_both_sites_make_the_same_contracts(capsys: pytest.CaptureFixture[str], profiles: str) -> None:
    words = ("-m", "experiment=digits,thyroid", "merge=glob(*)", "seed=1,2")
    alpha, beta = (
        [job["settings"]["round"]["contract"] for job in dry_run(capsys, profiles, *words, site=site)]
        for site in ("alpha", "beta")
    )
    assert alpha == beta
    assert len(set(alpha)) == 2 * 8 * 2
    assert {"digits-merge-mine-seed-1", "thyroid-merge-mean-seed-2"} < set(alpha)


def test_a_sweep_of_one_combination_is_a_list_of_one_job(capsys: pytest.CaptureFixture[str], profiles: str) -> None:
    (job,) = dry_run(capsys, profiles, "-m", "merge=mean")
    assert job["settings"]["round"]["contract"] == "digits"


def test_a_dry_run_shows_all_scripts(capsys: pytest.CaptureFixture[str], profiles: str) -> None:
    code, out, _ = submit(capsys, profiles, "-m", "merge=mean,geomedian", "--dry-run")
    assert (code, out.count("#!/bin/bash\n"), out.count("# The settings, all of them:\n")) == (0, 2, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["merge=mean,geomedian"], "merge: several values make several jobs; write swarm-hpc submit -m"),
        (["-m", "merge=mean,nope"], "merge=nope: no such choice"),
        (["-m", "seed=1,2", "round.contract=mine"], "'seed=1' and 'seed=2' both have the name mine"),
        (["-m", "round.contract=a,a"], "both have the name a"),
        (["-m", "site.nodes=1,0"], "site.nodes: 0 must be at least 1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_as_a_whole(
    capsys: pytest.CaptureFixture[str], profiles: str, words: list[str], expected: str
) -> None:
    code, out, err = submit(capsys, profiles, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


@pytest.mark.parametrize("words", [["round.contract=a,b"], ["seed=1,2", "round.contract=mine-${seed}"]])
def test_a_contract_that_the_user_names_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], profiles: str, words: list[str]
) -> None:
    jobs = dry_run(capsys, profiles, "-m", *words)
    made = [job["settings"]["round"]["contract"] for job in jobs]
    assert made in (["a", "b"], ["mine-1", "mine-2"])


@pytest.mark.slurm
def test_a_sweep_is_in_the_queue_as_one_job_per_contract(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    code, out, err = submit(capsys, profiles, "-m", "merge=mean,geomedian", "site.sbatch=[--hold]", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert [job["contract"] for job in made] == ["digits-merge-mean", "digits-merge-geomedian"]
    for job in made:
        assert f"JobName=swarm-{job['contract']}" in alpha.describe(job["job"])
        script = alpha.run("scontrol", "write", "batch_script", job["job"], "-")
        assert f" round.contract={job['contract']} " in script
    alpha.cancel_all()


@pytest.mark.slurm
def test_a_sweep_is_followed_until_its_last_job_is_over(
    capsys: pytest.CaptureFixture[str], profiles: str, alpha: Cluster
) -> None:
    program = Path("program").absolute()
    program.write_text('#!/bin/bash\n[[ "$*" = *seed=2* ]] && exit 7\nexit 0\n')
    program.chmod(0o755)
    words = ("-m", "seed=1,2", f"site.command={program}", "site.partition=main", "poll_s=0.3", "--wait")
    code, out, err = submit(capsys, profiles, *words)
    assert (code, out) == (1, "")
    assert err.count(": COMPLETED") == 1
    assert err.splitlines()[-1].count("ended as FAILED, exit code 7") == 1
    alpha.cancel_all()
