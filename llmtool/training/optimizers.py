"""The update rules, and one small holder that steps them, names their state and writes it down exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.shards import is_part, like, take
from llmtool.models.layers import hidden_matrices
from llmtool.training.fused import SGD, AdamW
from llmtool.training.muon import Muon
from llmtool.training.muon_parts import PartsMuon

Beta = Annotated[float, Field(ge=0, lt=1)]
LR = "learning rate at the schedule's full height"
DECAY = "decoupled weight decay of matrices (vectors, such as biases and norms, are never decayed)"

Named = list[tuple[str, nn.Parameter]]
Rates = Mapping[str, float]  # parameter -> its learning rate in multiples of the optimizer's; others have 1
NO_RATES: Rates = {}
Part = AdamW | SGD | Muon


class AdamWConfig(Section):
    """AdamW (https://arxiv.org/abs/1711.05101); with weight_decay 0 it is plain Adam."""

    name: Literal["adamw"] = Field(description="AdamW; with weight_decay 0 it is Adam")
    lr: float = Field(default=1e-3, gt=0, description=LR)
    betas: list[Beta] = Field(
        default=[0.9, 0.99], min_length=2, max_length=2, description="memory of the mean and of the squares"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the squares")
    weight_decay: float = Field(default=0.01, ge=0, description=DECAY)

    def build(self, model: nn.Module, rates: Rates = NO_RATES) -> Optimizers:
        """The optimizer of the model's trainable parameters."""
        named = trainable(model)
        first, second = self.betas
        groups = _groups(named, self.lr, self.weight_decay, rates)
        return Optimizers({"adamw": AdamW(groups, self.lr, (first, second), self.epsilon)}, named)


class SGDConfig(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(description="stochastic gradient descent")
    lr: float = Field(default=0.1, gt=0, description=LR)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last update that goes on")
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 decay of matrices, as part of the gradient"
    )

    def build(self, model: nn.Module, rates: Rates = NO_RATES) -> Optimizers:
        """The optimizer of the model's trainable parameters."""
        if self.nesterov and not self.momentum:
            raise ConfigError("optimizer.nesterov needs a momentum above 0")
        named = trainable(model)
        part = SGD(_groups(named, self.lr, self.weight_decay, rates), self.lr, self.momentum, self.nesterov)
        return Optimizers({"sgd": part}, named)


class MuonConfig(Section):
    """Muon for the hidden matrices (https://kellerjordan.github.io/posts/muon/), AdamW for the rest."""

    name: Literal["muon"] = Field(
        description="orthogonalised momentum for the matrices between embeddings and head, AdamW for the "
        "rest; it takes convolutions too, though whether these learn better so has not been measured"
    )
    lr: float = Field(default=0.02, gt=0, description="learning rate of the hidden matrices, at full height")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="memory of the gradient")
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum")
    ns_steps: int = Field(
        default=5, gt=0, lt=100, description="Newton-Schulz steps that orthogonalise an update"
    )
    weight_decay: float = Field(default=0.0, ge=0, description=DECAY)
    adamw_lr: float = Field(default=3e-3, gt=0, description="learning rate of embeddings, head and vectors")
    betas: list[Beta] = Field(
        default=[0.9, 0.95],
        min_length=2,
        max_length=2,
        description="AdamW's memory of the mean and of the squares",
    )
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")

    def build(self, model: nn.Module, rates: Rates = NO_RATES) -> Optimizers:
        """The optimizer of the model's trainable parameters. ConfigError when none is a hidden matrix."""
        assert not rates, "one rate for all; the experiment refuses the combination"
        named, inner = trainable(model), hidden_matrices(model)
        hidden = [(name, p) for name, p in named if id(p) in inner]
        chosen = {id(p) for _, p in hidden}
        rest = [(name, p) for name, p in named if id(p) not in chosen]
        if not hidden:
            raise ConfigError("optimizer muon: this model trains no hidden matrix; use adamw")
        kind = PartsMuon if any(is_part(p) for _, p in hidden) else Muon
        parts: dict[str, Part] = {
            "muon": kind(
                [p for _, p in hidden],
                self.lr,
                self.momentum,
                self.nesterov,
                self.ns_steps,
                self.weight_decay,
            )
        }
        if rest:
            first, second = self.betas
            groups = _groups(rest, self.adamw_lr, self.weight_decay, rates)
            parts["adamw"] = AdamW(groups, self.adamw_lr, (first, second), self.epsilon)
        return Optimizers(parts, named)


OptimizerConfig = Annotated[AdamWConfig | SGDConfig | MuonConfig, Field(discriminator="name")]


class Optimizers:
    """Update rules that step together; their state exists from the start, named by parameter."""

    def __init__(self, parts: Mapping[str, Part], named: Named) -> None:
        self.parts = parts
        self.parameters = [p for _, p in named]
        self._names = {id(p): name for name, p in named}
        for group in self.groups():
            group["initial_lr"] = group["lr"]

    def multiply_in(self, products: torch.dtype) -> None:
        """What Muon's matrix products are computed in; float32 from the start."""
        for part in self.parts.values():
            if isinstance(part, Muon):
                part.products = products

    def groups(self) -> list[dict[str, Any]]:
        """All parameter groups."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def set_rate(self, factor: float) -> float:
        """Every group's rate becomes `factor` of its full rate; returns the first group's."""
        for group in self.groups():
            group["lr"] = group["initial_lr"] * factor
        return float(self.groups()[0]["lr"])

    def gradients(self) -> list[Tensor]:
        """The gradients there are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def step(self, divisor: Tensor | None = None, skip: Tensor | None = None) -> None:
        """Update the parameters with the gradients over `divisor`; where `skip` is set, nothing changes.

        Both are scalars on the device: nothing is waited for.
        """
        for part in self.parts.values():
            part.grad_scale, part.found_inf = divisor, None if skip is None else skip.float()
            part.step()

    @property
    def moved(self) -> bool:
        """Whether parameters or state may have changed since the gradients were last forgotten."""
        return any(part.moved for part in self.parts.values())

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None
        for part in self.parts.values():
            part.moved = False

    def state(self) -> dict[str, Tensor]:
        """A copy of the state, on the host, by "optimizer/parameter/what": everything a resumed run needs,
        exactly."""
        return {
            name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.live().items()
        }

    def live(self) -> dict[str, Tensor]:
        """The state itself, by the same names."""
        return {
            f"{kind}/{self._names[id(parameter)]}/{key}": value
            for kind, part in self.parts.items()
            for parameter, entries in part.state.items()
            for key, value in entries.items()
        }

    def as_parameters(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of parameters by name, of their states, by the names of `live`."""
        return {name: known[of] for name in self.live() if (of := name.split("/")[1]) in known}

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take over a saved `state`, bit by bit. LlmtoolError when it is of another model or optimizer."""
        own = self.live()
        if own.keys() != saved.keys():
            other = sorted(own.keys() ^ saved.keys())[0]
            raise LlmtoolError(
                f"the saved optimizer state is of another model or optimizer (differs in {other})"
            )
        for name, value in own.items():
            there = like(saved, name)
            if value.shape != there.shape or value.dtype != there.dtype:
                raise LlmtoolError(
                    f"the saved optimizer state is of another model: {name} is {tuple(there.shape)}, "
                    f"not {tuple(value.shape)}"
                )
            take(value, saved, name)


def trainable(model: nn.Module) -> Named:
    """Names and parameters that receive gradients, shared ones once. ConfigError when there are none."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing to train: every parameter of the model is frozen")
    return named


def _groups(named: Named, lr: float, weight_decay: float, rates: Rates) -> list[dict[str, Any]]:
    """Groups of one rate and one decay: matrices (and higher) decay, vectors do not; the plain rate first."""
    assert rates.keys() <= {name for name, _ in named}, "a rate for what is not trained"
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        vector = parameter.ndim < 2 and weight_decay > 0
        groups.setdefault((rates.get(name, 1.0), vector), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * rate, "weight_decay": 0.0 if vector else weight_decay}
        for (rate, vector), parameters in sorted(groups.items(), key=lambda one: (one[0][0] != 1.0, one[0]))
    ]
