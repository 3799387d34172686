"""Language modelling: nats, tokens, hits and bytes of each part of a text, and the figures that follow."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

FIGURES = ("loss", "perplexity", "bits_per_byte", "token_accuracy")
# Batches whose sums are kept apart. Thousands of small tensors that stay, each in the hole that a batch's
# logits left, make the next logits take new memory: 5 million tokens took 2.9 GB so, and 0.5 now.
PIECES = 64
LARGEST = 700.0  # nats per token; e**709 is the largest float


class LanguageTally:
    """Sums over the tokens scored so far, by unit; they stay on the device until a figure is asked for.

    nats, tokens, correct: (p,) sums over p pieces of the text, or one number each. units: (p,) int64 on the
    host, the unit of the text (data.batches.unit_edges) that each piece belongs to, -1 for no piece; None:
    each is its own. Two things no batch can know, stages.score sets: `bytes`, the UTF-8 length of the text
    that was scored (without it there is no bits_per_byte), and `all_units`, how many units the text has: the
    last may be documents of one token, in which nothing is scored.
    """

    figures: ClassVar[tuple[str, ...]] = FIGURES

    def __init__(
        self,
        nats: Tensor,
        tokens: Tensor,
        correct: Tensor,
        size: float | None = None,
        units: Tensor | None = None,
    ) -> None:
        sums = torch.stack([part.detach().double().reshape(-1) for part in (nats, tokens, correct)])
        self._parts, self._units, self.bytes = [sums], [units], size  # parts: (3, p) each
        self.all_units = 0
        self._settled: Floats | None = None

    def add(self, other: Self) -> None:
        """Take in the sums of another batch; nothing waits for the device."""
        self._parts += other._parts
        self._units += other._units
        if len(self._parts) > PIECES and not any(units is None for units in self._units):
            self._parts = [torch.cat(self._parts, dim=1)]
            self._units = [torch.cat([units for units in self._units if units is not None])]
        self._settled = None
        known = self.bytes is not None and other.bytes is not None
        self.bytes = (self.bytes or 0) + (other.bytes or 0) if known else None

    def to_host(self) -> None:
        """All sums so far in the host's memory."""
        self._parts = [part.cpu() for part in self._parts]

    def sums(self) -> Floats:
        """(3, u) nats, scored tokens and first choices of each unit; more rows where a tally has more."""
        if self._settled is None:
            parts = torch.cat([part.cpu() for part in self._parts], dim=1).numpy()
            if any(units is None for units in self._units):
                self._settled = parts
            else:
                unit = torch.cat([units for units in self._units if units is not None]).numpy()
                there = unit >= 0
                unit, count = unit[there], max(self.all_units, int(unit.max(initial=-1)) + 1)
                self._settled = np.stack([np.bincount(unit, part[there], count) for part in parts])
        return self._settled

    @property
    def nats(self) -> float:
        """Summed surprise, minus the logarithm of the probability given to each token."""
        return float(self.sums()[0].sum())

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return int(self.sums()[1].sum())

    @property
    def correct(self) -> int:
        """Tokens that were the model's first choice."""
        return int(self.sums()[2].sum())

    @property
    def units(self) -> int:
        """Documents, or stretches of a text that has few of them."""
        return self.sums().shape[1]

    @property
    def width(self) -> int:
        """Sums are all it takes."""
        return 1

    def metrics(self) -> dict[str, float]:
        """loss (nats per token), perplexity, bits_per_byte, token_accuracy."""
        return self._figures()[0]

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these tokens leave undefined: name -> reason."""
        return self._figures()[1]

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, Floats]:
        """Every figure with unit i counted weights[b, i] times: name -> (B,), NaN where undefined.

        A unit's bytes are taken to be its share of the scored tokens, as those of the whole text are.
        """
        return self._of(weights @ self.sums().T)

    def take(self, units: np.ndarray) -> LanguageTally:
        """The evidence of these units alone; units: their numbers, or a bool for each."""
        nats, tokens, correct = torch.from_numpy(self.sums()[:, units])
        size = self.bytes * float(tokens.sum()) / max(self.tokens, 1) if self.bytes else None
        return LanguageTally(nats, tokens, correct, size)

    def details(self) -> dict[str, Any]:
        """The sums themselves."""
        nats = self.nats if math.isfinite(self.nats) else None
        return {"nats": nats, "tokens": self.tokens, "correct": self.correct, "bytes": self.bytes}

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns `nats`, `tokens` and `correct`: the sums of each unit."""
        nats, tokens, correct = self.sums()[:3]
        return {"nats": nats, "tokens": tokens.astype(np.int64), "correct": correct.astype(np.int64)}

    def _of(self, sums: Floats) -> dict[str, Floats]:
        """Figures of (B, 3) nats, tokens and first choices."""
        nats, tokens, correct = sums.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            loss = nats / tokens
            perplexity = np.exp(np.where(loss < LARGEST, loss, np.nan))
            size = self.bytes * tokens / self.tokens if self.bytes else np.full(len(tokens), np.nan)
            found = (loss, perplexity, nats / math.log(2) / size, correct / tokens)
        return dict(zip(FIGURES, found, strict=True))

    def _figures(self) -> tuple[dict[str, float], dict[str, str]]:
        if not self.tokens or not math.isfinite(self.nats):
            reason = "the model's outputs are not finite" if self.tokens else "no token is scored"
            return {}, dict.fromkeys(self.figures, reason)
        found = self._of(self.sums().sum(axis=1)[None])
        defined = {name: float(value[0]) for name, value in found.items() if np.isfinite(value[0])}
        return defined, {name: reason for name, reason in self._reasons().items() if name not in defined}

    def _reasons(self) -> dict[str, str]:
        """Figures that finite sums may leave undefined."""
        return {
            "perplexity": "too large for a number",
            "bits_per_byte": "the length of the scored text in bytes is not known",
        }
