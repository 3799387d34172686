"""What a family of the parity table is, and how a pair of models with the same weights comes about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.models import pretrained


@dataclass
class Pair:
    """The same weights in their module and in ours, and the directory that theirs saved."""

    theirs: Any
    ours: nn.Module
    directory: Path


@dataclass(frozen=True)
class Family:
    """One row of the table.

    config: keyword arguments of AutoConfig.for_model, model_type among them. auto: the Auto class of
    transformers (or the class itself) that builds and loads it. cases: name -> largest |difference|.
    """

    name: str
    config: Mapping[str, Any]
    auto: str
    cases: Mapping[str, Callable[[Pair], float]]


@torch.no_grad()
def pair(family: Family, directory: Path) -> Pair:
    """Their model with random weights, saved into `directory`, and ours read from there."""
    import transformers

    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(**family.config)
    auto = getattr(transformers, family.auto)
    theirs = (auto.from_config if family.auto.startswith("Auto") else auto)(config).eval()
    for parameter in theirs.parameters():  # none at a value where an error would not show
        parameter.add_(torch.randn_like(parameter) * 0.1)
    for name, buffer in theirs.named_buffers():
        if name.endswith((".running_mean", ".running_var")):
            buffer.add_(torch.rand_like(buffer))
    theirs.save_pretrained(directory)
    return Pair(theirs, pretrained.load(directory).eval(), directory)


def largest(first: Tensor, second: Tensor) -> float:
    """The largest |difference|; NaN counts as infinite."""
    assert first.shape == second.shape
    return float((first - second).abs().nan_to_num(nan=float("inf")).max())
