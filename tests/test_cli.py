"""Words on the command line: settings, help, errors in one line, exit codes."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_hpc import __version__, cli, settings_file
from swarm_hpc.cli import settings
from swarm_hpc.cli.command import Command
from swarm_hpc.config import (
    IdentityConfig,
    LocalConfig,
    ProgramConfig,
    SlConfig,
    SnConfig,
    SwopConfig,
    TransferMode,
)
from swarm_hpc.errors import ConfigError
from swarm_hpc.records import MergeMethod

IDENTITY = ["identity.cert=c.pem", "identity.key=k.pem", "identity.bundle=b.json"]
SL = [*IDENTITY, "name=alpha/sl/sl-1", "sn=localhost:30304", "program.command=[python,train.py]"]


@pytest.fixture
def own_groups(tmp_path):
    """A user's own folder with an experiment in it."""
    folder = tmp_path / "own conf"
    (folder / "experiment").mkdir(parents=True)
    text = "name: mine\nmetric: accuracy\nplatform: keras\nprepare: [prepare]\ntrain: [train]\nenv:\n  EPOCHS: 3\n"
    (folder / "experiment" / "mine.yaml").write_text(text)
    return str(folder)


def run(capsys, *words):
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_has_help_with_an_example_and_its_settings(capsys):
    for name, command in cli.COMMANDS.items():
        code, out, _ = run(capsys, name, "--help")
        assert code == 0
        assert command.example in out
        if command.settings:
            assert str(settings.CONF / f"{command.settings}.yaml") in out
    assert "quorum_wait_s: 30" in run(capsys, "sl", "--help")[1]
    assert "merge=centredclip|coordmedian|geomedian|krum|mean|multikrum|trimmedmean" in run(capsys, "sl", "--help")[1]


def test_help_says_what_goes_with_a_run_folder_and_what_with_a_contract(capsys):
    assert "swarm-hpc status RUN_DIR [sn=NAME] | SETTING=VALUE ... [" in run(capsys, "status", "--help")[1]
    out = run(capsys, "verify", "--help")[1]
    assert "swarm-hpc verify RUN_DIR | CONTRACT SETTING=VALUE ... [" in out
    assert "swarm-hpc verify xray sn=" in out


def test_the_overview_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_the_defaults_in_yaml_are_those_of_the_dataclasses():
    sn = settings.load(SnConfig, "sn", IDENTITY)
    assert sn == SnConfig(identity=sn.identity)
    sl = settings.load(SlConfig, "sl", [*SL, "state_dir=x"])
    assert sl == SlConfig(name=sl.name, sn=sl.sn, state_dir="x", identity=sl.identity, program=sl.program)
    assert sl.program.command == ["python", "train.py"]
    words = [*IDENTITY, "profile=p", "name=alpha/swop/s", "site.name=alpha", "site.sn=sn:1"]
    swop = settings.load(SwopConfig, "swop", [*words, *(f"site.{word}" for word in IDENTITY)])
    assert swop == SwopConfig(profile="p", name=swop.name, identity=swop.identity, site=swop.site)


def test_groups_and_single_settings_can_be_overridden(own_groups):
    words = ["experiment=mine", "merge=geomedian", "transfer=direct", "transfer.port=0", "sites=3", "seed=7"]
    words += ["round.quorum_wait_s=5", "experiment.env.EPOCHS=9"]
    config = settings.load(LocalConfig, "local", words, own_groups)
    assert config.merge.method is MergeMethod.GEOMEDIAN
    assert config.transfer.mode is TransferMode.DIRECT
    assert (config.transfer.port, config.sites, config.seed, config.round.quorum_wait_s) == (0, 3, 7, 5)
    assert config.experiment.env == {"EPOCHS": "9"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["merge=trimmedmean", "merge.trim=0.25"], "trimmedmean trim=0.25"),
        (["merge=krum"], "krum num_byzantine=1"),
        (["merge=multikrum", "merge.num_selected=2"], "multikrum num_byzantine=1 num_selected=2"),
        (["merge=centredclip", "merge.clip_radius=2"], "centredclip clip_radius=2.0 clip_iterations=5"),
    ],
)
def test_each_merge_method_has_its_own_settings(words, text):
    assert str(settings.load(LocalConfig, "local", words).merge.agreed()) == text


def test_a_local_swarm_waits_for_all_sites_and_keeps_every_blob(own_groups):
    config = settings.load(LocalConfig, "local", ["experiment=mine", "sites=3"], own_groups)
    assert config.round.min_peers == 3
    assert config.round.contract == "mine"
    assert config.transfer.keep_rounds == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["portt=1"], ["portt", "did you mean port?"]),
        (["merge=mean"], ["merge: swarm-hpc sn has no such setting"]),
        (["ledger=embeded"], ["ledger=embeded: no such choice", "did you mean embedded?"]),
        (["port=high", *IDENTITY], ["port:", "'high'"]),
        (["port=70000", *IDENTITY], ["port: 70000 is not a port number"]),
        (["lease_s=0", *IDENTITY], ["lease_s: 0", "greater than 0"]),
        (["transfer.keep_round=1"], ["transfer.keep_round", "did you mean transfer.keep_rounds?"]),
        (["data_dir=[x"], ["data_dir=[x"]),
        (["data_dir=${nope}", *IDENTITY], ["data_dir", "nope"]),
        (["+shoe=3", *IDENTITY], ["shoe: there is no such setting"]),
        (["=3"], ["'=3' is not a setting"]),
        ([""], ["'' is not a setting"]),
        (["port"], ["'port' is not a setting: write KEY=VALUE"]),
        ([], ["identity.cert: no value"]),
        (["--config-dir", "/nowhere"], ["--config-dir: /nowhere is not a folder"]),
        (["--log-level", "LOUD"], ["--log-level", "LOUD"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line_with_exit_code_2(capsys, words, expected):
    code, out, err = run(capsys, "sn", *words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("swarm-hpc: ")
    assert all(text in err for text in expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ranks=mpi"], "ranks.num_ranks: no value; give ranks.num_ranks=..."),
        (["ranks=mpi", "ranks.num_ranks=0"], "ranks.num_ranks: how many ranks has the job? Under Slurm"),
        (["ranks=mpi", "ranks.num_ranks=2", "ranks.timeout_s=0"], "ranks.timeout_s: 0.0 must be greater than 0"),
        (["ranks=slurm"], "ranks is one of mpi, single"),
    ],
)
def test_what_a_job_of_ranks_needs_is_asked_for(capsys, words, expected):
    code, _, err = run(capsys, "sl", *IDENTITY, "name=alpha/sl/sl-1", "sn=a:1", "program.command=[]", *words)
    assert code == 2
    assert expected in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sites=0"], "sites: Input should be greater than or equal to 1 (it is 0)"),
        (["sites=99"], "sites: 99 is more than digits has: 8"),
        (["sites=two"], "sites: "),
        (["sites=4", "round.min_peers=9"], "round.min_peers: 9 is more than the 4 sites"),
        (["round.min_peers=0"], "round.min_peers: 0 must be at least 1"),
        (["merge=foo"], "merge is one of centredclip, coordmedian, geomedian, krum, mean, "),
        (["container.image=x"], "container.image: goes with container=apptainer; give that, too"),
        (["merge=trimmedmean", "merge.trim=0.5"], "merge.trim: 0.5 must be at least 0 and below 0.5"),
        (["merge=mean", "merge.trim=0.2"], "merge.trim"),
        (
            ["merge=krum", "sites=3"],
            "round.min_peers: 3 nodes are too few to merge by krum num_byzantine=1: it takes 4",
        ),
        (["experiment=nope"], "experiment is one of digits, thyroid"),
        (["run_dir=/proc/nope"], "run_dir: /proc/nope"),
        (["transfer.mdoe=direct"], "did you mean transfer.mode?"),
        (["baselines=maybe"], "baselines: "),
        (["timeout_s=0"], "timeout_s: 0.0 must be greater than 0"),
        (["round.contract=a b"], "round.contract: 'a b'"),
    ],
)
def test_a_local_run_that_cannot_be_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "local", *words, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_also_a_module():
    done = subprocess.run([sys.executable, "-m", "swarm_hpc.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_a_key_is_found_by_its_last_part_alone(own_groups):
    with pytest.raises(ConfigError, match=r"did you mean round\.quorum_wait_s"):
        settings.load(LocalConfig, "local", ["experiment=mine", "qorum_wait_s=3"], own_groups)


def test_a_new_environment_variable_is_added_with_a_plus(own_groups):
    with pytest.raises(ConfigError, match=r"\+experiment\.env\.LR=0\.1"):
        settings.load(LocalConfig, "local", ["experiment=mine", "experiment.env.LR=0.1"], own_groups)
    config = settings.load(LocalConfig, "local", ["experiment=mine", "+experiment.env.LR=0.1"], own_groups)
    assert config.experiment.env["LR"] == "0.1"


def test_an_unknown_experiment_lists_those_that_there_are(own_groups):
    with pytest.raises(ConfigError, match="did you mean mine"):
        settings.load(LocalConfig, "local", ["experiment=min"], own_groups)


def test_broken_yaml_of_the_user_is_one_line(capsys, own_groups):
    (Path(own_groups) / "experiment" / "mine.yaml").write_text("name: [mine\n")
    code, _, err = run(capsys, "local", "experiment=mine", "--config-dir", own_groups)
    assert code == 2
    assert err.count("\n") == 1
    assert "mine.yaml" in err


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    code, _, err = run(capsys, "statsu")
    assert code == 2
    assert "did you mean status?" in err


def test_the_traceback_is_shown_with_debug_only(capsys):
    assert "Traceback" not in run(capsys, "sn", "portt=1")[2]
    assert "Traceback" in run(capsys, "sn", "portt=1", "--debug")[2]


def test_our_own_bug_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def fails(options):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(cli.COMMANDS, "broken", Command(about="", example="", arguments=lambda p: None, run=fails))
    code, _, err = run(capsys, "broken")
    assert code == 1
    assert err == "swarm-hpc: RuntimeError: no such luck (a bug; run again with --debug for the traceback)\n"


def test_ctrl_c_is_exit_code_130(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    command = Command(about="", example="", arguments=lambda p: None, run=interrupted)
    monkeypatch.setitem(cli.COMMANDS, "slow", command)
    assert run(capsys, "slow") == (130, "", "swarm-hpc: interrupted\n")


def test_missing_certificates_are_refused_with_exit_code_3(capsys, tmp_path):
    words = [word.replace("=", f"={tmp_path}/") for word in IDENTITY]
    code, _, err = run(capsys, "sn", *words)
    assert code == 3
    assert f"{tmp_path}/" in err
    assert err.count("\n") == 1


def test_certs_makes_a_network_that_fits_together(capsys, tmp_path):
    for site in ("alpha", "beta"):
        ca = ["certs", "ca", site, "--trust-domain", "swarm.test", "--out", str(tmp_path / site)]
        assert run(capsys, *ca)[0] == 0
    code, out, _ = run(
        capsys, "certs", "issue", "alpha/sn/sn", "--ca", str(tmp_path / "alpha"), "--days", "7", "--json"
    )
    assert code == 0
    made = json.loads(out)
    bundle = tmp_path / "bundle.json"
    sites = [f"{site}={tmp_path / site / 'ca.pem'}" for site in ("alpha", "beta")]
    assert run(capsys, "certs", "bundle", *sites, "--trust-domain", "swarm.test", "--out", str(bundle))[0] == 0

    assert "spiffe://swarm.test/alpha/sn/sn" in run(capsys, "certs", "show", made["cert"])[1]
    shown = json.loads(run(capsys, "certs", "show", str(bundle), "--json")[1])
    assert [row["site"] for row in shown["certificates"]] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["ca", "alpha"], 2, "--trust-domain"),
        (["issue", "alpha"], 2, "site/kind/name"),
        (["issue", "alpha/sn/sn"], 2, "--ca"),
        (["issue", "alpha/sn/sn", "--ca", "nowhere"], 3, "nowhere"),
        (["bundle", "alpha", "--out", "x", "--trust-domain", "t"], 2, "SITE=CA.pem"),
        (["show", "nowhere.pem"], 3, "nowhere.pem"),
        (["ca", "alpha", "beta", "--trust-domain", "t"], 2, "beta"),
        (["ca", "alpha", "--trust-domain", "t", "--days", "0"], 2, "days: 0"),
        (["forge", "alpha"], 2, "forge"),
    ],
)
def test_certs_says_what_is_missing(capsys, tmp_path, monkeypatch, words, code, expected):
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, "certs", *words)
    assert got == code
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ca", "beta", "--trust-domain", "t", "--out", "file"], "--out: file: File exists"),
        (["issue", "alpha/sn/sn", "--ca", "pki", "--out", "file"], "--out: file: File exists"),
        (["bundle", "alpha=pki/ca.pem", "--trust-domain", "t", "--out", "pki"], "--out: pki: Is a directory"),
        (["bundle", "alpha=pki/ca.pem", "--trust-domain", "t", "--out", "file/b.json"], "--out: file/b.json: "),
        (["ca", "beta", "--trust-domain", "t", "--days", "9999999"], "days: 9999999 must be from 1 to"),
        (["issue", "alpha/sn/sn", "--ca", "pki", "--days", "9999999"], "days: 9999999 must be from 1 to"),
    ],
)
def test_certs_says_what_cannot_be_written(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(capsys, "certs", "ca", "alpha", "--trust-domain", "t", "--out", "pki")[0] == 0
    code, out, err = run(capsys, "certs", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_verify_and_status_say_what_they_need(capsys, tmp_path):
    assert "RUN_DIR" in run(capsys, "verify")[2]
    code, _, err = run(capsys, "verify", str(tmp_path))
    assert (code, "not the folder of a run" in err) == (2, True)
    code, _, err = run(capsys, "status", str(tmp_path))
    assert (code, "not the folder of a run" in err) == (2, True)
    assert run(capsys, "status", "a", "b")[0] == 2


def test_a_setting_that_a_file_lacks_is_named_and_no_token_in_that_file_is_told(capsys, own_groups):
    file = Path(own_groups) / "experiment" / "mine.yaml"
    file.write_text(file.read_text().replace("metric: accuracy\n", "").replace("EPOCHS: 3", "HF_TOKEN: s3cret"))
    code, out, err = run(capsys, "local", "experiment=mine", "--config-dir", own_groups)
    assert (code, out, err) == (2, "", "swarm-hpc: experiment.metric: no value\n")


def test_nobody_else_may_read_the_settings_of_a_node_with_its_programs_variables(tmp_path):
    program = ProgramConfig(command=["train"], env={"HF_TOKEN": "s3cret"})
    identity = IdentityConfig(cert="c.pem", key="k.pem", bundle="b.json")
    config = SlConfig(name="alpha/sl/a", sn="sn:1", state_dir="state", identity=identity, program=program)
    file = tmp_path / "node" / "own.yaml"
    file.parent.mkdir()
    file.touch(mode=0o644)  # of an earlier start
    command, *words, choice = settings_file.write(tmp_path, "sl", "own", config)
    assert (command, words) == ("sl", ["--config-dir", str(tmp_path)])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert settings.load(SlConfig, "sl", [choice], str(tmp_path)) == config


def test_more_sites_than_there_are_names_for_are_refused(capsys, own_groups, tmp_path):
    words = ["experiment=mine", "+experiment.max_sites=30", "sites=25", f"run_dir={tmp_path / 'run'}"]
    assert run(capsys, "local", *words, "--config-dir", own_groups) == (
        2,
        "",
        "swarm-hpc: sites: 25 is more than there are names for: 24\n",
    )
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_may_not_be_looked_into_is_named(capsys, tmp_path, monkeypatch):
    closed, look = tmp_path / "closed", Path.stat
    closed.touch()  # no folder: root cannot make one in it, either

    def refused(path, **how):
        if closed in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, **how)

    monkeypatch.setattr(Path, "stat", refused)
    run_dir = closed / "run"
    for words in (["status", str(run_dir)], ["verify", str(run_dir)], ["sites", str(run_dir)]):
        assert run(capsys, *words) == (2, "", f"swarm-hpc: {run_dir} cannot be read: Permission denied\n")
    code, _, err = run(capsys, "local", f"run_dir={run_dir}")
    assert (code, err.startswith(f"swarm-hpc: run_dir: {run_dir}: ")) == (2, True), err


def test_help_needs_nothing_heavy():
    program = (
        "import sys; from swarm_hpc import cli; code = cli.main(['sn', '--help']);"
        "heavy = {'hydra', 'web3', 'aiohttp', 'rich', 'torch', 'numpy', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_that_start_sns_show_the_settings_of_a_shared_ledger(capsys):
    for name in ("sn", "local"):
        _, out, _ = run(capsys, name, "--help")
        assert "ledger=embedded|geth" in out
        assert "\n  ledger.jail_after_s: 60\n" in out


@pytest.mark.parametrize("words", [["local", "ledger=geth"], ["sn", "ledger=geth", *IDENTITY]])
def test_missing_programs_of_the_ledger_are_named_before_anything_starts(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for name in ("GETH_BINARY", "COMETBFT_BINARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWARM_HPC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "geth: not found" in err and "make geth" in err
    assert list(tmp_path.iterdir()) == []


def test_sns_in_containers_have_the_ledgers_programs_of_their_image(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWARM_HPC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run(capsys, "local", "ledger=geth", "container=apptainer")
    assert (code, out) == (2, "")
    assert "there is no apptainer" in err, "what the host has of the ledger's programs is of no use there"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["admit"], "swarm-hpc sites admit SITE: name the site"),
        (["admit", "beta", "gamma", "delta"], "'gamma': write sites, sites admit SITE or"),
        (["drop", "beta"], "'drop': write sites, sites admit SITE or"),
        ([], "identity.cert: no value"),
        (["remove", "beta", *IDENTITY], "sn: no value"),
        (["/nowhere"], "/nowhere is not the folder of a run"),
        (["admit", "beta", "/nowhere"], "/nowhere is not the folder of a run"),
        (["/nowhere", "identity.cert=c.pem"], "identity.cert=c.pem: the run folder says everything but sn=NAME"),
    ],
)
def test_words_that_make_no_vote_are_refused(capsys, words, expected):
    code, out, err = run(capsys, "sites", *words)
    assert (code, out) == (2, "")
    assert expected in err
