"""Who may read and write the blobs of a training contract, and which of them stay."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, ContractBusy, DiskFull, NotAuthorized, NotFound
from swarm_hpc.records import ContractState, FinishMode, Merge, MergeMethod, Platform, Wire
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.owners import Owners
from swarm_hpc.transport.blobs import hash_bytes

LAYOUT = b"the header of a model"
MODEL = hash_bytes(LAYOUT)


async def put(node, data: bytes, contract: str = "demo") -> str:
    blob = hash_bytes(data)
    await node.client.upload(blob, memoryview(data), contract)
    return blob


async def found(client, *blobs: str) -> set[str]:
    """Which of the blobs the SN has."""
    there = set()
    for blob in blobs:
        try:
            await client.download(blob)
        except BlobNotFound:
            continue
        there.add(blob)
    return there


async def joined(swarm, *names: str, **settings):
    """Nodes in `demo` that put the layout before they join, as an SL does."""
    nodes = [await swarm.sl(name) for name in names]
    await nodes[0].client.create_contract(settings.pop("spec")(model=MODEL, **settings))
    for node in nodes:
        await put(node, LAYOUT)
        await node.client.join("demo", node.name, node.incarnation, Platform.PYTORCH, MODEL)
    return nodes


async def test_participants_read_each_others_blobs(swarm, new_spec):
    one, two = await joined(swarm, "alpha/sl/one", "beta/sl/two", spec=new_spec)
    data = os.urandom(3 << 20)
    blob = await put(one, data)
    assert await put(one, data) == blob, "a repeat is granted"
    assert await two.client.download(blob) == data


async def test_a_site_outside_the_contract_reads_the_layout_only(swarm, new_spec):
    one, outsider = (await joined(swarm, "alpha/sl/one", spec=new_spec))[0], await swarm.sl("beta/sl/two")
    blob = await put(one, b"parameters")
    with pytest.raises(NotAuthorized, match="belongs to demo, which site beta has not joined"):
        await outsider.client.download(blob)
    assert await outsider.client.download(MODEL) == LAYOUT


async def test_knowing_a_hash_does_not_make_a_site_the_owner(swarm, new_spec):
    one, outsider = (await joined(swarm, "alpha/sl/one", spec=new_spec))[0], await swarm.sl("beta/sl/two")
    blob = await put(one, b"parameters")
    await outsider.client.create_contract(new_spec(name="theirs", model=MODEL))
    await outsider.client.join("theirs", outsider.name, outsider.incarnation, Platform.PYTORCH, MODEL)
    with pytest.raises(NotAuthorized, match="belongs to another training contract"):
        await outsider.client.upload(blob, memoryview(b"parameters"), "theirs")
    with pytest.raises(NotAuthorized):
        await outsider.client.download(blob)
    await put(outsider, LAYOUT, "theirs")


async def test_calling_another_contracts_blob_a_layout_does_not_open_it(swarm, new_spec):
    one, outsider = (await joined(swarm, "alpha/sl/one", spec=new_spec))[0], await swarm.sl("beta/sl/two")
    blob = await put(one, b"parameters")
    await outsider.client.create_contract(new_spec(name="theirs", model=blob))
    with pytest.raises(NotAuthorized, match="belongs to demo, which site beta has not joined"):
        await outsider.client.download(blob)
    with pytest.raises(NotAuthorized, match="belongs to another training contract"):
        await put(outsider, b"parameters", "theirs")


async def test_auditors_read_every_blob_and_write_none(swarm, new_spec):
    (one,) = await joined(swarm, "alpha/sl/one", spec=new_spec)
    blob = await put(one, b"parameters")
    auditor = await swarm.client("beta/swci/admin")
    assert await auditor.download(blob) == b"parameters"
    with pytest.raises(NotAuthorized, match="may not write blobs"):
        await auditor.upload(hash_bytes(b"forged"), memoryview(b"forged"), "demo")
    with pytest.raises(NotAuthorized, match="may not read blobs"):
        await (await swarm.client("alpha/ui/ui")).download(blob)


async def test_another_sites_sn_reads_what_its_site_may_and_writes_nothing(swarm, new_spec):
    (one,) = await joined(swarm, "alpha/sl/one", spec=new_spec)
    blob, sn = await put(one, b"parameters"), await swarm.client("beta/sn/sn")
    with pytest.raises(NotAuthorized, match="belongs to demo, which site beta has not joined"):
        await sn.download(blob)
    with pytest.raises(NotAuthorized, match="may not write blobs"):
        await sn.upload(hash_bytes(b"forged"), memoryview(b"forged"), "demo")
    two = await swarm.sl("beta/sl/two")
    assert await sn.download(MODEL) == LAYOUT
    await two.client.join("demo", two.name, two.incarnation, Platform.PYTORCH, MODEL)
    assert await sn.download(blob) == b"parameters"


async def test_a_reset_contract_keeps_its_blobs_under_the_archives_name(swarm, new_spec):
    one, two = await joined(swarm, "alpha/sl/one", "beta/sl/two", spec=new_spec)
    ada = await swarm.client("alpha/swci/admin")
    data = b"parameters of the first training"
    blob = await put(one, data)
    with pytest.raises(ContractBusy):
        await ada.reset_contract("demo")
    for node in (one, two):
        await node.client.finish("demo", node.name, node.incarnation, FinishMode.INACTIVE)
    assert await ada.reset_contract("demo") == "demo.1"
    with pytest.raises(NotFound):
        await ada.reset_contract("demo")
    assert [each.name for each in await ada.declared_contracts()] == ["demo"]

    await one.client.create_contract(new_spec(model=MODEL, merge=Merge(method=MergeMethod.GEOMEDIAN)))
    await one.client.join("demo", one.name, one.incarnation, Platform.PYTORCH, MODEL)
    assert (await one.client.contract("demo")).round == 1
    assert (await one.client.contract("demo.1")).state is ContractState.COMPLETED
    assert await two.client.download(blob) == data, "beta is in the old training only"
    fresh = await put(one, b"parameters of the second training")
    with pytest.raises(NotAuthorized, match="belongs to demo, which site beta has not joined"):
        await two.client.download(fresh)


@pytest.mark.parametrize("page", [1000, 2], ids=["at once", "behind many events"])
async def test_a_reset_while_the_sn_is_down_is_made_up_for(sn_config, swarm_of, new_spec, monkeypatch, page):
    async with swarm_of(sn_config) as swarm:
        one, two = await joined(swarm, "alpha/sl/one", "beta/sl/two", spec=new_spec)
        blob = await put(one, b"parameters")
        for node in (one, two):
            await node.client.finish("demo", node.name, node.incarnation, FinishMode.INACTIVE)
    with Ledger.open(sn_config.ledger, Path(sn_config.data_dir) / "ledger", found=None) as ledger:
        assert ledger.reset_contract("demo") == "demo.1"
    monkeypatch.setitem(Ledger.events.__kwdefaults__, "limit", page)
    async with swarm_of(sn_config) as swarm:
        two = await swarm.client("beta/sl/two")
        assert await two.download(blob) == b"parameters"


async def test_a_new_training_has_none_of_what_was_put_before_a_reset_while_the_sn_was_down(
    sn_config, swarm_of, new_spec
):
    spec = new_spec(model=MODEL, min_peers=1)
    async with swarm_of(sn_config) as swarm:
        (two,) = await joined(swarm, "beta/sl/two", spec=new_spec, min_peers=1)
        blob = await put(two, b"parameters")
        await two.client.finish("demo", two.name, two.incarnation, FinishMode.INACTIVE)
        await swarm.sl("alpha/sl/one")
    with Ledger.open(sn_config.ledger, Path(sn_config.data_dir) / "ledger", found=None) as ledger:
        ledger.reset_contract("demo")
        ledger.create_contract(spec)
        ledger.join("demo", "alpha/sl/one", 1, Platform.PYTORCH, MODEL)
    for _ in range(2):  # what the first start has made up for is not done again
        async with swarm_of(sn_config) as swarm:
            one, two = await swarm.client("alpha/sl/one"), await swarm.client("beta/sl/two")
            assert await two.download(blob) == b"parameters"
            with pytest.raises(NotAuthorized, match=r"belongs to demo\.1, which site alpha has not joined"):
                await one.download(blob)
            fresh = hash_bytes(b"of the new training")
            await one.upload(fresh, memoryview(b"of the new training"), "demo")
            assert await one.download(fresh) == b"of the new training"
            with pytest.raises(NotAuthorized, match="belongs to demo, which site beta has not joined"):
                await two.download(fresh)


async def test_blobs_need_a_contract_and_a_member(swarm, new_spec):
    one = await swarm.sl("alpha/sl/one")
    with pytest.raises(NotFound, match="nothing"):
        await put(one, b"parameters", "nothing")
    await one.client.create_contract(new_spec())
    stranger = await swarm.client("beta/sl/two")
    with pytest.raises(NotAuthorized, match="site beta is no member"):
        await stranger.upload(hash_bytes(b"parameters"), memoryview(b"parameters"), "demo")
    with pytest.raises(BlobNotFound):
        await one.client.download(hash_bytes(b"parameters"))


async def test_a_blob_that_is_not_what_its_hash_says_leaves_nothing_behind(swarm, new_spec):
    (one,) = await joined(swarm, "alpha/sl/one", spec=new_spec)
    blob = hash_bytes(b"parameters")
    with pytest.raises(BlobCorrupt):
        await one.client.upload(blob, memoryview(b"pArameters"), "demo")
    with pytest.raises(BlobNotFound):
        await one.client.download(blob)


async def test_a_full_disk_is_told_by_name(start_swarm, sn_config, new_spec):
    sn_config.transfer.min_free_mib = 1 << 40
    one = await (await start_swarm()).sl("alpha/sl/one")
    await one.client.create_contract(new_spec(model=MODEL))
    with pytest.raises(DiskFull, match="min_free_mib"):
        await put(one, LAYOUT)


async def test_the_sn_takes_blobs_out_of_the_shared_folder(start_swarm, sn_config, new_spec, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    sn_config.transfer.shared_dir = str(shared)
    (one,) = await joined(await start_swarm(), "alpha/sl/one", spec=new_spec)
    blob = hash_bytes(b"parameters")
    (shared / blob).write_bytes(b"parameters")
    await one.client.adopt(blob, "demo")
    await one.client.adopt(blob, "demo")
    assert await one.client.download(blob) == b"parameters"
    assert not (shared / blob).exists()


async def rounds(one, two, last: int) -> list[list[str]]:
    """Rounds 1 to `last`; the blobs of each, the merged one at the end."""
    blobs = []
    for number in range(1, last + 1):
        ours = [await put(node, f"{node.name} {number}".encode()) for node in (one, two)]
        for node, blob in zip((one, two), ours, strict=True):
            await node.check_in(number, blob)
        await one.claim(number)
        merged = await put(one, f"merged {number}".encode())
        await one.publish(number, merged)
        blobs.append([*ours, merged])
    return blobs


@pytest.mark.slow
async def test_blobs_of_the_last_rounds_stay(start_swarm, sn_config, new_spec):
    sn_config.transfer.keep_rounds = 2
    swarm = await start_swarm()
    one, two = await joined(swarm, "alpha/sl/one", "beta/sl/two", spec=new_spec)
    never_checked_in = await put(one, b"too late for round 1")
    by_round = await rounds(one, two, 4)
    old = {never_checked_in, *by_round[0], *by_round[1]}
    while await found(one.client, *old):  # deleted in the background; the test's own deadline ends this
        await one.client.status()
    kept = {MODEL, *by_round[2], *by_round[3]}
    assert await found(two.client, *kept) == kept


@pytest.mark.slow
@pytest.mark.parametrize(("last", "of_results"), [(4, {1, 2, 3, 4}), (5, {4, 5})])
async def test_results_stay_as_far_back_as_the_newest_whole_one(start_swarm, sn_config, new_spec, last, of_results):
    """Of rounds whose results may be differences, and one in four is whole; check-ins go as always."""
    sn_config.transfer.keep_rounds = 2
    spec = partial(new_spec, merge=Merge(wire=Wire.INT8, whole_every=4))
    one, two = await joined(await start_swarm(), "alpha/sl/one", "beta/sl/two", spec=spec)
    by_round = await rounds(one, two, last)
    results = {of_round.pop() for number, of_round in enumerate(by_round, 1) if number in of_results}
    old = {blob for of_round in by_round[:-2] for blob in of_round}
    while await found(one.client, *old):
        await one.client.status()
    kept = {MODEL, *results, *by_round[-2], *by_round[-1]}
    assert await found(two.client, *kept) == kept


@pytest.mark.slow
async def test_keep_rounds_0_keeps_all(swarm, new_spec):
    one, two = await joined(swarm, "alpha/sl/one", "beta/sl/two", spec=new_spec)
    blobs = {blob for of_round in await rounds(one, two, 4) for blob in of_round}
    assert await found(one.client, *blobs) == blobs


def test_owners_survive_a_restart(tmp_path: Path):
    owners = Owners(tmp_path / "blobs.db")
    owners.add("b1", "demo", 1)
    owners.add("b1", "other", 5)
    owners.add("b2", "demo", 3)
    again = Owners(tmp_path / "blobs.db")  # as after kill -9: the first one was never closed
    assert again.of("b1") == {"demo", "other"}
    assert again.blobs("demo", before=3) == ("b1",)
    assert again.remove("b1", "demo") is False
    assert again.remove("b1", "other") is True
    assert again.of("b1") == frozenset()
    owners.close()
    again.close()
