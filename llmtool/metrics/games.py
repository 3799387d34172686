"""Game records: besides the language figures, whether the guessed moves are legal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtool.metrics.language import LARGEST, Floats, LanguageTally

FIGURES = ("loss", "perplexity", "match", "legal", "legal_mass")


class GamesTally(LanguageTally):
    """Sums by game: nats, moves and first choices as of any text; of the judged positions the legal ones.

    legal: (p,) positions whose first choice is legal. mass: (p,) summed probability of the legal moves, NaN
    where it is not known. judged: (p,) positions looked at, 0 for games that were left out.
    """

    figures = FIGURES

    def __init__(
        self,
        nats: Tensor,
        tokens: Tensor,
        correct: Tensor,
        legal: Tensor,
        mass: Tensor,
        judged: Tensor,
        units: Tensor | None = None,
    ) -> None:
        super().__init__(nats, tokens, correct, units=units)
        more = torch.stack([part.detach().double().reshape(-1) for part in (legal, mass, judged)])
        self._parts = [torch.cat([self._parts[0], more])]  # (6, p)

    @property
    def judged(self) -> int:
        """Positions whose legality was looked at."""
        return int(self.sums()[5].sum())

    def take(self, units: np.ndarray) -> GamesTally:
        """The evidence of these games alone; units: their numbers, or a bool for each."""
        return GamesTally(*torch.from_numpy(self.sums()[:, units]))

    def details(self) -> dict[str, Any]:
        """The sums, and how many positions were judged."""
        return {**super().details(), "judged": self.judged}

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns of the sums of each game."""
        _, _, _, legal, mass, judged = self.sums()
        columns = {"legal": legal.astype(np.int64), "legal_mass": mass, "judged": judged.astype(np.int64)}
        return super().predictions() | columns

    def _of(self, sums: Floats) -> dict[str, Floats]:
        """Figures of (B, 6) sums."""
        nats, tokens, correct, legal, mass, judged = sums.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            loss = nats / tokens
            perplexity = np.exp(np.where(loss < LARGEST, loss, np.nan))
            found = (loss, perplexity, correct / tokens, legal / judged, mass / judged)
        return dict(zip(FIGURES, found, strict=True))

    def _reasons(self) -> dict[str, str]:
        none = "no position was judged"
        return {
            "perplexity": "too large for a number",
            "legal": none,
            "legal_mass": none if not self.judged else "is not known of these predictions",
        }
