"""How a block of geth lies in one of CometBFT: there and back, and everything that is not such a block."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_hpc.sn.abci import HEADER, decode_block, encode_block

FIELDS = {
    "parentHash": "0x" + "11" * 32,
    "feeRecipient": "0x" + "00" * 20,
    "stateRoot": "0x" + "22" * 32,
    "receiptsRoot": "0x" + "33" * 32,
    "logsBloom": "0x" + "00" * 256,
    "prevRandao": "0x" + "44" * 32,
    "blockNumber": "0x7",
    "gasLimit": "0x3938700",
    "gasUsed": "0x5208",
    "timestamp": "0x65",
    "extraData": "0x",
    "baseFeePerGas": "0x7",
    "blockHash": "0x" + "55" * 32,
    "withdrawals": [],
    "blobGasUsed": "0x0",
    "excessBlobGas": "0x0",
}


def payload(*transactions: bytes) -> Any:
    return FIELDS | {"transactions": ["0x" + raw.hex() for raw in transactions]}


def header(**changes: Any) -> bytes:
    return HEADER + json.dumps(FIELDS | changes).encode()


def without(field: str) -> bytes:
    return HEADER + json.dumps({key: value for key, value in FIELDS.items() if key != field}).encode()


RAW = b"\xf8\x01"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60).filter(lambda raw: raw[:1] != HEADER), min_size=1, max_size=5))
def test_a_payload_comes_back_as_it_was(transactions):
    txs = encode_block(payload(*transactions))
    assert txs[1:] == transactions  # CometBFT's own transactions, untouched
    assert decode_block(txs) == payload(*transactions)


def test_the_same_payload_has_the_same_bytes_whatever_the_order_of_its_fields():
    turned = dict(reversed(payload(RAW).items()))
    assert encode_block(turned) == encode_block(payload(RAW))


def test_an_empty_block_has_no_payload():
    assert decode_block([]) is None


@pytest.mark.parametrize(
    "txs",
    [
        [RAW],
        [b""],
        [RAW, header()],
        [header()],
        [header(), header()],
        [header(), RAW, header()],
        [header(), b""],
        [HEADER, RAW],
        [HEADER + b"{", RAW],
        [HEADER + b"[]", RAW],
        [HEADER + b"7", RAW],
        [HEADER + b"\xff\xfe", RAW],
        [without("stateRoot"), RAW],
        [without("withdrawals"), RAW],
        [header(transactions=[]), RAW],
        [header(parentBeaconBlockRoot="0x"), RAW],
        [header(blockHash=7), RAW],
        [header(blockHash=None), RAW],
        [header(blockHash={}), RAW],
        [header(withdrawals="0x"), RAW],
        [header(withdrawals=[{}]), RAW],
        [header(withdrawals=None), RAW],
        [header(timestamp="soon"), RAW],
        [header(timestamp=""), RAW],
        [header(timestamp="-0x1"), RAW],
        [header(timestamp="0x" + "f" * 20_000), RAW],
        [HEADER + b"[" * 100_000, RAW],
    ],
    ids=lambda txs: repr(b" ".join(txs))[:40],
)
def test_whatever_is_no_block_is_refused_as_such(txs):
    with pytest.raises(ValueError, match=r".+"):
        decode_block(txs)
