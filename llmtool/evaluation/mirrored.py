"""A model of pictures that looks at each one twice: as it is, and as a mirror shows it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Mirrored(nn.Module):
    """The mean of what a model says of pictures and of their mirror images.

    classes: its outputs are logits of one of several classes, and the mean is that of the probabilities.
    """

    def __init__(self, model: nn.Module, classes: bool) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, c, h, w) -> (B, C): logarithms of probabilities, which are logits too, or (B, n) values."""
        both = torch.stack([self.model(seen, segments).float() for seen in (inputs, inputs.flip(3))])
        if not self.classes:
            return both.mean(dim=0)
        return both.log_softmax(dim=2).logsumexp(dim=0) - math.log(2)
