"""Sums and gatherings over a group of ranks that gradients go through, each with the one that undoes it."""

# groups go by their names: torch.compile keeps a name in its graph as it is

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reduced(x: Tensor, group: str, how: str = "sum") -> Tensor:
    """The sum (or "max") over the ranks, without a gradient."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), how, group))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        return reduced(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return reduced(gradients[0], ctx.group), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str, size: int) -> Tensor:
        ctx.group, ctx.size = group, size
        return _all(x, group, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ops = torch.ops._c10d_functional
        flat = gradients[0].flatten(0, 1).contiguous()
        return ops.wait_tensor(ops.reduce_scatter_tensor(flat, "sum", ctx.size, ctx.group)), None, None


@dataclass(frozen=True)
class Part:
    """Which of `total` things the rank of a group of `size` has: as torch.chunk shares them out."""

    group: str
    size: int
    rank: int
    total: int

    @property
    def most(self) -> int:
        """How many a rank has; the last one maybe fewer."""
        return -(-self.total // self.size)

    @property
    def first(self) -> int:
        """The first that is this rank's."""
        return self.rank * self.most


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part) -> Tensor:
        ctx.first, ctx.here = part.first, x.shape[-1]
        whole = _all(F.pad(x, (0, part.most - ctx.here)), part.group, part.size)  # (N, ..., most)
        return whole.movedim(0, -2).flatten(-2)[..., : part.total].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].narrow(-1, ctx.first, ctx.here).contiguous(), None


def _all(x: Tensor, group: str, size: int) -> Tensor:
    """(...) of each rank -> (N, ...)."""
    ops = torch.ops._c10d_functional
    found: Tensor = ops.wait_tensor(ops.all_gather_into_tensor(x.contiguous(), size, group))
    return found.view(size, *x.shape)


def summed(x: Tensor, group: str) -> Tensor:
    """The sum of what the ranks have, at each; what follows is the same on all of them, its gradient too.

    A ring moves 2 (N - 1) / N times the bytes of `x` through each rank.
    """
    return _Summed.apply(x, group)


def copied(x: Tensor, group: str) -> Tensor:
    """`x`, the same on all ranks, to work that each does a part of: its gradient is the sum of theirs.

    Nothing moves forward; backward 2 (N - 1) / N times the bytes of `x`.
    """
    return _Copied.apply(x, group)


def gathered(x: Tensor, group: str, size: int) -> Tensor:
    """(...) of each rank -> (N, ...) at each, which do different work with it: backward, sums are scattered.

    Forward and backward each move (N - 1) times the bytes of `x`.
    """
    return _Gathered.apply(x, group, size)


def joined(x: Tensor, part: Part) -> Tensor:
    """(..., part) of each rank -> (..., total) at each, which go on alike: backward, each takes its own.

    Forward moves (N - 1) times the bytes of a part, backward none.
    """
    return _Joined.apply(x, part)
