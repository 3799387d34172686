"""Low-rank updates beside frozen linear layers: the layer, its starts (LoRA, PiSSA), DoRA, and the merge."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.errors import ConfigError
from llmtool.core.products import linear
from llmtool.core.shards import local, piece
from llmtool.models.layers import Conv1D, Linear
from llmtool.models.quantised import NF4Linear, make_whole, replace

Base = nn.Linear | Conv1D | NF4Linear
TINY = 1e-15  # the least length of a row: one of zeros, with a trained length of 0, stays so


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank, https://arxiv.org/abs/2106.09685.

    Names and arithmetic are those of PEFT. `start_A` and `start_B` are there with PiSSA's start: what was
    taken out of the base.
    """

    lora_magnitude_vector: nn.Parameter | None
    start_A: Tensor | None
    start_B: Tensor | None
    squares: Tensor | None

    def __init__(self, base: Base, rank: int, scale: float, dropout: float = 0.0, dora: bool = False) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        device = next(iter([*base.parameters(), *base.buffers()])).device
        self.lora_A = nn.utils.skip_init(Linear, base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.utils.skip_init(Linear, rank, base.out_features, bias=False, device=device)
        for name in ("start_A", "start_B", "squares"):
            self.register_buffer(name, None, persistent=False)
        self.lora_magnitude_vector = None
        if dora:
            self.squares = matrix(base).square().sum(dim=1)  # (out,), constant: the base is frozen
            self.lora_magnitude_vector = nn.Parameter(self.squares.sqrt())

    def start_at_random(self, generator: torch.Generator) -> None:
        """As PEFT: A like torch's own linear layers, B zero, so that the start is the base model."""
        fill_uniform(self.lora_A.weight, 1 / math.sqrt(self.base.in_features), generator)
        nn.init.zeros_(self.lora_B.weight)

    @torch.no_grad()
    def start_at_principal(self) -> None:
        """PiSSA, https://arxiv.org/abs/2404.02948: the update is the base's largest singular directions, the
        base what they leave. ConfigError where there are fewer of them than the rank."""
        rank, most = self.lora_A.out_features, min(self.base.in_features, self.base.out_features)
        if rank > most:
            raise ConfigError(
                f"finetune.method.rank: {rank} is more than the {most} singular directions of a layer of "
                f"{self.base.in_features} x {self.base.out_features}, which init: pissa starts from"
            )
        left, values, right = torch.linalg.svd(matrix(self.base), full_matrices=False)
        root = (values[:rank] / self.scale).sqrt()
        self.lora_A.weight.copy_(root.unsqueeze(1) * right[:rank])
        self.lora_B.weight.copy_(left[:, :rank] * root)
        self.take_out(self.lora_A.weight, self.lora_B.weight)

    @torch.no_grad()
    def take_out(self, a: Tensor, b: Tensor) -> None:
        """Take a start of PiSSA (R, in), (out, R) out of the base, in place of the one taken out before."""
        assert isinstance(self.base, nn.Linear | Conv1D)
        if self.start_A is not None and self.start_B is not None:
            if torch.equal(self.start_A, a) and torch.equal(self.start_B, b):
                return
            _add(self.base, self._product(self.start_A, self.start_B))
        self.start_A, self.start_B = a.detach().clone(), b.detach().clone()
        _add(self.base, -self._product(self.start_A, self.start_B))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (b @ a) * self.scale  # (out, in)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.lora_magnitude_vector is not None:
            return self._dora(x, self.lora_magnitude_vector)
        return self._add_update(self.base(x), F.dropout(x, self.dropout, self.training))

    def _add_update(self, result: Tensor, x: Tensor) -> Tensor:
        """(..., out) and (..., in) -> (..., out), the scaled update added in one product."""
        low = self.lora_A(x).flatten(0, -2)  # (N, R)
        total = torch.addmm(result.flatten(0, -2), low, self.lora_B.weight.T, alpha=self.scale)
        return total.view(result.shape)

    def _dora(self, x: Tensor, magnitude: Tensor) -> Tensor:
        """DoRA, https://arxiv.org/abs/2402.09353: rows of the changed weight, each of its own trained length.

        The length they have before is a constant to the gradient (section 4.3). With dropout, as PEFT has it,
        the base's own output sees all of `x`, and what DoRA changes of it the rest.
        """
        gain = magnitude / self._lengths()  # (out,)
        bias = self.base.bias
        if not (self.dropout and self.training):
            inner = self._add_update(self._without_bias(x), x)
            result = inner * gain if bias is None else torch.addcmul(bias, inner, gain)
            return result.to(inner.dtype)
        dropped = F.dropout(x, self.dropout, self.training)
        whole, part = self.base(x), self._without_bias(dropped)
        return (whole - part + gain * self._add_update(part, dropped)).to(whole.dtype)

    def _without_bias(self, x: Tensor) -> Tensor:
        if isinstance(self.base, NF4Linear):
            return self.base.product(x)
        return linear(x, matrix(self.base))

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """(out,) lengths of the rows of W + s B A, without making that matrix:
        |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b for each row w of W and b of B."""
        assert self.squares is not None
        a, b = self.lora_A.weight, self.lora_B.weight
        with torch.autocast("cpu" if b.is_meta else b.device.type, enabled=False):
            cross = matrix(self.base) @ a.T  # (out, R)
            more = 2 * self.scale * cross + self.scale**2 * (b @ (a @ a.T))
            return (self.squares + (more * b).sum(dim=1)).clamp_min(TINY**2).sqrt()

    @torch.no_grad()
    def merged(self) -> nn.Linear | Conv1D:
        """The base with the update in its weight: the base itself, or an ordinary layer for one of 4 bits."""
        layer = self.base.plain() if isinstance(self.base, NF4Linear) else self.base
        weight = matrix(layer)
        weight.add_(self._product(self.lora_A.weight, self.lora_B.weight))
        if self.lora_magnitude_vector is not None:
            lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(TINY)
            gain = self.lora_magnitude_vector / lengths
            weight.mul_(gain.unsqueeze(1))
        return layer


def _add(layer: nn.Linear | Conv1D, change: Tensor) -> None:
    """Add (out, in) to a layer's weight, or to the part of it that this rank holds."""
    stored, weight = change.T if isinstance(layer, Conv1D) else change, layer.weight.detach()
    local(weight).add_(stored[piece(weight).slices])


def matrix(layer: Base) -> Tensor:
    """A layer's weight as (out, in); of an ordinary layer the weight itself, to be changed in place."""
    if isinstance(layer, NF4Linear):
        return layer.matrix()
    return layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()


def fill_uniform(weight: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill from a stream of its own, the same on every device; torch's global stream is left alone."""
    with torch.no_grad():
        fresh = torch.empty(weight.shape, device="cpu").uniform_(-bound, bound, generator=generator)
        weight.copy_(fresh)


def updates(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The updates in a model by the full names of their layers."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def merge(model: nn.Module) -> None:
    """Add every update to its base's weight and put ordinary layers back, in place.

    Weights of four bits become whole ones, of what four bits have kept of them: the merged model computes
    what the trained one did, and not what the update would beside the weights as they were before.
    """
    for name, module in list(updates(model)):
        replace(model, name, module.merged())
    make_whole(model)
    model.requires_grad_(True)
    if getattr(model, "head_is_new", False):
        model.head_is_new = False  # type: ignore[assignment]
