"""What models with a head on top of features share: it may be missing, and another may take its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from llmtool.core.contracts import Classes, Images, InputSpec, OutputSpec, Values
from llmtool.core.errors import ConfigError


class Headed(nn.Module):
    """A model with a head, or of a checkpoint that has none.

    outputs: None where there is no head yet; adapters.replace_head gives it one. labels: the names of the
    outputs, for whoever reads the checkpoint. head_is_new: set by adapters.replace_head: such a head is
    stored with an adapter.
    """

    head_name: ClassVar[str] = "head"

    def __init__(self, config: Any, inputs: Any, outputs: Classes | Values | None) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.outputs: OutputSpec | None = outputs
        self.labels: list[str] | None = None
        self.head_is_new = False


def of_pictures(family: str, inputs: InputSpec, outputs: OutputSpec) -> tuple[Images, Classes | Values]:
    """The specs of a model for pictures; ConfigError for those of other families."""
    if not isinstance(inputs, Images):
        raise ConfigError(f"model.family {family} takes images, not {type(inputs).__name__.lower()}")
    if not isinstance(outputs, Classes | Values):
        raise ConfigError(f"model.family {family} gives classes or values of pictures, no tokens")
    return inputs, outputs


Pooling = Literal["cls", "last", "mean"]


def pool(hidden: Tensor, segments: Tensor | None, how: Pooling) -> Tensor:
    """(B, T, D) -> (B, D): the first or the last token that is no padding, or the mean of all such.

    segments: (B, T), 0 at padding; None: there is none.
    """
    if segments is None:
        return hidden.mean(dim=1) if how == "mean" else hidden[:, 0 if how == "cls" else -1]
    real = segments != 0
    if how == "mean":
        weights = real.to(hidden.dtype).unsqueeze(2)  # (B, T, 1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if how == "cls":
        at = real.to(torch.int8).argmax(dim=1)  # (B,)
    else:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        at = (real * places).argmax(dim=1)  # (B,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), at]


def per_text(
    vectors: Callable[[Tensor, Tensor | None], Tensor], inputs: Tensor, segments: Tensor | None
) -> Tensor:
    """(B, D), what stands for each text: `vectors` of its tokens, or the mean of those of its chunks.

    inputs: (B, T), or (B, K, T) of texts in up to K chunks, and segments of that shape. vectors: of (N, T).
    """
    if inputs.ndim == 2:
        return vectors(inputs, segments)
    assert segments is not None, "which chunks are there"
    found = vectors(inputs.flatten(0, 1), segments.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # (B, K, D)
    there = (segments != 0).any(dim=2, keepdim=True).to(found.dtype)  # (B, K, 1)
    return (found * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
