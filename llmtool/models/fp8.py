"""Matrix products in eight bits, for training on GPUs that have units for them (Ada, Hopper and later).

Each matrix is scaled so that its largest number is the format's largest, once for each use ("dynamic", "per
tensor"): e4m3 for activations and weights, e5m2, of wider range, for gradients, as in
https://arxiv.org/abs/2209.05433. Sums are in float32, results in bfloat16. Weights stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.errors import ConfigError
from llmtool.models.layers import Conv1D, Linear

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {dtype: torch.finfo(dtype).max for dtype in (FORWARD, BACKWARD)}  # 448 and 57344
TINY = 1e-30  # a matrix of zeros is scaled as if this were its largest number
MULTIPLE = 16  # what the units want the sides of a matrix to be multiples of


def scale_of(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 scalar: what the numbers of the scaled matrix are to be multiplied by again."""
    return matrix.detach().abs().amax().float().clamp(min=TINY) / LARGEST[dtype]


def quantised(matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix over `scale`, rounded to eight bits; numbers that are not finite become NaN."""
    most = LARGEST[dtype]
    return (matrix.detach().float() / scale).clamp(-most, most).to(dtype)


def product(a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor], fast: bool) -> Tensor:
    """(M, K) row by row and (K, N) column by column, in eight bits -> (M, N) bfloat16.

    fast: sums in fewer bits, where the GPU has that: for the forward pass.
    """
    a_scale, b_scale = scales
    return torch._scaled_mm(
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


def _by_column(matrix: Tensor) -> Tensor:
    """The same matrix, column after column in memory."""
    return matrix.t().contiguous().t()


class _Product(torch.autograd.Function):
    """(M, K) and (N, K), or (K, N) where it is `turned` -> (M, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: bool) -> Tensor:
        matrix = weight.t() if turned else weight
        scales = scale_of(x, FORWARD), scale_of(weight, FORWARD)
        small = quantised(x, scales[0], FORWARD).contiguous()
        ctx.save_for_backward(small, weight, *scales)
        ctx.turned, ctx.kind = turned, x.dtype
        return product(small, quantised(matrix, scales[1], FORWARD).contiguous().t(), scales, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients  # (M, N)
        small, weight, x_scale, weight_scale = ctx.saved_tensors
        scale = scale_of(gradient, BACKWARD)
        gradient = quantised(gradient, scale, BACKWARD).contiguous()
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            matrix = quantised(weight.t() if ctx.turned else weight, weight_scale, FORWARD)  # (N, K)
            of_x = product(gradient, _by_column(matrix), (scale, weight_scale), fast=False).to(ctx.kind)
        if ctx.needs_input_grad[1]:
            rows, columns, scales = gradient, small, (scale, x_scale)
            if ctx.turned:
                rows, columns, scales = small, gradient, (x_scale, scale)
            of_weight = product(rows.t().contiguous(), _by_column(columns), scales, fast=False)
            of_weight = of_weight.to(weight.dtype)
        return of_x, of_weight, None


def multiply(x: Tensor, weight: Tensor, turned: bool) -> Tensor:
    """(..., K) times a weight (N, K), or (K, N) where it is `turned` -> (..., N) bfloat16."""
    flat = x.reshape(-1, x.shape[-1])
    found: Tensor = _Product.apply(flat, weight, turned)
    return found.view(*x.shape[:-1], found.shape[-1])


def _fits(x: Tensor) -> bool:
    """Whether the number of rows is one that the products of the backward pass can take."""
    return x.numel() // x.shape[-1] % MULTIPLE == 0


class FP8Linear(Linear):
    """A linear layer that multiplies in eight bits in training, and as any other does when it is judged."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not (self.training and _fits(x)):
            return super().forward(x)
        found = multiply(x, self.weight, turned=False)
        return found if self.bias is None else found + self.bias.to(found.dtype)


class FP8Conv1D(Conv1D):
    """The same of GPT-2's layer, whose weight is stored (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not (self.training and _fits(x)):
            return super().forward(x)
        found = multiply(x, self.weight, turned=True)
        return found + self.bias.to(found.dtype)


def use(model: nn.Module) -> int:
    """Let the linear layers inside the blocks multiply in eight bits in training; returns how many do.

    Those whose sides are no multiples of 16 stay as they are, as do output layer and embeddings. Parameters
    and their names are the same. ConfigError where no layer can.
    """
    blocks: list[nn.Module] = getattr(model, "blocks", [])
    found = 0
    for module in (module for block in blocks for module in block.modules()):
        sides = getattr(module, "in_features", 1), getattr(module, "out_features", 1)
        if type(module) not in KINDS or any(side % MULTIPLE for side in sides):
            found += isinstance(module, FP8Linear | FP8Conv1D)
            continue
        module.__class__ = KINDS[type(module)]  # no hook, buffer or reference to the layer is lost
        found += 1
    if not found:
        raise ConfigError(
            "precision: fp8 is for linear layers inside a model's blocks whose widths are multiples of 16; "
            "this model has none: choose bf16"
        )
    return found


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FP8Linear, Linear: FP8Linear, Conv1D: FP8Conv1D}
