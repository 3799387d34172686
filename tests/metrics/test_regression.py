"""Regression figures against scikit-learn and against closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from llmtool.metrics.regression import RegressionTally


def tally(
    predictions: np.ndarray, targets: np.ndarray, mean: float = 0.0, scale: float = 1.0
) -> RegressionTally:
    """One target; predictions standardised."""
    columns = [torch.tensor(values).reshape(-1, 1) for values in (predictions, targets)]
    return RegressionTally(columns[0], columns[1], ["price"], [mean], [scale])


@pytest.mark.parametrize("seed", range(10))
def test_as_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    standardised = random.normal(size=50).astype(np.float32)
    targets = random.normal(100, 20, size=50)
    values = standardised.astype(np.float64) * 21 + 99
    found = tally(standardised, targets, 99, 21).metrics()
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(targets, values), rel=1e-12)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, values), rel=1e-12)
    assert found["r2"] == pytest.approx(sk.r2_score(targets, values), rel=1e-11)


def test_several_targets_as_scikit_learn() -> None:
    random = np.random.default_rng(0)
    predictions, targets = random.normal(size=(40, 3)).astype(np.float32), random.normal(size=(40, 3))
    judged = RegressionTally(
        torch.tensor(predictions), torch.tensor(targets), ["a", "b", "c"], [0.0] * 3, [1.0] * 3
    )
    values = predictions.astype(np.float64)
    assert judged.metrics()["mae"] == pytest.approx(sk.mean_absolute_error(targets, values), rel=1e-12)
    assert judged.metrics()["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, values), rel=1e-12)
    assert judged.metrics()["r2"] == pytest.approx(sk.r2_score(targets, values), rel=1e-12)
    assert [entry["target"] for entry in judged.details()["per_target"]] == ["a", "b", "c"]
    assert list(judged.predictions()) == [
        f"{kind} {name}" for kind in ("target", "prediction") for name in "abc"
    ]


def test_a_large_offset_does_not_eat_the_spread() -> None:
    random = np.random.default_rng(0)
    noise, error = random.normal(size=1000), random.normal(size=1000).astype(np.float32) * 0.1
    far = tally((noise + error).astype(np.float32), noise + 1e9, 1e9, 1.0).metrics()
    near = tally((noise + error).astype(np.float32), noise, 0.0, 1.0).metrics()
    assert far["r2"] == pytest.approx(near["r2"], abs=1e-6)
    assert far["rmse"] == pytest.approx(near["rmse"], rel=1e-5)


def test_batches_add_to_the_whole_in_any_order() -> None:
    random = np.random.default_rng(0)
    predictions, targets = random.normal(size=90).astype(np.float32), random.normal(size=90)
    whole = tally(predictions, targets).metrics()
    for cuts in ([slice(0, 1), slice(1, 50), slice(50, 90)], [slice(50, 90), slice(0, 1), slice(1, 50)]):
        parts = [tally(predictions[cut], targets[cut]) for cut in cuts]
        parts[0].add(parts[1])
        parts[0].metrics()
        parts[0].add(parts[2])
        assert parts[0].metrics() == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("targets", [[3.0], [3.0, 3.0, 3.0]])
def test_a_constant_target_has_no_r2(targets: list[float]) -> None:
    judged = tally(np.ones(len(targets), np.float32), np.array(targets))
    rows = "this row" if len(targets) == 1 else "these 3 rows"
    assert judged.metrics() == {"mae": 2.0, "rmse": 2.0}
    assert judged.undefined == {"r2": f"'price' has one value only in {rows}"}
    assert judged.details()["per_target"][0]["r2"] is None
    json.dumps(judged.details(), allow_nan=False)


def test_a_constant_that_float64_cannot_average_exactly_has_no_r2_either() -> None:
    assert "r2" in tally(np.zeros(7, np.float32), np.full(7, 0.1)).undefined


def test_no_rows_and_outputs_that_are_not_finite() -> None:
    nothing = tally(np.zeros(0, np.float32), np.zeros(0))
    assert nothing.metrics() == {}
    assert nothing.undefined["r2"] == "there are no rows"
    assert nothing.details() == {}
    broken = tally(np.array([0, np.nan, np.inf], np.float32), np.arange(3.0))
    assert broken.metrics() == {}
    assert broken.undefined["mae"] == "the model's outputs are not finite in 2 rows"
    assert broken.details() == {}


def test_predictions_are_in_the_targets_units() -> None:
    columns = tally(np.array([0.0, 1.0], np.float32), np.array([5.0, 9.0]), 5.0, 2.0).predictions()
    assert columns["target"].tolist() == [5, 9]
    assert columns["prediction"].tolist() == [5, 7]
