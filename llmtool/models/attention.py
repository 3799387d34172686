"""Attention by PyTorch's kernel, or written out where that is faster: short rows in bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtool.core.devices import multiplies_bf16

# Pairs of tokens of a head's square. Up to here the backward pass of a CPU's kernel takes longer than
# products written out, and as long at four times as many (scripts/benchmarks/short_attention.py).
MOST = 2**16
HERE = multiplies_bf16("cpu")  # asked once: torch.compile would ask again wherever it meets the question


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """query (B, H, T, E), key and value (B, K, S, E), K a part of H -> (B, H, T, E).

    mask: broadcast to (B, H, T, S), True where a query may look; each must see something. causal: every
    earlier position, in place of a mask. scale: what scores are multiplied by; None: 1 / sqrt(E).
    """
    if query.is_cpu and written_out(query, key, value, dropout):
        return by_products(query, key, value, mask, causal, scale)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=shared
    )


def written_out(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether a CPU is to do without the kernel: for gradients, of short rows in bfloat16."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    return (
        HERE
        and dtype == torch.bfloat16
        and not dropout
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
        and not torch.compiler.is_exporting()
        and query.shape[2] * key.shape[2] <= MOST
    )


@contextmanager
def by_kernel() -> Iterator[None]:
    """Within, the kernel is called whatever the tensors are: those of a CPU stand for another device's."""
    global MOST
    before, MOST = MOST, 0
    try:
        yield
    finally:
        MOST = before


def by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """As `attention` without dropout, in bfloat16: sums and exponentials in float32, scores rounded."""
    key, value = each_head(query, key), each_head(query, value)
    if causal:
        mask = earlier(query.shape[2], query.device)
    query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
    found: Tensor = _ByProducts.apply(query, key, value, mask, scale or query.shape[3] ** -0.5)
    return found


def each_head(query: Tensor, shared: Tensor) -> Tensor:
    """Keys or values (B, K, S, E), shared by groups of the query's heads -> (B, H, S, E)."""
    groups = query.shape[1] // shared.shape[1]
    return shared if groups == 1 else shared.repeat_interleave(groups, dim=1)


def earlier(length: int, device: torch.device) -> Tensor:
    """(T, T): True at each token itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class _ByProducts(torch.autograd.Function):
    """(B, H, T, E), (B, H, S, E) twice, a mask or None -> (B, H, T, E). Keeps the weights (B, H, T, S)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            scores = (query * scale) @ key.transpose(2, 3)
            if mask is not None:
                scores = scores.masked_fill_(~mask, float("-inf"))
            weights = scores.softmax(dim=-1)
            ctx.save_for_backward(query, key, value, weights)
            ctx.scale = scale
            return weights @ value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        query, key, value, weights = ctx.saved_tensors
        of_weights = gradient @ value.transpose(2, 3)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = (of_scores @ key).mul_(ctx.scale)
        of_key = (of_scores.transpose(2, 3) @ query).mul_(ctx.scale)
        return of_query, of_key, weights.transpose(2, 3) @ gradient, None, None
