"""The network file: one name for one content, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from eth_account import Account

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.errors import ConfigError, LedgerError
from swarm_hpc.sn.network import Network
from swarm_hpc.sn.powers import Rule, address_of

ACCOUNT = str(Account.from_key("0x" + "01" * 32).address)
KEY = "ab" * 32


@pytest.fixture
def network() -> Network:
    config = LedgerConfig(chain_id=77, power=PowerRule.EQUAL, jail_after_s=45)
    return Network.found(config, "alpha", ACCOUNT, KEY)


def test_a_network_is_named_by_the_hash_of_its_file(network, tmp_path):
    network.save(tmp_path / "network.json")
    assert network.id() == sha256((tmp_path / "network.json").read_bytes()).hexdigest()
    loaded = Network.load(tmp_path / "network.json")
    assert loaded == network
    assert loaded.id() == network.id()


def test_the_order_of_its_fields_does_not_change_its_name(network):
    turned = json.dumps(dict(reversed(json.loads(network.text()).items())), indent=1)
    assert Network.parse(turned).id() == network.id()


@pytest.mark.parametrize(
    "change",
    [
        lambda network: replace(network, chain_id=78),
        lambda network: replace(network, founder="beta"),
        lambda network: replace(network, registry="0x" + "00" * 20),
        lambda network: replace(network, geth_genesis={**network.geth_genesis, "gasLimit": "0x1"}),
        lambda network: replace(network, comet_genesis={**network.comet_genesis, "chain_id": "swarm-77-0"}),
    ],
)
def test_whatever_is_altered_gives_it_another_name(network, change):
    altered = change(network)
    assert altered.id() != network.id()
    with pytest.raises(ConfigError, match=r"ledger\.network: the member answers with network"):
        altered.check(network.id(), altered.chain_id)


def test_no_two_networks_have_the_same_name_or_chain():
    one, two = (Network.found(LedgerConfig(), "alpha", ACCOUNT, KEY) for _ in range(2))
    assert one.id() != two.id()
    assert one.comet_genesis["chain_id"] != two.comet_genesis["chain_id"]
    assert one.geth_genesis["extraData"] != two.geth_genesis["extraData"]


def test_it_is_checked_against_what_the_operator_was_told(network):
    network.check("", 77)
    network.check(network.id(), 77)
    network.check(f"SHA256:{network.id().upper()}", 77)
    with pytest.raises(ConfigError, match="not 00"):
        network.check("00" * 32, 77)
    with pytest.raises(ConfigError, match=r"ledger\.chain_id: 5, but the network has 77"):
        network.check("", 5)


def test_a_missing_file_is_no_network_yet(tmp_path):
    assert Network.load(tmp_path / "network.json") is None


def changed(network, **fields):
    return json.dumps(json.loads(network.text()) | fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _: "", "no network file"),
        (lambda _: "[]", "no network file"),
        (lambda _: "{}", "no network file: KeyError"),
        (lambda network: changed(network, format=2), "has format 2, this program knows 1"),
        (lambda network: changed(network, more=1), "no network file: TypeError"),
        (lambda network: changed(network, comet_genesis={}), "no network file: KeyError"),
        (lambda network: changed(network, comet_genesis={"app_state": {"power": "some", "jail_after_s": 1}}), "some"),
        (lambda network: network.text()[:-1], "no network file"),
    ],
)
def test_what_is_no_network_file_is_refused(network, spoil, message):
    with pytest.raises(LedgerError, match=message):
        Network.parse(spoil(network))


def test_the_founders_choices_are_the_networks(network):
    assert network.rule() == Rule(power=PowerRule.EQUAL, jail_after_s=45)


def test_the_founder_is_the_first_validator_and_the_only_one_with_money_for_gas(network):
    [validator] = network.comet_genesis["validators"]
    assert validator["address"] == address_of(KEY).hex().upper()
    assert validator["name"] == "alpha"
    assert set(network.geth_genesis["alloc"]) == {ACCOUNT, network.registry}


def test_the_registrys_address_is_that_of_the_founders_first_contract():
    # A known vector: the first contract of 0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0.
    founder = "0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0"
    found = Network.found(LedgerConfig(), "alpha", founder, KEY)
    assert found.registry.lower() == "0xcd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"
