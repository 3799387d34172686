"""Calibration: Guo's formula, a temperature that is the best there is, and a reason where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from llmtool.metrics.calibration import BINS, calibration, reliability, temperature
from llmtool.metrics.classification import ClassificationTally, log_softmax


def tally(logits: np.ndarray, targets: np.ndarray) -> ClassificationTally:
    names = [f"c{i}" for i in range(logits.shape[1])]
    return ClassificationTally(torch.from_numpy(logits), torch.from_numpy(targets), names)


def overconfident(rows: int = 4000, classes: int = 4, factor: float = 2.5) -> ClassificationTally:
    """Logits that are right but for a factor: the best temperature is that factor."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (rows, classes))
    shares = np.exp(log_softmax(logits))
    targets = np.array([random.choice(classes, p=row) for row in shares])
    return tally(factor * logits, targets)


def test_the_error_is_that_of_guo() -> None:
    random = np.random.default_rng(1)
    confidence, right = random.uniform(0.2, 1, 500), random.random(500) < 0.6
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence > low) & (confidence <= low + 1 / BINS)
        if inside.any():
            expected += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    ece, bins = reliability(confidence, right)
    assert ece == pytest.approx(expected)
    assert sum(one["rows"] for one in bins) == 500
    accuracy, middle = calibration_curve(right, confidence, n_bins=BINS)
    full = [one for one in bins if one["rows"]]
    assert [one["accuracy"] for one in full] == pytest.approx(accuracy.tolist())
    assert [one["confidence"] for one in full] == pytest.approx(middle.tolist())
    assert bins[0]["confidence"] is None


def test_ends_of_bins_belong_somewhere() -> None:
    _, bins = reliability(np.array([0.0, 1 / BINS, 1.0]), np.array([True, False, True]))
    assert [one["rows"] for one in bins] == [2, *[0] * (BINS - 2), 1]


def test_the_temperature_is_the_best_one() -> None:
    made = overconfident()
    found, reason = temperature(made)
    assert reason == ""
    assert found == pytest.approx(2.5, rel=0.1)
    logits, targets = made.judgement().logits.astype(float), made.judgement().targets

    def loss(t: float) -> float:
        return float(-log_softmax(logits / t)[np.arange(len(targets)), targets].mean())

    assert all(loss(found) <= loss(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    before = calibration(made, found)
    assert before["log_loss_scaled"] == pytest.approx(loss(found))
    assert before["ece_scaled"] < 0.03 < before["ece"]
    assert before["log_loss"] == pytest.approx(made.metrics()["log_loss"])
    assert "ece_scaled" not in calibration(made)


def test_where_there_is_no_temperature_there_is_a_reason() -> None:
    targets = np.arange(40) % 2
    right = 5 * np.eye(2)[targets]
    assert temperature(tally(right, targets)) == (
        None,
        "the surer the better on these rows: they are too few, or too easy",
    )
    assert "says nothing" in temperature(tally(right, 1 - targets))[1]
    assert "as likely" in temperature(tally(np.zeros((40, 2)), targets))[1]
    broken = right.copy()
    broken[3, 0] = np.nan
    assert "not finite" in temperature(tally(broken, targets))[1]
    assert calibration(tally(broken, targets)) == {}
    assert temperature(tally(right[:0], targets[:0])) == (None, "there are no rows")
    assert calibration(tally(right[:0], targets[:0])) == {}
