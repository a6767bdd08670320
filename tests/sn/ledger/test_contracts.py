"""The committed artifacts are what the Vyper sources compile to, and small enough for any Ethereum node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_abi.exceptions import EncodingError
from eth_utils.crypto import keccak

import swarm_hpc.sn.contracts
from swarm_hpc.sn.contracts import TICKS_PER_S, artifact
from swarm_hpc.sn.contracts.compile import CONTRACTS, compiled, source_digest
from swarm_hpc.sn.ledger import SCHEMA

FOLDER = Path(swarm_hpc.sn.contracts.__file__).parent
# EIP-170 (code as it lives on the chain; what is committed also holds the constructor, so this errs on the safe side).
MAX_CODE_BYTES = 24_576


def test_every_source_has_an_artifact_and_the_other_way_round():
    for suffix in (".vy", ".json"):
        assert {path.stem for path in FOLDER.glob(f"*{suffix}")} == set(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_an_artifact_was_compiled_from_the_source_beside_it(name):
    assert json.loads((FOLDER / f"{name}.json").read_text())["source"] == source_digest(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTRACTS)
def test_compiling_again_gives_the_committed_artifact(name):
    assert compiled(name) == (FOLDER / f"{name}.json").read_text()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_fits_the_size_limit(name):
    assert len(artifact(name).bytecode) <= MAX_CODE_BYTES


def test_the_program_knows_the_schema_that_the_contract_states():
    assert f"SCHEMA: constant(uint256) = {SCHEMA}\n" in (FOLDER / "Registry.vy").read_text()


@pytest.mark.parametrize("name", ["Registry", "Training", "Tasks"])
def test_a_contract_counts_in_seconds_what_blocks_are_stamped_with(name):
    source = (FOLDER / f"{name}.vy").read_text()
    assert f"return block.timestamp // {TICKS_PER_S}\n" in source
    assert source.count("block.timestamp") == 1


def test_a_call_is_encoded_as_the_abi_says():
    """The first four bytes of the signature's hash, then the address on 32 bytes."""
    data = artifact("Registry").functions["is_member"].encode(["0x" + "12" * 20])
    assert data == keccak(text="is_member(address)")[:4] + bytes(12) + b"\x12" * 20
    with pytest.raises(EncodingError):
        artifact("Registry").functions["is_member"].encode(["nobody"])
