"""The Keras callback in a real `fit`."""

import importlib

import numpy as np
import pytest

from swarm_hpc.errors import ConfigError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.ml.settings import check
from swarm_hpc.records import Platform, Progress
from swarm_hpc.sl.frames import FinishRequest, OpenRequest, SyncRequest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.float32)


@pytest.fixture(scope="module")
def ml():
    """swarm_hpc.ml.keras, imported only where these tests run: TensorFlow takes seconds."""
    pytest.importorskip("keras")
    return importlib.import_module("swarm_hpc.ml.keras")


def build(keras):
    keras.utils.set_random_seed(0)
    shared = keras.layers.Dense(4, name="shared")
    model = keras.Sequential(
        [
            keras.Input([4]),
            shared,
            keras.layers.BatchNormalization(name="norm"),
            shared,
            keras.layers.Dense(1, activation="sigmoid", name="out", dtype="float64"),
        ]
    )
    model.compile(optimizer="sgd", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def fit(model, swarm, **options):
    return model.fit(X, Y, **{"batch_size": 16, "epochs": 2, "verbose": 0, "callbacks": [swarm]} | options)


def test_every_weight_travels_in_layer_order_and_comes_back(ml):
    model, other = build(ml.keras), build(ml.keras)
    fit(model, ml.keras.callbacks.Callback())
    settings = check({"sync_frequency": 1})
    tensors, aliases = ml.KerasModel(model, settings).describe()
    assert aliases == {}
    assert [(spec.name.split("/")[-2:], spec.dtype) for spec in tensors] == [
        (["shared", "kernel"], "F32"),
        (["shared", "bias"], "F32"),
        (["norm", "gamma"], "F32"),
        (["norm", "beta"], "F32"),
        (["norm", "moving_mean"], "F32"),
        (["norm", "moving_variance"], "F32"),
        (["out", "kernel"], "F64"),
        (["out", "bias"], "F64"),
    ]
    with Arena.create(place(tensors)) as arena:
        ml.KerasModel(model, settings).write(arena)
        names = [spec.name for spec in tensors]
        arrays = {name: arena.array(name).copy() for name in names}
        with_names = ml.KerasModel(other, settings)
        other_names = [spec.name for spec in with_names.describe()[0]]
        renamed = place(with_names.describe()[0])
    with Arena.create(renamed) as arena:
        for name, other_name in zip(names, other_names, strict=True):
            arena.array(other_name)[:] = arrays[name]
        with_names.read(arena)
        arena.array(other_names[0])[:] = -1  # must not reach through to the weights
    for weight, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_fit_merges_reports_and_ends_with_the_final_model(ml, sl):
    def merge(arena):
        arena.array(sl.asked(OpenRequest)[0].tensors[-1].name)[:] = sl.num_rounds

    sl.merge = merge
    model = build(ml.keras)
    fit(model, ml.SwarmCallback(sync_frequency=3, total_epochs=2))
    assert sl.asked(OpenRequest)[0].platform is Platform.KERAS
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 3, 6]
    assert len(sl.asked(FinishRequest)) == 1
    assert model.get_weights()[-1] == pytest.approx(4)
    last = sl.asked(Progress)[-1]
    assert (last.epoch, last.total_epochs, last.batch, last.metric_name) == (2, 2, 8, "accuracy")
    assert 0 <= last.metric <= 1


@pytest.mark.parametrize("steps", [2, 3], ids=["that fit into an epoch", "that do not"])
def test_several_steps_per_execution_are_counted(ml, sl, steps):
    model = build(ml.keras)
    model.compile(optimizer="sgd", loss="binary_crossentropy", steps_per_execution=steps)
    fit(model, ml.SwarmCallback(sync_frequency=4))
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 4, 8]


def test_when_the_swarm_is_done_so_is_fit(ml, sl):
    sl.over_at = 2
    swarm = ml.SwarmCallback(sync_frequency=1)
    history = fit(build(ml.keras), swarm, epochs=50)
    assert swarm.training_over
    assert len(history.epoch) == 1
    assert len(sl.asked(SyncRequest)) == 2


def test_adaptive_sync_judges_merged_models_and_keeps_the_epochs_own_metrics(ml, sl):
    def worsen(arena):
        arena.array(sl.asked(OpenRequest)[0].tensors[-1].name)[:] = 2.0**sl.num_rounds

    sl.merge = worsen
    seen = []
    swarm = ml.SwarmCallback(
        sync_frequency=4, use_adaptive_sync=True, ads_val_data=(X, Y), ads_val_batch_size=32, total_epochs=2
    )

    class Counts(ml.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(self.model.metrics[0].count.numpy()))

    fit(build(ml.keras), swarm, callbacks=[swarm, Counts()])
    batches = [request.batch for request in sl.asked(SyncRequest)]
    assert batches[:3] == [0, 4, 6]
    assert all(isinstance(request.loss, float) for request in sl.asked(SyncRequest)[1:])
    assert seen == [16, 32, 48, 64] * 2, "examples that the epoch's loss is the mean of"


def test_loopback_trains_alone(ml, loopback):
    history = fit(build(ml.keras), ml.SwarmCallback(sync_frequency=1))
    assert len(history.epoch) == 2


def test_a_model_without_weights_is_told_to_be_built(ml):
    with pytest.raises(ConfigError, match="build it first"):
        ml.KerasModel(ml.keras.Sequential([ml.keras.layers.Dense(1)]), check({"sync_frequency": 1})).describe()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({}, "sync_frequency is missing"), ({"sync_frequency": 1, "ads_val_data": (X,)}, "ads_val_data: a tuple of 1")],
)
def test_wrong_arguments_are_named_also_in_loopback(ml, loopback, arguments, text):
    with pytest.raises(ConfigError, match=text):
        ml.SwarmCallback(**arguments)


def test_a_hook_before_the_begin_is_named(ml, sl):
    with pytest.raises(ConfigError, match="on_train_begin was not called yet"):
        ml.SwarmCallback(sync_frequency=1).on_epoch_end(0)


def test_with_mixed_precision_the_float32_weights_travel_and_no_seed_or_optimizer_state(ml, sl):
    keras = ml.keras
    layers = [keras.Input([4]), keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    for layer in layers[1:]:
        layer.dtype_policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.Adam(), loss="mse")
    fit(model, ml.SwarmCallback(sync_frequency=2))
    assert [spec.dtype for spec in sl.asked(OpenRequest)[0].tensors] == ["F32"] * 4


def test_a_fit_that_fails_leaves_the_swarm_at_the_end_of_the_with_block(ml, sl):
    class Failing(ml.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise ZeroDivisionError

    swarm = ml.SwarmCallback(sync_frequency=2)
    with pytest.raises(ZeroDivisionError), swarm:
        fit(build(ml.keras), swarm, callbacks=[swarm, Failing()])
    sl.close()  # waits for the end of the session, although `swarm` lives


@pytest.mark.parametrize("optimizer", ["sgd", "adam", None])
def test_model_and_optimizer_are_kept_and_come_back(ml, tmp_path, optimizer):
    model, other = build(ml.keras), build(ml.keras)
    if optimizer:
        for one in (model, other):
            one.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    fit(model, ml.keras.callbacks.Callback())
    settings = check({"sync_frequency": 1})
    ml.KerasModel(model, settings).save(tmp_path)
    ml.KerasModel(other, settings).load(tmp_path)
    pairs = zip([*model.weights, *model.optimizer.variables], [*other.weights, *other.optimizer.variables], strict=True)
    for one, two in pairs:
        assert np.array_equal(one.numpy(), two.numpy()), one.path


def test_a_saved_state_of_another_model_is_refused(ml, tmp_path):
    settings = check({"sync_frequency": 1})
    ml.KerasModel(build(ml.keras), settings).save(tmp_path)
    other = ml.keras.Sequential([ml.keras.Input([4]), ml.keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match="is of another model or optimizer; remove the folder"):
        ml.KerasModel(other, settings).load(tmp_path)


def test_a_fit_that_is_told_to_leave_goes_on_at_its_epoch(ml, sl, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_STATE_DIR", str(tmp_path / "state"))

    class Leaving(ml.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                sl.ask_to_leave()

    ml.keras.backend.clear_session()
    model = build(ml.keras)
    with pytest.raises(SystemExit), ml.SwarmCallback(sync_frequency=100) as swarm:
        fit(model, swarm, epochs=4, callbacks=[Leaving(), swarm])
    sl.restart()
    ml.keras.backend.clear_session()  # a new process numbers its layers anew
    other = build(ml.keras)
    with ml.SwarmCallback(sync_frequency=100) as swarm:
        assert swarm.epoch == 2
        history = fit(other, swarm, epochs=4, initial_epoch=swarm.epoch)
    assert history.epoch == [2, 3]
    assert other.optimizer.iterations.numpy() == model.optimizer.iterations.numpy() + 2 * 4
