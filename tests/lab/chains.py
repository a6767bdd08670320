"""Whether all sites have the same chain: geth's blocks, CometBFT's blocks, and no evidence of double signing."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from swarm_hpc.errors import SwarmError
from tests.lab.consortium import Consortium

_PAGE: Final = 20
"""CometBFT shows at most so many headers at once."""
NO_EVIDENCE: Final = sha256(b"").hexdigest().upper()
"""A header's evidence_hash where the block holds none: the Merkle root of an empty list (RFC 6962, 2.1)."""


def await_one_chain(consortium: Consortium, *sites: str, patience_s: float = 60.0) -> int:
    """Until these sites (all) have the same newest blocks; then compare every block. The height of geth's chain."""
    names = sites or consortium.names

    def equal() -> bool:
        try:
            heads = {_head(consortium, name) for name in names}
        except SwarmError:
            return False
        return len(heads) == 1

    consortium.until(equal, f"{', '.join(names)} to have the same newest block", patience_s)
    first, *others = names
    chain = _geth_chain(consortium, first)
    headers = comet_headers(consortium, first)
    for name in others:
        # A new block may have come meanwhile.
        for ours, theirs in zip(chain, _geth_chain(consortium, name), strict=False):
            assert ours == theirs, f"{first} and {name} differ: {ours} {theirs}"
        for mine, other in zip(headers, comet_headers(consortium, name), strict=False):
            assert mine == other, f"{first} and {name} differ at CometBFT's height: {mine} {other}"
    assert all(evidence in ("", NO_EVIDENCE) for _, _, evidence in headers), "a site has signed twice"
    return len(chain) - 1


def _head(consortium: Consortium, name: str) -> tuple[str, str]:
    with consortium.geth(name) as geth:
        block = geth.call("eth_getBlockByNumber", "latest", False)
    status = consortium.comet(name).call("status", timeout_s=5.0)["sync_info"]
    return block["hash"], status["latest_block_height"]


def _geth_chain(consortium: Consortium, name: str) -> list[tuple[int, str]]:
    with consortium.geth(name) as geth:
        height = int(geth.call("eth_blockNumber"), 16)
        return [(n, geth.call("eth_getBlockByNumber", hex(n), False)["hash"]) for n in range(height + 1)]


def comet_headers(consortium: Consortium, name: str) -> Sequence[tuple[int, str, str]]:
    """(height, block hash, evidence hash) of every block."""
    comet = consortium.comet(name)
    known = comet.call("status")["sync_info"]
    # An epoch's chain does not begin at 1.
    oldest, newest = max(1, int(known["earliest_block_height"])), int(known["latest_block_height"])
    found = []
    for first in range(oldest, newest + 1, _PAGE):
        last = min(first + _PAGE - 1, newest)
        page = comet.call("blockchain", minHeight=str(first), maxHeight=str(last))["block_metas"]
        found += [
            (int(meta["header"]["height"]), meta["block_id"]["hash"], meta["header"]["evidence_hash"]) for meta in page
        ]
    return sorted(found)


def signers(consortium: Consortium, name: str, height: int) -> set[str]:
    """Addresses (40 hex digits) of the validators whose votes are on the block of that height."""
    commit = consortium.comet(name).call("commit", height=str(height))["signed_header"]["commit"]
    return {one["validator_address"] for one in commit["signatures"] if one["signature"]}
