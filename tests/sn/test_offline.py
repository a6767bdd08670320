"""Reading a ledger from its folder: which kind lies there, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import LedgerError
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.offline import read_ledger


def no_geth():
    raise AssertionError("the embedded ledger needs no program")


def test_an_embedded_ledger_is_read_without_any_program(tmp_path):
    with Ledger.open(LedgerConfig(), tmp_path, found=Founder(site="alpha", endpoint="a:1", ca_fingerprint="aa")):
        pass
    with read_ledger(tmp_path, no_geth) as ledger:
        assert [site.name for site in ledger.sites()] == ["alpha"]


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(LedgerError), read_ledger(tmp_path, no_geth):
        pass


def test_a_shared_ledger_without_geths_data_says_how_to_have_them_back(tmp_path):
    network = Network.found(LedgerConfig(), "alpha", "0x" + "00" * 20, "ab" * 32)
    network.save(tmp_path / "network.json")
    with (
        pytest.raises(LedgerError, match="geth has no data here: start the SN"),
        read_ledger(tmp_path, lambda: Path(sys.executable)),
    ):
        pass
