"""What the shared ledger costs: networks of real geth and CometBFT on this host. Run by bench_ledger.py."""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ledger_lab import GethNetwork, LabSite, cpu_s, disk_bytes, found, network, rss_mib, until
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.config import LedgerConfig, PowerRule
from swarm_hpc.records import CheckIn, ContractSpec, Merge, Platform, RoundState
from swarm_hpc.sn.contracts import artifact
from swarm_hpc.sn.ledger import Ledger

MODEL = "11" * 32
NUM_NODES = 4
CONTRACT = ContractSpec(
    name="bench",
    platform=Platform.PYTORCH,
    merge=Merge(),
    min_peers=NUM_NODES,
    quorum_wait_s=30,
    leader_timeout_s=60,
    model=MODEL,
)
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    singles: int = 20
    in_a_row: int = 10
    rounds: int = 8
    burst: int = 200
    idle_s: float = 60.0
    blocks: int = 150


QUICK = Size(singles=6, in_a_row=8, rounds=3, burst=40, idle_s=5.0, blocks=40)


class Watched(BaseProvider):
    """A site's provider that measures each transaction: from its submission until another site has its receipt."""

    def __init__(self, site: LabSite, other: LabSite, seconds: list[float]) -> None:
        super().__init__()
        self._provider, self._other, self._seconds = site.provider(), other, seconds

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        start = time.perf_counter()
        answer = self._provider.make_request(method, params)
        if method == "eth_sendRawTransaction" and "result" in answer:
            await_receipt(self._other, str(answer["result"]))
            self._seconds.append(time.perf_counter() - start)
        return answer

    def halted(self) -> str:
        return self._provider.halted()


def await_receipt(site: LabSite, digest: str) -> None:
    call = site.consensus.geth.call
    deadline = time.monotonic() + PATIENCE_S
    while call("eth_getTransactionReceipt", digest) is None:
        assert time.monotonic() < deadline, f"no receipt of {digest} at {site.name}"
        time.sleep(0.002)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * cuts[18], 1),
        "n": len(seconds),
    }


def bench(num_sites: int, size: Size) -> dict[str, Any]:
    """All figures of a network with so many sites."""
    before_mib = rss_mib(os.getpid())
    # As an SN has it, but that nobody loses its vote while the benchmark keeps the processors busy.
    config = LedgerConfig(power=PowerRule.EQUAL, jail_after_s=3600)
    with network(num_sites, config=config) as net:
        seconds: list[float] = []
        neighbours = {site.name: other for site, other in zip(net.sites, net.sites[1:] + net.sites[:1], strict=True)}
        ledgers = found(net, lambda site: Watched(site, neighbours[site.name], seconds))
        plain = found(net, first_account=8)
        result: dict[str, Any] = {"sites": num_sites, "commit_wait_ms": net.config.commit_wait_ms}
        seconds.clear()
        result["transaction, one at a time"] = _singles(net, ledgers, seconds, size.singles)
        seconds.clear()
        result["transaction, in a row"] = _in_a_row(net, ledgers[1], seconds, size.in_a_row)
        result[f"ledger part of a round, {NUM_NODES} nodes"] = percentiles(_rounds(net, plain, size.rounds))
        result["burst"] = _burst(net, size.burst)
        result["idle"] = _idle(net, size.idle_s)
        result["memory_mib_per_site"] = {
            "geth": statistics.median(rss_mib(site.consensus.pids()["geth"] or 0) for site in net.sites),
            "cometbft": statistics.median(rss_mib(site.consensus.pids()["cometbft"] or 0) for site in net.sites),
            "ours": round((rss_mib(os.getpid()) - before_mib) / num_sites, 1),
        }
        seconds.clear()
        result["many blocks"] = _many(net, ledgers[1], seconds, size.blocks)
        result["catching up"] = {"new site": _new_site(net), "lost geth": _lost_geth(net)}
        for site in net.sites:
            site.close()
    return result


def _singles(net: GethNetwork, ledgers: Sequence[Ledger], seconds: list[float], num: int) -> dict[str, float]:
    for number in range(num):
        index = number % len(ledgers)
        ledgers[index].register_node(f"{net.sites[index].name}/sl/sl-1", "", "i")
    return percentiles(seconds)


def _in_a_row(net: GethNetwork, ledger: Ledger, seconds: list[float], num: int) -> dict[str, float]:
    for _ in range(num):
        ledger.register_node(f"{net.sites[1].name}/sl/sl-1", "", "i")
    return percentiles(seconds)


def _rounds(net: GethNetwork, ledgers: Sequence[Ledger], num: int) -> list[float]:
    nodes = [f"{site.name}/sl/sl-1" for site in net.sites[:NUM_NODES]]
    members = ledgers[:NUM_NODES]
    members[0].create_contract(CONTRACT)
    net.await_height(net.sites[0].block_number())
    for node, ledger in zip(nodes, members, strict=True):
        ledger.register_node(node, "", "i")
        ledger.join("bench", node, 1, Platform.PYTORCH, MODEL)
    seconds = []
    with ThreadPoolExecutor(NUM_NODES) as pool:
        for number in range(1, num + 1):
            net.await_height(max(site.block_number() for site in net.sites))
            start = time.perf_counter()
            list(pool.map(partial(_check_in, number), members, nodes))
            until(partial(_is_closable, members[0], number), "all check-ins")
            members[0].claim("bench", number, nodes[0], 1)
            members[0].publish("bench", number, nodes[0], 1, f"{number:064x}")
            list(pool.map(partial(_await_published, number), members))
            seconds.append(time.perf_counter() - start)
        list(pool.map(_close, [net] * NUM_NODES))
    return seconds


def _check_in(number: int, ledger: Ledger, node: str) -> None:
    ledger.check_in("bench", number, 1, CheckIn(node=node, blob=f"{number:064x}", weight=1, loss=0.5))


def _is_closable(ledger: Ledger, number: int) -> bool:
    return ledger.round("bench", number).closable


def _await_published(number: int, ledger: Ledger) -> None:
    until(lambda: ledger.round("bench", number).state is RoundState.PUBLISHED, f"round {number}")


def _close(net: GethNetwork) -> None:
    for site in net.sites:
        site.close()


def _burst(net: GethNetwork, num: int) -> dict[str, float]:
    """So many transactions at once, a quarter at each of four sites, until every site has all receipts."""
    data = artifact("Registry").functions["announce"].encode(("burst.test:1",))
    raws: list[list[bytes]] = []
    for site in net.sites[:NUM_NODES]:
        call = site.consensus.geth.call
        first = int(call("eth_getTransactionCount", site.account.address, "latest"), 16)
        fields = {"to": net.network.registry, "data": data, "value": 0, "gas": 10**7, "gasPrice": 10**10}
        fixed = {**fields, "chainId": net.network.chain_id}
        raws.append([_signed(site, {**fixed, "nonce": first + i}) for i in range(num // NUM_NODES)])
    digests: list[str] = []
    first_block = net.sites[0].block_number()
    start = time.perf_counter()
    threads = [
        threading.Thread(target=_submit, args=(site, own, digests))
        for site, own in zip(net.sites[:NUM_NODES], raws, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    submitted_s = time.perf_counter() - start
    for site in net.sites:
        for digest in digests:
            await_receipt(site, digest)
    seconds = time.perf_counter() - start
    blocks = net.sites[0].block_number() - first_block
    return {
        "transactions": len(digests),
        "s": round(seconds, 2),
        "submitted_s": round(submitted_s, 2),
        "blocks": blocks,
    }


def _signed(site: LabSite, fields: dict[str, Any]) -> bytes:
    return bytes(site.account.sign_transaction(fields).raw_transaction)


def _submit(site: LabSite, raws: Sequence[bytes], digests: list[str]) -> None:
    provider = site.provider()
    for raw in raws:
        answer = provider.make_request(RPCEndpoint("eth_sendRawTransaction"), ["0x" + raw.hex()])
        digests.append(str(answer["result"]))
    site.close()


def _idle(net: GethNetwork, seconds: float) -> dict[str, float]:
    time.sleep(2.0)  # the last block's recheck
    pids = {name: [site.consensus.pids()[name] or 0 for site in net.sites] for name in ("geth", "cometbft")}
    pids["ours"] = [os.getpid()]
    height, disk = _height(net), disk_bytes(net.sites[0].folder)
    used = {name: sum(map(cpu_s, own)) for name, own in pids.items()}
    time.sleep(seconds)
    percent = {
        f"{name}_cpu_percent_per_site": round(100 * (sum(map(cpu_s, own)) - used[name]) / seconds / len(net.sites), 1)
        for name, own in pids.items()
    }
    grown = disk_bytes(net.sites[0].folder) - disk
    return {"s": seconds, "blocks": _height(net) - height, "disk_bytes": grown, **percent}


def _height(net: GethNetwork) -> int:
    return max(site.consensus.height for site in net.sites)


def _many(net: GethNetwork, ledger: Ledger, seconds: list[float], num: int) -> dict[str, Any]:
    """Many transactions in a row; processor time and disk per block."""
    site = net.sites[1]
    pids = {name: [one.consensus.pids()[name] or 0 for one in net.sites] for name in ("geth", "cometbft")}
    pids["ours"] = [os.getpid()]
    used = {name: sum(map(cpu_s, own)) for name, own in pids.items()}
    start, first, disk = time.perf_counter(), _height(net), _parts(site)
    for _ in range(num):
        ledger.register_node(f"{site.name}/sl/sl-1", "", "i")
    took, blocks = time.perf_counter() - start, _height(net) - first
    cpu = {
        f"{name}_cpu_ms_per_block_and_site": round(
            1000 * (sum(map(cpu_s, own)) - used[name]) / blocks / len(net.sites), 1
        )
        for name, own in pids.items()
    }
    after = _parts(site)
    return {
        "transaction": percentiles(seconds),
        "blocks": blocks,
        "blocks_per_s": round(blocks / took, 1),
        "disk_bytes_per_block": {name: round((after[name] - disk[name]) / blocks) for name in disk},
        "disk_mib": {name: round(size / (1 << 20), 1) for name, size in after.items()},
        **cpu,
    }


def _parts(site: LabSite) -> dict[str, int]:
    return {name: disk_bytes(site.folder / "ledger" / name) for name in ("geth", "comet")}


def _new_site(net: GethNetwork) -> dict[str, float]:
    """From the start of a site without any data until it has all blocks; its connections are made meanwhile."""
    blocks, wanted = net.sites[0].consensus.height, net.sites[0].block_number()
    start = time.perf_counter()
    site = net.add()
    started_s = time.perf_counter() - start
    until(lambda: site.block_number() >= 1, "the first block", PATIENCE_S)
    first = time.perf_counter()
    net.await_height(wanted, [site])
    return _speed(blocks, start, first, started_s)


def _lost_geth(net: GethNetwork) -> dict[str, float]:
    """A site whose geth lost its data folder: CometBFT hands its own blocks to it again."""
    site = net.sites[-1]
    blocks, wanted = site.consensus.height, site.block_number()
    site.close()
    site.stop()
    shutil.rmtree(site.folder / "ledger" / "geth")
    start = time.perf_counter()
    net.restart(site)
    net.await_height(wanted, [site])
    return _speed(blocks, start, start, 0.0)


def _speed(blocks: int, start: float, first: float, started_s: float) -> dict[str, float]:
    end = time.perf_counter()
    return {
        "blocks": blocks,
        "s": round(end - start, 1),
        "programs_up_s": round(started_s, 1),
        "blocks_per_s": round(blocks / max(end - first, 1e-3), 1),
    }
