"""Where a run's files lie."""

import json

import pytest

from swarm_hpc.errors import ConfigError, NotReachable
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.records import NodeName


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    assert RunFolder.create(tmp_path).root == tmp_path
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        RunFolder.create(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run_dir: .*file/run"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_folder_without_a_ledger_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        RunFolder.existing(tmp_path)


def test_the_supervisor_asks_the_sn_that_says_it_is_there(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.sn_data.mkdir()
    with pytest.raises(NotReachable, match="no SN is running"):
        folder.client()
    (folder.sn_data / "endpoint.json").write_text(json.dumps({"address": "127.0.0.1:7", "site": "alpha", "pid": 1}))
    client = folder.client()
    assert client.sn == "127.0.0.1:7"
    assert client.identity == folder.identity(NodeName.parse("alpha/swci/local"))


def test_an_sn_is_chosen_by_the_name_of_its_process(tmp_path):
    folder = RunFolder.create(tmp_path)
    for name in ("sn", "sn-beta"):
        (tmp_path / name / "ledger").mkdir(parents=True)
    assert folder.check_sn("sn-beta") == "sn-beta"
    with pytest.raises(ConfigError, match=r"sn=sn-delta: no SN of .* is called so; there are sn, sn-beta$"):
        folder.check_sn("sn-delta")
    with pytest.raises(NotReachable, match="sn-beta"):
        folder.client(sn="sn-beta")
