"""Ethereum blocks taken out of one geth and put into another: the way back to an epoch's first block.

Within an epoch CometBFT replays its blocks itself. What lies before is fetched from a member; the hashes prove it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swarm_hpc.durable import write
from swarm_hpc.errors import LedgerError
from swarm_hpc.sn.geth import Engine, EngineFault, GethRpc, Payload

log = logging.getLogger(__name__)

PAGE: Final = 100
TAIL: Final = 256
"""So many blocks before an epoch each site keeps in a file: a killed geth loses its newest ones."""
_SAME: Final = (
    "parentHash",
    "stateRoot",
    "receiptsRoot",
    "logsBloom",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "baseFeePerGas",
    "blobGasUsed",
    "excessBlobGas",
)


def save_tail(folder: Path, epoch: int, blocks: Sequence[Payload]) -> None:
    """Keep the blocks before that epoch in the ledger's folder."""
    write(_tail_file(folder, epoch), json.dumps(list(blocks)).encode())


def load_tail(folder: Path, epoch: int) -> Sequence[Payload]:
    """The blocks that `save_tail` kept; none where there is no such file."""
    try:
        found: Sequence[Payload] = json.loads(_tail_file(folder, epoch).read_bytes())
    except FileNotFoundError:
        return ()
    return found


def _tail_file(folder: Path, epoch: int) -> Path:
    return folder / f"before-epoch-{epoch}.json"


def export(geth: GethRpc, first: int, last: int) -> list[Payload]:
    """The blocks with these numbers as payloads, as far as geth has them."""
    found = []
    for number in range(first, last + 1):
        block = geth.call("eth_getBlockByNumber", hex(number), False)
        if block is None:
            break
        found.append(_payload(geth, block))
    return found


def _payload(geth: GethRpc, block: Mapping[str, Any]) -> Payload:
    number = block["number"]
    raws = [
        geth.call("eth_getRawTransactionByBlockNumberAndIndex", number, hex(index))
        for index in range(len(block["transactions"]))
    ]
    values: Any = {key: block[key] for key in _SAME} | {
        "blockHash": block["hash"],
        "blockNumber": number,
        "feeRecipient": block["miner"],
        "prevRandao": block["mixHash"],
        "withdrawals": [],
        "transactions": raws,
    }
    payload: Payload = values
    return payload


def bring_to(
    engine: Engine, head: str, number: int, tail: Sequence[Payload], fetch: Callable[[int], Sequence[Payload]]
) -> None:
    """Let geth, which is at a block before, execute all up to the block `head` with that number.

    `tail` are blocks at hand; `fetch(first)` answers some from that number on, from a member. EngineFault where geth is
    on another chain; LedgerError where the blocks do not lead to `head`.
    """
    at = int(engine.head()["number"], 16)
    if at > number or (at == number and engine.head()["hash"] != head):
        raise EngineFault(f"geth is at block {at}, which does not lead to block {number} of this network")
    by_number = {int(one["blockNumber"], 16): one for one in tail}
    while at < number:
        page = [by_number[at + 1]] if at + 1 in by_number else fetch(at + 1)
        if not page:
            raise LedgerError(f"nobody has block {at + 1}")
        for payload in page:
            if fault := engine.execute(payload):
                raise LedgerError(f"block {at + 1} as it was given to us is invalid: {fault}")
            engine.finalize(payload["blockHash"])
            at += 1
            if at == number:
                break
        if at % (10 * PAGE) == 0:
            log.info("geth has blocks up to %d of %d", at, number)
    if engine.head()["hash"] != head:
        raise EngineFault(f"the blocks before this epoch do not lead to {head}")
