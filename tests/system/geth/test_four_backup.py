"""A site that lost its ledger folder, or got an old copy of it back, never signs twice, and is back by itself."""

from __future__ import annotations

import shutil

import pytest

from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.powers import address_of
from tests.lab.chains import signers
from tests.lab.consortium import copy_tree
from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(600)]


def await_votes(net, site: str) -> None:
    """Until the site's votes are on new blocks."""
    key = ConsensusKeys.load(net.sites[site].ledger / "keys").consensus_key()
    address = address_of(key).hex().upper()
    begin = net.consensus("alpha").height

    def votes() -> bool:
        newest = net.consensus("alpha").height
        return any(address in signers(net, "alpha", height) for height in range(begin + 1, newest))

    net.until(votes, f"{site}'s votes on blocks after {begin}")


def test_a_site_with_an_old_backup_signs_nothing_twice_and_signs_again_later(four, tmp_path):
    with trained(four, contract="backup") as load:
        site = four.sites["gamma"]
        four.stop("gamma")
        copy_tree(site.ledger, tmp_path / "old")
        four.launch("gamma")
        four.await_whole()
        load.await_part("gamma")
        await_votes(four, "gamma")
        four.stop("gamma")
        keys = site.ledger / "keys"
        copy_tree(keys, tmp_path / "keys")
        copy_tree(tmp_path / "old", site.ledger)
        copy_tree(tmp_path / "keys", keys)
        four.launch("gamma")
        four.await_whole()
        load.await_part("gamma")
        await_votes(four, "gamma")


def test_a_site_that_has_only_its_keys_left_rejoins(four):
    with trained(four, contract="keys") as load:
        await_votes(four, "delta")
        four.stop("delta")
        site = four.sites["delta"]
        for path in site.data_dir.iterdir():
            if path != site.ledger:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in site.ledger.iterdir():
            if path.name != "keys":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        four.launch("delta")
        four.await_whole()
        load.await_part("delta")
        await_votes(four, "delta")
