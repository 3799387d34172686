"""The parts that transformers are made of: linear layers both ways round, norms, rotary positions, attention.

Parameter names and orientations are those of Hugging Face's implementations: weights are interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.products import linear
from llmtool.models.attention import attention, each_head, earlier
from llmtool.models.flex import BlockMask, attend_by_blocks

Mask = Tensor | BlockMask | None  # what a query may look at, as `attend` takes it
Matrix = TypeVar("Matrix", bound=Tensor)

STACK = 2**26  # numbers of hidden matrices that an optimizer works on at once: 256 MB, and as much beside it
STATISTICS = ("running_mean", "running_var")  # buffers that a pass in training moves


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The statistics of a model's batch norms, by name."""
    return {name: each for name, each in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}


class Linear(nn.Linear):
    """A linear layer, multiplied by the library that is fastest here."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's checkpoints have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias, turned=True)


def cut(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """(..., sum of sizes) -> (..., size) of each; of a rank's part of `x`, that part of each."""
    return x.split([size * x.shape[-1] // sum(sizes) for size in sizes], dim=-1)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """(..., D), (D,) -> (..., D): each vector over its root mean square, times the weight."""
    if x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.compiler.is_compiling():
        found: Tensor = CPUNorm.apply(x, weight, epsilon)
        return found
    # under autocast x may be bf16 and the weight fp32: torch's fused kernel wants one type
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), epsilon)


class CPUNorm(torch.autograd.Function):
    """`rms_norm` of a CPU, which has no fused kernel, in half the passes that torch's operations make."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (..., 1)
        even = x * scale
        ctx.save_for_backward(even, scale, weight)
        return even * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        even, scale, weight = ctx.saved_tensors
        both = (gradient * even).reshape(-1, len(weight))  # (N, D)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            along = torch.mv(both, weight).div_(len(weight)).view(scale.shape)
            of_x = torch.addcmul(gradient * weight, even, along, value=-1).mul_(scale)
        if ctx.needs_input_grad[1]:
            of_weight = both.sum(dim=0)
        return of_x, of_weight, None


class RMSNorm(nn.Module):
    """Divides each vector by its root mean square and scales it."""

    # https://arxiv.org/abs/1910.07467

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), in the precision of `x`."""
        return rms_norm(x, self.weight, self.epsilon)


class OffsetRMSNorm(RMSNorm):
    """Divides each vector by its root mean square and scales it by 1 + weight, as Gemma does."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__(width, epsilon)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), in the precision of `x`."""
        return rms_norm(x, 1 + self.weight, self.epsilon)


# (frequencies (E/2), theta, context) -> other frequencies, and what cosines and sines are multiplied by
Scaling = Callable[[Tensor, float, int], tuple[Tensor, float]]


class Rotary(nn.Module):
    """Turns queries and keys by an angle that grows with their position."""

    # https://arxiv.org/abs/2104.09864; the two halves of a head form the pairs, as in Llama

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_width: int, context: int, theta: float, scaling: Scaling | None = None) -> None:
        super().__init__()
        self.head_width, self.context, self.theta, self.scaling = head_width, context, theta, scaling
        empty = torch.empty(context, head_width // 2)
        self.register_buffer("cosine", empty, persistent=False)
        self.register_buffer("sine", empty.clone(), persistent=False)
        if not empty.is_meta:  # where it has no values, computing them imports half of torch's compiler
            self.fill(empty.device)

    def fill(self, device: torch.device) -> None:
        """Compute the tables (context, E/2) on `device`; a model built on the meta device needs it."""
        even = torch.arange(0, self.head_width, 2, dtype=torch.float32, device=device)
        frequency, factor = 1.0 / (self.theta ** (even / self.head_width)), 1.0
        if self.scaling is not None:
            frequency, factor = self.scaling(frequency, self.theta, self.context)
        position = torch.arange(self.context, dtype=torch.float32, device=device)
        angle = torch.outer(position, frequency)  # (context, E/2)
        self.cosine, self.sine = angle.cos() * factor, angle.sin() * factor

    def forward(self, length: int, positions: Tensor | None, start: int = 0) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (T, E/2) from `start` on, or (B, 1, T, E/2) at `positions` (B, T)."""
        if positions is None:
            return self.cosine[start : start + length], self.sine[start : start + length]
        return self.cosine[positions].unsqueeze(1), self.sine[positions].unsqueeze(1)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """(B, H, T, E) turned by the angles of Rotary, in the precision of `x`.

    Of a head that is wider than the angles are for, the last numbers stay as they are.
    """
    turned = 2 * angles[0].shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], angles), x[..., turned:]), dim=-1)
    cosine, sine = angles[0].to(x.dtype), angles[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)  # (B, H, T, E/2) each
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    dropout: float,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal attention: query (B, H, T, E), key and value (B, K, S, E) -> (B, T, H * E).

    mask: (B, 1, T, S), True where a query may look; None: every earlier position, on the kernel's fast path;
    of blocks: by models.flex, without dropout.
    Keys may be more than queries (S > T): those of a cache, and without a mask all of them are earlier.
    K below H shares keys among groups of queries (https://arxiv.org/abs/2305.13245).
    scale: what scores are multiplied by; None: 1 / sqrt(E). soft_cap: what they stay below.
    """
    if isinstance(mask, BlockMask):
        assert dropout == 0, "flex attention has no dropout"
        return attend_by_blocks(query, key, value, mask, scale, soft_cap)
    if soft_cap is not None:
        return _attend_capped(query, key, value, mask, dropout, scale, soft_cap)
    causal = mask is None and bool(query.shape[2] == key.shape[2])  # torch.export gives no plain bool
    result = attention(query, key, value, mask, causal, dropout, scale)
    return result.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, H * E)


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None,
    soft_cap: float,
) -> Tensor:
    """Attention whose scores pass through a tanh (https://arxiv.org/abs/2408.00118), which no kernel has."""
    key, value = each_head(query, key), each_head(query, value)
    scores = query @ key.transpose(2, 3) * (scale or query.shape[3] ** -0.5)  # (B, H, T, S)
    scores = soft_cap * torch.tanh(scores.float() / soft_cap)
    if mask is None and query.shape[2] == key.shape[2]:
        mask = earlier(query.shape[2], query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, H * E)


def document_mask(segments: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T): True at each token itself and earlier ones of its document."""
    same = segments.unsqueeze(2) == segments.unsqueeze(1)  # (B, T, T)
    return (same & earlier(segments.shape[1], segments.device)).unsqueeze(1)


def document_positions(segments: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) int64 positions, which start again at 0 with each document."""
    index = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(begins, index, 0).cummax(dim=1).values
    return index - start


class DropPath(nn.Module):
    """In training, leaves a random share of rows out of a block, and scales up what it adds to the others."""

    # stochastic depth, https://arxiv.org/abs/1603.09382

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(x.shape[0], *(1 for _ in x.shape[1:]), device=x.device) >= self.share
        return x * kept / (1 - self.share)


class LayerScale(nn.Module):
    """Scales each channel of what a block adds by a learned amount."""

    # https://arxiv.org/abs/2103.17239

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.scale


def hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the parameters that map vectors inside a model: matrices, and convolutions of several channels.

    Not of those at its two ends: embeddings (or convolutions of pixels) and the output layer, as our families
    name them; in any other model all Embeddings, and the last Linear.
    """
    ends: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    ends += getattr(model, "embeddings", [])
    if name := getattr(model, "head_name", None):
        ends.append(model.get_submodule(name))
    elif linears := [module for module in model.modules() if isinstance(module, nn.Linear)]:
        ends.append(linears[-1])
    outer = {id(parameter) for module in ends for parameter in module.parameters()}
    # a convolution is a matrix with a row for each channel that comes out, as in
    # https://github.com/KellerJordan/cifar10-airbench; of one channel it maps nothing
    maps = lambda p: p.ndim == 2 or (p.ndim == 4 and p.shape[1] > 1)  # noqa: E731
    return {id(p) for p in model.parameters() if maps(p) and id(p) not in outer}


def stacks(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Those of one shape, either way round (convolutions as (c', c * 9)), together, up to STACK numbers."""
    found: dict[tuple[int, int], list[list[Matrix]]] = {}
    for matrix in matrices:
        sides = len(matrix), matrix[0].numel()
        alike = found.setdefault((min(sides), max(sides)), [[]])
        if alike[-1] and (len(alike[-1]) + 1) * matrix.numel() > STACK:
            alike.append([])
        alike[-1].append(matrix)
    return [stack for alike in found.values() for stack in alike]
