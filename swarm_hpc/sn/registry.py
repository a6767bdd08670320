"""The Registry's sites after any block, read straight from geth: the consensus needs them before there is a Ledger."""

from __future__ import annotations

from typing import Final

from swarm_hpc.records import SiteRecord
from swarm_hpc.sn import views
from swarm_hpc.sn.contracts import artifact
from swarm_hpc.sn.geth import GethRpc

_GAS: Final = hex(50_000_000)


def sites(geth: GethRpc, registry: str, block: str | dict[str, str]) -> list[SiteRecord] | None:
    """All sites after that block (`latest`, or {"blockHash": ...}), in order of admission; None before the Registry."""
    function = artifact("Registry").functions["site_page"]
    found: list[SiteRecord] = []
    while True:
        data = "0x" + bytes(function.encode((len(found) + 1,))).hex()
        answer = bytes.fromhex(geth.call("eth_call", {"to": registry, "data": data, "gas": _GAS}, block)[2:])
        if not answer:
            return None
        page = [views.site(one) for one in function.decode(answer)]
        if not page:
            return found
        found += page
