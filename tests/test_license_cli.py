"""`swarm-hpc license` on the command line: what is printed, and the exit codes."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from swarm_hpc import cli
from swarm_hpc.cli import settings
from swarm_hpc.config import LicenseConfig, LicenseKind, LicenseServerConfig, SlConfig, SubmitConfig
from swarm_hpc.errors import NotReachable
from swarm_hpc.slurm.environment import Task
from swarm_hpc.slurm.plan import plan_task
from tests.sl.test_departure import OPENS

IDENTITY = ["identity.cert=c.pem", "identity.key=k.pem", "identity.bundle=b.json"]
SL = [*IDENTITY, "name=alpha/sl/sl-1", "sn=localhost:30304", "program.command=[]"]


def run(capsys, *words):
    code = cli.main(["license", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def owner(tmp_path, capsys, monkeypatch):
    """A folder with the owner's keys, where the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWARM_HPC_LICENSE_PASSPHRASE", raising=False)
    assert run(capsys, "keys", "--out", "owner")[0] == 0
    return tmp_path


SIGN = ["sign", "--key", "owner/license-key.pem", "--licensee", "Lung consortium", "--seats", 5, "--out", "lung.json"]
INSTALL = ["install", "lung.json", "public_key=owner/license-public.pem", "data_dir=server"]


def test_the_defaults_in_yaml_are_those_of_the_dataclass():
    config = settings.load(LicenseServerConfig, "license", IDENTITY)
    assert config == LicenseServerConfig(identity=config.identity)


@pytest.mark.slow
def test_license_server_is_a_choice_of_sl_and_submit(capsys):
    assert settings.load(SlConfig, "sl", SL).license == LicenseConfig()
    words = ["license=server", "license.server=login:5814"]
    wanted = LicenseConfig(kind=LicenseKind.SERVER, server="login:5814")
    assert settings.load(SlConfig, "sl", [*SL, *words]).license == wanted
    site = [f"site.{word}" for word in (*IDENTITY, "name=alpha", "sn=sn:1")]
    submitted = settings.load(SubmitConfig, "submit", [*site, *words])
    task = Task(job="12", rank=0, num_tasks=1, num_cpus=1, cwd=Path("/home"))
    assert plan_task(submitted, task, cli.settings.EXAMPLES).license == wanted
    for words, expected in (
        (["license=server"], "license.server: no value; give license.server=..."),
        (["license=server", "license.server=''"], "license.server: host:port of the licence server"),
        (["license.server=login:5814"], "license.server: goes with license=server; give that, too"),
        (["license=server", "license.server=a:1", "license.grace_s=0"], "license.grace_s: 0.0 must be greater than 0"),
        (["license=key"], "license is one of none, server"),
    ):
        code = cli.main(["sl", *SL, *words])
        assert code == 2
        assert expected in capsys.readouterr().err


def test_a_licence_is_signed_shown_and_installed(capsys, owner):
    assert run(capsys, *SIGN, "--contact", "ada@lung.example", "--until", "2099-01-31")[:2] == (0, "lung.json\n")
    code, out, _ = run(capsys, "show", "lung.json", "--key", "owner/license-public.pem")
    assert code == 0
    assert "licensee   Lung consortium\n" in out
    assert "to 2099-02-01 00:00 UTC\n" in out
    assert "signature  by the key of owner/license-public.pem" in out
    assert "not checked: give --key" in run(capsys, "show", "lung.json")[1]
    code, out, _ = run(capsys, *INSTALL, "--json")
    assert code == 0
    assert json.loads(out)["terms"]["id"] == "licence-2099-02-01"
    assert (owner / "server/license.json").read_bytes() == (owner / "lung.json").read_bytes()


def test_a_key_with_a_passphrase_signs_where_it_is_given(capsys, owner, monkeypatch):
    monkeypatch.setenv("SWARM_HPC_LICENSE_PASSPHRASE", "hush")
    assert run(capsys, "keys", "--out", "safe")[0] == 0
    words = [str(word).replace("owner/", "safe/") for word in SIGN]
    assert run(capsys, *words)[0] == 0
    monkeypatch.delenv("SWARM_HPC_LICENSE_PASSPHRASE")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "SWARM_HPC_LICENSE_PASSPHRASE" in err
    assert "hush" not in err


def test_what_is_not_the_owner_s_is_not_installed_and_the_old_licence_stays(capsys, owner):
    run(capsys, *SIGN)
    run(capsys, *INSTALL)
    before = (owner / "server/license.json").read_bytes()
    whole = json.loads((owner / "lung.json").read_text())
    whole["terms"]["seats"] = 500
    (owner / "lung.json").write_text(json.dumps(whole))
    code, out, err = run(capsys, *INSTALL)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "lung.json: is not signed with the owner's key, or was changed since" in err
    assert run(capsys, "show", "lung.json", "--key", "owner/license-public.pem")[0] == 3

    run(capsys, "keys", "--out", "other")
    run(capsys, *[str(word).replace("owner/", "other/") for word in SIGN])
    assert run(capsys, *INSTALL)[0] == 3
    assert (owner / "server/license.json").read_bytes() == before


def test_a_licence_that_has_ended_or_not_begun_is_not_installed(capsys, owner):
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    run(capsys, *SIGN, "--from", tomorrow.isoformat())
    code, _, err = run(capsys, *INSTALL)
    assert code == 3
    assert "is not valid before" in err
    assert not (owner / "server").exists()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["keys"], 2, "swarm-hpc license keys needs --out"),
        (["keys", "--out", "owner"], 2, "exists already"),
        (["sign"], 2, "swarm-hpc license sign needs --out"),
        ([*SIGN[:-4], "--out", "x"], 2, "needs --seats"),
        ([*SIGN, "--seats", "0"], 2, "seats: Input should be greater than or equal to 1"),
        ([*SIGN, "--seats", "many"], 2, "many"),
        ([*SIGN, "--until", "2020-01-01"], 2, "--until: 2020-01-02 00:00 UTC is past"),
        ([*SIGN, "--until", "soon"], 2, "--until: 'soon' is no date"),
        ([*SIGN, "--days", "0"], 2, "is past, or before the licence begins"),
        ([*SIGN, "--days", "9999999999"], 2, "--days: 9999999999 is too many"),
        ([*SIGN, "--days", "999999999"], 2, "--days: 999999999 is too many"),
        ([*SIGN, "--days", "3", "--until", "2099-01-01"], 2, "--days: goes without --until"),
        ([*SIGN, "--id", "a b"], 2, "swarm-hpc license sign: LicenseTerms: id"),
        ([*SIGN, "--key", "owner/license-public.pem"], 2, "is no private key in PEM"),
        (["show"], 2, "takes one FILE"),
        (["show", "none.json"], 3, "none.json: cannot be read"),
        (["show", "owner/license-key.pem"], 3, "is no licence"),
        (["show", "a", "port=1"], 2, "port=1: swarm-hpc license show takes no settings"),
        (["install", "lung.json"], 2, "public_key: no value"),
        (["install", "lung.json", "public_key=none.pem"], 2, "none.pem cannot be read"),
        (["install", "none.json", "public_key=owner/license-public.pem"], 3, "none.json: cannot be read"),
        (["instal", "lung.json"], 2, "else write one of keys, sign, show, install, status"),
        (["port=high", *IDENTITY], 2, "port: "),
        (["portt=1"], 2, "did you mean port?"),
        ([], 2, "identity.cert: no value"),
        (IDENTITY, 3, "b.json"),
        (["status", *IDENTITY], 3, "b.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, owner, words, code, expected):
    found, out, err = run(capsys, *words)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert expected in err


@contextmanager
def process(*words, log, launcher=()):
    """swarm-hpc as a process of its own."""
    line = [*launcher, sys.executable, "-m", "swarm_hpc.cli", *words]
    with log.open("a") as output:
        popen = subprocess.Popen([str(word) for word in line], stderr=output)
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


def until_said(popen, log, pattern):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and popen.poll() is None:
        if found := re.findall(pattern, log.read_text()):
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def identity_of(sites, name):
    made = sites.config(name)
    return [f"identity.cert={made.cert}", f"identity.key={made.key}", f"identity.bundle={made.bundle}"]


@pytest.mark.slow
def test_a_node_without_a_seat_ends_with_exit_code_3_and_one_that_is_killed_frees_its_seat(capsys, owner, sites):
    run(capsys, *SIGN, "--contact", "ada")
    run(capsys, *INSTALL)
    log, first_log, second_log = (owner / f"{name}.log" for name in ("server", "first", "second"))
    words = ["license", *INSTALL[2:], "port=0", "lease_s=2", *identity_of(sites, "alpha/license/seats")]
    with process(*words, log=log) as server:
        address = until_said(server, log, r"ready on (\S+):")
        seat = ["license=server", f"license.server={address}", "connection.connect_timeout_s=30"]
        # nobody is there at the SN's address: a node that has its seat goes on asking for it
        common = ["sl", "sn=127.0.0.1:1", "program.command=[]", *identity_of(sites, "beta/sl/jobs"), *seat]
        with process(*common, "name=beta/sl/a", "state_dir=a", log=first_log) as first:
            until_said(first, first_log, "has 1 seats of the licence server")
            ask = ["status", "--server", address, *identity_of(sites, "beta/swci/me"), "--json"]
            status = json.loads(run(capsys, *ask)[1])
            assert [one["node"] for one in status["holders"]] == ["beta/sl/a"]
            assert "beta/sl/a" in run(capsys, *ask[:-1])[1]

            run(capsys, *SIGN, "--seats", "1", "--contact", "ada")
            run(capsys, *INSTALL)
            with process(*common, "name=beta/sl/b", "state_dir=b", log=second_log) as second:
                assert second.wait(60) == 3
            assert "1 of 1 seats are taken (by beta/sl/a); wait until one is free, or ask ada" in second_log.read_text()

            first.kill()
            first.wait()
            waiting = [*common, "name=beta/sl/c", "state_dir=c", "license.wait_s=60"]
            with process(*waiting, log=second_log) as third:
                until_said(third, second_log, "beta/sl/c .*has 1 seats of the licence server")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["host=fd00::5"], "[fd00::5]:5814"),
        (["host=seats.example", "port=7"], "seats.example:7"),
        (["host=seats.example", "--server", "other:9"], "other:9"),
    ],
)
def test_the_status_is_asked_for_where_the_settings_say(capsys, monkeypatch, words, address):
    def away(_: object, server: str) -> None:
        raise NotReachable(f"{server}: away")

    monkeypatch.setattr("swarm_hpc.license.client.ask_status", away)
    assert run(capsys, "status", *words, *IDENTITY) == (4, "", f"swarm-hpc: {address}: away\n")


@pytest.mark.slow
def test_a_server_that_is_killed_forgets_nobody(capsys, owner, sites):
    run(capsys, *SIGN)
    run(capsys, *INSTALL)
    words = ["license", *INSTALL[2:], *identity_of(sites, "alpha/license/seats")]
    ask = ["status", "--json", *identity_of(sites, "beta/swci/me"), "--server"]
    with process(*words, "port=0", log=owner / "first") as server:
        address = until_said(server, owner / "first", r"ready on (\S+):")
        common = ["sl", "sn=127.0.0.1:1", "program.command=[]", *identity_of(sites, "beta/sl/jobs"), "name=beta/sl/a"]
        seat = ["license=server", f"license.server={address}", "connection.connect_timeout_s=60"]
        with process(*common, *seat, log=owner / "node") as node:
            until_said(node, owner / "node", "has 1 seats of the licence server")
            holders = json.loads(run(capsys, *ask, address)[1])["holders"]
            server.kill()
            server.wait()
            port = address.rpartition(":")[2]
            with process(*words, f"port={port}", log=owner / "second") as again:
                until_said(again, owner / "second", "ready on .* 1 seats are taken")
                after = json.loads(run(capsys, *ask, address)[1])["holders"]
    assert [(one["node"], one["since"]) for one in after] == [(one["node"], one["since"]) for one in holders]


@pytest.mark.slow
@pytest.mark.mpi
def test_an_mpi_job_takes_a_seat_per_rank_or_none(capsys, owner, sites, mpiexec):
    (owner / "opens.py").write_text(OPENS)
    run(capsys, *SIGN, "--seats", "3")
    run(capsys, *INSTALL)
    words = ["license", *INSTALL[2:], "port=0", *identity_of(sites, "alpha/license/seats")]
    with process(*words, log=owner / "server.log") as server:
        address = until_said(server, owner / "server.log", r"ready on (\S+):")
        program = f"program.command=[{sys.executable},opens.py]"  # hears of a refusal when it opens
        common = ["sn=127.0.0.1:1", program, *identity_of(sites, "beta/sl/jobs"), "license=server"]
        common += [f"license.server={address}", "connection.connect_timeout_s=60", "ranks=mpi"]

        def job(name, num_ranks):
            own = [f"name=beta/sl/{name}", f"state_dir={name}", f"ranks.num_ranks={num_ranks}"]
            launcher = [*mpiexec, "-n", num_ranks]
            return process("sl", *common, *own, log=owner / f"{name}.log", launcher=launcher)

        with job("two", 2) as two:
            until_said(two, owner / "two.log", "has 2 seats of the licence server")
            with job("more", 2) as more:
                assert more.wait(90) == 3
            refusal = "2 of 3 seats are taken (by beta/sl/two), and beta/sl/more asks for 2; wait until one is free"
            assert refusal in (owner / "more.log").read_text()
            two.terminate()  # the launcher ends its ranks
            two.wait(60)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
