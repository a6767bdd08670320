"""How parameters travel: the shared folder of `gateway`, and what a node keeps, shows and deletes with `direct`."""

import asyncio
import errno
import os
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from swarm_hpc.config import ConnectionConfig, SnConfig, TransferConfig, TransferMode
from swarm_hpc.errors import BlobNotFound, ConfigError, NotAuthorized, NotReachable
from swarm_hpc.identity import certs
from swarm_hpc.records import Merge, NodeName, Wire
from swarm_hpc.sl import exchange as exchange_module
from swarm_hpc.sl.exchange import DirectExchange, GatewayExchange
from swarm_hpc.sl.server import Readers, endpoint_of
from swarm_hpc.sn import node as sn_node
from swarm_hpc.transport.blobs import BlobStore, hash_bytes
from tests.lab.rounds import published

direct_only = pytest.mark.parametrize("transfer", [TransferMode.DIRECT], indirect=True)
gateway_only = pytest.mark.parametrize("transfer", [TransferMode.GATEWAY], indirect=True)


@pytest.mark.slow
@gateway_only
async def test_blobs_go_through_the_shared_folder_where_there_is_one(tmp_path, identities, swarm):
    shared = tmp_path / "shared"
    shared.mkdir()
    transfer = TransferConfig(min_free_mib=0, keep_rounds=0, shared_dir=str(shared))
    config = SnConfig(port=0, data_dir=str(tmp_path / "sn2"), identity=identities["sn"], transfer=transfer)
    async with sn_node.start(config, certs.load(config.identity)) as swarm.sn:
        swarm.tweak = lambda settings: replace(settings, transfer=replace(settings.transfer, shared_dir=str(shared)))
        async with swarm.node("alpha"), swarm.node("beta"):
            alpha, beta = swarm.program("alpha"), swarm.program("beta")
            await alpha.open(1.0)
            await beta.open(3.0)
            await asyncio.gather(alpha.sync(), beta.sync())
            assert alpha.weight == pytest.approx([2.0] * 5)
        assert list(shared.iterdir()) == []


class Refusing:
    """An SN that adopts nothing."""

    async def adopt(self, blob, contract):
        raise NotReachable("nobody answers")


async def test_what_the_sn_does_not_take_is_not_left_in_the_shared_folder(tmp_path):
    with pytest.raises(NotReachable):
        await GatewayExchange(Refusing(), tmp_path).offer("ab", memoryview(b"data"), "digits")
    assert list(tmp_path.iterdir()) == []


async def test_a_node_that_is_told_to_leave_meanwhile_leaves_nothing_in_the_shared_folder(tmp_path, monkeypatch):
    begun, may_end, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop, write = asyncio.get_running_loop(), exchange_module._write

    def write_slowly(target, data):
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(20)
        write(target, data)
        ended.set()

    monkeypatch.setattr(exchange_module, "_write", write_slowly)
    offering = asyncio.create_task(GatewayExchange(Refusing(), tmp_path).offer("ab", memoryview(b"data"), "digits"))
    await begun.wait()
    offering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await offering
    may_end.set()
    assert await asyncio.to_thread(ended.wait, 20)
    async with asyncio.timeout(5):
        while list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)


async def test_what_a_killed_node_had_half_written_is_removed_from_the_shared_folder_after_a_day(tmp_path, identities):
    half, fresh, other = (tmp_path / name for name in (f".{'a' * 64}.{'b' * 32}", f".{'c' * 64}.{'d' * 32}", ".other"))
    for path in (half, fresh, other):
        path.write_bytes(b"some")
    for path in (half, other):
        os.utime(path, (time.time() - 90_000,) * 2)
    transfer = TransferConfig(shared_dir=str(tmp_path))
    identity = certs.load(identities["sn"])
    async with exchange_module.open_exchange(identity, None, transfer, ConnectionConfig(), tmp_path / "state"):
        assert set(tmp_path.iterdir()) == {fresh, other}


async def test_a_shared_folder_that_is_not_there_is_a_settings_error(tmp_path):
    exchange = GatewayExchange(None, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"transfer\.shared_dir.*none"):
        await exchange.offer("ab", memoryview(b"data"), "digits")


@direct_only
@pytest.mark.slow
async def test_blobs_of_old_rounds_are_deleted(swarm):
    swarm.tweak = lambda settings: replace(settings, transfer=replace(settings.transfer, keep_rounds=1))
    async with swarm.node("alpha"), swarm.node("beta"):
        alpha, beta = swarm.program("alpha"), swarm.program("beta")
        await alpha.open(1.0)
        await beta.open(3.0)
        for _ in range(4):
            await asyncio.gather(alpha.sync(add=1.0), beta.sync())
        async with swarm.client() as sn:
            [last] = await sn.rounds("digits", 4, 4)
        kept = set(BlobStore(swarm.folder / "alpha" / "blobs").blobs())
        mine = {check_in.blob for check_in in last.check_ins if check_in.node.startswith("alpha/")}
        assert kept >= mine | {last.merged}
        assert len(kept) == 2


@pytest.mark.parametrize("step", [1, 2])
async def test_results_go_with_their_chain_also_where_its_first_one_was_missed(tmp_path, step):
    """Every second round, the even ones: those that are whole, 1, 11, 21, ..., are settled by others."""
    store = BlobStore(tmp_path / "blobs")
    exchange = DirectExchange(None, None, store, Readers(), ConnectionConfig())
    exchange.keep_rounds = 2
    exchange._merge = Merge(wire=Wire.INT8, whole_every=10)
    for number in range(2, 51, step):
        data = number.to_bytes(8, "little")
        await exchange.settle(published(number, hash_bytes(data)), memoryview(data))
    chain = {hash_bytes(number.to_bytes(8, "little")) for number in range(42 if step == 2 else 41, 51, step)}
    assert chain <= set(store.blobs())
    assert len(store.blobs()) <= len(chain) + exchange.keep_rounds


@direct_only
@pytest.mark.slow
async def test_the_merged_parameters_come_from_others_when_the_leader_has_lost_them(swarm):
    async with swarm.node("alpha"), swarm.node("beta"), swarm.node("gamma"):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        async with swarm.client() as sn:
            [first] = await sn.rounds("digits", 1, 1)
        BlobStore(swarm.folder / NodeName.parse(first.leader).site / "blobs").delete(first.merged)
        assert (await gamma.open()).resume
        assert gamma.weight == pytest.approx([2.0] * 5)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
async def test_a_blob_in_the_own_store_that_cannot_be_read_is_looked_for_elsewhere(tmp_path, monkeypatch, error):
    store = BlobStore(tmp_path)
    blob = store.put(b"data")

    def fail(path, *mode, **options):
        raise OSError(error, os.strerror(error), str(path))

    class Nobody:
        async def nodes(self):
            return ()

    exchange = DirectExchange(None, Nobody(), store, Readers(), ConnectionConfig())
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(BlobNotFound, match=rf"cannot be read: {os.strerror(error)}; deleted; beta/sl/sl"):
        await exchange.fetch(blob, ["beta/sl/sl"], memoryview(bytearray(4)))
    assert not store.has(blob)


@direct_only
@pytest.mark.slow
async def test_who_is_away_is_asked_last(swarm, monkeypatch):
    asked, download = [], DirectExchange._download

    async def ask(self, blob, node, **target):
        asked.append(node)
        return await download(self, blob, node, **target)

    nodes = {site: AsyncExitStack() for site in ("alpha", "beta", "gamma")}
    async with nodes["alpha"], nodes["beta"], nodes["gamma"]:
        for site, stack in nodes.items():
            await stack.enter_async_context(swarm.node(site))
        alpha, beta, gamma = (swarm.program(site) for site in nodes)
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        async with swarm.client() as sn:
            [first] = await sn.rounds("digits", 1, 1)
        await nodes[NodeName.parse(first.leader).site].aclose()
        monkeypatch.setattr(DirectExchange, "_download", ask)
        assert (await gamma.open()).resume
        assert gamma.weight == pytest.approx([2.0] * 5)
        assert asked == [check_in.node for check_in in first.check_ins if check_in.node != first.leader]


@direct_only
@pytest.mark.slow
async def test_the_merged_parameters_are_merged_anew_when_nobody_has_them(swarm):
    async with swarm.node("alpha"), swarm.node("beta"), swarm.node("gamma"):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        async with swarm.client() as sn:
            [first] = await sn.rounds("digits", 1, 1)
        for site in ("alpha", "beta"):
            BlobStore(swarm.folder / site / "blobs").delete(first.merged)
        assert (await gamma.open()).resume
        assert gamma.weight == pytest.approx([2.0] * 5)


@direct_only
@pytest.mark.slow
async def test_a_node_starts_from_its_own_parameters_when_no_others_can_be_had(swarm, caplog):
    async with swarm.node("alpha"), swarm.node("beta"), swarm.node("gamma"):
        alpha, beta, gamma = (swarm.program(site) for site in ("alpha", "beta", "gamma"))
        await alpha.open(1.0)
        await beta.open(3.0)
        await asyncio.gather(alpha.sync(), beta.sync())
        for site in ("alpha", "beta"):
            store = BlobStore(swarm.folder / site / "blobs")
            for blob in store.blobs():
                store.delete(blob)
        assert not (await gamma.open(5.0)).resume
        assert gamma.weight == pytest.approx([5.0] * 5)
        assert "starting from the program's own parameters" in caplog.text


async def test_only_sites_of_the_contract_may_read_and_only_its_blobs():
    readers = Readers()
    readers.sites, readers.blobs = frozenset({"alpha"}), {"mine"}
    readers.may_read(NodeName.parse("alpha/sl/sl"), "mine")
    readers.may_read(NodeName.parse("beta/sn/sn"), "mine")
    for stranger in ("beta/sl/sl", "alpha/ui/ui"):
        with pytest.raises(NotAuthorized):
            readers.may_read(NodeName.parse(stranger), "mine")
    with pytest.raises(BlobNotFound):
        readers.may_read(NodeName.parse("alpha/sl/sl"), "other")


async def test_a_site_that_has_just_joined_is_looked_up():
    readers = Readers()

    async def ask():
        return frozenset({"gamma"})

    readers.ask_sites = ask
    await readers.expect("gamma")
    assert readers.sites == {"gamma"}


@pytest.mark.parametrize(
    ("advertise", "endpoint"),
    [
        ("", "127.0.0.1:7"),
        ("sl.example", "sl.example:7"),
        ("sl.example:443", "sl.example:443"),
        ("[::1]", "[::1]:7"),
        ("fd00::1", "[fd00::1]:7"),
    ],
)
def test_peers_are_told_an_address_with_a_port(advertise, endpoint):
    assert endpoint_of(TransferConfig(mode=TransferMode.DIRECT, advertise=advertise), 7) == endpoint


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"transfer\.advertise: 'https://sl\.example' is no address"):
        endpoint_of(TransferConfig(mode=TransferMode.DIRECT, advertise="https://sl.example"), 7)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_address_of_no_machine_is_not_told_to_peers(host):
    with pytest.raises(ConfigError, match=rf"transfer\.host: {host} is no address .*: say it in transfer\.advertise"):
        endpoint_of(TransferConfig(mode=TransferMode.DIRECT, host=host), 7)
    assert endpoint_of(TransferConfig(mode=TransferMode.DIRECT, host=host, advertise="sl.example"), 7) == "sl.example:7"
