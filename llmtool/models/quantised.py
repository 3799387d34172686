"""Frozen linear layers whose weights are kept in four bits, NF4 of QLoRA (https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.devices import release_memory
from llmtool.core.errors import ConfigError, first_line
from llmtool.core.products import linear
from llmtool.models.layers import Conv1D, Linear

BLOCK, SECOND_BLOCK = 64, 256  # numbers that share a scale, and scales that share one of their own
NOISY = "bitsandbytes.backends.cpu.ops"  # says on every import that an optional kernel is not installed


def load_bitsandbytes() -> ModuleType:
    """bitsandbytes.functional. ConfigError where it is not there or does not work here."""
    logger = logging.getLogger(NOISY)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except (ImportError, OSError, RuntimeError) as error:
        needed = "finetune.method.quantise needs bitsandbytes: pip install 'llmtool[quant]'"
        raise ConfigError(f"{needed} ({first_line(error)})") from None
    finally:
        logger.setLevel(before)
    return functional


class NF4Linear(nn.Module):
    """A frozen linear layer whose weight is kept in four bits and made whole each time it is used.

    Nothing of the whole weight is kept between forward and backward.
    """

    absmax: Tensor
    packed: Tensor
    second_absmax: Tensor
    second_code: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear | Conv1D, double: bool, device: torch.device) -> None:
        super().__init__()
        functional = load_bitsandbytes()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.transposed = isinstance(linear, Conv1D)  # the weight is stored (in, out)
        self.shape, self.nested = tuple(linear.weight.shape), double
        weight = linear.weight.detach().to(device).contiguous()
        packed, state = functional.quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", state.absmax)
        if double:
            self.register_buffer("second_absmax", state.state2.absmax)
            self.register_buffer("second_code", state.state2.code)
            self.register_buffer("offset", state.offset)
        self.bias: nn.Parameter | None = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    @property
    def hidden_parameters(self) -> int:
        """How many numbers the packed weight stands for; no parameter of torch counts them."""
        return self.shape[0] * self.shape[1]

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as stored before, but for what four bits cannot hold."""
        absmax = self.absmax
        if self.nested:
            scales = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, self.second_absmax, self.second_code, SECOND_BLOCK, torch.float32
            )
            absmax = scales + self.offset
        return torch.ops.bitsandbytes.dequantize_4bit(
            self.packed, absmax, BLOCK, "nf4", list(self.shape), dtype
        )

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole weight as (out, in)."""
        return self.whole(dtype).T if self.transposed else self.whole(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        result = self.product(x)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def product(self, x: Tensor) -> Tensor:
        """The same without the bias, in the precision of autocast where that is on."""
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return _Product.apply(x, self)

    def plain(self) -> nn.Linear | Conv1D:
        """An ordinary layer with the whole weight, in float32."""
        bias = self.bias is not None
        with torch.device("meta"):
            layer = (
                Conv1D(self.in_features, self.out_features)
                if self.transposed
                else Linear(self.in_features, self.out_features, bias=bias)
            )
        layer.weight = nn.Parameter(self.whole())
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone())
        return layer


class _Product(torch.autograd.Function):
    """A linear layer whose weight is made whole again for the backward pass, instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.matrix(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return linear(gradient, ctx.layer.matrix(gradient.dtype), turned=True), None


def linear_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D | NF4Linear]:
    """Every linear layer by its full name, but for the output layer (and what is inside of it)."""
    head = str(model.head_name)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | NF4Linear)
        and name != head
        and not name.startswith(f"{head}.")
    }


def quantise(model: nn.Module, double: bool, device: torch.device) -> None:
    """Put NF4Linear on `device` in the place of every linear layer but the output layer, one after another.

    double: the blocks' scales are kept in eight bits too. No whole weight stays on `device`, and the memory
    of those that were on the CPU is the system's again. Idempotent.
    """
    for name, module in linear_layers(model).items():
        if not isinstance(module, NF4Linear):
            replace(model, name, NF4Linear(module, double, device))
    release_memory()


def make_whole(model: nn.Module) -> None:
    """Put ordinary layers back, with what four bits have kept of their weights, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear):
            replace(model, name, module.plain())


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the full name `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
