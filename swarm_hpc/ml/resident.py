"""A PyTorch model's tensors in the arena itself, where SL reads and merges them: nothing is copied.

A parameter stays the object that it is, so optimizers keep it; only its memory is another one. What cannot be moved
safely is left where it is, and copied at every merge as ever; so is a tensor that the program moves or replaces later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a module keeps a tensor: its parameters or its buffers."""

    owner: Mapping[str, Tensor | None]
    key: str
    tensor: Tensor
    address: int

    @property
    def kept(self) -> bool:
        """It is still that tensor, and the tensor is still there."""
        return self.owner.get(self.key) is self.tensor and self.tensor.data_ptr() == self.address


class Residents:
    """The tensors of one model that live in one arena, until `move_out`."""

    def __init__(self, slots: Mapping[str, Sequence[_Slot]]) -> None:
        """For `move_in`."""
        self._slots = slots

    @classmethod
    @torch.no_grad()
    def move_in(cls, model: nn.Module, views: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Self:
        """Give the model's tensors the memory of the `views`, which hold their values already.

        `aliases`: further names of shared tensors. Moved is what is dense, in main memory, alone in its storage, and
        not shared with other processes already.
        """
        homes: dict[str, list[_Slot]] = {}
        for name, owner, key, tensor in _tensors(model):
            homes.setdefault(aliases.get(name, name), []).append(_Slot(owner, key, tensor, 0))
        tenants = _tenants(homes)
        moved = {}
        for name, view in views.items():
            slots = homes.get(name, [])
            if slots and all(_movable(slot.tensor, view, tenants[_storage(slot.tensor)] == {name}) for slot in slots):
                for slot in slots:
                    slot.tensor.data = view
                moved[name] = [_Slot(slot.owner, slot.key, slot.tensor, view.data_ptr()) for slot in slots]
        return cls(moved)

    def names(self) -> set[str]:
        """Whose values are in the arena whatever the program does to them."""
        return {name for name, slots in self._slots.items() if all(slot.kept for slot in slots)}

    @torch.no_grad()
    def move_out(self) -> None:
        """Give each tensor memory of its own again, with the same values. May be repeated."""
        for slots in self._slots.values():
            kept = [slot.tensor for slot in slots if slot.tensor.data_ptr() == slot.address]
            if kept:
                own = kept[0].detach().clone()
                for tensor in kept:
                    tensor.data = own
        self._slots = {}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Mapping[str, Tensor | None], str, Tensor]]:
    """Every tensor of the model under each of its names, and where a module keeps it."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for owner in (module._parameters, module._buffers):
            for key, tensor in owner.items():
                if tensor is not None:
                    yield f"{prefix}.{key}" if prefix else key, owner, key, tensor


def _tenants(homes: Mapping[str, Sequence[_Slot]]) -> dict[int, set[str]]:
    """By storage, the names of all tensors that lie in it: two that overlap must not be torn apart."""
    tenants: dict[int, set[str]] = {}
    for name, slots in homes.items():
        for slot in slots:
            tenants.setdefault(_storage(slot.tensor), set()).add(name)
    return tenants


def _storage(tensor: Tensor) -> int:
    # a sparse tensor, say, has none
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _movable(tensor: Tensor, view: Tensor, alone: bool) -> bool:
    return (
        alone
        # a subclass may keep more than its memory shows
        and type(tensor) in (nn.Parameter, Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype == view.dtype
        and tensor.shape == view.shape
        and tensor.stride() == view.stride()
        and tensor.untyped_storage().nbytes() == view.nbytes
        and tensor.is_leaf
        and not tensor.is_inference()
        # by torch.multiprocessing: other processes hold on to the memory that it has
        and not tensor.is_shared()  # type: ignore[no-untyped-call]
    )
