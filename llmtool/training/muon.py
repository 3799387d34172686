"""Muon with all matrices of one shape in one product, and a flag that makes a step change nothing."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, from https://kellerjordan.github.io/posts/muon/
EPSILON = 1e-7


class Muon(torch.optim.Muon):
    """torch.optim.Muon, its groups and its state, with a step of our own: faster where matrices are small.

    found_inf: None, or a float scalar on the device; where it is 1 the step changes nothing.
    grad_scale: None, or what the gradients are divided by. Both as in torch's fused optimizers.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closures here
        """Update every matrix that has a gradient."""
        assert closure is None, "the loop computes the gradients"
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """One step of N matrices of one shape (N, R, C)."""
        momentum, lr = group["momentum"], group["lr"]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.grad_scale is not None:
            gradients /= self.grad_scale
        memory = torch.stack(buffers)
        if self.found_inf is not None:
            gradients = torch.where(
                self.found_inf > 0, memory, gradients
            )  # so that the memory stays as it is
        memory.lerp_(gradients, 1 - momentum)
        update = gradients.lerp(memory, momentum) if group["nesterov"] else memory
        update = orthogonalize(update, group["ns_steps"])
        rows, columns = parameters[0].shape
        update *= -lr * math.sqrt(max(1.0, rows / columns))
        if group["weight_decay"]:
            update -= torch.stack([parameter.detach() for parameter in parameters]) * (
                lr * group["weight_decay"]
            )
        if self.found_inf is not None:
            update *= 1 - self.found_inf
        torch._foreach_copy_(buffers, list(memory.unbind()))
        torch._foreach_add_([parameter.data for parameter in parameters], list(update.unbind()))


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """(N, R, C) float32: each matrix with its singular values moved to about 1 (Newton-Schulz steps)."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = (matrices.mT if tall else matrices).to(_product_type(matrices.device.type))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)  # singular values of at most 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


@functools.cache
def _product_type(device: str) -> torch.dtype:
    """bfloat16 where there are units for it (GPUs, CPUs with AMX or AVX512-BF16); elsewhere float32 is faster."""
    asked = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("amx_tile", "avx512_bf16"))
    has_units = device == "cuda" or any(ask() for ask in asked if ask is not None)
    return torch.bfloat16 if has_units else torch.float32
