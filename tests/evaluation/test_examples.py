"""The rows a model is furthest off: the right ones, worst first, with where they came from."""

from __future__ import annotations

import numpy as np
import torch

from llmtool.evaluation.examples import MOST, SHORTEST, examples
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally


def test_classes_by_the_probability_of_the_target() -> None:
    logits = torch.zeros(100, 2)
    logits[:, 0] = torch.linspace(-5, 5, 100)  # the last rows are surest of "a"
    tally = ClassificationTally(logits, torch.ones(100, dtype=torch.int64), ["a", "b"])
    found = examples(tally, lambda row: f"x.csv:{row + 2}")
    assert [one["row"] for one in found] == [f"x.csv:{row + 2}" for row in range(99, 99 - MOST, -1)]
    assert (found[0]["target"], found[0]["prediction"]) == ("b", "a")
    assert abs(found[0]["probability of the target"] - 1 / (1 + np.exp(5))) < 1e-6
    assert examples(ClassificationTally(logits / 0, torch.ones(100), ["a", "b"]), str) == []


def test_values_by_their_error_in_their_own_scale() -> None:
    targets = torch.tensor([[0.0, 0.0], [1.0, 100.0], [2.0, 50.0]], dtype=torch.float64)
    standard = torch.zeros(3, 2)  # predicts the means, 0 and 0
    tally = RegressionTally(standard, targets, ["small", "large"], [0.0, 0.0], [1.0, 100.0])
    found = examples(tally, str)
    assert [(one["row"], one["of"], one["target"], one["error"]) for one in found] == [
        ("2", "small", 2.0, -2.0),
        ("1", "small", 1.0, -1.0),
        ("0", "small", 0.0, 0.0),
    ]


def test_text_by_its_loss_where_it_is_long_enough_to_tell() -> None:
    tokens = torch.tensor([SHORTEST, SHORTEST, SHORTEST - 1, 0], dtype=torch.float64)
    tally = LanguageTally(torch.tensor([20.0, 40.0, 900.0, 0.0]).double(), tokens, tokens / 2)
    found = examples(tally, str)
    assert [(one["row"], one["loss"], one["token accuracy"]) for one in found] == [
        ("1", 2.0, 0.5),
        ("0", 1.0, 0.5),
    ]
