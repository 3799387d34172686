"""Figures of game records by hand, added up, resampled, taken apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmtool.metrics.games import FIGURES, GamesTally


def tally(*rows: list[float], units: list[int] | None = None) -> GamesTally:
    """rows: nats, moves, first choices, legal ones, legal mass, judged."""
    parts = torch.tensor(rows, dtype=torch.float64)
    return GamesTally(*parts, units=None if units is None else torch.tensor(units))


def whole() -> GamesTally:
    return tally([4, 6, 2], [2, 4, 4], [1, 1, 0], [2, 0, 3], [1.5, 0, 3.25], [2, 0, 4])


def test_figures_by_hand() -> None:
    assert whole().metrics() == pytest.approx(
        {"loss": 1.2, "perplexity": math.exp(1.2), "match": 0.2, "legal": 5 / 6, "legal_mass": 4.75 / 6}
    )
    assert whole().judged == 6
    assert whole().details()["judged"] == 6


def test_batches_add_up_by_game() -> None:
    added = tally([6], [4], [1], [0], [0], [0], units=[1])
    added.add(tally([4, 2], [2, 4], [1, 0], [2, 3], [1.5, 3.25], [2, 4], units=[0, 2]))
    assert np.array_equal(added.sums(), whole().sums())
    assert added.metrics() == whole().metrics()


def test_resampled_is_the_figure_of_the_games_repeated() -> None:
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]])
    drawn = whole().resampled(weights)
    for row, counts in enumerate(weights):
        repeated = whole().take(np.repeat(np.arange(3), counts)).metrics()
        for name in FIGURES:
            assert drawn[name][row] == pytest.approx(repeated.get(name, math.nan), nan_ok=True)


def test_what_was_not_judged_is_undefined_with_its_reason() -> None:
    none = tally([4], [2], [1], [0], [0], [0])
    assert sorted(none.metrics()) == ["loss", "match", "perplexity"]
    assert none.undefined == dict.fromkeys(("legal", "legal_mass"), "no position was judged")
    ngram = tally([4], [2], [1], [1], [math.nan], [2])
    assert ngram.metrics()["legal"] == 0.5
    assert ngram.undefined == {"legal_mass": "is not known of these predictions"}
    assert sorted(tally([math.nan], [2], [0], [0], [0], [2]).undefined) == sorted(FIGURES)
