"""Tensors of which each rank holds a part (DTensors): that part, where in the whole it lies, the whole.

An ordinary tensor is its own part and its own whole: nothing here changes or costs it anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A box of numbers of a whole tensor: where it begins in each dimension, and how far it goes."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """What cuts it out of the whole."""
        return tuple(slice(at, at + size) for at, size in zip(self.start, self.shape, strict=True))

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return 0 in self.shape


def is_part(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only, or would if there were more ranks."""
    return hasattr(tensor, "device_mesh")


def in_parts(model: nn.Module) -> bool:
    """Whether any parameter of the model is held in parts."""
    return any(map(is_part, model.parameters()))


def local(tensor: Tensor) -> Tensor:
    """The part that this rank holds, in the same memory."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    with torch.no_grad():
        return to_local()


def piece(tensor: Tensor) -> Piece:
    """Which numbers of the whole this rank holds."""
    if not is_part(tensor):
        return Piece((0,) * tensor.ndim, tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # imports for seconds

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    shape, start = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return Piece(tuple(start), tuple(shape))


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; all of them must ask for it."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full()


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into `target`, of which each rank takes its part."""
    local(target).copy_(value[piece(target).slices] if is_part(target) else value)


class Stored(Mapping[str, Tensor]):
    """Tensors that lie in files, read when they are asked for, and of a part no more than that part."""

    def like(self, name: str) -> Tensor:
        """One of the same shape and type, on the meta device."""
        raise NotImplementedError

    def read(self, name: str, wanted: Piece) -> Tensor:
        """A piece of it, on the host."""
        raise NotImplementedError


# A dimension, and (n,) an index of the whole for each place there: with the ranks' parts put one behind the
# other, place i holds what stands at index[i] of the whole.
Order = tuple[int, Tensor]


def sorted_by(tensor: Tensor, order: Order) -> Tensor:
    """A whole tensor as ranks hold it together: with their parts one behind the other."""
    return tensor.index_select(order[0], order[1].to(tensor.device))


def unsorted(tensor: Tensor, order: Order) -> Tensor:
    """The other way."""
    return tensor.index_select(order[0], order[1].argsort().to(tensor.device))


def orders_of(model: nn.Module) -> dict[str, Order]:
    """The parameters whose numbers ranks hold in another order (models.tensor_parallel)."""
    found: dict[str, Order] = vars(model).get("split_order", {})
    return found


class Reordered(Stored):
    """Stored tensors, some of which are read as ranks hold them; these are read whole."""

    def __init__(self, stored: Stored, orders: Mapping[str, Order]) -> None:
        self._stored, self._orders = stored, orders

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, name: str) -> Tensor:
        order = self._orders.get(name)
        return self._stored[name] if order is None else sorted_by(self._stored[name], order)

    def like(self, name: str) -> Tensor:
        """One of the same shape and type, on the meta device."""
        return self._stored.like(name)

    def read(self, name: str, wanted: Piece) -> Tensor:
        """A piece of it, on the host."""
        return self[name][wanted.slices] if name in self._orders else self._stored.read(name, wanted)


def take(target: Tensor, saved: Mapping[str, Tensor], name: str) -> None:
    """Copy what was saved under a name into `target`, or into the part of it that this rank holds."""
    if isinstance(saved, Stored) and is_part(target):
        with torch.no_grad():
            local(target).copy_(saved.read(name, piece(target)))
        return
    put(target, saved[name])


def like(saved: Mapping[str, Tensor], name: str) -> Tensor:
    """Something of the shape and type of what was saved under a name."""
    return saved.like(name) if isinstance(saved, Stored) else saved[name]


def groups(tensor: Tensor) -> list[Any]:
    """The groups of ranks among which its numbers are cut; none of an ordinary tensor."""
    if not is_part(tensor):
        return []
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    # what FSDP has cut of tensor parallel's parts is no "shard" to torch
    return [mesh.get_group(at) for at, placed in enumerate(placements) if not placed.is_replicate()]
