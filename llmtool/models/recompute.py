"""Activation checkpointing: blocks whose results are made again for the backward pass, not kept."""

# https://arxiv.org/abs/1604.06174

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmtool.models.layers import statistics


def learning_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model that keep something for the backward pass: none before the first that learns."""
    blocks = list(getattr(model, "blocks", ()))
    if any(_learns(part) for part in getattr(model, "embeddings", ())):
        return blocks
    first = next((at for at, block in enumerate(blocks) if _learns(block)), len(blocks))
    return blocks[first:]


def recompute(model: nn.Module, count: int) -> None:
    """Let the first `count` of a model's `learning_blocks` keep their inputs alone, and no other block.

    Loss and gradients stay the same, dropout's choices too; a step makes the forward pass of these blocks
    twice. The first ones, as what the last ones keep is free again by the time these are made once more.
    """
    for block in getattr(model, "blocks", ()):
        vars(block).pop("forward", None)
    for block in learning_blocks(model)[:count]:
        vars(block)["forward"] = _Twice(block)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _Twice:
    """Stands in for a block's `forward`; its class and the names of its parameters know nothing of it."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.statistics = list(statistics(block).values())

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        block = self.block
        forward = type(block).forward.__get__(block)
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **keywords)
        # a compiled graph moves statistics once by itself, and breaks where Python notes that it has
        counts = self.statistics and not torch.compiler.is_compiling()
        run = _Still(forward, self.statistics) if counts else forward
        return checkpoint(run, *inputs, use_reentrant=False, **keywords)


class _Still:
    """A function that moves running statistics the first time it is called, and never again."""

    def __init__(self, function: Any, statistics: list[Tensor]) -> None:
        self.function, self.statistics, self.again = function, statistics, False

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        before = [each.clone() for each in self.statistics] if self.again else []
        self.again = True
        try:
            return self.function(*inputs, **keywords)
        finally:  # checkpoint leaves the second call by an exception as soon as it has what it needs
            with torch.no_grad():
                for each, kept in zip(self.statistics, before, strict=False):
                    each.copy_(kept)
