"""Epochs: what the remaining sites sign, and what others believe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.errors import ConfigError, LedgerError
from swarm_hpc.records import SiteRecord, encode
from swarm_hpc.sn import epochs
from swarm_hpc.sn.comet import ConsensusKeys
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.powers import Standing
from swarm_hpc.sn.recovery import check_known

NAMES = ("alpha", "beta", "gamma", "delta")
HEAD = {"hash": "0x" + "ab" * 32, "number": "0x20", "timestamp": "0x6a000000"}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, ConsensusKeys]:
    return {name: ConsensusKeys.load(tmp_path / name) for name in NAMES}


@pytest.fixture
def members(keys) -> list[SiteRecord]:
    return [
        SiteRecord(
            name=name,
            account="0x0",
            endpoint=f"{name}:1",
            ca_fingerprint="",
            consensus_key=keys[name].consensus_key(),
            p2p_id=keys[name].p2p_id(),
            active=True,
            joined_at=0,
            announced=3,
        )
        for name in NAMES
    ]


@pytest.fixture
def standing(members) -> Standing:
    return Standing(powers={site.consensus_key: 10 for site in members})


@pytest.fixture
def network(keys) -> Network:
    return Network.found(LedgerConfig(), "alpha", "0x" + "11" * 20, keys["alpha"].consensus_key())


@pytest.fixture
def propose(network, members, standing):
    return lambda *without, before=(): epochs.propose(network, before, members, standing, HEAD, 40, without)


def approved(epoch, keys, *names):
    for name in names:
        epoch = epoch.signed_by(name, keys[name])
    return epoch


def test_every_site_computes_the_same(propose):
    assert propose("gamma", "delta").id() == propose("delta", "gamma").id()
    assert propose("gamma").id() != propose("delta").id()


def test_those_that_stay_share_the_power_as_the_network_says(propose, keys, network):
    epoch = propose("gamma", "delta")
    assert epoch.genesis_standing().powers == {keys["alpha"].consensus_key(): 30, keys["beta"].consensus_key(): 10}
    assert epoch.genesis_standing().jailed == {"gamma": 3, "delta": 3}
    genesis = epoch.comet_genesis(network)
    assert genesis["initial_height"] == "41"
    assert [(one["name"], one["power"]) for one in genesis["validators"]] == [("alpha", "30"), ("beta", "10")]
    assert genesis["chain_id"] != network.comet_genesis["chain_id"]
    assert len(genesis["chain_id"]) <= 50, "CometBFT takes no longer one"


def test_with_equal_power_too(keys, members, standing):
    network = Network.found(
        LedgerConfig(power=PowerRule.EQUAL), "alpha", "0x" + "11" * 20, keys["alpha"].consensus_key()
    )
    epoch = epochs.propose(network, (), members, standing, HEAD, 40, ("delta", "gamma"))
    assert set(epoch.genesis_standing().powers.values()) == {10}


@pytest.mark.parametrize("without", [(), ("omega",), ("beta", "gamma", "delta")])
def test_nobody_unknown_and_too_many_are_refused(propose, without):
    with pytest.raises(ConfigError, match="without"):
        propose(*without)


def test_all_that_stay_have_to_agree(propose, keys, network):
    epoch = approved(propose("delta"), keys, "alpha", "gamma")
    assert epoch.missing() == ["beta"]
    with pytest.raises(LedgerError, match="beta has not agreed"):
        epochs.check_chain(network, [epoch])
    epochs.check_chain(network, [approved(epoch, keys, "beta")])


def test_an_approval_of_something_else_counts_for_nothing(propose, keys):
    other = approved(propose("gamma"), keys, "beta")
    epoch = approved(propose("delta"), keys, "alpha", "gamma").with_approvals(other.approvals)
    assert epoch.missing() == ["beta"]
    forged = epoch.with_approvals({"beta": epoch.approvals["alpha"], "omega": "00", "gamma": "no hex"})
    assert forged.missing() == ["beta"]


def test_a_chain_of_epochs_is_checked_link_by_link(propose, keys, network):
    first = approved(propose("delta"), keys, "alpha", "beta", "gamma")
    second = approved(propose("gamma", "delta", before=(first,)), keys, "alpha", "beta")
    epochs.check_chain(network, [first, second])
    with pytest.raises(LedgerError, match="does not follow"):
        epochs.check_chain(network, [second])
    with pytest.raises(LedgerError, match="does not follow"):
        epochs.check_chain(network, [first, replace(second, previous="00")])


def test_the_file_keeps_them(propose, keys, network, tmp_path):
    file = tmp_path / "epochs.json"
    assert epochs.load(file, network) == ()
    epoch = approved(propose("delta"), keys, "alpha", "beta", "gamma")
    epochs.save(file, [epoch])
    assert epochs.load(file, network) == (epoch,)
    assert epochs.parse(encode(epoch)) == epoch
    file.write_text(file.read_text().replace('"height": 40', '"height": 41'))
    with pytest.raises(LedgerError, match="has not agreed"):
        epochs.load(file, network)


@pytest.mark.parametrize("values", [None, [], {}, {"number": 2}, {"without": 3}])
def test_what_is_no_epoch_is_refused(values):
    with pytest.raises(LedgerError, match="no epoch"):
        epochs.parse(values)


def test_others_follow_only_those_that_they_know(propose, keys, members, standing, tmp_path):
    epoch = approved(propose("gamma", "delta"), keys, "alpha", "beta")
    check_known([epoch], members, standing.powers)
    stranger = ConsensusKeys.load(tmp_path / "stranger")
    forged = replace(epoch, validators=dict.fromkeys(epoch.validators, stranger.consensus_key()))
    with pytest.raises(LedgerError, match="has another key here"):
        check_known([forged], members, standing.powers)
    lone = replace(epoch, validators={"alpha": keys["alpha"].consensus_key()})
    with pytest.raises(LedgerError, match="fewer than half"):
        check_known([lone], members, standing.powers)
