"""Weights averaged over the steps, and statistics of norms that no left-out step may move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmtool.core.errors import LlmtoolError
from llmtool.core.shards import like, local, take
from llmtool.models.layers import statistics

PIECE = 2**26  # bytes of weights that an average takes in at once


def moving(model: nn.Module) -> dict[str, Tensor]:
    """Whatever training moves, by name: parameters that receive gradients, and statistics."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | statistics(model)


@torch.no_grad()
def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put saved values of `moving` back, bit by bit. LlmtoolError where they are another model's."""
    live = moving(model)
    shapes = [{name: like(each, name).shape for name in each} for each in (live, saved)]
    if shapes[0] != shapes[1]:
        raise LlmtoolError("the saved weights are of another model than this")
    for name, tensor in live.items():
        take(tensor, saved, name)


class Average:
    """An exponential moving average of the weights and statistics of a model.

    Its memory is short at first, so that the start is soon forgotten: after step t (from 0) the average keeps
    min(decay, (1 + t) / (10 + t)) of itself.
    """

    # https://arxiv.org/abs/1312.6120 judges by averaged weights; the rule is TensorFlow's

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: local(tensor) for name, tensor in moving(model).items()}
        self._kept = {name: tensor.clone() for name, tensor in self._live.items()}
        self.statistics = [self._kept[name] for name in statistics(model)]

    @torch.no_grad()
    def begin(self) -> None:
        """The average of nothing but what the model is now."""
        torch._foreach_copy_(list(self._kept.values()), list(self._live.values()))

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Take in the weights after step `step`; where `skip` (a bool scalar on the device) is set, nothing
        changes."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        if skip is None:
            torch._foreach_lerp_(list(self._kept.values()), list(self._live.values()), weight)
            return
        share = weight * (~skip).float()
        for kept, live in self._pieces():
            apart = torch._foreach_sub(live, kept)
            torch._foreach_mul_(apart, share)
            torch._foreach_add_(kept, apart)

    def _pieces(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Average and weights, as many at once as lie within PIECE: no second copy of a model is made."""
        kept: list[Tensor] = []
        live: list[Tensor] = []
        room = 0
        for name, tensor in self._live.items():
            if kept and tensor.nbytes > room:
                yield kept, live
                kept, live = [], []
            room = (room if kept else PIECE) - tensor.nbytes
            kept.append(self._kept[name])
            live.append(tensor)
        yield kept, live

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The model has the averaged weights within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            other = live.clone()
            live.copy_(self._kept[name])
            self._kept[name].copy_(other)


class Statistics:
    """The statistics of a model's norms before a step, to be put back where the step is left out."""

    def __init__(self, model: nn.Module) -> None:
        self.live = list(statistics(model).values())
        self._kept = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are."""
        if self.live:
            torch._foreach_copy_(self._kept, self.live)

    @torch.no_grad()
    def put_back(self, skip: Tensor | None = None) -> None:
        """As they were when last kept; skip: only where this bool scalar on the device is set."""
        for live, kept in zip(self.live, self._kept, strict=True):
            live.copy_(kept if skip is None else torch.where(skip, kept, live))
