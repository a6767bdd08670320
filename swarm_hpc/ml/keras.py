"""SwarmCallback for Keras 3 on TensorFlow: one more callback for `fit`, and every weight of the model is merged.

Trainable or not, in the order of the layers. The optimizer's variables are not merged: they stay with each site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

import keras
import numpy as np

from swarm_hpc.errors import ConfigError
from swarm_hpc.kernels.arena import DTYPES, Arena
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.ml.callback import Scores, Training
from swarm_hpc.ml.saving import Step, Store
from swarm_hpc.ml.settings import Arguments, Settings, check, socket_path, state_dir
from swarm_hpc.records import Platform

_STATE: Final = "state.npz"
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}


class SwarmCallback(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Trains a Keras model in the swarm: `model.fit(..., callbacks=[SwarmCallback(sync_frequency=10)])`.

    The other keyword arguments are those of `settings.Arguments`. `ads_val_data` is (x, y), (x, y, sample_weight) or
    whatever else `evaluate` takes. When the swarm's training is over, so is fit's. After `fit` the model is the swarm's
    final one. ConfigError names an argument that cannot be used; with SWARM_LOOPBACK=TRUE in the environment that is
    all that happens.

    A program whose job may be stopped and come back (Slurm's requeue) passes `initial_epoch=swarm.epoch` to fit; model
    and optimizer are as they were. What else it needs, save_state and load_state keep.
    """

    def __init__(self, **arguments: Unpack[Arguments]) -> None:
        super().__init__()
        self._settings = check(arguments)
        data = self._settings.ads_val_data
        if isinstance(data, tuple) and len(data) not in (2, 3):
            raise ConfigError(f"ads_val_data: a tuple of {len(data)}: pass (x, y) or (x, y, sample_weight)")
        self.logger = self._settings.logger
        self._socket_path = socket_path()
        self._store = Store(state_dir())
        self._training: Training | None = None
        self._first_batch = 0

    @property
    def epoch(self) -> int:
        """Epochs that have ended, those of an earlier job included: fit's initial_epoch."""
        if self._training is not None:
            return self._training.num_epochs
        return (self._store.step() or Step()).num_epochs

    @property
    def training_over(self) -> bool:
        """The swarm has completed its training."""
        return self._training is not None and self._training.over

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Join the training contract and start from the same weights as everybody."""
        if self._training is None:
            model = KerasModel(self.model, self._settings)
            self._training = Training(self._settings, model, self._socket_path, store=self._store)
        self._training.begin()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember where a run of batches starts (several with steps_per_execution)."""
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count; every sync_frequency batches the model's weights become the merged ones."""
        training = self._begun("on_train_batch_end")
        training.batch_end(_scores(logs), num_batches=self._last_batch(batch) - self._first_batch + 1)
        self._follow(training)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report."""
        self._begun("on_epoch_end").epoch_end(epoch, _scores(logs))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wait for the swarm's final model and load it."""
        self._begun("on_train_end").end()

    def close(self) -> None:
        """Leave without the final model, such as after an error. May be repeated."""
        if self._training is not None:
            self._training.close()

    def __enter__(self) -> Self:
        """`with SwarmCallback(...) as swarm: model.fit(...)` leaves at once when fit fails, not with the program."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begun(self, hook: str) -> Training:
        if self._training is None:
            raise ConfigError(f"SwarmCallback.{hook}: on_train_begin was not called yet")
        return self._training

    def _last_batch(self, batch: int) -> int:
        """Keras names the last batch of a full run, also where the epoch ends before that."""
        steps = (self.params or {}).get("steps")  # None: the length of the data is not known yet
        return batch if steps is None else min(batch, steps - 1)

    def _follow(self, training: Training) -> None:
        if training.over:
            self.model.stop_training = True


class KerasModel:
    """A Keras model's weights, as the swarm sees them (`callback.SwarmModel`)."""

    platform: Final = Platform.KERAS
    in_arena: Final = False

    def __init__(self, model: Any, settings: Settings) -> None:
        self._model = model
        self._settings = settings

    def describe(self) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
        """Every weight by its path. Keras lists a shared layer once, so there are no aliases."""
        specs = []
        for name, weight in self._weights().items():
            value = weight.numpy()
            code = _CODES.get(value.dtype)
            if code is None:
                raise ConfigError(f"model: weight {name!r} has dtype {value.dtype} and cannot be merged: convert it")
            specs.append(TensorSpec(name, code, tuple(value.shape)))
        return tuple(specs), {}

    def write(self, arena: Arena) -> None:
        """Copy the weights into the arena."""
        for name, weight in self._weights().items():
            np.copyto(arena.array(name), weight.numpy(), casting="no")

    def read(self, arena: Arena) -> None:
        """Copy the arena into the weights."""
        for name, weight in self._weights().items():
            # a copy, because TensorFlow may take over the memory that it is given
            weight.assign(arena.array(name).copy())

    def release(self) -> None:
        """Nothing to do: TensorFlow has memory of its own."""

    def validate(self) -> Scores:
        """Loss and first metric on ads_val_data, from `evaluate`."""
        data = self._settings.ads_val_data
        x, *rest = data if isinstance(data, tuple) else (data,)
        names = dict(zip(("y", "sample_weight"), rest, strict=False))
        with _metrics_kept(self._model):
            logs = self._model.evaluate(
                x, **names, batch_size=self._settings.ads_val_batch_size, verbose=0, return_dict=True
            )
        return _scores(logs)

    def save(self, folder: Path) -> None:
        """The model's weights and the optimizer's variables."""
        np.savez(folder / _STATE, **{name: variable.numpy() for name, variable in self._kept().items()})

    def load(self, folder: Path) -> None:
        """Take them back. ConfigError where the program is another one by now."""
        kept = self._kept()
        with np.load(folder / _STATE) as state:
            found = {name: state[name] for name in state.files}
        shapes = {name: tuple(variable.shape) for name, variable in kept.items()}
        if {name: value.shape for name, value in found.items()} != shapes:
            raise ConfigError(
                f"the state in {folder} is of another model or optimizer; remove the folder to start anew"
            )
        for name, variable in kept.items():
            # numpy keeps bfloat16 as nameless bytes
            variable.assign(found[name].view(variable.numpy().dtype))

    def _kept(self) -> dict[str, Any]:
        optimizer = getattr(self._model, "optimizer", None)  # there is none before compile
        if optimizer is not None and not optimizer.built:
            optimizer.build(self._model.trainable_variables)
        groups = {"weight": self._model.weights, "optimizer": optimizer.variables if optimizer is not None else []}
        return {f"{group} {number}": each for group, them in groups.items() for number, each in enumerate(them)}

    def _weights(self) -> dict[str, Any]:
        """Weights by path; a path that is there twice gets a number."""
        seen: Counter[str] = Counter()
        weights = {}
        for weight in self._model.weights:
            path = str(weight.path)
            seen[path] += 1
            weights[path if seen[path] == 1 else f"{path}#{seen[path]}"] = weight
        if not weights:
            raise ConfigError("model: it has no weights yet: build it first, such as with an Input layer")
        return weights


@contextmanager
def _metrics_kept(model: Any) -> Iterator[None]:
    """`evaluate` in the middle of an epoch would start the epoch's own metrics anew."""
    variables = list(model.metrics_variables)
    values = [variable.numpy().copy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _scores(logs: Mapping[str, Any] | None) -> Scores:
    """Loss and first other figure of the logs; that of the validation data where there is one."""
    logs = logs or {}
    names = [name for name in logs if name != "loss" and not name.startswith("val_")]
    if not names:
        return Scores(loss=logs.get("loss"))
    name = names[0]
    return Scores(loss=logs.get("loss"), metric=logs.get(f"val_{name}", logs[name]), metric_name=name)
