"""CometBFT's files: keys by its formulas, a configuration that it can read, signatures that are never forgotten."""

from __future__ import annotations

import base64
import json
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm_hpc.errors import LedgerError, NotReachable
from swarm_hpc.sn.comet import CometHome, CometRpc, ConsensusKeys


@pytest.fixture
def keys(tmp_path: Path) -> ConsensusKeys:
    return ConsensusKeys.load(tmp_path / "keys")


@pytest.fixture
def home(tmp_path: Path, keys: ConsensusKeys) -> CometHome:
    return CometHome(tmp_path / "comet", keys, tmp_path)


def private_of(path: Path) -> bytes:
    return base64.b64decode(json.loads(path.read_text())["priv_key"]["value"])


# --- keys ---


def test_keys_are_made_once_and_readable_by_their_owner_only(keys):
    again = ConsensusKeys.load(keys.folder)
    assert (again.p2p_id(), again.consensus_key()) == (keys.p2p_id(), keys.consensus_key())
    assert {path.stat().st_mode & 0o777 for path in (keys.node_key, keys.validator_key)} == {0o600}
    assert keys.folder.stat().st_mode & 0o777 == 0o700


def test_no_two_sites_have_the_same_keys(keys, tmp_path):
    other = ConsensusKeys.load(tmp_path / "other")
    assert other.p2p_id() != keys.p2p_id()
    assert other.consensus_key() != keys.consensus_key()


def test_names_follow_from_the_public_keys_as_comet_has_it(keys):
    for path in (keys.node_key, keys.validator_key):
        private = private_of(path)
        assert private[32:] == Ed25519PrivateKey.from_private_bytes(private[:32]).public_key().public_bytes_raw()
    assert keys.p2p_id() == sha256(private_of(keys.node_key)[32:]).hexdigest()[:40]
    public = private_of(keys.validator_key)[32:]
    values = json.loads(keys.validator_key.read_text())
    assert keys.consensus_key() == public.hex()
    assert values["address"] == sha256(public).hexdigest()[:40].upper()
    assert values["pub_key"] == {"type": "tendermint/PubKeyEd25519", "value": base64.b64encode(public).decode()}


def test_a_known_key_has_its_known_names(tmp_path):
    # RFC 8032, 7.1, test 1.
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    value = base64.b64encode(secret + public).decode()
    folder = tmp_path / "known"
    folder.mkdir()
    (folder / "node_key.json").write_text(json.dumps({"priv_key": {"type": "", "value": value}}))
    keys = ConsensusKeys.load(folder)
    assert keys.p2p_id() == "21fe31dfa154a261626bf854046fd2271b7bed4b"


def test_its_signature_can_be_checked_with_the_key_that_the_others_know(keys):
    signature = keys.sign(b"a statement")
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.consensus_key())).verify(signature, b"a statement")


@pytest.mark.parametrize("content", ["", "{}", '{"pub_key": {}}'[:9]])
def test_a_spoilt_key_is_named_and_not_quoted(keys, content):
    keys.validator_key.write_text(content)
    with pytest.raises(LedgerError, match=r"priv_validator_key\.json: no usable key .*restore it") as refusal:
        keys.consensus_key()
    assert refusal.value.__cause__ is None


# --- the home folder ---


def test_the_configuration_is_what_this_network_needs(home):
    home.prepare({"chain_id": "x"}, 4711, 250)
    config = tomllib.loads((home.folder / "config" / "config.toml").read_text())
    assert config["proxy_app"] == f"unix://{home.abci_socket}"
    assert config["rpc"]["laddr"] == f"unix://{home.rpc_socket}"
    assert config["p2p"]["laddr"] == "tcp://127.0.0.1:4711"
    assert config["p2p"]["pex"] is False
    assert config["filter_peers"] is True
    assert config["consensus"]["create_empty_blocks"] is False
    assert config["consensus"]["timeout_commit"] == "250ms"
    assert config["tx_index"]["indexer"] == "null"
    assert "priv" not in json.dumps(config["p2p"])
    assert (home.folder / config["priv_validator_key_file"]).resolve() == home.keys.validator_key.resolve()
    assert (home.folder / config["node_key_file"]).resolve() == home.keys.node_key.resolve()
    assert (home.folder / config["priv_validator_state_file"]).resolve() == home.sign_state.resolve()
    assert json.loads((home.folder / "config" / "genesis.json").read_text()) == {"chain_id": "x"}


def test_a_path_with_quotes_and_blanks_is_still_toml(tmp_path, keys):
    folder = tmp_path / 'a "strange" folder\\'
    home = CometHome(folder / "comet", keys, folder)
    home.prepare({}, 1, 1)
    config = tomllib.loads((home.folder / "config" / "config.toml").read_text())
    assert config["proxy_app"] == f"unix://{folder}/abci.sock"


def test_what_was_signed_is_kept_at_the_next_start(home):
    home.prepare({}, 1, 250)
    assert home.signed() == (0, 0, 0)
    assert home.sign_state.stat().st_mode & 0o777 == 0o600
    home.set_signed(7, 1, 3)
    home.prepare({}, 2, 250)
    assert home.signed() == (7, 1, 3)
    assert json.loads(home.sign_state.read_text()) == {"height": "7", "round": 1, "step": 3}  # CometBFT's types


def test_nothing_was_signed_in_a_new_folder(home):
    assert home.signed() == (0, 0, 0)


@pytest.mark.parametrize("content", ["", "{}", '{"height": "x", "round": 0, "step": 0}', "[]"])
def test_a_spoilt_state_is_an_error_not_a_new_beginning(home, content):
    home.prepare({}, 1, 250)
    home.sign_state.write_text(content)
    with pytest.raises(LedgerError, match=r"priv_validator_state\.json: cannot be read"):
        home.signed()


def test_a_comet_that_does_not_run_is_not_reachable(tmp_path):
    with pytest.raises(NotReachable, match="CometBFT does not answer"):
        CometRpc(tmp_path / "comet.sock").call("status")
