"""A program is told to leave, saves, and goes on from there: through Training, the stub SL and real files."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from swarm_hpc.errors import ConfigError
from swarm_hpc.ml.callback import EXIT_CODE, Training
from swarm_hpc.ml.saving import Step, Store
from swarm_hpc.ml.settings import check
from swarm_hpc.sl.frames import OpenRequest, Saved, SyncRequest
from tests.ml import test_callback


class Vector(test_callback.Vector):
    """It can be kept."""

    def save(self, folder):
        np.save(folder / "v.npy", self.value)

    def load(self, folder):
        self.value = np.load(folder / "v.npy")


@pytest.fixture
def train(sl, tmp_path):
    """Makes a Training that merges every 3 batches, at the stub SL, with a folder for its state."""
    made = []

    def make(model, store=None, **arguments):
        settings = check({"sync_frequency": 3} | arguments)
        made.append(Training(settings, model, sl.path, store=store or Store(tmp_path / "state")))
        return made[-1]

    yield make
    for training in made:
        training.close()


def step(training, model, count=1):
    for _ in range(count):
        model.value += 1
        training.batch_end(test_callback.NOTHING)


def leave(call, *args):
    with pytest.raises(SystemExit) as ended:
        call(*args)
    assert ended.value.code == EXIT_CODE


def test_told_between_two_merges_it_saves_at_the_end_of_the_batch(sl, train, tmp_path):
    model = Vector()
    training = train(model)
    training.begin()
    step(training, model, 4)
    training.epoch_end(0, test_callback.NOTHING)
    sl.ask_to_leave()
    leave(step, training, model)
    assert len(sl.asked(Saved)) == 1
    assert len(sl.asked(SyncRequest)) == 2
    saved = Store(tmp_path / "state").step()
    assert saved == Step(
        contract=saved.contract,
        created_at=sl.created_at,
        round=2,
        num_batches=5,
        num_epochs=1,
        batch=1,
        since_merge=2,
        interval=3,
    )
    assert np.load(tmp_path / "state" / "saved" / "v.npy").tolist() == [5.0] * 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("others_went_on", [False, True])
def test_a_program_that_comes_back_keeps_its_parameters_unless_there_are_newer_ones(sl, train, others_went_on):
    train_to_batch_5(sl, train)
    model = Vector()
    training = train(model)
    assert (training.num_batches, training.num_epochs, training.batch) == (5, 0, 5)
    sl.restart(round=9 if others_went_on else 3, value=70.0)
    training.begin()
    assert [request.goes_on for request in sl.asked(OpenRequest)] == [False, True]
    assert model.value.tolist() == [70.0 if others_went_on else 5.0] * 3
    before = len(sl.asked(SyncRequest))
    step(training, model)
    assert len(sl.asked(SyncRequest)) == before + (0 if others_went_on else 1), "its interval goes on where it was"
    step(training, model, 2)
    assert len(sl.asked(SyncRequest)) == before + 1


def train_to_batch_5(sl, train):
    model = Vector()
    training = train(model)
    training.begin()
    step(training, model, 4)
    sl.ask_to_leave()
    leave(step, training, model)


def test_told_in_the_middle_of_a_merge_it_keeps_its_own_parameters_and_merges_them_when_it_is_back(sl, train):
    model = Vector()
    sl.leave_at = 2
    training = train(model)
    training.begin()
    step(training, model, 2)
    leave(step, training, model)
    model = Vector()
    sl.restart(round=2, value=70.0)
    training = train(model)
    training.begin()
    assert len(sl.asked(SyncRequest)) == 3, "the merge that was given up"
    assert model.value.tolist() == [3.0] * 3


def test_told_at_the_end_it_comes_back_for_the_final_model_only(sl, train, tmp_path):
    model = Vector()
    sl.leave_at = 2
    training = train(model)
    training.begin()
    step(training, model, 2)
    leave(training.end)
    sl.restart(round=2, value=70.0)
    training = train(model := Vector())
    assert training.num_batches == 2
    training.begin()
    training.end()
    assert model.value.tolist() == [2.0] * 3
    assert Store(tmp_path / "state").step() is None, "nothing is left to go on from"


def test_sigterm_to_the_program_itself_ends_it_after_the_batch(sl, train):
    model = Vector()
    training = train(model)
    training.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    leave(step, training, model)
    assert len(sl.asked(Saved)) == 1


def test_sigterm_ends_a_process_that_the_program_has_forked(sl, train):
    def sleep():
        up.set()
        time.sleep(60)

    train(Vector()).begin()
    context = multiprocessing.get_context("fork")
    up = context.Event()
    child = context.Process(target=sleep, daemon=True)
    child.start()
    assert up.wait(20)  # CPython drops a signal that comes while it still sets a forked process up
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM


def test_a_programs_own_handler_of_sigterm_stays(sl, train):
    def own(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, own)
    try:
        train(Vector()).begin()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_what_the_program_adds_is_kept_with_the_rest(sl, train):
    found = []
    hooks = {
        "save_state": lambda folder: (folder / "mine").write_text("7"),
        "load_state": lambda folder: found.append((folder / "mine").read_text()),
    }
    model = Vector()
    training = train(model, **hooks)
    training.begin()
    sl.ask_to_leave()
    leave(step, training, model)
    sl.restart()
    train(Vector(), **hooks).begin()
    assert found == ["7"]


def test_now_and_then_it_saves_after_a_merge(sl, train, tmp_path):
    model = Vector()
    training = train(model, save_every_s=1)
    training._clock = lambda: 1e9
    training.begin()
    assert Store(tmp_path / "state").step().round == 1
    step(training, model, 2)
    assert Store(tmp_path / "state").step().num_batches == 0


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("file write failed")])
def test_a_save_between_merges_that_fails_does_not_end_the_training(sl, train, tmp_path, caplog, error):
    train_to_batch_5(sl, train)

    def fail(folder):
        (folder / "half").write_text("written")
        raise error

    sl.restart()
    model = Vector()
    training = train(model, save_every_s=1, save_state=fail, load_state=lambda folder: None)
    training._clock = lambda: 1e9
    training.begin()
    step(training, model, 2)
    assert f"the state is not saved, what was saved before stays: {error}" in caplog.text
    assert Store(tmp_path / "state").step().num_batches == 5
    assert not (tmp_path / "state" / "new").exists()


def test_a_state_of_another_contract_is_refused(sl, train, tmp_path):
    store = Store(tmp_path / "state")
    store.save(Step(contract="other", round=1, interval=3), lambda folder: np.save(folder / "v.npy", np.zeros(3)))
    with pytest.raises(ConfigError, match=r"is of training contract other, and this is .*: remove the folder"):
        train(Vector(), store).begin()


def test_a_state_of_an_earlier_training_under_the_same_name_is_refused(sl, train):
    train_to_batch_5(sl, train)
    sl.restart(round=1)
    with pytest.raises(ConfigError, match=r"after round 2 of another training .* at round 1; remove the folder"):
        train(Vector()).begin()


def test_a_state_of_an_earlier_training_is_refused_however_far_the_new_one_is(sl, train):
    train_to_batch_5(sl, train)
    sl.restart(round=9)
    sl.created_at += 1
    with pytest.raises(ConfigError, match=r"after round 2 of another training .* at round 9; remove the folder"):
        train(Vector()).begin()


def test_a_state_that_does_not_say_when_its_contract_was_created_is_taken(sl, train, tmp_path):
    train_to_batch_5(sl, train)
    file = tmp_path / "state" / "saved" / "step.json"
    step = json.loads(file.read_text())
    del step["created_at"]
    file.write_text(json.dumps(step))
    sl.restart()
    training = train(Vector())
    training.begin()
    assert training.num_batches == 5


def test_a_write_that_fails_leaves_what_was_saved_before(tmp_path):
    store = Store(tmp_path)
    store.save(Step(num_batches=1), lambda folder: None)

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(Step(num_batches=2), fail)
    assert store.step().num_batches == 1


def test_a_save_that_was_cut_off_between_its_two_renames_is_found(tmp_path):
    store = Store(tmp_path)
    store.save(Step(num_batches=1), lambda folder: None)
    (tmp_path / "saved").rename(tmp_path / "old")
    assert store.step().num_batches == 1


@pytest.mark.parametrize("text", ["", "[]", '{"round": "x"}'])
def test_a_state_that_cannot_be_read_is_named_with_the_remedy(tmp_path, text):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "step.json").write_text(text)
    with pytest.raises(ConfigError, match=r"step\.json cannot be read .* to start anew"):
        Store(tmp_path).step()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"save_state": print}, "save_state and load_state go together"),
        ({"save_state": 3, "load_state": print}, "save_state: 3: pass a function that takes a folder"),
        ({"save_every_s": -1}, "save_every_s: -1: write a whole number, 0 or more"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        check({"sync_frequency": 3} | arguments)
