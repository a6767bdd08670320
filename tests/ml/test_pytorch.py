"""The PyTorch callback: what of a model travels, and that it comes back as it was."""

import multiprocessing
import os
import signal
from datetime import date

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm_hpc.errors import ConfigError, ModelMismatch
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.ml.pytorch import CODES, SwarmCallback, TorchModel, outlive_sigterm
from swarm_hpc.records import Platform, Progress
from swarm_hpc.sl.frames import FinishRequest, OpenRequest, SyncRequest
from tests.ml.models import Tied

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def arena_for(model):
    tensors, aliases = TorchModel(model).describe()
    return Arena.create(place(tensors, aliases))


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_state_goes_out_and_comes_back(device):
    torch.manual_seed(0)
    model, other = Tied().to(device), Tied().to(device)
    model(torch.randn(8, 4, device=device)).sum().backward()
    with arena_for(model) as arena:
        TorchModel(model).write(arena)
        TorchModel(other).read(arena)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.norm.num_batches_tracked.item() == 1
    assert other.decode.weight is other.encode.weight


def test_a_shared_tensor_travels_once_under_its_first_name():
    tensors, aliases = TorchModel(Tied()).describe()
    assert aliases == {"decode.weight": "encode.weight"}
    specs = {spec.name: (spec.dtype, spec.shape) for spec in tensors}
    assert "decode.weight" not in specs
    assert specs["norm.num_batches_tracked"] == ("I64", ())
    assert specs["scale"] == ("F64", ())
    assert specs["nothing"] == ("F32", (0, 3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(CODES), ids=str)
def test_every_dtype_keeps_its_bits(dtype, device):
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 2 if dtype is torch.bool else 120, (3, 5, dtype.itemsize), generator=generator)
    model, other = nn.Module(), nn.Module()
    model.register_buffer("x", bits.to(torch.uint8).view(dtype).reshape(3, 5).to(device))
    other.register_buffer("x", torch.zeros(3, 5, dtype=dtype, device=device))
    with arena_for(model) as arena:
        TorchModel(model).write(arena)
        TorchModel(other).read(arena)
    assert other.x.dtype is dtype
    assert torch.equal(other.x.view(torch.uint8), model.x.view(torch.uint8))


def test_a_tensor_that_is_not_contiguous_is_sent_in_its_logical_order():
    model = nn.Module()
    model.register_buffer("x", torch.arange(6.0).reshape(2, 3).t())
    with arena_for(model) as arena:
        TorchModel(model).write(arena)
        assert arena.array("x").tolist() == [[0, 3], [1, 4], [2, 5]]
        arena.array("x")[:] += 1
        TorchModel(model).read(arena)
    assert model.x.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert not model.x.is_contiguous()


def test_parameters_are_changed_in_place_so_that_an_optimizer_keeps_them():
    model = nn.Linear(3, 2)
    weight = model.weight
    with arena_for(model) as arena:
        arena.array("weight")[:] = 7.0
        TorchModel(model).read(arena)
    assert model.weight is weight and weight.requires_grad and weight.is_leaf
    assert torch.equal(weight, torch.full((2, 3), 7.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, dtype=torch.complex64), r"tensor 'x' has dtype torch\.complex64"),
        (torch.zeros(2, 2).to_sparse(), "tensor 'x' is sparse"),
        (torch.zeros(2, device="meta"), "tensor 'x' is on the meta device"),
        (torch.zeros(1).expand(3), "tensor 'x' is expanded"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), r"tensor 'x' has dtype torch\.float8_e4m3fn"),
    ],
)
def test_a_tensor_that_cannot_be_merged_is_named(value, text):
    model = nn.Module()
    model.register_buffer("x", value)
    with pytest.raises(ConfigError, match=text):
        TorchModel(model).describe()


def test_extra_state_that_is_no_tensor_is_named():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"epoch": 3}

    with pytest.raises(ConfigError, match="'_extra_state' in its state_dict is a dict"):
        TorchModel(Extra(1, 1)).describe()


def test_a_tensor_that_is_made_for_the_state_dict_only_is_named_instead_of_never_getting_merged_values():
    class Extra(nn.Linear):
        scale = 3.0

        def get_extra_state(self):
            return torch.tensor(self.scale)

        def set_extra_state(self, state):
            self.scale = float(state)

    with pytest.raises(ConfigError, match=r"'_extra_state' is made anew .* keep it in a buffer"):
        TorchModel(Extra(1, 1)).describe()


def test_a_model_without_any_state_is_refused():
    with pytest.raises(ConfigError, match="nothing to merge"):
        TorchModel(nn.ReLU()).describe()


def test_a_training_loop_gets_the_merged_model(sl):
    def merge(arena):
        arena.array("weight")[:] = sl.num_rounds

    sl.merge = merge
    model = nn.Linear(2, 1)
    swarm = SwarmCallback(model=model, sync_frequency=2, total_epochs=1)
    swarm.on_train_begin()
    assert model.weight.tolist() == [[1, 1]]
    for batch in range(4):
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        swarm.on_batch_end(batch, loss)
    swarm.on_epoch_end(0, loss=0.25, metric=torch.tensor(0.75))
    swarm.on_train_end()
    assert model.weight.tolist() == [[4, 4]]
    assert sl.asked(OpenRequest)[0].platform is Platform.PYTORCH
    assert [request.batch for request in sl.asked(SyncRequest)] == [0, 2, 4]
    assert isinstance(sl.asked(SyncRequest)[-1].loss, float)
    assert (sl.asked(Progress)[-1].loss, sl.asked(Progress)[-1].metric) == (0.25, 0.75)
    assert len(sl.asked(FinishRequest)) == 1


def test_a_reported_loss_does_not_keep_its_graph(sl):
    model = nn.Linear(2, 1)
    swarm = SwarmCallback(model=model, sync_frequency=99)
    swarm.on_train_begin()
    swarm.on_batch_end(loss=model(torch.ones(1, 2)).sum())
    assert not swarm._training._scores.loss.requires_grad
    swarm.close()


def test_the_swarm_may_end_the_training(sl):
    sl.over_at = 1
    swarm = SwarmCallback(model=nn.Linear(2, 1), sync_frequency=1)
    swarm.on_train_begin()
    assert swarm.training_over
    swarm.on_train_end()


def test_loopback_leaves_the_model_alone(loopback):
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    swarm = SwarmCallback(model=model, sync_frequency=1)
    swarm.on_train_begin()
    swarm.on_batch_end(0)
    swarm.on_epoch_end(0)
    swarm.on_train_end()
    assert torch.equal(model.weight, before)
    assert not swarm.training_over


DATA = DataLoader(TensorDataset(torch.eye(3), torch.tensor([0, 1, 2])), batch_size=2, shuffle=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": None}, "model: NoneType is not a torch.nn.Module"),
        ({"sync_frequency": 0}, "sync_frequency"),
        ({"loss_function": "CrossEntropy"}, "loss_function: torch.nn has no class 'CrossEntropy'"),
        ({"metric_function": 3}, "metric_function: 3 is neither a callable"),
        ({"ads_val_data": DATA}, "ads_val_data needs loss_function"),
        ({"ads_val_data": 5, "loss_function": "MSELoss"}, "ads_val_data: int gives no batches"),
    ],
)
def test_wrong_arguments_are_named_also_in_loopback(loopback, arguments, text):
    with pytest.raises(ConfigError, match=text):
        SwarmCallback(**{"model": nn.Linear(1, 1), "sync_frequency": 1} | arguments)


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


def test_merged_models_are_judged_on_the_validation_data(sl):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(0.9), nn.BatchNorm1d(3, affine=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3) * 4)
    model[2].eval()  # frozen by the program
    before = torch.random.get_rng_state()
    swarm = SwarmCallback(
        model=model, sync_frequency=1, ads_val_data=DATA, loss_function="CrossEntropyLoss", metric_function=accuracy
    )
    swarm.on_train_begin()
    swarm.on_batch_end()
    expected = nn.functional.cross_entropy(4 * torch.eye(3), torch.tensor([0, 1, 2])).item()
    assert sl.asked(SyncRequest)[-1].loss == pytest.approx(expected, rel=1e-3)
    assert sl.asked(SyncRequest)[-1].metric == 1.0
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(torch.random.get_rng_state(), before), "the program's random numbers must not change"
    swarm.close()


@pytest.mark.parametrize(
    ("data", "text"), [([], "it has no batches"), ([torch.ones(1, 3)], r"a pair \(inputs, targets\)")]
)
def test_validation_data_of_the_wrong_form_is_named(sl, data, text):
    swarm = SwarmCallback(model=nn.Linear(3, 1), sync_frequency=1, ads_val_data=data, loss_function="MSELoss")
    with pytest.raises(ConfigError, match=text):
        swarm.on_train_begin()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        pytest.param(
            lambda model: torch.compile(nn.DataParallel(model)),
            id="compile",
            # torch's compiler takes seconds to import, and uses what it calls deprecated itself
            marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")],
        ),
    ],
)
def test_a_wrapped_model_has_the_names_of_the_one_inside(sl, wrap):
    model = Tied()
    swarm = SwarmCallback(model=wrap(model), sync_frequency=1)
    swarm.on_train_begin()
    names = {spec.name for spec in sl.asked(OpenRequest)[0].tensors}
    assert names == {spec.name for spec in TorchModel(model).describe()[0]}
    swarm.close()


def test_a_lazy_model_is_named():
    with pytest.raises(ConfigError, match=r"'weight' has no shape yet"):
        TorchModel(nn.LazyLinear(3)).describe()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda model: model.half(), r"'bias' was torch\.float32 \[1\] .* and is torch\.float16 \[1\]"),
        (lambda model: setattr(model, "bias", nn.Parameter(torch.zeros(()))), r"and is torch\.float32 \[\]"),
        (lambda model: setattr(model, "bias", None), "'bias' .* and is gone"),
    ],
)
def test_a_model_that_was_changed_since_the_begin_is_named_and_never_converted(change, text):
    model = nn.Linear(3, 1)
    with arena_for(model) as arena:
        change(model)
        for copy in (TorchModel(model).write, TorchModel(model).read):
            with pytest.raises(ModelMismatch, match=text):
                copy(arena)


def test_an_exception_in_the_training_ends_the_session_at_the_end_of_the_with_block(sl):
    with pytest.raises(ZeroDivisionError), SwarmCallback(model=Tied(), sync_frequency=1) as swarm:
        swarm.on_train_begin()
        raise ZeroDivisionError
    sl.close()  # waits for the end of the session
    with pytest.raises(ConfigError, match="the session was closed"):
        swarm.on_batch_end()


def one_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 4, device=model.scale.device)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p)])
def test_a_program_that_comes_back_makes_the_steps_that_it_would_have_made(tmp_path, device, make):
    torch.manual_seed(0)
    model = Tied().to(device)
    optimizer = make(model.parameters())
    one_step(model, optimizer)
    TorchModel(model, optimizers=[optimizer]).save(tmp_path)
    one_step(model, optimizer)

    torch.manual_seed(99)
    other = Tied().to(device)
    other_optimizer = make(other.parameters())
    TorchModel(other, optimizers=[other_optimizer]).load(tmp_path)
    one_step(other, other_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert other.state_dict()[name].device.type == device


def test_a_saved_state_that_does_not_fit_is_refused(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    TorchModel(model, optimizers=[optimizer]).save(tmp_path)
    with pytest.raises(ConfigError, match=r"optimizer: 1 were saved .* now there are 0: pass the same"):
        TorchModel(model).load(tmp_path)
    other = nn.Linear(4, 5)
    with pytest.raises(ConfigError, match=r"is of another model or optimizer; remove the folder"):
        TorchModel(other, optimizers=[torch.optim.SGD(other.parameters(), 0.1)]).load(tmp_path)


def test_a_learning_rate_that_numpy_has_computed_is_kept(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.5), betas=(np.float64(0.5), 0.75))
    TorchModel(model, optimizers=[optimizer]).save(tmp_path)
    other = torch.optim.AdamW(model.parameters())
    TorchModel(model, optimizers=[other]).load(tmp_path)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["betas"]) == (0.5, (0.5, 0.75))


def test_an_optimizer_with_more_than_plain_values_is_told_what_to_do(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["until"] = date(2026, 1, 31)
    TorchModel(model, optimizers=[optimizer]).save(tmp_path)
    with pytest.raises(ConfigError, match=r"holds more than tensors and plain values: keep the rest with save_state"):
        TorchModel(model, optimizers=[optimizer]).load(tmp_path)


@pytest.mark.parametrize("optimizer", [3, [torch.nn.Linear(1, 1)]])
def test_what_is_no_optimizer_is_named(sl, optimizer):
    with pytest.raises(ConfigError, match=r"optimizer: \w+ is not a torch\.optim\.Optimizer"):
        SwarmCallback(model=nn.Linear(1, 1), optimizer=optimizer, sync_frequency=1)


def test_a_training_loop_that_is_told_to_leave_goes_on_where_it_was(sl, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_STATE_DIR", str(tmp_path / "state"))

    def train(leave_at=None):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        swarm = SwarmCallback(model=model, optimizer=optimizer, sync_frequency=100)
        seen = []
        with swarm:
            swarm.on_train_begin()
            for epoch in range(swarm.epoch, 3):
                for batch in range(swarm.batch, 4):
                    seen.append((epoch, batch))
                    if len(seen) == leave_at:
                        sl.ask_to_leave()
                    swarm.on_batch_end(batch)
                swarm.on_epoch_end(epoch)
            swarm.on_train_end()
        return seen

    with pytest.raises(SystemExit):
        train(leave_at=6)
    sl.restart()
    assert train() == [(1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.slow
def test_a_worker_outlives_sigterm_and_ends_with_its_loader():
    data = TensorDataset(torch.arange(400))
    loader = DataLoader(data, num_workers=1, worker_init_fn=outlive_sigterm, prefetch_factor=1)
    batches = iter(loader)
    next(batches)
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    assert sum(1 for _ in batches) == 399
    del batches
    worker.join(20)
    assert worker.exitcode == 0
