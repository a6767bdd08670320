"""What a member site, or one that is no member any more, tries with an SN that it may talk to; over real sockets."""

from __future__ import annotations

import asyncio
import threading

import pytest

from swarm_hpc.errors import BlobCorrupt, ConfigError, NotAuthorized, NotFound, ProtocolError, SwarmError
from swarm_hpc.records import CheckIn, Kind, Progress, Resources
from swarm_hpc.sn import live
from swarm_hpc.sn.server import MAX_WAITING_CHARS
from swarm_hpc.transport.blobs import BlobStore, hash_bytes
from swarm_hpc.transport.client import ApiClient, expect_kind

MODEL = "ab" * 32


@pytest.fixture
async def api(swarm):
    """Raw calls with the certificate of an SL of site alpha."""
    client = ApiClient(
        swarm.consortium.identity("alpha/sl/one"),
        swarm.address,
        expect=expect_kind(Kind.SN),
        connection=swarm.connection,
    )
    async with client:
        yield client


@pytest.mark.parametrize("name", ["alpha/sn/sn", "alpha/swci/admin", "alpha/ui/ui", "alpha/ml/program"])
async def test_an_sl_cannot_register_what_is_neither_sl_nor_swop(swarm, name) -> None:
    one = await swarm.sl("alpha/sl/one")
    with pytest.raises(NotAuthorized, match=f"of kind sl or swop only, not for {name}"):
        await one.client.register(name, "", "i")


@pytest.mark.parametrize(
    "name", ["Beta/sl/two", "beta /sl/two", "alpha/../beta/sl/two", "alpha/sl/two\n", "аlpha/sl/one", "alpha/SL/one"]
)
async def test_no_spelling_of_a_name_reaches_another_sites_node(swarm, name) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    for call in (one.client.leave(name, 1), one.client.claim("demo", 1, name, 1)):
        with pytest.raises((NotAuthorized, ConfigError)):
            await call
    assert (await two.client.nodes())[1].node.active


@pytest.mark.parametrize("contract", ["%2e%2e", "..%2f..", "%00", "%ff", "demo%00", "%0a", "x" * 4000])
async def test_no_spelling_of_a_path_is_more_than_an_unknown_name(swarm, api, contract) -> None:
    await swarm.joined("alpha/sl/one")
    for method, path in (
        ("GET", f"/v1/contracts/{contract}"),
        ("GET", f"/v1/contracts/{contract}/rounds/1"),
        ("GET", f"/v1/blobs/{contract}"),
        ("POST", f"/v1/blobs/{contract}/adopt"),
        ("PUT", f"/v1/blobs/{MODEL}?contract={contract}"),
    ):
        with pytest.raises((NotFound, ProtocolError, ConfigError)):
            await api.call(method, path, body={"contract": "demo"} if method == "POST" else None)


async def test_a_site_that_is_no_member_creates_no_contract(swarm, new_spec) -> None:
    stranger = await swarm.client("beta/sl/two")
    with pytest.raises(NotAuthorized, match="site beta is no member"):
        await stranger.create_contract(new_spec())


async def test_a_site_puts_blobs_only_where_it_takes_part(swarm, new_spec) -> None:
    await swarm.joined("alpha/sl/one")
    outsider = await swarm.sl("beta/sl/two")
    data = b"rubbish"
    with pytest.raises(NotAuthorized, match="site beta has not joined demo"):
        await outsider.client.upload(hash_bytes(data), memoryview(data), "demo")


async def test_a_layout_cannot_be_of_any_size(swarm, new_spec) -> None:
    data = bytes(5 << 20)
    one = await swarm.sl("alpha/sl/one")
    await one.client.create_contract(new_spec(model=hash_bytes(data)))
    with pytest.raises(BlobCorrupt, match="at most 4194304 are taken"):
        await one.client.upload(hash_bytes(data), memoryview(data), "demo")


@pytest.mark.parametrize(
    "endpoint", ["10.0.0.1:1/path", "user@10.0.0.1:1", "10.0.0.1:99999", "a\nb:1", "ftp://a:1", "a b:1", "\ud800:1"]
)
async def test_an_endpoint_is_an_address(swarm, endpoint) -> None:
    client = await swarm.client("alpha/sl/one")
    with pytest.raises(ProtocolError):
        await client.register("alpha/sl/one", endpoint, "i")


async def test_figures_beyond_all_sense_count_as_none(swarm) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    for loss in (1e308, -1e308):
        found = await one.client.check_in("demo", 1, 1, CheckIn(node=one.name, blob=MODEL, weight=1, loss=loss))
        assert found.check_ins[0].loss is None
    for used in (Resources(cpu_s=-1), Resources(gpu_s=1e300)):
        with pytest.raises(ProtocolError, match="are no times"):
            await one.client.check_in("demo", 1, 1, CheckIn(node=one.name, blob=MODEL, weight=1, resources=used))
    for entry in ({"job": "\ud800"}, {"job": "j" * 1000}):
        with pytest.raises(SwarmError) as caught:
            used = Resources(**entry)
            await one.client.check_in("demo", 1, 1, CheckIn(node=one.name, blob=MODEL, weight=1, resources=used))
        assert "internal error" not in str(caught.value)


async def test_what_a_node_says_of_its_progress_is_cut_to_measure(swarm) -> None:
    one = await swarm.sl("alpha/sl/one")
    loud = Progress(contract="c" * 9999, waiting="w" * 99999, epoch=2**300, metric_name="m" * 9999, loss=1e300)
    await one.client.heartbeat(one.name, one.incarnation, loud)
    kept = (await one.client.nodes())[0].progress
    assert (len(kept.contract), len(kept.waiting), kept.epoch, kept.loss) == (63, MAX_WAITING_CHARS, 1 << 53, None)


async def test_a_site_that_was_voted_out_reads_no_more_blobs(start_swarm, sn_config, consortium, monkeypatch) -> None:
    ledgers = []
    monkeypatch.setattr(live.LiveLedger, "__init__", _noting(live.LiveLedger.__init__, ledgers))
    swarm = await start_swarm()
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    data = b"parameters"
    await one.client.upload(hash_bytes(data), memoryview(data), "demo")
    assert await two.client.download(hash_bytes(data)) == data

    def remove(ledger):
        (beta,) = [site for site in ledger.sites() if site.name == "beta"]
        for _ in range(2):  # alpha and beta both speak through this SN's account
            ledger.vote("beta", beta.account, beta.endpoint, beta.ca_fingerprint, False)
            if not next(site for site in ledger.sites() if site.name == "beta").active:
                return

    await ledgers[0].write(remove)
    for name in ("beta/sl/two", "beta/swci/admin"):
        with pytest.raises(NotAuthorized, match="site beta was voted out"):
            await (await swarm.client(name)).download(hash_bytes(data))


@pytest.mark.parametrize(("platform", "merge"), [("jax", "mean"), ("pytorch", "median of=means")])
async def test_a_contract_that_this_version_cannot_read_is_in_nobodys_way(
    swarm_of, sn_config, monkeypatch, platform, merge
) -> None:
    """Of a site that runs a later version: the chain takes its platform and its merge as they are."""
    ledgers = []
    monkeypatch.setattr(live.LiveLedger, "__init__", _noting(live.LiveLedger.__init__, ledgers))
    later = ("later", platform, merge, 2, 30, 60, bytes.fromhex(MODEL), "")
    async with swarm_of(sn_config) as swarm:
        await ledgers[0].write(lambda ledger: ledger._chain.send("Training", "create_contract", later, what="later"))
        await swarm.joined("alpha/sl/one")
    async with swarm_of(sn_config) as swarm:
        client = await swarm.client("alpha/swci/admin")
        assert [one.spec.name for one in await client.contracts()] == ["demo"]
        assert [one.spec.name for one in (await client.status()).contracts] == ["demo"]
        with pytest.raises(ProtocolError, match=r"training contract later: .*(jax|median)"):
            await client.contract("later")


@pytest.mark.slow
async def test_blobs_that_keep_every_thread_busy_do_not_hold_up_the_ledger(swarm, monkeypatch) -> None:
    """A slow file system under the blobs, with more uploads than asyncio.to_thread has threads."""
    (one,) = await swarm.joined("alpha/sl/one")
    stuck, free = threading.Semaphore(0), threading.Event()
    writer = BlobStore.writer

    def slow(self, blob, size_bytes):
        stuck.release()
        assert free.wait(60)
        return writer(self, blob, size_bytes)

    monkeypatch.setattr(BlobStore, "writer", slow)
    uploads = [
        asyncio.create_task(one.client.upload(hash_bytes(data), memoryview(data), "demo"))
        for data in (b"%d" % number for number in range(40))
    ]
    try:
        while not stuck.acquire(blocking=False):
            await asyncio.sleep(0.01)
        assert (await one.client.contract("demo")).spec.name == "demo"
        assert (await one.check_in(1)).number == 1
    finally:
        free.set()
        await asyncio.gather(*uploads)


async def test_a_blob_whose_sender_leaves_at_the_last_moment_has_an_owner(swarm, new_spec, monkeypatch) -> None:
    """The bytes are committed while the client is gone already: they must be readable, not lie there unowned."""
    (one,) = await swarm.joined("alpha/sl/one")
    data = b"parameters"
    entered, leave, put = asyncio.Event(), threading.Event(), hash_bytes(data)
    writer, loop = BlobStore.writer, asyncio.get_running_loop()

    def slow(self, blob, size_bytes):
        found = writer(self, blob, size_bytes)
        commit = found.commit

        def late():
            loop.call_soon_threadsafe(entered.set)
            assert leave.wait(60)
            commit()

        found.commit = late
        return found

    monkeypatch.setattr(BlobStore, "writer", slow)
    upload = asyncio.create_task(one.client.upload(put, memoryview(data), "demo"))
    await entered.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await one.client.status()  # the SN has seen the end of the connection by now, or soon
    leave.set()
    while True:
        try:
            assert await one.client.download(put) == data
            break
        except SwarmError:
            await asyncio.sleep(0.01)


def _noting(init, found):
    def run(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append(self)

    return run
