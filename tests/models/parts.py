"""A split model's tensors as one process has them, and the other way: for the tests of splitting."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llmtool.core.shards import orders_of, sorted_by, unsorted


def whole(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter's numbers (or its gradient, a state of the optimizer, an average) as one process has them.

    value: a DTensor as the parameter `name` is; all ranks that share it ask at once, and each gets a copy.
    """
    found = value.full_tensor() if isinstance(value, DTensor) else value
    order = orders_of(model).get(name)
    return found if order is None else unsorted(found, order)


def share(model: nn.Module, name: str, value: Tensor, like: Tensor) -> Tensor:
    """The other way: of a whole tensor, which all ranks have, what this one keeps, as `like` is.

    like: the parameter `name`, or a state of that shape.
    """
    if (order := orders_of(model).get(name)) is not None:
        value = sorted_by(value, order)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
