"""Muon with all matrices of one shape in one product, and a flag that makes a step change nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.products import baddbmm, bmm
from llmtool.models.layers import stacks

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, from https://kellerjordan.github.io/posts/muon/
EPSILON = 1e-7
WIDE = 1.6  # columns for each row, from which on a matrix takes fewer operations by its gram matrix


class Muon:
    """Muon (https://kellerjordan.github.io/posts/muon/) as torch.optim.Muon computes it, but for rounding.

    A convolution is a matrix with a row for each channel that comes out. A matrix and its transpose move
    alike, so that those of one shape, either way round, are stacks of wide ones (N, R, C), R at most C. The
    state exists from the start. A matrix without a gradient has one of 0.
    found_inf: None, or a float scalar on the device; where it is 1 the step changes nothing.
    grad_scale: None, or what the gradients are divided by. Both as in torch's fused optimizers.
    products: what matrix products are computed in; in bfloat16 the last bit of a gradient grows.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    moved = False  # whether anything was changed since this was last set to False
    products = torch.float32

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        weight_decay: float,
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": matrices, "lr": lr}]
        self.momentum, self.nesterov, self.ns_steps = momentum, nesterov, ns_steps
        self.weight_decay = weight_decay
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._prepare(matrices)

    def _prepare(self, matrices: list[nn.Parameter]) -> None:
        """Make the state, and what a step needs."""
        self._stacks: list[tuple[list[nn.Parameter], Tensor, Tensor]] = []  # matrices, memory, (N, 1, 1) size
        for stack in stacks(matrices):
            memory = torch.zeros(len(stack), *as_wide(stack[0]).shape, device=stack[0].device)
            heights = [height(m.shape) for m in stack]
            self._stacks.append((stack, memory, torch.tensor(heights, device=memory.device).view(-1, 1, 1)))
            for matrix, part in zip(stack, memory.unbind(), strict=True):
                self.state[matrix] = {"momentum_buffer": part.mT if is_tall(matrix) else part}

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix."""
        lr = self.param_groups[0]["lr"]
        for matrices, memory, heights in self._stacks:
            gradients = torch.stack(
                [as_wide(torch.zeros_like(m) if m.grad is None else m.grad) for m in matrices]
            )
            if self.grad_scale is not None:
                gradients /= self.grad_scale
            if self.found_inf is not None:  # the memory stays as it is
                gradients = torch.where(self.found_inf > 0, memory, gradients)
            self.moved = True
            memory.lerp_(gradients, 1 - self.momentum)
            update = gradients.lerp_(memory, self.momentum) if self.nesterov else memory.clone()
            del gradients  # with what is overwritten, the work has one copy of the stack and makes another
            update = orthogonalize(update, self.ns_steps, self.products).mul_(-lr * heights)
            wide = [as_wide(matrix.detach()) for matrix in matrices]
            if self.weight_decay:
                update -= torch.stack(wide).mul_(lr * self.weight_decay)
            if self.found_inf is not None:
                update *= 1 - self.found_inf
            torch._foreach_add_(wide, list(update.unbind()))


def height(shape: torch.Size) -> float:
    """What the update of a matrix of this shape is multiplied by: the root of how much taller than wide it
    is."""
    return math.sqrt(max(1.0, shape[0] / shape[1:].numel()))


def is_tall(matrix: Tensor) -> bool:
    """Whether it has more rows than columns, a convolution as (c', c * 9)."""
    return len(matrix) > matrix[0].numel()


def as_wide(matrix: Tensor) -> Tensor:
    """A view of a parameter, of a gradient in another order of its memory a copy."""
    flat = matrix.flatten(1)  # (c', c, 3, 3) -> (c', c * 9)
    return flat.mT if is_tall(matrix) else flat


def orthogonalize(matrices: Tensor, steps: int, products: torch.dtype = torch.float32) -> Tensor:
    """(N, R, C) float32, R at most C: singular values moved to about 1 by so many Newton-Schulz steps.

    The matrices themselves are overwritten. products: what their products are computed in.
    """
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    x = matrices.div_(norms).to(products)  # singular values of at most 1
    if x.dtype == torch.float32 and x.shape[-1] >= WIDE * x.shape[-2]:
        return _by_grams(x, steps)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = bmm(x, x.mT)
        x = baddbmm(x, baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


def _by_grams(x: Tensor, steps: int) -> Tensor:
    """The same steps with products of (R, R) alone between the first and the last: each multiplies x by a
    polynomial p of its gram matrix g, whose next one is p g p. Of x four times as wide as high 5/9 of the
    work; rounding moves the result by 2e-4 where singular values span 10^6, so in bfloat16 it will not do."""
    a, b, c = COEFFICIENTS
    gram, product = bmm(x, x.mT), None
    for left in reversed(range(steps)):
        step = baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step if product is None else bmm(step, product)
        if left:
            gram = bmm(bmm(step, gram), step)
    return x if product is None else bmm(product, x)
