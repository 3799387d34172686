"""AdamW and SGD as torch computes them, without its classes, whose first use imports its compiler (1 s)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AdamW:
    """torch's fused AdamW (https://arxiv.org/abs/1711.05101), equal to torch.optim.AdamW bit by bit.

    groups: mappings with `params` and `weight_decay`, as torch's. The state exists from the start; the
    parameters of a group count their steps together, in the state of the first.
    found_inf: None, or a float scalar on the device; where it is 1 the step changes nothing.
    grad_scale: None, or what the gradients are divided by.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    moved = False  # whether anything was changed since this was last set to False

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], epsilon: float
    ) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.betas, self.epsilon = betas, epsilon
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            for group in self.param_groups
            for parameter in group["params"]
        }
        for group in self.param_groups:
            first = group["params"][0]
            self.state[first]["step"] = torch.zeros((), dtype=torch.float32, device=first.device)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            step = self.state[group["params"][0]]["step"]
            step += 1
            self.moved = True
            torch._fused_adamw_(
                parameters,
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [step] * len(parameters),
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                step -= self.found_inf


class SGD:
    """torch's fused SGD, equal to torch.optim.SGD bit by bit. The momentum is there from the start, as zeros.

    groups, found_inf and grad_scale: as AdamW's. The weight decay is part of the gradient.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    moved = False  # whether anything was changed since this was last set to False

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.momentum, self.nesterov = momentum, nesterov
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {"momentum_buffer": torch.zeros_like(parameter)} if momentum else {}
            for group in self.param_groups
            for parameter in group["params"]
        }

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            self.moved = True
            torch._fused_sgd_(
                parameters,
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                [buffer for parameter in parameters for buffer in self.state[parameter].values()],
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
            )
