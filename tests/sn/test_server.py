"""The SN's API over mutual TLS on a real embedded ledger."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from swarm_hpc.errors import (
    ConfigError,
    ContractMismatch,
    DuplicateNode,
    Fenced,
    ModelMismatch,
    NotAuthorized,
    NotFound,
    NotLeader,
    NotReachable,
    ProtocolError,
    RoundClaimed,
    RoundClosed,
    RoundError,
    TrainingOver,
)
from swarm_hpc.records import (
    CheckIn,
    ConsensusStatus,
    ContractState,
    FinishMode,
    Kind,
    Platform,
    Progress,
    RoundState,
)
from swarm_hpc.sn import node as sn_node
from swarm_hpc.sn.server import SnApi
from swarm_hpc.transport.client import ApiClient, expect_kind

MODEL = "ab" * 32
MERGED = "cd" * 32


async def test_two_sites_do_a_whole_round(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    assert (await one.check_in(1)).closable is False
    assert (await two.check_in(1)).closable is True
    claimed = await one.claim(1)
    assert (claimed.state, claimed.leader) == (RoundState.CLAIMED, one.name)
    published = await one.publish(1)
    assert (published.state, published.merged) == (RoundState.PUBLISHED, MERGED)
    view = await two.client.round("demo", 2)
    assert (view.contract.round, view.round.check_ins) == (2, ())
    assert [each.node for each in (await two.client.rounds("demo", 1, 1))[0].check_ins] == [one.name, two.name]


async def test_repeats_give_the_same_answer(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.check_in(1)
    for call in (lambda: two.check_in(1), lambda: one.claim(1), lambda: one.publish(1)):
        first, again = await call(), await call()
        assert replace(again, leader_due_in_s=None) == replace(first, leader_due_in_s=None)
    assert len(await one.client.rounds("demo", 1, 1)) == 1
    contract = await one.client.create_contract((await one.client.contract("demo")).spec)
    assert contract == await one.client.contract("demo")


async def test_the_others_hear_that_the_round_is_claimed_and_that_they_do_not_lead_it(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    with pytest.raises(RoundClaimed):
        await two.claim(1)
    with pytest.raises(NotLeader):
        await two.publish(1)


async def test_the_leader_goes_on_without_a_node_that_is_away(swarm) -> None:
    one, two, lost = await swarm.joined("alpha/sl/one", "beta/sl/two", "beta/sl/straggler")
    for node in (one, two, lost):
        await node.check_in(1)
    await one.claim(1)
    with pytest.raises(RoundError, match="the node is there"):
        await one.drop(1, lost.name)
    await lost.client.leave(lost.name, lost.incarnation)
    with pytest.raises(NotLeader):
        await two.drop(1, lost.name)
    dropped = await one.drop(1, lost.name)
    assert [each.node for each in dropped.check_ins] == [one.name, two.name]
    assert replace(await one.drop(1, lost.name), leader_due_in_s=None) == replace(dropped, leader_due_in_s=None)
    with pytest.raises(RoundClosed):
        await lost.check_in(1)
    assert (await one.publish(1)).state is RoundState.PUBLISHED


async def test_a_late_node_gets_round_closed(swarm) -> None:
    one, two, late = await swarm.joined("alpha/sl/one", "alpha/sl/late-not", "beta/sl/late", quorum_wait_s=0)
    await one.check_in(1)
    await two.check_in(1)
    await one.claim(1)
    with pytest.raises(RoundClosed):
        await late.check_in(1)
    await one.publish(1)
    with pytest.raises(RoundClosed):
        await late.check_in(1)
    assert (await late.client.round("demo", 1)).round.merged == MERGED
    await late.check_in(2)


async def test_finished_nodes_complete_the_contract(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    await one.client.finish("demo", one.name, one.incarnation, FinishMode.INACTIVE)
    contract = await two.client.finish("demo", two.name, two.incarnation, FinishMode.INACTIVE)
    assert contract.state is ContractState.COMPLETED
    with pytest.raises(TrainingOver):
        await two.check_in(1)


async def test_a_node_acts_for_nodes_of_its_own_site_only(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    intruder = one.client
    calls = [
        intruder.register(two.name, "", "other"),
        intruder.heartbeat(two.name, 1, Progress()),
        intruder.leave(two.name, 1),
        intruder.join("demo", two.name, 1, Platform.PYTORCH, MODEL),
        intruder.finish("demo", two.name, 1, FinishMode.INACTIVE),
        intruder.check_in("demo", 1, 1, CheckIn(node=two.name, blob=MODEL, weight=1)),
        intruder.claim("demo", 1, two.name, 1),
        intruder.drop("demo", 1, two.name, 1, one.name),
        intruder.publish("demo", 1, two.name, 1, MERGED),
    ]
    for call in calls:
        with pytest.raises(
            NotAuthorized, match="alpha/sl/one may act for nodes of site alpha only, not for beta/sl/two"
        ):
            await call
    assert (await intruder.round("demo", 1)).round.check_ins == ()


async def test_swci_may_read_everything_and_change_nothing(swarm, new_spec) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    swci = await swarm.client("alpha/swci/admin")
    assert (await swci.status()).contracts[0].spec.name == "demo"
    assert [each.node.name for each in await swci.nodes()] == [one.name]
    assert (await swci.round("demo", 1)).round.number == 1
    assert (await swci.events(0)).events
    calls = [
        swci.register("alpha/swci/admin", "", "i"),
        swci.create_contract(new_spec(name="other")),
        swci.check_in("demo", 1, 1, CheckIn(node=one.name, blob=MODEL, weight=1)),
    ]
    for call in calls:
        with pytest.raises(NotAuthorized, match="alpha/swci/admin may not POST"):
            await call


async def test_a_license_server_may_not_even_read(swarm) -> None:
    with pytest.raises(NotAuthorized):
        await (await swarm.client("alpha/license/seats")).status()


async def test_a_second_process_under_a_live_name_is_refused_and_told_why(swarm) -> None:
    one = await swarm.sl("alpha/sl/one")
    with pytest.raises(DuplicateNode, match=r"alpha/sl/one runs already at 10\.0\.0\.1:30305.*another name.*free in"):
        await one.client.register(one.name, "10.0.0.2:1", "another instance")
    await one.client.heartbeat(one.name, one.incarnation, Progress())


async def test_a_restarted_process_takes_its_name_over_and_fences_the_old_one(swarm) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    again = await swarm.sl(one.name)
    assert again.incarnation == one.incarnation + 1
    for call in (one.client.heartbeat(one.name, one.incarnation, Progress()), one.check_in(1), one.claim(1)):
        with pytest.raises(Fenced):
            await call
    await again.check_in(1)


async def test_a_node_that_left_is_away_and_frees_its_name(swarm) -> None:
    one, two = await swarm.joined("alpha/sl/one", "beta/sl/two")
    for _ in range(2):
        await one.client.leave(one.name, one.incarnation)
    contract = await two.client.contract("demo")
    assert {each.node: each.active for each in contract.participants} == {one.name: False, two.name: True}
    with pytest.raises(NotFound, match="register and join again"):
        await one.client.heartbeat(one.name, one.incarnation, Progress())
    record, _ = await one.client.register(one.name, "", "another instance")
    assert record.incarnation == one.incarnation + 1


async def test_what_an_away_node_does_brings_it_back(swarm) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    await one.client.leave(one.name, one.incarnation)
    assert not (await one.client.nodes())[0].node.active
    await one.check_in(1)
    assert (await one.client.nodes())[0].node.active
    assert (await one.client.contract("demo")).participants[0].active
    await one.client.heartbeat(one.name, one.incarnation, Progress())


async def test_progress_is_seen_in_the_status(swarm) -> None:
    one = await swarm.sl("alpha/sl/one")
    progress = Progress(contract="demo", epoch=3, total_epochs=9, loss=0.25, metric=0.9, metric_name="accuracy")
    assert await one.client.heartbeat(one.name, one.incarnation, progress) == 15.0
    status = await one.client.status()
    assert status.nodes[0].progress == progress
    assert status.nodes[0].last_seen_s is not None
    assert (status.site, status.node) == ("alpha", "alpha/sn/sn")
    assert status.ledger.height > 0


async def test_the_first_node_of_a_site_in_the_bundle_brings_its_site(swarm) -> None:
    swci = await swarm.client("alpha/swci/admin")
    assert [site.name for site in (await swci.status()).sites] == ["alpha"]
    await asyncio.gather(swarm.sl("beta/sl/one"), swarm.sl("beta/sl/two"))
    sites = (await swci.status()).sites
    assert [(site.name, site.endpoint) for site in sites] == [("alpha", swarm.address), ("beta", swarm.address)]
    assert sites[1].ca_fingerprint == swarm.consortium.identity("beta/sl/one").bundle.fingerprint("beta")


async def test_a_keras_node_in_a_pytorch_contract_hears_both_names(swarm, new_spec) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    with pytest.raises(ContractMismatch, match="platform is pytorch there and keras here"):
        await one.client.join("demo", one.name, one.incarnation, Platform.KERAS, MODEL)
    with pytest.raises(
        ContractMismatch, match="platform is pytorch there and keras here; min_peers is 2 there and 3 here"
    ):
        await one.client.create_contract(new_spec(platform=Platform.KERAS, min_peers=3))


async def test_another_model_is_refused(swarm, new_spec) -> None:
    (one,) = await swarm.joined("alpha/sl/one")
    with pytest.raises(ModelMismatch, match=r"abababababab.*efefefefefef"):
        await one.client.join("demo", one.name, one.incarnation, Platform.PYTORCH, "ef" * 32)
    with pytest.raises(ModelMismatch):
        await one.client.create_contract(new_spec(model="ef" * 32))


async def test_unknown_things_are_not_found(swarm) -> None:
    one = await swarm.sl("alpha/sl/one")
    for call in (
        one.client.contract("nothing"),
        one.client.round("nothing", 1),
        one.client.join("nothing", one.name, one.incarnation, Platform.PYTORCH, MODEL),
        one.client.heartbeat("alpha/sl/nobody", 1, Progress()),
        one.client.claim("demo", 1, "alpha/sl/nobody", 1),
    ):
        with pytest.raises(NotFound):
            await call


async def test_requests_that_make_no_sense_name_what_is_wrong(swarm, new_spec) -> None:
    one = await swarm.sl("alpha/sl/one")
    with pytest.raises(ConfigError, match="a/b"):
        await one.client.create_contract(new_spec(name="a/b"))
    with pytest.raises(ConfigError, match="expected site/kind/name"):
        await one.client.register("one", "", "i")
    async with ApiClient(
        swarm.consortium.identity("alpha/sl/one"),
        swarm.address,
        expect=expect_kind(Kind.SN),
        connection=swarm.connection,
    ) as api:
        for path, body, complaint in (
            ("/v1/nodes", {"name": one.name}, "no field 'endpoint'"),
            ("/v1/nodes/heartbeat", {"name": one.name, "incarnation": "x", "progress": {}}, "incarnation"),
            ("/v1/contracts", {"spec": {"name": "demo"}}, "spec: ContractSpec: platform"),
            (
                "/v1/contracts/demo/rounds/one/claim",
                {"node": one.name, "incarnation": 1},
                "'one' is not a whole number",
            ),
        ):
            with pytest.raises(ProtocolError, match=complaint):
                await api.call("POST", path, body=body)
        for query in ({"wait_s": "nan"}, {"wait_s": "-1"}, {"after": "-1"}):
            with pytest.raises(ProtocolError):
                await api.call("GET", "/v1/events", query=query)


class Down:
    """Of a SharedLedger whose programs do not run what a status asks."""

    async def fault(self) -> str:
        return "CometBFT ended"

    async def status(self) -> ConsensusStatus:
        return ConsensusStatus(
            network="ab" * 32,
            height=5,
            last_block_age_s=60.0,
            behind=0,
            validators=(),
            halted="",
            warnings=("the ledger's programs do not run here: CometBFT ended", "/srv: 3 MiB are left on the disk"),
        )


async def test_a_status_says_why_the_ledgers_programs_do_not_run(start_swarm, monkeypatch) -> None:
    monkeypatch.setattr(sn_node, "SnApi", lambda **given: SnApi(**given | {"shared": Down()}))
    swarm = await start_swarm()
    swarm.connection.connect_timeout_s = 0.1
    admin = await swarm.client("alpha/swci/admin")
    with pytest.raises(NotReachable, match=r"site alpha: the ledger's programs do not run.*; /srv: 3 MiB are left"):
        await admin.status()
