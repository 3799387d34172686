"""Figures of suites: by hand, resampled, undefined, and the same after a way through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from llmtool.core import files
from llmtool.metrics import bootstrap, direction
from llmtool.metrics.suites import FIGURES, SuiteTally

RECORDS = {
    "multiple_choice": [
        {"right": True, "right_norm": False, "log_likelihoods": [-1.0, -2.5]},
        {"right": False, "right_norm": False, "log_likelihoods": [-3.0, -2.0]},
        {"right": True, "right_norm": True, "log_likelihoods": [-0.1, -9.0]},
        {"right": True, "right_norm": False, "log_likelihoods": [-0.5, -0.7]},
    ],
    "exact_match": [
        {"right": True, "right_flexible": True, "text": "#### 3"},
        {"right": False, "right_flexible": True, "text": "it is 4"},
    ],
    "play": [
        {"score": 1.0, "won": True, "drawn": False, "lost": False, "illegal": 2, "guesses": 30},
        {"score": 0.5, "won": False, "drawn": True, "lost": False, "illegal": 1, "guesses": 20},
        {"score": 0.0, "won": False, "drawn": False, "lost": True, "illegal": 0, "guesses": 10},
        {"score": 1.0, "won": True, "drawn": False, "lost": False, "illegal": 0, "guesses": 40},
    ],
    "last_word": [{"right": True, "nats": 0.5}, {"right": False, "nats": 2.5}],
    "perplexity": [
        {"nats": 10.0, "words": 2, "bytes": 8},
        {"nats": 5.0, "words": 3, "bytes": 12},
    ],
}
EXPECTED = {
    "multiple_choice": {"accuracy": 0.75, "accuracy_norm": 0.25},
    "exact_match": {"exact_match": 0.5, "exact_match_flexible": 1.0},
    "play": {"score": 0.625, "won": 0.5, "drawn": 0.25, "lost": 0.25, "illegal": 0.03},
    "last_word": {"accuracy": 0.5, "perplexity": math.exp(1.5)},
    "perplexity": {
        "bits_per_byte": 15 / 20 / math.log(2),
        "byte_perplexity": math.exp(15 / 20),
        "word_perplexity": math.exp(15 / 5),
    },
}


@pytest.mark.parametrize("kind", list(FIGURES))
def test_figures_by_hand_resampled_and_after_json(kind: str) -> None:
    tally = SuiteTally(kind, RECORDS[kind])
    assert tally.metrics() == pytest.approx(EXPECTED[kind])
    assert tally.undefined == {}
    weights = np.array([[0, 2, *[1] * (tally.units - 2)], [1] * tally.units])
    drawn = tally.resampled(weights)
    places = [1, 1, *range(2, tally.units)]
    again = SuiteTally(kind, [RECORDS[kind][place] for place in places])
    for name, value in again.metrics().items():
        assert drawn[name] == pytest.approx([value, tally.metrics()[name]])
    read = SuiteTally(kind, json.loads(json.dumps(files.plain(tally.records))))
    assert read.metrics() == tally.metrics()
    assert read.records == tally.records
    part = tally.take(np.array([1]))
    part.add(tally.take(np.array([0])))
    assert part.metrics() == pytest.approx(tally.take(np.array([0, 1])).metrics())


def test_what_is_not_finite_or_too_large_is_undefined_with_its_reason() -> None:
    broken = SuiteTally("last_word", [{"right": False, "nats": math.nan}, {"right": True, "nats": 1.0}])
    assert broken.metrics() == {"accuracy": 0.5}
    assert broken.undefined == {"perplexity": "the outputs are not finite"}
    read = SuiteTally("last_word", json.loads(json.dumps(files.plain(broken.records))))
    assert read.undefined == broken.undefined
    huge = SuiteTally("perplexity", [{"nats": 1e6, "words": 1, "bytes": 10**6}])
    assert set(huge.undefined) == {"word_perplexity"}
    assert "too large" in huge.undefined["word_perplexity"]
    with pytest.raises(KeyError):
        SuiteTally("last_word", [{"right": True}])
    with pytest.raises(TypeError):
        SuiteTally("last_word", [{"right": True, "nats": "1"}])


def test_intervals_of_suites() -> None:
    chance = np.random.default_rng(0)
    records = [{"right": bool(chance.random() < 0.4), "right_norm": False} for _ in range(300)]
    tally = SuiteTally("multiple_choice", records)
    found = bootstrap.intervals(tally, 0).found
    low, high = found["accuracy"]
    half = 1.96 * math.sqrt(0.24 / 300)
    assert low == pytest.approx(tally.metrics()["accuracy"] - half, abs=0.01)
    assert high == pytest.approx(tally.metrics()["accuracy"] + half, abs=0.01)
    assert found["accuracy_norm"] == pytest.approx((0.0, 1 - 0.025 ** (1 / 300)))  # none right: exact
    assert direction("word_perplexity") == direction("byte_perplexity") == "min"
    assert direction("rmse_log") == "min"
    assert direction("exact_match") == "max"
