"""What the ranks of a job make of each other's messages. No MPI, no process."""

import pytest

from swarm_hpc.errors import ConfigError, ContractMismatch, ModelMismatch, ProtocolError, RankLost
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import ContractSpec, FinishMode, Merge, MergeMethod, Platform
from swarm_hpc.sl.frames import Failure, Finished, Synced, SyncRequest
from swarm_hpc.sl.ranks import (
    Beat,
    Broken,
    Bye,
    Go,
    Outcome,
    Want,
    Wish,
    check_modes,
    check_openings,
    check_wishes,
    combined,
    failure,
    header_text,
    is_over,
    pack,
    raised,
    standing,
    unpack,
)

LAYOUT = place([TensorSpec("weight", "F32", (5,))])
SPEC = ContractSpec(
    name="digits",
    platform=Platform.PYTORCH,
    merge=Merge(),
    min_peers=2,
    quorum_wait_s=30,
    leader_timeout_s=60,
    model="0" * 64,
)
FAILURE = Failure(name="RankLost", detail="nothing heard from rank 2")


def opening(**fields):
    return Wish(**{"want": Want.OPEN, "weight": 1, "spec": SPEC, "layout": header_text(LAYOUT)} | fields)


@pytest.mark.parametrize(
    "message",
    [
        opening(),
        Wish(want=Want.SYNC, weight=3, loss=0.5, metric=None, used_cpu_s=1.25),
        Wish(want=Want.FINISH, mode=FinishMode.SNAPSHOT, error=FAILURE),
        Go(merge=Merge(method=MergeMethod.GEOMEDIAN), weights=[1, 0, 100]),
        Outcome(synced=Synced(round=3, num_peers=2, training_over=False, late=True, seconds={"hash": 0.5}), share=True),
        Outcome(finished=Finished(round=3, merged="a" * 64)),
        Outcome(opened_round=0),
        Beat(reason="digits round 3: 1 of 2 peers checked in"),
        Broken(error=FAILURE),
        Bye(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was(message):
    assert unpack(pack(message)) == message


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"type": "Hello"}', b'{"type": 1}', b'{"type": "Go"}', b"\xff"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ProtocolError):
        unpack(data)


def test_an_error_arrives_with_its_kind_and_whose_it_is():
    error = raised(failure(RankLost("it hangs"), "rank 2"))
    assert (type(error), str(error)) == (RankLost, "rank 2: it hangs")


@pytest.mark.parametrize(
    ("weights", "weight", "num_nodes"),
    [
        ([1], 1, 1),
        ([1, 1, 1], 1, 3),
        ([1, 2, 3], 2, 3),
        ([100, 100], 100, 2),
        ([1, 2], 2, 2),
        ([1, 1, 2], 1, 3),
        ([0, 5, 0], 5, 1),
    ],
)
def test_a_site_counts_as_the_sum_of_its_ranks_as_far_as_whole_numbers_can_say(weights, weight, num_nodes):
    assert standing(weights) == (weight, num_nodes)
    assert abs(weight * num_nodes - sum(weights)) <= num_nodes / 2


def test_loss_and_metric_are_weighted_means_of_those_that_are_known():
    wishes = [
        Wish(want=Want.SYNC, weight=1, loss=1.0),
        Wish(want=Want.SYNC, weight=3, loss=2.0, metric=0.5),
        Wish(want=Want.SYNC, weight=1),
        Wish(want=Want.FINISH, weight=0, loss=100.0),
    ]
    assert combined(wishes, SyncRequest(loss=1.0, epoch=4, batch=7)) == SyncRequest(
        loss=1.75, metric=0.5, epoch=4, batch=7
    )
    assert combined([Wish(want=Want.SYNC, weight=1)], SyncRequest()).loss is None


def test_the_training_is_over_when_all_programs_have_finished():
    done, training = Wish(want=Want.FINISH), Wish(want=Want.SYNC)
    assert is_over([done, done])
    assert not is_over([done, training])


def test_programs_must_agree_on_how_they_finish():
    wishes = [Wish(want=Want.FINISH, mode=mode) for mode in (FinishMode.ACTIVE, FinishMode.ACTIVE, FinishMode.INACTIVE)]
    check_modes(wishes[:2])
    with pytest.raises(ConfigError, match="checkin_on_train_end: active at rank 1, inactive at rank 2"):
        check_modes(wishes)


def test_an_error_of_one_rank_is_everybodys():
    with pytest.raises(RankLost, match="nothing heard from rank 2"):
        check_wishes([Wish(want=Want.SYNC), Wish(want=Want.SYNC, error=FAILURE)])


def test_programs_must_agree_on_model_and_settings():
    check_openings([opening(), opening()], LAYOUT)
    other = header_text(place([TensorSpec("weight", "F32", (6,))]))
    with pytest.raises(ModelMismatch, match=r"rank 1: tensor 'weight' is F32 \[6\]"):
        check_openings([opening(), opening(layout=other)], LAYOUT)
    with pytest.raises(ContractMismatch, match="rank 1 asks for min_peers 3, rank 0 for 2"):
        check_openings([opening(), opening(spec=ContractSpec(**{**fields_of(SPEC), "min_peers": 3}))], LAYOUT)
    other = ContractSpec(**{**fields_of(SPEC), "merge": Merge(method=MergeMethod.TRIMMEDMEAN)})
    with pytest.raises(ContractMismatch, match=r"rank 1 asks for merge\.method trimmedmean, rank 0 for mean"):
        check_openings([opening(), opening(spec=other)], LAYOUT)
    check_openings([opening(spec=other), opening(spec=other)], LAYOUT)
    other = ContractSpec(**{**fields_of(SPEC), "merge": Merge(method=MergeMethod.KRUM)})
    with pytest.raises(
        ConfigError, match=r"merge\.method: the ranks .* krum num_byzantine=1 takes 4 of them, here are 2"
    ):
        check_openings([opening(spec=other), opening(spec=other)], LAYOUT)
    with pytest.raises(ProtocolError, match="rank 1 is in the middle of a training"):
        check_openings([opening(), Wish(want=Want.SYNC)], LAYOUT)


def fields_of(spec):
    return {name: getattr(spec, name) for name in spec.__slots__}
