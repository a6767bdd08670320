"""The embedded ledger on disk: what a restart, a copy, a second process and a changed file find there."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
import rlp
from eth_account import Account
from eth_utils.crypto import keccak

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import ConfigError, LedgerError, NotFound
from swarm_hpc.records import CheckIn, ContractSpec, Merge, Platform
from swarm_hpc.sn.embedded import EmbeddedProvider
from swarm_hpc.sn.journal import Journal
from swarm_hpc.sn.ledger import JOURNAL, KEY, Founder, Ledger

FOUNDER = Founder(site="alpha", endpoint="alpha.test:30304", ca_fingerprint="aa" * 32)
MODEL = "11" * 32
NODE = "alpha/sl/sl-1"


def open_ledger(folder: Path, found: Founder | None = FOUNDER, **config: int) -> Ledger:
    return Ledger.open(LedgerConfig(**config), folder, found=found)


def train(ledger: Ledger) -> None:
    ledger.create_contract(
        ContractSpec(
            name="heart",
            platform=Platform.KERAS,
            merge=Merge(),
            min_peers=1,
            quorum_wait_s=0,
            leader_timeout_s=60,
            model=MODEL,
        )
    )
    ledger.register_node(NODE, "", "i")
    ledger.join("heart", NODE, 1, Platform.KERAS, MODEL)
    for number in (1, 2):
        ledger.check_in("heart", number, 1, CheckIn(node=NODE, blob="22" * 32, weight=1, loss=0.5))
        ledger.claim("heart", number, NODE, 1)
        ledger.publish("heart", number, NODE, 1, "33" * 32)


def snapshot(ledger: Ledger) -> object:
    """All that a ledger says, block hashes included."""
    blocks = [ledger._chain.block_hash(number) for number in range(ledger._chain.height() + 1)]
    return (ledger.status(), ledger.sites(), ledger.nodes(), ledger.contracts(), ledger.tasks()), (
        ledger.events(),
        ledger.cursor(),
        blocks,
        [ledger.rounds(contract.spec.name) for contract in ledger.contracts()],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder whose ledger has seen two rounds, and is closed."""
    with open_ledger(tmp_path) as ledger:
        train(ledger)
    return tmp_path


def test_a_restart_finds_the_same_state_events_and_hashes(tmp_path):
    with open_ledger(tmp_path) as ledger:
        train(ledger)
        before, account = snapshot(ledger), ledger.account
    for found in (None, FOUNDER):
        with open_ledger(tmp_path, found) as ledger:
            assert snapshot(ledger) == before
            assert ledger.account == account
            ledger.register_node(NODE, "", "i")
            before = snapshot(ledger)


def test_a_reverted_transaction_uses_its_nonce_and_is_replayed_as_reverted(tmp_path):
    with open_ledger(tmp_path) as ledger:
        with pytest.raises(NotFound):
            ledger._chain.send_untried("Registry", "set_node_active", NODE, True, what="marking")
        ledger.register_node(NODE, "", "i")
        before = snapshot(ledger)
    with open_ledger(tmp_path) as ledger:
        assert snapshot(ledger) == before
        assert ledger.register_node(NODE, "", "i").incarnation == 2


def test_reading_calls_leave_no_trace_in_the_state(tmp_path):
    with open_ledger(tmp_path) as ledger:
        train(ledger)
        for _ in range(5):
            snapshot(ledger)
            with pytest.raises(NotFound):
                ledger.set_node_active("alpha/sl/none", True)
        before = snapshot(ledger)
    with open_ledger(tmp_path) as ledger:
        assert snapshot(ledger) == before


def test_ledger_time_never_goes_back(tmp_path):
    now = 2_000_000_000.0
    with Ledger.open(LedgerConfig(), tmp_path, found=FOUNDER, clock=lambda: now) as ledger:
        assert ledger.now() == 2_000_000_000
        now -= 1000
        ledger.register_node(NODE, "", "i")
        assert ledger.node(NODE).since == 2_000_000_000


def test_an_empty_folder_is_no_ledger_unless_one_is_to_be_founded(tmp_path):
    with pytest.raises(LedgerError, match="not to found"):
        open_ledger(tmp_path, None)
    with pytest.raises(LedgerError, match="data folder"):
        Ledger.read(tmp_path)
    assert not (tmp_path / JOURNAL).exists()


def test_founding_that_was_interrupted_is_carried_on(tmp_path, folder):
    """The journal after each of the founding's transactions, as a crash would leave it."""
    for length in range(4):
        cut = tmp_path / f"cut-{length}"
        shutil.copytree(folder, cut)
        with sqlite3.connect(cut / JOURNAL) as db:
            db.execute("DELETE FROM tx WHERE number > ?", (length,))
        db.close()
        if length:
            with pytest.raises(LedgerError, match="interrupted"):
                open_ledger(cut, None)
        with open_ledger(cut) as ledger:
            train(ledger)
            assert ledger.contract("heart").round == 3


def test_another_chain_id_is_a_configuration_error(folder):
    with pytest.raises(ConfigError, match="chain_id"):
        open_ledger(folder, chain_id=7)


# --- other processes, copies ---


def test_a_second_process_is_told_who_has_the_ledger(folder):
    with open_ledger(folder), pytest.raises(LedgerError, match=rf"{JOURNAL}: process {os.getpid()} has"):
        open_ledger(folder)
    open_ledger(folder).close()


def test_a_ledger_is_read_while_it_is_written_and_cannot_be_written_through_it(folder):
    with open_ledger(folder) as ledger, Ledger.read(folder) as reader:
        assert snapshot(reader) == snapshot(ledger)
        ledger.register_node("alpha/sl/sl-2", "", "i")
        with pytest.raises(LedgerError, match="another account"):
            reader.register_node("alpha/sl/sl-3", "", "i")
        with Ledger.read(folder) as later:
            assert len(later.nodes()) == 2


def test_a_copy_is_read_without_the_key(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    with open_ledger(folder) as ledger:
        ledger.register_node("alpha/sl/sl-2", "", "i")
        for path in folder.glob(f"{JOURNAL}*"):
            shutil.copy(path, copy)
        with Ledger.read(copy) as reader:
            assert snapshot(reader) == snapshot(ledger)
    assert not (copy / KEY).exists()


def test_a_reader_cannot_send_even_a_valid_transaction(folder):
    journal = Journal(folder / JOURNAL, None, read_only=True)
    provider = EmbeddedProvider(journal, read_only=True)
    signed = Account.create().sign_transaction(
        {"to": "0x" + "00" * 20, "value": 0, "gas": 30_000, "gasPrice": 0, "nonce": 0, "chainId": 48125}
    )
    answer = provider.make_request("eth_sendRawTransaction", [signed.raw_transaction.hex()])
    assert "opened for reading" in answer["error"]["message"]
    provider.close()


# --- what is not as it was written ---


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tx SET at = at + 1 WHERE number = 5",
        "UPDATE tx SET raw = (SELECT raw FROM tx WHERE number = 6) WHERE number = 7",
        "UPDATE tx SET hash = zeroblob(32) WHERE number = 2",
        "DELETE FROM tx WHERE number = 4",
        "DELETE FROM tx WHERE number = 1",
        "INSERT INTO tx SELECT number + 100, at, raw, hash FROM tx WHERE number = 3",
        "UPDATE tx SET at = 'now' WHERE number = 5",
        "DELETE FROM meta",
        "UPDATE meta SET format = 99",
        "UPDATE meta SET chain_id = 7",
    ],
)
def test_an_altered_journal_is_refused_by_name(folder, change):
    with sqlite3.connect(folder / JOURNAL) as db:
        db.execute(change)
    db.close()
    for call in (lambda: open_ledger(folder), lambda: Ledger.read(folder)):
        with pytest.raises((LedgerError, ConfigError), match=JOURNAL):
            call()


def test_a_file_that_is_no_journal_is_refused_by_name(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"not a database, but long enough to look at" * 100)
    for call in (lambda: open_ledger(tmp_path), lambda: Ledger.read(tmp_path)):
        with pytest.raises(LedgerError, match=JOURNAL):
            call()


def test_the_account_key_is_private_and_never_quoted(folder):
    key = folder / KEY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.write_text("5ecret")
    with pytest.raises(LedgerError, match=KEY) as caught:
        open_ledger(folder)
    assert "5ecret" not in str(caught.value)
    key.unlink()
    with open_ledger(folder) as ledger, pytest.raises(LedgerError, match="another account"):
        ledger.register_node(NODE, "", "i")


# --- the provider ---


@pytest.fixture
def provider():
    made = EmbeddedProvider(Journal(None, 48125))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"nonce": 1}, "nonce too high"),
        ({"chainId": 1}, "invalid chain id"),
        ({"gas": 31_000_000}, "block gas limit"),
    ],
)
def test_a_transaction_that_no_block_could_take_is_refused(provider, fields, reason):
    settings = {"to": "0x" + "00" * 20, "value": 0, "gas": 30_000, "gasPrice": 0, "nonce": 0, "chainId": 48125}
    account = Account.create()
    signed = account.sign_transaction(settings | fields)
    answer = provider.make_request("eth_sendRawTransaction", [signed.raw_transaction.hex()])
    assert reason in answer["error"]["message"]
    assert provider.make_request("eth_blockNumber", [])["result"] == "0x0"
    typed = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0, "type": 2}
    del settings["gasPrice"]
    signed = account.sign_transaction(settings | typed)
    assert "result" in provider.make_request("eth_sendRawTransaction", [signed.raw_transaction.hex()])
    repeated = provider.make_request("eth_sendRawTransaction", [signed.raw_transaction.hex()])
    assert "nonce too low" in repeated["error"]["message"]


def test_what_the_provider_does_not_know_is_an_error_answer(provider):
    assert provider.make_request("eth_mine", [])["error"]["code"] == -32601
    assert "not a signed transaction" in provider.make_request("eth_sendRawTransaction", ["0x1234"])["error"]["message"]
    assert "no such block" in provider.make_request("eth_getBlockByNumber", ["0x9"])["error"]["message"]


def test_contract_addresses_follow_from_account_and_nonce(tmp_path):
    """As on any Ethereum chain: keccak(rlp([sender, nonce]))[12:]."""
    with open_ledger(tmp_path) as ledger:
        sender = bytes.fromhex(ledger.account[2:])
        expected = [keccak(rlp.encode([sender, nonce]))[12:].hex() for nonce in range(4)]
        chain = ledger._chain
        assert [one.address[2:].lower() for one in chain._contracts.values()] == expected
        again = chain.deploy("Tasks", "0x" + "00" * 20)
        assert again[2:].lower() == keccak(rlp.encode([sender, 5]))[12:].hex()
