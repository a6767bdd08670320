"""Three sites, each with its own account, its own SN's blobs and gateway, on one chain: who fetches what from whom."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from eth_account import Account

from swarm_hpc.config import ConnectionConfig, IdentityConfig, TransferConfig
from swarm_hpc.errors import BlobCorrupt, BlobNotFound, LedgerError, NotAuthorized, NotReachable, TimedOut
from swarm_hpc.identity import ca, certs
from swarm_hpc.records import (
    CheckIn,
    ContractSpec,
    FinishMode,
    Kind,
    Merge,
    MergePlan,
    NodeName,
    Platform,
    Statement,
    Wire,
)
from swarm_hpc.sn.blobs import ContractBlobs
from swarm_hpc.sn.embedded import EmbeddedProvider
from swarm_hpc.sn.gateway import Gateway
from swarm_hpc.sn.journal import Journal
from swarm_hpc.sn.ledger import Founder, Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.transport import blobs, routes
from swarm_hpc.transport.blobs import hash_bytes
from swarm_hpc.transport.client import expect_kind
from swarm_hpc.transport.server import application, peer, serve

SITES = ("alpha", "beta", "gamma")
LAYOUT = b"the header of a model"
MODEL = hash_bytes(LAYOUT)
PATIENT = ConnectionConfig(connect_timeout_s=20)
HASTY = ConnectionConfig(connect_timeout_s=1)
"""Of an SN that is not to wait long for another one."""
SHORT = ConnectionConfig(connect_timeout_s=2)
"""Of a node that hears NotReachable from its SN, which it takes for an SN that is starting."""


class Certificates:
    """One CA per site, one bundle, and certificates on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, certs.Identity] = {}
        cas = {site: ca.create_ca(site, "swarm.test", folder / site) for site in SITES}
        ca.write_bundle(cas, "swarm.test", folder / "bundle.json")

    def identity(self, name: str) -> certs.Identity:
        if name not in self._made:
            node = NodeName.parse(name)
            cert, key = ca.issue(self._folder / node.site, node, self._folder / "nodes" / node.site)
            bundle = self._folder / "bundle.json"
            self._made[name] = certs.load(IdentityConfig(cert=str(cert), key=str(key), bundle=str(bundle)))
        return self._made[name]


class Site:
    """A site's SN as far as blobs go. `asked` is who asked it for which blob; closing `gate` holds its answers back."""

    def __init__(self, net: Net, name: str, ledger: Ledger) -> None:
        self.name, self.ledger, self.asked = name, ledger, []
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = asyncio.Event()
        self.folder = net.folder / name / "blobs"
        self.folder.parent.mkdir()
        self.connection = PATIENT
        self.port = 0
        self._net = net
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        identity = self._net.certificates.identity(f"{self.name}/sn/sn")
        self.live = LiveLedger(self.ledger)
        self._stack.callback(self.live.close)
        self._stack.push_async_callback(self.live.stop)
        enter = self._stack.enter_async_context
        self.blobs = await enter(ContractBlobs.open(self.live, self.folder, self._net.transfer))
        self.gateway = await enter(Gateway.open(self.live, self.blobs, identity, self.connection))
        app = application()
        app.middlewares.append(self._note)
        self.blobs.add_routes(app)
        self.port = await enter(serve(app, identity, "127.0.0.1", self.port))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def write(self, act) -> None:
        """Change the ledger through this site's account; every SN hears of it."""
        await self.live.write(act)
        await self._net.hear()

    def has(self, blob: str) -> bool:
        return self.blobs.has(blob, "demo")

    @web.middleware
    async def _note(self, request, handler):
        if request.method == "GET":
            self.asked.append((str(peer(request)), request.path.rpartition("/")[2]))
            self.held.set()
            await self.gate.wait()
        return await handler(request)


class Net:
    """The chain and the sites on it."""

    def __init__(self, certificates: Certificates, folder: Path, spec: ContractSpec) -> None:
        self.certificates, self.folder, self.spec = certificates, folder, spec
        self.transfer = TransferConfig(min_free_mib=0, keep_rounds=0)
        self.sites: dict[str, Site] = {}

    async def start(self) -> None:
        provider = EmbeddedProvider(Journal(None, 48125))
        accounts = {name: Account.from_key((1 + number).to_bytes(32, "big")) for number, name in enumerate(SITES)}
        founder = Founder(site="alpha", endpoint="alpha:1", ca_fingerprint="aa")
        for name in SITES:
            ledger = Ledger(provider, accounts[name], kind="embedded", found=founder)
            for member in self.sites.values():
                member.ledger.vote(name, accounts[name].address, f"{name}:1", "aa", True)
            self.sites[name] = Site(self, name, ledger)
        for site in self.sites.values():
            await site.start()
            await site.write(lambda ledger, at=site.address: ledger.announce(at))

    async def hear(self) -> None:
        for site in self.sites.values():
            if hasattr(site, "live") and not site.live.stopped:
                await site.live.write(lambda ledger: None)

    async def stop(self) -> None:
        for site in self.sites.values():
            site.gate.set()
            await site.stop()
        self.sites["alpha"].ledger.close()

    async def joined(self, *names: str) -> list[Node]:
        """Nodes in the contract `demo`."""
        nodes = [Node(self, name) for name in names]
        for node in nodes:
            await node.join()
        return nodes


class Node:
    """What an SL does: it talks to its own site's SN only."""

    def __init__(self, net: Net, name: str) -> None:
        self.name = name
        self._spec = net.spec
        self.site = net.sites[name.split("/", maxsplit=1)[0]]
        self._identity = net.certificates.identity(name)

    async def join(self) -> None:
        await self.site.write(self._join)
        await self.put(LAYOUT)

    def _join(self, ledger: Ledger) -> None:
        node = ledger.register_node(self.name, "", "instance")
        ledger.create_contract(self._spec)
        ledger.join("demo", node.name, node.incarnation, Platform.PYTORCH, MODEL)

    async def put(self, data: bytes) -> str:
        blob, data = hash_bytes(data), memoryview(data)
        expect = expect_kind(Kind.SN)
        address, connection = self.site.address, PATIENT
        await blobs.upload(self._identity, address, blob, data, contract="demo", expect=expect, connection=connection)
        return blob

    async def get(self, blob: str, connection: ConnectionConfig = PATIENT, *, at: str = "") -> bytes:
        expect = expect_kind(Kind.SN)
        address = at or self.site.address
        return bytes(await blobs.download(self._identity, address, blob, expect=expect, connection=connection))

    async def check_in(self, number: int, data: bytes, *, put: bool = True) -> str:
        blob = await self.put(data) if put else hash_bytes(data)
        await self.site.write(lambda ledger: self.record(ledger, number, blob))
        return blob

    def record(self, ledger: Ledger, number: int, blob: str) -> None:
        ledger.check_in("demo", number, 1, CheckIn(node=self.name, blob=blob, weight=1))

    async def claim(self, number: int) -> None:
        await self.site.write(lambda ledger: ledger.claim("demo", number, self.name, 1))

    async def publish(self, number: int, data: bytes) -> str:
        merged = await self.put(data)
        await self.site.write(lambda ledger: ledger.publish("demo", number, self.name, 1, merged))
        return merged


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Who waits for a fetch hears so often enough for SHORT."""
    monkeypatch.setattr(routes, "PATIENCE_S", 0.1)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("gateway"))


@pytest.fixture
def bare_net(certificates: Certificates, tmp_path: Path, new_spec) -> Net:
    """No site on it yet."""
    return Net(certificates, tmp_path, new_spec(model=MODEL, quorum_wait_s=3600, min_peers=1))


@pytest.fixture
async def net(bare_net: Net):
    net = bare_net
    await net.start()
    yield net
    await net.stop()


async def until(condition) -> None:
    """Wait for something that happens in the background."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def files(site: Site) -> set[str]:
    return {entry.name for entry in site.folder.iterdir()}


# --- on demand ---


async def test_a_blob_comes_from_the_site_of_the_node_that_checked_in_and_stays(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    data = os.urandom(3 << 20)
    blob = await one.check_in(1, data)
    assert await two.get(blob) == data
    assert await two.get(blob) == data
    assert one.site.asked == [("beta/sn/sn", blob)]
    assert two.site.has(blob)


async def test_all_who_ask_share_one_fetch_also_when_one_of_them_leaves(net):
    one, two, also = await net.joined("alpha/sl/one", "beta/sl/two", "beta/sl/also")
    blob = await one.check_in(1, b"parameters")
    one.site.gate.clear()
    asking = [asyncio.create_task(node.get(blob)) for node in (two, two, also, also)]
    await one.site.held.wait()
    await until(lambda: len(two.site.asked) == 4)
    asking[0].cancel()
    await asyncio.wait(asking[:1])
    one.site.gate.set()
    assert await asyncio.gather(*asking[1:]) == [b"parameters"] * 3
    assert one.site.asked == [("beta/sn/sn", blob)]


@pytest.mark.slow
async def test_a_source_that_is_down_is_not_reachable_and_is_asked_again(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    await restarted(two.site, connection=HASTY)
    await one.site.stop()
    with pytest.raises(NotReachable, match=f"of demo round 1: the SN of alpha at {one.site.address}"):
        await two.get(blob, SHORT)
    await one.site.start()
    assert await two.get(blob) == b"parameters"


async def test_only_the_holders_own_word_makes_a_blob_not_found(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"never put", put=False)
    with pytest.raises(BlobNotFound, match=f"the SN of alpha at {one.site.address}: this SN has no blob"):
        await two.get(blob)


async def test_a_blob_that_no_round_names_is_not_found_without_asking_anybody(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.put(b"not checked in")
    with pytest.raises(BlobNotFound):
        await two.get(blob)
    assert one.site.asked == []


async def test_a_round_that_is_newer_than_the_events_handed_out_is_found(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.put(b"parameters")
    one.record(one.site.ledger, 1, blob)  # beta's SN has not caught up with this
    assert await two.get(blob) == b"parameters"


@pytest.mark.slow
async def test_while_the_ledger_cannot_be_asked_nothing_is_called_not_found(net, monkeypatch):
    _, two = await net.joined("alpha/sl/one", "beta/sl/two")

    def fail(*_: object, **__: object):
        raise LedgerError("the ledger stands still")

    monkeypatch.setattr(two.site.ledger, "events", fail)
    with pytest.raises(NotReachable, match="the ledger stands still"):
        await two.get(hash_bytes(b"checked in or not"), SHORT)


async def test_wrong_bytes_from_a_source_are_told_and_not_kept(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    (one.site.folder / blob).write_bytes(b"pArameters")
    with pytest.raises(BlobCorrupt, match=f"the SN of alpha at {one.site.address}"):
        await two.get(blob)
    assert files(two.site) == {MODEL}
    assert not two.site.has(blob)


@pytest.mark.slow
async def test_an_address_that_another_site_answers_at_is_not_reachable(net):
    one, two, three = await net.joined("alpha/sl/one", "beta/sl/two", "gamma/sl/three")
    blob = await one.check_in(1, b"parameters")
    await restarted(two.site, connection=HASTY)
    await one.site.write(lambda ledger: ledger.announce(three.site.address))
    with pytest.raises(NotReachable, match="gamma/sn/sn answers there, not sn of site alpha"):
        await two.get(blob, SHORT)


async def test_a_site_that_moved_is_asked_at_its_new_address(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    await one.site.stop()
    one.site.port = 0
    await one.site.start()
    await one.site.write(lambda ledger: ledger.announce(one.site.address))
    assert await two.get(blob) == b"parameters"


async def test_a_layout_comes_from_a_site_that_has_joined(net):
    await net.joined("alpha/sl/one")
    outsider = Node(net, "beta/sl/two")
    assert await outsider.get(MODEL) == LAYOUT


async def test_an_swci_node_gets_what_its_site_takes_part_in(net):
    (one, _) = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    assert await Node(net, "beta/swci/admin").get(blob) == b"parameters"
    with pytest.raises(NotAuthorized, match="belongs to demo, which site gamma has not joined"):
        await Node(net, "gamma/swci/admin").get(blob)


async def test_a_lost_file_is_fetched_again(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    assert await two.get(blob) == b"parameters"
    (two.site.folder / blob).unlink()
    assert await two.get(blob) == b"parameters"


# --- who gets nothing ---


async def test_for_a_site_outside_the_contract_nothing_is_fetched(net):
    (one,) = await net.joined("alpha/sl/one")
    blob = await one.check_in(1, b"parameters")
    with pytest.raises(NotAuthorized, match="belongs to demo, which site gamma has not joined"):
        await Node(net, "gamma/sl/three").get(blob)
    assert one.site.asked == []


async def test_the_sn_of_a_site_outside_the_contract_gets_the_layout_only(net):
    one, _ = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    outsider, member = Node(net, "gamma/sn/sn"), Node(net, "beta/sn/sn")
    assert await member.get(blob, at=one.site.address) == b"parameters"
    assert await outsider.get(MODEL, at=one.site.address) == LAYOUT
    with pytest.raises(NotAuthorized, match="belongs to demo, which site gamma has not joined"):
        await outsider.get(blob, at=one.site.address)


@pytest.mark.parametrize("asker", ["gamma/sn/sn", "gamma/sl/three"])
async def test_nothing_is_fetched_for_another_sites_nodes(net, asker):
    one, two, _ = await net.joined("alpha/sl/one", "beta/sl/two", "gamma/sl/three")
    blob = await one.check_in(1, b"parameters")
    with pytest.raises(BlobNotFound):
        await Node(net, asker).get(blob, at=two.site.address)
    assert one.site.asked == []


async def test_one_sn_for_several_sites_asks_neither_itself_nor_the_ledger(bare_net, monkeypatch):
    net = bare_net
    ledger = Ledger(
        EmbeddedProvider(Journal(None, 48125)),
        Account.create(),
        kind="embedded",
        found=Founder(site="alpha", endpoint="127.0.0.1:1", ca_fingerprint="aa"),
    )
    net.sites["alpha"] = alpha = Site(net, "alpha", ledger)
    ledger.vote("beta", ledger.account, "127.0.0.1:1", "aa", True)
    net.sites["beta"] = alpha
    await alpha.start()
    try:
        one, two = await net.joined("alpha/sl/one", "beta/sl/two")
        blob, lost = await one.check_in(1, b"parameters"), await two.check_in(1, b"lost", put=False)
        assert await two.get(blob) == b"parameters"
        monkeypatch.delattr(LiveLedger, "read")
        with pytest.raises(BlobNotFound, match="this SN has no blob"):
            await one.get(lost)
        assert {who for who, _ in alpha.asked} == {"alpha/sl/one", "beta/sl/two"}
    finally:
        monkeypatch.undo()
        await alpha.stop()
        ledger.close()


# --- ahead of demand ---


async def test_a_leaders_sn_fetches_the_check_ins_as_soon_as_it_has_claimed(net):
    one, two, three = await net.joined("alpha/sl/one", "beta/sl/two", "gamma/sl/three")
    wanted = [await node.check_in(1, node.name.encode()) for node in (one, two, three)]
    await two.claim(1)
    await until(lambda: all(two.site.has(blob) for blob in wanted))
    assert not any(one.site.has(blob) for blob in wanted[1:]), "only the leader needs them"
    assert two.site.asked == []


async def test_every_site_in_the_contract_fetches_a_result_as_soon_as_it_is_published(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    for node in (one, two):
        await node.check_in(1, node.name.encode())
    await one.claim(1)
    merged = await one.publish(1, b"merged")
    await until(lambda: two.site.has(merged))
    assert merged not in {blob for _, blob in two.site.asked}
    assert one.site.asked == [("beta/sn/sn", merged)], "gamma takes no part"


async def test_of_a_round_that_is_merged_in_shards_nothing_whole_is_fetched_ahead_but_what_is_asked_for_comes(net):
    net.spec = replace(net.spec, merge=Merge(plan=MergePlan.SHARDED))
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    whole = [await node.check_in(1, node.name.encode()) for node in (one, two)]
    await two.claim(1)
    piece = await one.put(b"for two")
    await one.site.write(
        lambda ledger: ledger.share("demo", 1, one.name, 1, Statement(of="ab" * 32, step=0, blobs=(whole[0], piece)))
    )
    assert await two.get(piece) == b"for two"
    merged = await two.publish(1, b"merged")
    await net.hear()
    assert one.site.asked == [("beta/sn/sn", piece)]
    assert two.site.asked == [("beta/sl/two", piece)]
    assert await one.get(merged) == b"merged"


async def test_what_could_not_be_fetched_ahead_is_logged_once(net, caplog):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"never put", put=False)
    await two.check_in(1, b"two")
    caplog.set_level(logging.INFO, "swarm_hpc.sn.gateway")
    await two.claim(1)
    await until(lambda: caplog.records)
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            await two.get(blob)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"the SN of alpha at {one.site.address}" in record.getMessage()


@pytest.mark.slow
async def test_the_result_of_a_lost_leader_comes_from_another_site(net):
    one, two, three = await net.joined("alpha/sl/one", "beta/sl/two", "gamma/sl/three")
    for node in (one, two, three):
        await node.check_in(1, node.name.encode())
    await one.claim(1)
    await two.site.stop()
    merged = await one.publish(1, b"merged")
    await until(lambda: three.site.has(merged))
    await one.site.stop()
    await restarted(two.site, connection=HASTY)
    assert await two.get(merged) == b"merged"
    assert ("beta/sn/sn", merged) in three.site.asked


@pytest.mark.slow
async def test_the_check_ins_of_a_lost_site_come_from_the_leader_before(net):
    one, two, three = await net.joined("alpha/sl/one", "beta/sl/two", "gamma/sl/three")
    blob, *_ = [await node.check_in(1, node.name.encode()) for node in (one, two, three)]
    await two.claim(1)
    await until(lambda: two.site.has(blob))
    await one.site.stop()
    await restarted(three.site, connection=HASTY)
    assert await three.get(blob) == one.name.encode()


# --- restarts, time and room ---


async def restarted(site: Site, *, connection: ConnectionConfig = PATIENT) -> None:
    await site.stop()
    site.connection = connection
    await site.start()


@pytest.mark.slow
async def test_a_restart_keeps_what_was_fetched_and_fetches_what_was_missed(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    fetched = await one.check_in(1, b"one")
    await two.check_in(1, b"two")
    assert await two.get(fetched) == b"one"
    await two.site.stop()
    await one.claim(1)
    merged = await one.publish(1, b"merged")
    later = await one.check_in(2, b"later")
    await two.site.start()
    await until(lambda: two.site.has(merged))
    assert merged not in {blob for _, blob in two.site.asked}
    assert await two.get(later) == b"later"
    await one.site.stop()
    assert await two.get(fetched) == b"one"


async def test_a_restart_of_the_leaders_sn_fetches_the_check_ins(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"one")
    await two.check_in(1, b"two")
    await two.site.stop()
    two.site.ledger.claim("demo", 1, two.name, 1)
    await two.site.start()
    await until(lambda: two.site.has(blob))


async def test_the_last_result_of_a_completed_contract_is_still_to_be_had(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    for node in (one, two):
        await node.check_in(1, node.name.encode())
    await one.claim(1)
    await two.site.stop()
    merged = await one.publish(1, b"merged")
    for node in (one, two):
        node.site.ledger.finish("demo", node.name, 1, FinishMode.INACTIVE)
    await two.site.start()
    assert await two.get(merged) == b"merged"


@pytest.mark.slow
async def test_an_asker_waits_for_a_slow_source_longer_than_for_a_silent_node(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    one.site.gate.clear()
    asking = asyncio.create_task(two.get(blob, HASTY))
    await one.site.held.wait()
    await asyncio.wait([asking], timeout=1.5 * HASTY.connect_timeout_s)
    assert not asking.done(), "it gave up"
    one.site.gate.set()
    assert await asking == b"parameters"
    assert [blob for _, blob in two.site.asked] == [blob], "it asked once"


@pytest.mark.slow
async def test_a_source_that_never_answers_ends_with_the_transfer_timeout(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    await restarted(two.site, connection=ConnectionConfig(connect_timeout_s=20, transfer_timeout_s=0.5))
    one.site.gate.clear()
    with pytest.raises(TimedOut, match="alpha"):
        await two.get(blob)
    one.site.gate.set()
    await restarted(two.site)
    assert await two.get(blob) == b"parameters"


async def test_an_sn_that_stops_ends_its_fetches(net):
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    blob = await one.check_in(1, b"parameters")
    one.site.gate.clear()
    seeking = asyncio.create_task(two.site.gateway.seek(NodeName.parse(two.name), blob))
    await one.site.held.wait()
    await two.site.stop()
    with pytest.raises(asyncio.CancelledError):
        await seeking
    assert files(two.site) == {MODEL}


@pytest.mark.slow
async def test_fetched_blobs_go_after_keep_rounds(net):
    net.transfer.keep_rounds = 2
    for site in net.sites.values():
        await restarted(site)
    one, two = await net.joined("alpha/sl/one", "beta/sl/two")
    by_round = []
    for number in (1, 2, 3, 4):
        blobs_ = [await node.check_in(number, f"{node.name} {number}".encode()) for node in (one, two)]
        await one.claim(number)
        merged = await one.publish(number, f"merged {number}".encode())
        await until(partial(two.site.has, merged))
        await until(partial(one.site.has, blobs_[1]))
        by_round.append({*blobs_, merged})
    await until(lambda: not files(one.site) & (by_round[0] | by_round[1]))
    await until(lambda: not files(two.site) & (by_round[0] | by_round[1]))
    assert files(one.site) == {MODEL} | by_round[2] | by_round[3]


@pytest.mark.slow
async def test_a_site_that_joins_late_gets_all_results_since_the_newest_whole_one(bare_net):
    net = bare_net
    net.spec = replace(net.spec, merge=Merge(wire=Wire.BF16, whole_every=4))
    net.transfer.keep_rounds = 1
    await net.start()
    try:
        one, two = await net.joined("alpha/sl/one", "beta/sl/two")
        results = []
        for number in (1, 2, 3, 4):
            for node in (one, two):
                await node.check_in(number, f"{node.name} {number}".encode())
            await one.claim(number)
            results.append(await one.publish(number, f"merged {number}".encode()))
            await until(partial(two.site.has, results[-1]))
        (three,) = await net.joined("gamma/sl/three")
        assert [await three.get(blob) for blob in results] == [f"merged {number}".encode() for number in (1, 2, 3, 4)]
        await restarted(three.site)
        (three.site.folder / results[0]).unlink()
        assert await three.get(results[0]) == b"merged 1"
    finally:
        await net.stop()
