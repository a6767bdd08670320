"""`swci` as it is typed: help, settings, HPE's flags and variables, one command, scripts, and a real SN."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from swarm_hpc.cli import swci
from swarm_hpc.cli.settings import load
from swarm_hpc.config import SwciConfig
from swarm_hpc.errors import ConfigError
from tests.sn.conftest import consortium, sn_config, start_swarm, swarm, swarm_of  # noqa: F401 - fixtures

IDENTITY = ["identity.cert=c.pem", "identity.key=k.pem", "identity.bundle=b.json"]


def identity_words(consortium, name: str = "alpha/swci/ada") -> list[str]:  # noqa: F811
    files = consortium.config(name)
    return [f"identity.cert={files.cert}", f"identity.key={files.key}", f"identity.bundle={files.bundle}"]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = swci.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_has_an_example_and_the_settings(capsys) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert out.startswith("usage: swci ")
    assert "run_task_max_wait_min: 120" in out
    assert swci.SWCI.example in out


def test_the_defaults_in_yaml_are_those_of_the_dataclass() -> None:
    config = load(SwciConfig, "swci", IDENTITY)
    assert config.connection.connect_timeout_s == 10
    assert config == SwciConfig(identity=config.identity, connection=config.connection)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["snn=x"], "swci has no such setting; did you mean sn? (swci --help lists them)"),
        (["--json"], "--json goes with -c COMMAND"),
        (["-c", "pwd", "--web"], "only one of --web and -c can be given"),
        (["--dance"], "unrecognized arguments: --dance (see swci --help)"),
        ([], "identity.cert: no value; give identity.cert=... (swci --help)"),
        (["web.port=99999", *IDENTITY], "web.port: 99999 is not a port number"),
        (["run_task_max_wait_min=0", *IDENTITY], "run_task_max_wait_min: 0.0 must be greater than 0"),
        (IDENTITY, "b.json: No such file"),
    ],
)
def test_words_that_make_no_sense_say_so(capsys, words, text) -> None:
    code, _, err = run(capsys, *words)
    assert code in (2, 3)
    assert err.startswith("swci: ")
    assert text in err


def test_a_certificate_of_another_kind_is_refused(capsys, consortium) -> None:  # noqa: F811
    code, _, err = run(capsys, "-c", "pwd", *identity_words(consortium, "alpha/sl/one"))
    assert code == 2
    assert "swarm-hpc certs issue alpha/swci/NAME" in err


def test_hpes_variables_are_settings_and_lose_against_those_that_are_given(capsys, consortium, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("SWCI_RUN_TASK_MAX_WAIT_TIME", "7")
    monkeypatch.setenv("SWCI_GENERIC_TASK_MAX_WAIT_TIME", "8")
    words = [*identity_words(consortium), "sn=127.0.0.1:9", "generic_task_max_wait_min=9", "--json"]
    code, out, _ = run(capsys, "-c", "list context env", *words)
    assert code == 0
    assert json.loads(out)["data"] == {
        "SWCI_RUN_TASK_MAX_WAIT_TIME": "7",
        "SWCI_GENERIC_TASK_MAX_WAIT_TIME": "9",
    }


def test_one_command_prints_lines_or_json_and_fails_with_the_errors_code(capsys, consortium, tmp_path) -> None:  # noqa: F811
    words = [*identity_words(consortium), f"usr_dir={tmp_path}"]
    assert run(capsys, "-c", "pwd", *words) == (0, f"{tmp_path}\n", "")
    code, out, _ = run(capsys, "-c", "pwd", "--json", *words)
    assert json.loads(out) == {"lines": [str(tmp_path)], "data": {"folder": str(tmp_path)}}
    code, out, err = run(capsys, "-c", "lst nodes", *words)
    assert (code, out) == (2, "")
    assert err == "swci: 'lst nodes' is not a command; did you mean LIST NODES?\n"
    code, _, err = run(capsys, "-c", "list nodes", "sn=127.0.0.1:9", "connection.connect_timeout_s=0.01", *words)
    assert code == 4
    assert err.startswith("swci: 127.0.0.1:9: ")


def test_a_script_ends_the_program_where_there_is_no_terminal(capsys, consortium, tmp_path) -> None:  # noqa: F811
    words = identity_words(consortium)
    (tmp_path / "train.swci").write_text("# HPE's scripts begin so\ncd /platform/swarm/usr\npwd\nnonsense\n")
    code, out, err = run(capsys, "--usr-dir", str(tmp_path), "--init", "train.swci", *words)
    assert code == 1
    assert out.splitlines()[:3] == ["SWCI:0 > cd /platform/swarm/usr", "SWCI:1 > pwd", str(tmp_path)]
    assert "train.swci line 4: nonsense: 'nonsense' is not a command" in err
    (tmp_path / "swci-init").write_text("exit on failure\nnonsense\n")
    assert run(capsys, "--usr-dir", str(tmp_path), *words)[0] == 2, "HPE's default script"
    code, _, err = run(capsys, "--init", "nowhere", *words)
    assert (code, err) == (2, "swci: nowhere: No such file or directory\n")


def test_the_words_of_the_environment_are_settings() -> None:
    assert swci._from_environment({"SWCI_WEB_PORT": "5", "OTHER": "x"}) == ["web.port=5"]
    with pytest.raises(ConfigError):
        load(SwciConfig, "swci", [*swci._from_environment({"SWCI_WEB_PORT": "x"}), *IDENTITY])


@pytest.mark.slow
async def test_a_pipe_of_commands_reaches_a_real_sn(swarm, tmp_path) -> None:  # noqa: F811
    import asyncio

    words = [*identity_words(swarm.consortium), f"sn={swarm.address}", f"usr_dir={tmp_path}"]
    made = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", "import sys; from swarm_hpc.cli.swci import main; sys.exit(main())", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    script = b"create contract digits\nlist contracts\nget task info nothing\nexit\nlist nodes\n"
    out, err = await asyncio.wait_for(made.communicate(script), 60)
    assert b"CONTRACT CREATED : digits" in out
    assert b"digits,UNINITIALIZED,0,0," in out
    assert b"SENTINEL" not in out
    assert b"swci: stdin line 3: get task info nothing: " in err
    assert made.returncode == 1


def test_help_is_quick_it_imports_neither_the_ledger_nor_a_framework() -> None:
    program = (
        "import sys; from swarm_hpc.cli import swci; swci.main(['--help']);"
        "sys.exit(', '.join({'torch', 'tensorflow', 'web3', 'aiohttp', 'prompt_toolkit'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
