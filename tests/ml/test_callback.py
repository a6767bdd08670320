"""What Training asks of SL, and when; the model is one vector."""

import logging

import numpy as np
import pytest

from swarm_hpc.errors import ConfigError, ContractMismatch, Fenced, NotReachable
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.ml.callback import REPORT_EVERY_S, Scores, Training
from swarm_hpc.ml.settings import check
from swarm_hpc.records import FinishMode, MergeMethod, Platform, Progress
from swarm_hpc.sl.frames import Failure, FinishRequest, OpenRequest, SyncRequest

NOTHING = Scores()


class Vector:
    """The smallest model there is. `losses` are what its validations will say."""

    platform = Platform.PYTORCH
    in_arena = False

    def __init__(self, losses=()):
        self.value = np.zeros(3, np.float32)
        self.losses = list(losses)

    def describe(self):
        return (TensorSpec("v", "F32", (3,)),), {}

    def write(self, arena):
        arena.array("v")[:] = self.value

    def read(self, arena):
        self.value = arena.array("v").copy()

    def release(self):
        self.released = True

    def validate(self):
        return Scores(loss=self.losses.pop(0), metric=0.5, metric_name="auc")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def train(sl):
    """Makes a Training at the stub SL; all are closed at the end."""
    made = []

    def make(model=None, clock=None, **arguments):
        settings = check({"sync_frequency": 3} | arguments)
        made.append(Training(settings, model or Vector(), sl.path, clock=clock or Clock()))
        return made[-1]

    yield make
    for training in made:
        training.close()


def batches(training, count):
    for _ in range(count):
        training.batch_end(NOTHING)


def test_merges_at_the_begin_then_every_sync_frequency_batches_then_at_the_end(sl, train):
    training = train()
    training.begin()
    batches(training, 7)
    training.end()
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 3, 6]
    assert sl.asked(FinishRequest) == [FinishRequest(mode=FinishMode.SNAPSHOT)]


def test_several_batches_at_once_count_as_so_many(sl, train):
    training = train()
    training.begin()
    for _ in range(3):
        training.batch_end(NOTHING, num_batches=2)
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 4]


def test_the_model_is_what_the_arena_holds_after_a_merge(sl, train):
    def add_one(arena):
        arena.array("v")[:] += 1

    sl.merge = add_one
    training = train(model := Vector())
    training.begin()
    assert model.value.tolist() == [1, 1, 1]
    model.value = model.value * 10
    batches(training, 3)
    assert model.value.tolist() == [11, 11, 11]
    training.end()
    assert model.value.tolist() == [12, 12, 12]


def test_one_that_comes_back_takes_the_merged_parameters_instead_of_merging(sl, train):
    sl.resume = True
    training = train()
    training.begin()
    assert sl.asked(SyncRequest) == []
    batches(training, 3)
    assert len(sl.asked(SyncRequest)) == 1


def test_the_arguments_reach_sl(sl, train):
    train(
        training_contract="digits",
        min_peers=4,
        merge_method="geomedian",
        node_weight=7,
        checkin_on_train_end="active",
        total_epochs=9,
    ).begin()
    assert sl.asked(OpenRequest) == [
        OpenRequest(
            platform=Platform.PYTORCH,
            tensors=(TensorSpec("v", "F32", (3,)),),
            contract="digits",
            min_peers=4,
            merge_method=MergeMethod.GEOMEDIAN,
            node_weight=7,
            checkin_on_train_end=FinishMode.ACTIVE,
            total_epochs=9,
        )
    ]


def test_when_the_swarm_is_done_the_program_trains_on_without_merging_and_gets_the_final_model(sl, train):
    sl.over_at = 2
    training = train()
    training.begin()
    batches(training, 9)
    assert training.over
    assert len(sl.asked(SyncRequest)) == 2
    training.end()
    assert len(sl.asked(FinishRequest)) == 1


def test_progress_is_reported_at_epoch_ends_and_now_and_then_between(sl, train):
    clock = Clock()
    training = train(clock=clock, sync_frequency=100, total_epochs=2)
    training.begin()
    training.batch_end(Scores(loss=3.0))
    training.batch_end(Scores(loss=2.0))
    clock.now += REPORT_EVERY_S
    training.batch_end(Scores(loss=1.0))
    training.epoch_end(0, Scores(loss=0.5, metric=0.9, metric_name="accuracy"))
    assert [(report.batch, report.epoch, report.loss, report.metric) for report in sl.asked(Progress)] == [
        (1, 0, 3.0, None),
        (3, 0, 1.0, None),
        (3, 1, 0.5, 0.9),
    ]
    last = sl.asked(Progress)[-1]
    assert (last.contract, last.total_epochs, last.metric_name) == ("default", 2, "accuracy")


def test_epochs_are_counted_where_the_program_gives_no_number(sl, train):
    training = train()
    training.begin()
    training.epoch_end(None, NOTHING)
    training.epoch_end(None, NOTHING)
    assert [report.epoch for report in sl.asked(Progress)] == [1, 2]


def test_a_check_in_carries_the_newest_figures_and_no_nan(sl, train):
    training = train()
    training.begin()
    training.batch_end(Scores(loss=3.0))
    training.epoch_end(0, Scores(loss=float("nan"), metric=0.25, metric_name="accuracy"))
    batches(training, 2)
    assert sl.asked(SyncRequest)[-1] == SyncRequest(loss=None, metric=0.25, epoch=1, batch=3)


def test_the_loss_of_a_batch_and_the_metric_of_an_epoch_do_not_wipe_each_other_out(sl, train):
    training = train()
    training.begin()
    training.batch_end(Scores(loss=3.0))
    training.epoch_end(0, Scores(metric=0.25, metric_name="accuracy"))
    last = sl.asked(Progress)[-1]
    assert (last.loss, last.metric, last.metric_name) == (3.0, 0.25, "accuracy")
    training.batch_end(Scores(loss=2.0))
    training.batch_end(Scores(loss=1.0))
    assert sl.asked(SyncRequest)[-1] == SyncRequest(loss=1.0, metric=0.25, epoch=1, batch=3)


def test_adaptive_sync_follows_the_loss_of_the_merged_models(sl, train):
    model = Vector(losses=[1.0, 2.0, 1.5, 1.2, 1.0])
    training = train(model, sync_frequency=4, use_adaptive_sync=True, ads_val_data=[1])
    training.begin()
    batches(training, 10)
    # the second model is worse than the first: from 4 to 2
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 4, 6, 8, 10]
    assert [request.loss for request in sl.asked(SyncRequest)] == [None, 1.0, 2.0, 1.5, 1.2]


def test_validation_data_alone_is_reported_but_leaves_the_interval(sl, train):
    training = train(Vector(losses=[1.0, 2.0, 3.0]), ads_val_data=[1])
    training.begin()
    training.batch_end(Scores(loss=99.0))
    batches(training, 5)
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 3, 6]
    assert sl.asked(SyncRequest)[-1].loss == 2.0
    assert {report.metric_name for report in sl.asked(Progress)} == {"auc"}


def test_loopback_asks_nobody(tmp_path):
    training = Training(check({"sync_frequency": 1}), Vector(), None)
    training.begin()
    training.batch_end(NOTHING)
    training.epoch_end(0, NOTHING)
    training.end()
    assert training.num_batches == 0 and not training.over


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (["batch_end"], "on_batch_end: on_train_begin was not called yet"),
        (["epoch_end"], "on_epoch_end: on_train_begin was not called yet"),
        (["end"], "on_train_end: on_train_begin was not called yet"),
        (["begin", "begin"], "on_train_begin: on_train_begin was called already"),
        (["begin", "end", "batch_end"], "on_batch_end: on_train_end was called already: make a new SwarmCallback"),
        (["begin", "end", "end"], "on_train_end: on_train_end was called already"),
    ],
)
def test_a_call_out_of_order_is_named(sl, train, calls, text):
    training = train()
    run = {
        "begin": training.begin,
        "batch_end": lambda: training.batch_end(NOTHING),
        "epoch_end": lambda: training.epoch_end(None, NOTHING),
        "end": training.end,
    }
    for call in calls[:-1]:
        run[call]()
    with pytest.raises(ConfigError, match=text):
        run[calls[-1]]()


@pytest.mark.parametrize("error", [ContractMismatch, Fenced])
def test_a_refusal_of_sl_is_raised_by_its_name_and_ends_the_session(sl, train, error):
    training = train()
    training.begin()
    sl.refusal = Failure(name=error.__name__, detail="digits: not with us")
    with pytest.raises(error, match="not with us"):
        batches(training, 3)
    with pytest.raises(ConfigError, match="make a new SwarmCallback"):
        batches(training, 1)


def test_a_wait_is_told_once_per_reason(train, caplog):
    training = train()
    with caplog.at_level(logging.WARNING, "swarm_hpc.ml"):
        for reason in ("1 of 2 peers", "1 of 2 peers", "merging"):
            training._tell_wait(reason)
    assert [record.getMessage() for record in caplog.records] == ["waiting: 1 of 2 peers", "waiting: merging"]


def test_an_sl_that_dies_is_told(sl, train):
    training = train()
    training.begin()
    sl.refusal = "break off"
    with pytest.raises(NotReachable, match="SL is gone"):
        batches(training, 3)
