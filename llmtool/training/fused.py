"""AdamW and SGD as torch computes them, without its classes, whose first use imports its compiler (1 s)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.shards import local


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
            step = self.state[group["params"][0]]["step"]
            step += 1
            self.moved = True
            for device, those in _by_device(parameters):
                numbers, gradients = _here(those)
                torch._fused_adamw_(
                    numbers,
                    gradients,
                    [local(self.state[parameter]["exp_avg"]) for parameter in those],
                    [local(self.state[parameter]["exp_avg_sq"]) for parameter in those],
                    [],
                    [step.to(device)] * len(those),
                    lr=group["lr"],
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    weight_decay=group["weight_decay"],
                    eps=self.epsilon,
                    amsgrad=False,
                    maximize=False,
                    grad_scale=_on(self.grad_scale, device),
                    found_inf=_on(self.found_inf, device),
                )
            if self.found_inf is not None:
                step -= self.found_inf.to(step.device)


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
            for device, those in _by_device(parameters):
                numbers, gradients = _here(those)
                torch._fused_sgd_(
                    numbers,
                    gradients,
                    [local(buffer) for parameter in those for buffer in self.state[parameter].values()],
                    weight_decay=group["weight_decay"],
                    momentum=self.momentum,
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=self.nesterov,
                    maximize=False,
                    is_first_step=False,
                    grad_scale=_on(self.grad_scale, device),
                    found_inf=_on(self.found_inf, device),
                )


def _by_device(parameters: list[nn.Parameter]) -> Iterator[tuple[torch.device, list[nn.Parameter]]]:
    """The parameters by where they lie: what ranks hold in parts may be in the host's memory."""
    devices = dict.fromkeys(parameter.device for parameter in parameters)
    for device in devices:
        yield device, parameters if len(devices) == 1 else [p for p in parameters if p.device == device]


def _here(parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Of parameters and of their gradients the numbers that are here."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return [local(parameter) for parameter in parameters], gradients


def _on(scalar: Tensor | None, device: torch.device) -> Tensor | None:
    return None if scalar is None else scalar.to(device)
