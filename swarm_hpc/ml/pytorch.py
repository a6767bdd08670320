"""SwarmCallback for PyTorch: a training loop calls four hooks, and the whole `state_dict` of its model is merged.

The optimizer's state is not merged: momentum and the like stay with each site. It is kept, with the model, when the
program's job is to come back.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from swarm_hpc.errors import ConfigError, ModelMismatch
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.kernels.torch_dtypes import DTYPES
from swarm_hpc.ml.callback import Scores, Training
from swarm_hpc.ml.resident import Residents
from swarm_hpc.ml.saving import Store
from swarm_hpc.ml.settings import Arguments, Settings, check, socket_path, state_dir
from swarm_hpc.records import Platform

Score: TypeAlias = Callable[[Any, Any], Any]
"""(outputs, targets) -> a number."""

CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
"""The safetensors code of each dtype that can be merged."""
_STATE: Final = "state.pt"


class SwarmCallback:
    """Trains a PyTorch model in the swarm. The program's own loop calls the hooks:

        swarm = SwarmCallback(model=model, sync_frequency=10)
        swarm.on_train_begin()
        for epoch in range(epochs):
            for batch, (x, y) in enumerate(loader):
                ...
                swarm.on_batch_end(batch, loss)     # after optimizer.step()
            swarm.on_epoch_end(epoch)
        swarm.on_train_end()                        # now the model is the swarm's final one

    The other keyword arguments are those of `settings.Arguments`. `ads_val_data` is an iterable of (inputs, targets),
    such as a DataLoader; it needs `loss_function`, and takes `metric_function`: callables of (outputs, targets), or
    names in torch.nn. The loss is averaged over the examples of its batches; the metric is computed once, over all
    outputs. ConfigError names an argument that cannot be used; with SWARM_LOOPBACK=TRUE in the environment that is all
    that happens.

    A program whose job may be stopped and come back (Slurm's requeue) passes its `optimizer`, or several, and starts
    its loops where it left off: `epoch` and `batch` say where. What else it needs, save_state and load_state keep.

    With `share_memory=True` the model's tensors in main memory live where SL merges them (resident.py), until the
    session ends: a merge then copies nothing. Off by default, because of what an interrupted merge may do: after an
    error the model may be half merged, and a program that was told to leave during a merge comes back to the swarm's
    newest parameters instead of its own.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] = (),
        loss_function: str | Score | None = None,
        metric_function: str | Score | None = None,
        share_memory: bool = False,
        **arguments: Unpack[Arguments],
    ) -> None:
        settings = check(arguments)
        if not isinstance(share_memory, bool):
            raise ConfigError(f"share_memory: {share_memory!r} is neither True nor False")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model: {type(model).__name__} is not a torch.nn.Module: pass the model to be trained")
        model = _unwrapped(model)
        optimizers = _optimizers(optimizer)
        judge = _judge(settings, loss_function, metric_function)
        self.logger = settings.logger
        mine = TorchModel(model, judge, optimizers, share_memory=share_memory)
        self._training = Training(settings, mine, socket_path(), store=Store(state_dir()))

    @property
    def training_over(self) -> bool:
        """The swarm has completed its training: further batches are no longer merged, the loop may stop early."""
        return self._training.over

    @property
    def epoch(self) -> int:
        """Epochs that have ended, those of an earlier job included: where the loop over epochs begins."""
        return self._training.num_epochs

    @property
    def batch(self) -> int:
        """Batches since then: a program that comes back may leave out so many in its first epoch."""
        return self._training.batch

    @property
    def num_batches(self) -> int:
        """Batches in all, those of an earlier job included: where a loop over steps begins."""
        return self._training.num_batches

    def on_train_begin(self) -> None:
        """Join the training contract and start from the same parameters as everybody."""
        self._training.begin()

    def on_batch_end(self, batch: int | None = None, loss: Tensor | float | None = None) -> None:
        """After each optimizer step; every sync_frequency batches the model's state becomes the merged one.

        `batch` is not needed: batches are counted here.
        """
        self._training.batch_end(Scores(loss=_detached(loss)))

    def on_epoch_end(
        self, epoch: int | None = None, loss: Tensor | float | None = None, metric: Tensor | float | None = None
    ) -> None:
        """After each epoch (numbered from 0), with figures to report."""
        self._training.epoch_end(epoch, Scores(loss=_detached(loss), metric=_detached(metric), metric_name="metric"))

    def on_train_end(self) -> None:
        """Wait for the swarm's final model and load it."""
        self._training.end()

    def close(self) -> None:
        """Leave without the final model, such as after an error. May be repeated."""
        self._training.close()

    def __enter__(self) -> Self:
        """`with SwarmCallback(...) as swarm:` leaves at once when the block fails, not when the program ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def outlive_sigterm(worker_id: int) -> None:
    """For `DataLoader(worker_init_fn=outlive_sigterm)`: the worker stays when Slurm gives SIGTERM to all processes of a
    job, or the program would fail for want of it before it has saved. It ends with the program."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Judge:
    """Loss and metric of a model on validation data."""

    def __init__(self, data: Any, loss_function: Score, metric_function: Score | None) -> None:
        self._data = data
        self._loss_function = loss_function
        self._metric_function = metric_function

    def score(self, model: nn.Module) -> Scores:
        """Evaluate, and leave the model's modes and torch's random numbers as they were."""
        device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
        total, count = 0.0, 0
        outputs, targets = [], []
        # a DataLoader draws a seed for each pass, also one that does not shuffle
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _evaluating(model):
            for batch in self._data:
                x, y = _moved(_pair(batch), device)
                output = model(x)
                total += float(self._loss_function(output, y)) * len(y)
                count += len(y)
                if self._metric_function:
                    outputs.append(output)
                    targets.append(y)
            if not count:
                raise ConfigError("ads_val_data: it has no batches (an iterator? it is read after every merge)")
            metric = self._metric_function(torch.cat(outputs), torch.cat(targets)) if self._metric_function else None
        return Scores(loss=total / count, metric=metric, metric_name="metric" if self._metric_function else "")


class TorchModel:
    """A PyTorch model's state, as the swarm sees it (`callback.SwarmModel`)."""

    platform: Final = Platform.PYTORCH

    def __init__(
        self,
        model: nn.Module,
        judge: Judge | None = None,
        optimizers: Sequence[Optimizer] = (),
        *,
        share_memory: bool = False,
    ) -> None:
        self._model = model
        self._judge = judge
        self._optimizers = optimizers
        self._share_memory = share_memory
        self._residents: Residents | None = None

    @property
    def in_arena(self) -> bool:
        """Some of the model's tensors live in the arena."""
        return self._residents is not None

    def describe(self) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
        """Every tensor of the state_dict. ConfigError names one that cannot be sent."""
        stored, aliases = self._state()
        self._check_lasting(stored)
        return tuple(
            TensorSpec(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in stored.items()
        ), aliases

    def write(self, arena: Arena) -> None:
        """Copy the state into the arena, from whatever device it is on; what lives there is there already."""
        for tensor, view in self._apart(arena):
            view.copy_(tensor)
        if self._share_memory and self._residents is None:
            views = dict(_views(arena))
            self._residents = Residents.move_in(self._model, views, dict(arena.layout.aliases))

    @torch.no_grad()
    def read(self, arena: Arena) -> None:
        """Copy the arena into the model's own tensors, which keep their devices."""
        for tensor, view in self._apart(arena):
            tensor.copy_(view)

    def release(self) -> None:
        """Give what lives in the arena memory of its own."""
        if self._residents is not None:
            self._residents.move_out()
            self._residents = None

    def validate(self) -> Scores:
        """Loss and metric on ads_val_data."""
        assert self._judge is not None, "only asked for with ads_val_data"
        return self._judge.score(self._model)

    def save(self, folder: Path) -> None:
        """Model, optimizers and torch's random numbers."""
        state = {
            "model": self._model.state_dict(),
            "optimizers": [_plain(optimizer.state_dict()) for optimizer in self._optimizers],
            "random": torch.random.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all(),
        }
        torch.save(state, folder / _STATE)

    def load(self, folder: Path) -> None:
        """Take them back. ConfigError where the program is another one by now."""
        try:
            state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        except UnpicklingError as exc:
            raise ConfigError(
                f"the optimizer's state in {folder} holds more than tensors and plain values: keep the rest with "
                "save_state, and remove the folder to start anew"
            ) from exc
        kept = state["optimizers"]
        if len(kept) != len(self._optimizers):
            raise ConfigError(
                f"optimizer: {len(kept)} were saved in {folder}, now there are {len(self._optimizers)}: pass the same "
                "as before, or remove the folder to start anew"
            )
        try:
            self._model.load_state_dict(state["model"])
            for optimizer, its_state in zip(self._optimizers, kept, strict=True):
                optimizer.load_state_dict(its_state)
        except (RuntimeError, ValueError) as exc:
            raise ConfigError(
                f"the state in {folder} is of another model or optimizer; remove the folder to start anew: {exc}"
            ) from exc
        torch.random.set_rng_state(state["random"])
        if len(state["cuda_random"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_random"])

    def _check_lasting(self, stored: Mapping[str, Tensor]) -> None:
        """ConfigError names a tensor that is made anew for each state_dict: what is merged would be lost with it."""
        again = self._model.state_dict()
        for name, tensor in stored.items():
            if tensor.numel() and again[name].data_ptr() != tensor.data_ptr():
                raise ConfigError(
                    f"model: tensor {name!r} is made anew whenever its state_dict is asked for (get_extra_state, or a "
                    "wrapper that gathers parameters), so merged values would be lost: keep it in a buffer, or pass "
                    "the model without the wrapper"
                )

    def _apart(self, arena: Arena) -> Iterator[tuple[Tensor, Tensor]]:
        """(the model's tensor, its place in the arena) of each that does not live there."""
        resident = self._residents.names() if self._residents is not None else frozenset()
        views = list(_views(arena, resident))
        if views:
            stored, _ = self._state()
            yield from ((_same(name, stored, view), view) for name, view in views)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of the state_dict, each memory once, and the further names of shared ones."""
        stored: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        first: dict[object, str] = {}
        for name, tensor in self._model.state_dict().items():
            _check_sendable(name, tensor)
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() and place in first:
                aliases[name] = first[place]
            else:
                stored[name] = tensor
                first[place] = name
        if not stored:
            raise ConfigError("model: its state_dict is empty: there is nothing to merge")
        return stored, aliases


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> Sequence[Optimizer]:
    optimizers = tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ConfigError(f"optimizer: {type(one).__name__} is not a torch.optim.Optimizer")
    return optimizers


def _plain(value: Any) -> Any:
    """With Python's numbers for numpy's: a learning rate that was computed by numpy is no plain value to torch.load."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(one) for one in value)
    return value.item() if isinstance(value, np.generic) else value


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model that DataParallel, DistributedDataParallel or torch.compile wraps: they put a prefix on all names."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _same(name: str, stored: Mapping[str, Tensor], view: Tensor) -> Tensor:
    """The model's tensor of that name; ModelMismatch where it is not what it was when the session was opened."""
    tensor = stored.get(name)
    if tensor is None or tensor.shape != view.shape or tensor.dtype != view.dtype:
        now = "gone" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise ModelMismatch(
            f"tensor {name!r} was {view.dtype} {list(view.shape)} when the training began and is {now}: change the "
            "model before on_train_begin"
        )
    return tensor


def _check_sendable(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"model: {name!r} in its state_dict is a {type(tensor).__name__}; only tensors can be merged")
    problem = ""
    if is_lazy(tensor):
        problem = "has no shape yet (a lazy module: run one batch first)"
    elif tensor.layout is not torch.strided:
        problem = f"is sparse ({tensor.layout})"
    elif tensor.is_quantized or tensor.dtype not in CODES:
        problem = f"has dtype {tensor.dtype}"
    elif tensor.is_meta:
        problem = "is on the meta device, without values"
    elif any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        problem = "is expanded: several of its elements are one in memory"
    if problem:
        raise ConfigError(
            f"model: tensor {name!r} {problem} and cannot be merged: convert it, or make it non-persistent"
        )


def _views(arena: Arena, but: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """The arena's tensors, but some, as views of the shared memory; empty ones have nothing to copy."""
    for placed in arena.layout.tensors:
        if placed.stop > placed.start and placed.spec.name not in but:
            dtype = DTYPES[placed.spec.dtype]
            flat = torch.frombuffer(
                arena.buffer, dtype=dtype, count=(placed.stop - placed.start) // dtype.itemsize, offset=placed.start
            )
            yield placed.spec.name, flat.view(placed.spec.shape)


def _judge(settings: Settings, loss_function: str | Score | None, metric_function: str | Score | None) -> Judge | None:
    loss = _score("loss_function", loss_function)
    metric = _score("metric_function", metric_function)
    if settings.ads_val_data is None:
        return None
    if loss is None:
        raise ConfigError(
            "ads_val_data needs loss_function: a callable of (outputs, targets), or a name such as 'CrossEntropyLoss'"
        )
    if not hasattr(settings.ads_val_data, "__iter__"):
        kind = type(settings.ads_val_data).__name__
        raise ConfigError(f"ads_val_data: {kind} gives no batches: pass a DataLoader of (inputs, targets)")
    return Judge(settings.ads_val_data, loss, metric)


def _score(argument: str, value: str | Score | None) -> Score | None:
    """The callable, or a new one of torch.nn's class of that name."""
    if isinstance(value, str):
        found = getattr(nn, value, None)
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise ConfigError(f"{argument}: torch.nn has no class {value!r}: pass a callable of (outputs, targets)")
        return found()
    if value is not None and not callable(value):
        raise ConfigError(f"{argument}: {value!r} is neither a callable of (outputs, targets) nor a name in torch.nn")
    return value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode; afterwards each in its own again, for a program may have frozen some."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ConfigError("ads_val_data: each of its batches must be a pair (inputs, targets)")
    return batch[0], batch[1]


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors, also those in tuples, lists and dicts, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return [_moved(item, device) for item in value]
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _detached(value: Tensor | float | None) -> Tensor | float | None:
    """Without the graph that it would keep in memory."""
    return value.detach() if isinstance(value, Tensor) else value
