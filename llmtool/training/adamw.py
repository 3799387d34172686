"""AdamW as torch computes it, without its class, whose first use imports torch's compiler (0.9 s)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """torch's fused AdamW (https://arxiv.org/abs/1711.05101), equal to torch.optim.AdamW bit by bit.

    groups: mappings with `params` and `weight_decay`, as torch's. The state exists from the start.
    found_inf: None, or a float scalar on the device; where it is 1 the step changes nothing.
    grad_scale: None, or what the gradients are divided by.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], epsilon: float
    ) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.betas, self.epsilon = betas, epsilon
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for group in self.param_groups
            for parameter in group["params"]
        }

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] for parameter in parameters]
            if not parameters:
                continue
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.epsilon,
                maximize=False,
            )
