"""Language modelling: sums of nats, tokens, hits and bytes, and the figures that follow from them."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from torch import Tensor


class LanguageTally:
    """Sums over the tokens scored so far; they stay on the device until a figure is asked for.

    nats, tokens, correct: scalar tensors. `bytes` is the UTF-8 length of the text that was scored. The
    tally cannot know it: stages.score sets it from the dataset's card; without it there is no bits_per_byte.
    """

    def __init__(self, nats: Tensor, tokens: Tensor, correct: Tensor, size: float | None = None) -> None:
        self._nats, self._tokens, self._correct = nats.detach().double(), tokens.detach(), correct.detach()
        self.bytes = size

    def add(self, other: Self) -> None:
        """Take in the sums of another batch; nothing waits for the device."""
        self._nats, self._tokens = self._nats + other._nats, self._tokens + other._tokens
        self._correct = self._correct + other._correct
        known = self.bytes is not None and other.bytes is not None
        self.bytes = (self.bytes or 0) + (other.bytes or 0) if known else None

    @property
    def nats(self) -> float:
        """Summed surprise, minus the logarithm of the probability given to each token."""
        return float(self._nats)

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return int(self._tokens)

    @property
    def correct(self) -> int:
        """Tokens that were the model's first choice."""
        return int(self._correct)

    def metrics(self) -> dict[str, float]:
        """loss (nats per token), perplexity, bits_per_byte, token_accuracy."""
        return self._figures()[0]

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these tokens leave undefined: name -> reason."""
        return self._figures()[1]

    def details(self) -> dict[str, Any]:
        """The sums themselves."""
        nats = self.nats if math.isfinite(self.nats) else None
        return {"nats": nats, "tokens": self.tokens, "correct": self.correct, "bytes": self.bytes}

    def predictions(self) -> dict[str, np.ndarray] | None:
        """None: a text has no single prediction."""
        return None

    def _figures(self) -> tuple[dict[str, float], dict[str, str]]:
        nats, tokens = self.nats, self.tokens
        names = ("loss", "perplexity", "bits_per_byte", "token_accuracy")
        if not tokens or not math.isfinite(nats):
            reason = "the model's outputs are not finite" if tokens else "no token is scored"
            return {}, dict.fromkeys(names, reason)
        result, undefined = {"loss": nats / tokens}, {}
        if nats / tokens < 700:  # e**709 is the largest float
            result["perplexity"] = math.exp(nats / tokens)
        else:
            undefined["perplexity"] = "too large for a number"
        if self.bytes:
            result["bits_per_byte"] = nats / math.log(2) / self.bytes
        else:
            undefined["bits_per_byte"] = "the length of the scored text in bytes is not known"
        return result | {"token_accuracy": self.correct / tokens}, undefined
