"""Parameters that live in the arena: nothing is copied, optimizers keep them, afterwards nobody else changes them."""

import copy
import io

import pytest
import torch
from torch import nn

from swarm_hpc.errors import ConfigError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import place
from swarm_hpc.ml.pytorch import SwarmCallback, TorchModel
from tests.ml.models import Tied


@pytest.fixture
def shared():
    """Makes (what the swarm sees of a model, its arena, the addresses where the arena is) once it has moved in."""
    arenas = []

    def move_in(model):
        seen = TorchModel(model, share_memory=True)
        arenas.append(Arena.create(place(*seen.describe())))
        seen.write(arenas[-1])
        return seen, arenas[-1]

    yield move_in
    for arena in arenas:
        arena.close()


def in_arena(tensor: torch.Tensor, arena: Arena) -> bool:
    start = torch.frombuffer(arena.buffer, dtype=torch.uint8).data_ptr()
    return start <= tensor.data_ptr() < start + arena.layout.size_bytes


def away(model: nn.Module, arena: Arena) -> list[str]:
    """Names of the tensors that are not in the arena."""
    return [name for name, tensor in model.state_dict().items() if tensor.numel() and not in_arena(tensor, arena)]


def test_what_the_program_changes_is_in_the_arena_and_what_sl_merges_in_the_model(shared):
    model = Tied()
    before = copy.deepcopy(model.state_dict())
    seen, arena = shared(model)
    assert away(model, arena) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.decode.weight is model.encode.weight
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert (arena.array("encode.weight") == model.encode.weight.detach().numpy()).all()
    assert arena.array("norm.num_batches_tracked") == 3
    arena.array("encode.weight")[:] = 7
    seen.read(arena)
    assert (model.decode.weight == 7).all()


def test_an_optimizer_made_before_goes_on_with_the_moved_parameters(shared):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    alone = copy.deepcopy(model)
    steps = [torch.randn(5, 3) for _ in range(4)]
    optimizers = [torch.optim.Adam(each.parameters(), lr=0.1) for each in (model, alone)]

    def step(x):
        for each, optimizer in zip((model, alone), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()

    step(steps[0])
    _, arena = shared(model)
    for x in steps[1:]:
        step(x)
    assert away(model, arena) == []
    assert torch.equal(model.weight, alone.weight)


def test_after_the_release_nobody_else_changes_the_model(shared):
    model = Tied()
    seen, arena = shared(model)
    parameters = list(model.parameters())
    kept = copy.deepcopy(model.state_dict())
    seen.release()
    seen.release()
    arena.buffer[len(arena.layout.header) :] = bytes(arena.layout.size_bytes - len(arena.layout.header))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert model.decode.weight is model.encode.weight
    assert model.decode.weight.data_ptr() == model.encode.weight.data_ptr()


class Overlapping(nn.Module):
    """Two buffers in one storage."""

    def __init__(self):
        super().__init__()
        whole = torch.arange(8.0)
        self.register_buffer("first", whole[:5])
        self.register_buffer("last", whole[3:])


class Hidden(nn.Module):
    """A parameter that another, non-persistent buffer shows as well."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", self.weight.detach(), persistent=False)


def other_model(make):
    model = nn.Linear(4, 4)
    make(model)
    return model


NOT_MOVED = {
    "overlapping": Overlapping,
    "seen elsewhere": Hidden,
    "a part of a storage": lambda: other_model(lambda m: setattr(m, "bias", nn.Parameter(torch.ones(9)[:4]))),
    "not contiguous": lambda: other_model(lambda m: setattr(m, "weight", nn.Parameter(torch.ones(4, 4).t()))),
    "shared by multiprocessing": lambda: nn.Linear(4, 4).share_memory(),
}


@pytest.mark.parametrize("kind", NOT_MOVED)
def test_what_cannot_be_moved_safely_is_copied(kind, shared):
    model = NOT_MOVED[kind]()
    addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    seen, arena = shared(model)
    stayed = away(model, arena)
    assert stayed
    assert all(model.state_dict()[name].data_ptr() == addresses[name] for name in stayed)
    for tensor in model.state_dict().values():
        tensor.fill_(3)
    seen.write(arena)
    for placed in arena.layout.tensors:
        assert (arena.array(placed.spec.name) == 3).all()
        arena.array(placed.spec.name)[...] = 4
    seen.read(arena)
    assert all((tensor == 4).all() for tensor in model.state_dict().values())


def replace(model):
    model.weight = nn.Parameter(torch.full((4, 4), 2.0))


def assign(model):
    model.load_state_dict({"weight": torch.full((4, 4), 2.0), "bias": torch.zeros(4)}, assign=True)


def load(model):
    model.load_state_dict({"weight": torch.full((4, 4), 2.0), "bias": torch.zeros(4)})


def set_data(model):
    model.weight.data = torch.full((4, 4), 2.0)


@pytest.mark.parametrize("change", [replace, assign, load, set_data])
def test_a_tensor_that_the_program_replaces_is_copied_from_then_on(change, shared):
    model = nn.Linear(4, 4)
    seen, arena = shared(model)
    change(model)
    seen.write(arena)
    assert (arena.array("weight") == 2).all()
    arena.array("weight")[:] = 5
    seen.read(arena)
    assert (model.weight == 5).all()
    seen.release()
    arena.array("weight")[:] = 6
    assert (model.weight == 5).all()


def test_a_copied_or_saved_model_has_memory_of_its_own(shared):
    model = nn.Linear(4, 4)
    _, arena = shared(model)
    twin = copy.deepcopy(model)
    assert away(twin, arena) == ["weight", "bias"]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert torch.equal(torch.load(file)["weight"], model.weight)


def test_a_training_in_shared_memory_ends_with_the_merged_model_in_its_own(sl):
    def double(arena):
        arena.array("weight")[:] *= 2

    model = nn.Linear(2, 1)
    first = model.weight.detach().clone()
    sl.merge = double
    swarm = SwarmCallback(model=model, sync_frequency=1, share_memory=True)
    swarm.on_train_begin()
    sl.arena.array("bias")[:] = 11
    assert model.bias.item() == 11
    swarm.on_batch_end(0, 0.5)
    swarm.on_train_end()
    assert torch.equal(model.weight, first * 8)
    sl.arena.array("weight")[:] = 0
    assert torch.equal(model.weight, first * 8)


def test_a_session_that_ends_by_an_error_leaves_the_model_with_memory_of_its_own(sl):
    model = nn.Linear(2, 1)
    with pytest.raises(ZeroDivisionError), SwarmCallback(model=model, sync_frequency=1, share_memory=True) as swarm:
        swarm.on_train_begin()
        raise ZeroDivisionError
    kept = model.weight.detach().clone()
    sl.arena.array("weight")[:] += 1
    assert torch.equal(model.weight, kept)


def test_a_program_that_is_told_to_leave_during_a_merge_comes_back_to_the_newest_parameters(sl, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARM_STATE_DIR", str(tmp_path / "state"))

    def start():
        model = nn.Linear(2, 1)
        swarm = SwarmCallback(model=model, sync_frequency=1, share_memory=True)
        swarm.on_train_begin()
        return model, swarm

    sl.leave_at = 2
    model, swarm = start()
    with pytest.raises(SystemExit):
        swarm.on_batch_end()
    assert model.weight.isfinite().all()
    # the round that the program has its parameters from; but who knows what the merge has left of them
    sl.leave_at, sl.round, sl.resume = None, 2, True
    sl.arena.array("weight")[:] = 9
    model, swarm = start()
    assert (model.weight == 9).all()
    swarm.close()


def test_anything_but_true_and_false_is_refused(loopback):
    with pytest.raises(ConfigError, match="share_memory"):
        SwarmCallback(model=nn.Linear(1, 1), sync_frequency=1, share_memory="yes")
