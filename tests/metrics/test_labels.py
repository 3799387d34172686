"""Figures of several labels a row, beside scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from llmtool.evaluation import compare, kept
from llmtool.metrics import bootstrap
from llmtool.metrics.labels import FIGURES, LabelTally, best_threshold

NAMES = ["a", "b, c", "d"]


def tally(rows=60, thresholds=None, seed=0):
    random = np.random.default_rng(seed)
    targets = (random.random((rows, 3)) < [0.5, 0.2, 0.8]).astype(np.uint8)
    logits = random.normal(size=(rows, 3)).round(1) + 1.5 * targets - 0.7
    return LabelTally(torch.from_numpy(logits), torch.from_numpy(targets), NAMES, thresholds)


def theirs(one):
    seen = one.seen()
    truth, given, shares = seen.targets.astype(int), seen.given.astype(int), seen.shares
    found = {
        f"{name}_{average}": getattr(metrics, f"{name}_score")(truth, given, average=average, zero_division=0)
        for name in ("precision", "recall", "f1")
        for average in ("micro", "macro")
    }
    found |= {name: found[f"{name}_micro"] for name in ("precision", "recall", "f1")}
    return found | {
        "subset_accuracy": metrics.accuracy_score(truth, given),
        "hamming_loss": metrics.hamming_loss(truth, given),
        "mean_average_precision": metrics.average_precision_score(truth, shares),
        "roc_auc": metrics.roc_auc_score(truth, shares),
        "log_loss": np.mean([metrics.log_loss(truth[:, c], shares[:, c]) for c in range(3)]),
    }


@pytest.mark.parametrize("thresholds", [None, [0.2, 0.6, 0.9]])
def test_figures_are_scikit_learns(thresholds):
    one = tally(thresholds=thresholds)
    assert set(one.metrics()) == set(FIGURES)
    assert one.undefined == {}
    for name, value in theirs(one).items():
        assert one.metrics()[name] == pytest.approx(value, rel=1e-6), name
    table = metrics.precision_recall_fscore_support(one.seen().targets, one.seen().given, zero_division=0)
    for at, entry in enumerate(one.details()["per_class"]):
        assert entry["class"] == NAMES[at]
        found = (entry["precision"], entry["recall"], entry["f1"], entry["support"])
        assert found == pytest.approx([row[at] for row in table])
        assert entry["threshold"] == (thresholds or [0.5] * 3)[at]


def test_parts_add_up_and_rows_are_drawn_as_if_there():
    one = tally(60)
    first, second = one.take(np.arange(25)), one.take(np.arange(60) >= 25)
    first.add(second)
    assert first.metrics() == one.metrics()
    weights = np.random.default_rng(1).integers(0, 3, size=(4, 60))
    drawn = one.resampled(weights)
    assert set(drawn) == set(FIGURES)
    for at, row in enumerate(weights):
        there = one.take(np.repeat(np.arange(60), row)).metrics()
        for name, value in there.items():
            assert drawn[name][at] == pytest.approx(value, rel=1e-9), name
    assert set(one.resampled(weights, "f1_micro")) >= {"f1_micro"}
    intervals = bootstrap.intervals(one, seed=0)
    assert set(intervals.found) == set(FIGURES)
    low, high = intervals.found["f1_micro"]
    assert low < one.metrics()["f1_micro"] < high


def test_what_rows_leave_undefined_has_its_reason():
    every = LabelTally(torch.zeros(4, 2), torch.tensor([[1, 0]] * 4), ["a", "b"])
    assert "all of the rows or in none" in every.undefined["roc_auc"]
    assert every.metrics()["recall_micro"] == 1.0
    broken = LabelTally(torch.tensor([[math.nan, 0.0]]), torch.tensor([[1, 0]]), ["a", "b"])
    assert broken.metrics() == {}
    assert "not finite in 1 rows" in broken.undefined["f1_micro"]
    assert broken.details() == {}


def test_the_best_threshold_is_that_of_an_exhaustive_search():
    one = tally(40, seed=3)
    for column in range(3):
        shares, truth = one.seen().shares[:, column], one.seen().targets[:, column]
        found = best_threshold(shares, truth)
        reached = metrics.f1_score(truth, shares >= found)
        others = [metrics.f1_score(truth, shares >= other) for other in np.unique(shares)]
        assert reached == pytest.approx(max(others))
    assert best_threshold(np.array([0.1, 0.9]), np.array([False, False])) == 0.5


def test_predictions_and_the_cache_give_the_tally_back(tmp_path):
    one = tally(thresholds=[0.3, 0.5, 0.7])
    cells = {name: [str(value) for value in column] for name, column in one.predictions().items()}
    again = compare._tally(cells, one.details())
    assert again.metrics() == pytest.approx(one.metrics(), rel=1e-6)
    kept.write_tally(tmp_path / "t", {"a": "b"}, one)
    found = kept.read_tally(tmp_path / "t", {"a": "b"})
    assert found.metrics() == one.metrics()
    assert found.thresholds == one.thresholds


def test_all_rows_right_have_an_interval():
    """The exact one of a share, as accuracy has it, where every draw gives 1."""
    targets = torch.tensor([[1, 0, 1], [0, 1, 0]] * 20, dtype=torch.uint8)
    found = bootstrap.intervals(LabelTally(targets * 8.0 - 4, targets, NAMES), 0).found
    assert found["subset_accuracy"] == pytest.approx((0.025 ** (1 / 40), 1.0))
