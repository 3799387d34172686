"""Resampled figures are those of the rows repeated; intervals cover; what cannot be drawn from says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from llmtool.metrics import bootstrap
from llmtool.metrics.bootstrap import Intervals, intervals, mcnemar, paired
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally

Random = np.random.Generator


def classes(random: Random, rows: int, count: int = 2, skill: float = 1.0) -> ClassificationTally:
    targets = random.integers(count, size=rows)
    logits = random.normal(size=(rows, count)).round(1)  # with ties
    logits[np.arange(rows), targets] += skill
    names = [f"c{i}" for i in range(count)]
    return ClassificationTally(torch.from_numpy(logits).float(), torch.from_numpy(targets), names)


def values(random: Random, rows: int, count: int = 1) -> RegressionTally:
    targets = torch.from_numpy(random.normal(1e6, 3.0, (rows, count)))
    mean, scale = [1e6] * count, [3.0] * count
    predictions = (targets - 1e6) / 3.0 + torch.from_numpy(random.normal(0, 0.5, (rows, count)))
    return RegressionTally(predictions, targets, [f"v{i}" for i in range(count)], mean, scale)


def documents(random: Random, rows: int) -> LanguageTally:
    tokens = random.integers(5, 200, rows)
    nats = tokens * random.normal(2.0, 0.3, rows)
    parts = (nats, tokens, tokens // 3)
    return LanguageTally(*(torch.from_numpy(part) for part in parts), size=4.0 * tokens.sum())


TALLIES: dict[str, Any] = {
    "two classes": lambda random, rows: classes(random, rows),
    "five classes": lambda random, rows: classes(random, rows, 5),
    "values": lambda random, rows: values(random, rows),
    "three values": lambda random, rows: values(random, rows, 3),
    "text": documents,
}


@pytest.mark.parametrize("kind", TALLIES)
def test_resampled_is_the_figure_of_the_rows_repeated(kind: str) -> None:
    random = np.random.default_rng(0)
    tally = TALLIES[kind](random, 60)
    weights = random.multinomial(60, np.full(60, 1 / 60), size=20)
    drawn = tally.resampled(np.concatenate([np.ones((1, 60), np.int64), weights]))
    assert set(drawn) == set(tally.metrics())
    for line, weight in enumerate([np.ones(60, np.int64), *weights]):
        repeated = tally.take(np.repeat(np.arange(60), weight)).metrics()
        for name, value in repeated.items():
            assert_allclose(drawn[name][line], value, rtol=1e-8, err_msg=name)


def test_a_draw_without_a_class_leaves_its_figures_undefined() -> None:
    tally = ClassificationTally(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0]), ["a", "b", "c"])
    drawn = tally.resampled(np.array([[1, 1, 0, 2], [1, 1, 1, 1]]))
    assert np.isnan(drawn["roc_auc"]).tolist() == [True, False]
    assert drawn["accuracy"].tolist() == [1.0, 1.0]
    assert drawn["recall"].tolist() == [1.0, 1.0]  # macro, over the classes that occur


def test_taking_rows_by_number_and_by_bool_is_the_same() -> None:
    for kind in TALLIES:
        tally = TALLIES[kind](np.random.default_rng(1), 30)
        wanted = np.arange(30) % 3 == 0
        assert tally.take(wanted).metrics() == tally.take(np.flatnonzero(wanted)).metrics()
        assert tally.take(wanted).units == 10


COVERED = {
    "accuracy": lambda random: classes(random, 300, skill=1.5),
    "f1": lambda random: classes(random, 300, skill=1.5),
    "roc_auc": lambda random: classes(random, 300, skill=1.5),
    "rmse": lambda random: values(random, 200),
    "perplexity": lambda random: documents(random, 100),
}


@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_the_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 150 simulated sets here; scripts/benchmarks/coverage.py does 1 000."""
    monkeypatch.setattr(bootstrap, "MOST", 300)
    random = np.random.default_rng(7)
    truth = float(np.mean([COVERED[name](random).metrics()[name] for _ in range(400)]))
    inside = 0
    for seed in range(150):
        low, high = intervals(COVERED[name](random), seed).found[name]
        inside += low <= truth <= high
    assert 0.88 <= inside / 150 <= 0.99


def test_intervals_are_a_function_of_the_seed_and_hold_the_figure() -> None:
    tally = classes(np.random.default_rng(2), 200)
    first, again, other = intervals(tally, 1), intervals(tally, 1), intervals(tally, 2)
    assert first == again != other
    for name, value in tally.metrics().items():
        low, high = first.found[name]
        assert low <= value <= high, name


def test_what_cannot_be_told_says_why() -> None:
    few = classes(np.random.default_rng(0), 2)
    assert set(intervals(few, 0).missing.values()) == {"2 units cannot be drawn from; it takes at least 3"}
    right = ClassificationTally(20 * torch.eye(2)[[0, 1] * 20], torch.tensor([0, 1] * 20), ["no", "yes"])
    found: Intervals = intervals(right, 0)
    assert found.found["accuracy"] == (0.025 ** (1 / 40), 1.0)  # Clopper and Pearson
    assert "every draw gives the same value" in found.missing["f1"]
    rare = ClassificationTally(torch.randn(50, 3), torch.tensor([2] + [0, 1] * 24 + [0]), ["a", "b", "c"])
    assert "undefined in" in intervals(rare, 0).missing["roc_auc"]
    big = classes(np.random.default_rng(0), 20_000, 600)
    assert "would take too long" in intervals(big, 0).missing["accuracy"]


def test_paired_differences() -> None:
    random = np.random.default_rng(3)
    better = classes(random, 400, skill=2.0)
    logits, targets = better.judgement().logits, better.judgement().targets
    worse = ClassificationTally(
        torch.from_numpy(logits + random.normal(0, 1, logits.shape)).float(),
        torch.from_numpy(targets),
        better.names,
    )
    found = paired(better, worse, 0)
    assert found["accuracy"].clear
    assert found["accuracy"].value > 0 > found["log_loss"].value
    apart = intervals(better, 0).found["accuracy"]
    low, high = found["accuracy"].low, found["accuracy"].high
    assert low is not None
    assert high is not None
    assert high - low < 1.5 * (apart[1] - apart[0])
    same = paired(better, better, 0)["f1"]
    assert (same.value, same.low, same.high, same.clear) == (0.0, 0.0, 0.0, False)
    with pytest.raises(AssertionError):
        paired(better, classes(random, 10), 0)


def test_mcnemar() -> None:
    def rights(only_mine: int, only_theirs: int, both: int = 10) -> tuple[Any, Any]:
        mine = np.array([True] * only_mine + [False] * only_theirs + [True] * both)
        theirs = np.array([False] * only_mine + [True] * only_theirs + [True] * both)
        return mine, theirs

    assert mcnemar(*rights(0, 0)) == mcnemar(*rights(5, 5)) == 1.0
    for mine, theirs in ((10, 2), (3, 25), (1, 0), (120, 90)):
        exact = stats.binomtest(min(mine, theirs), mine + theirs).pvalue
        point = stats.binom.pmf(min(mine, theirs), mine + theirs, 0.5)
        assert mcnemar(*rights(mine, theirs)) == pytest.approx(exact - point)
    assert mcnemar(*rights(5300, 5000)) == pytest.approx(2 * stats.norm.sf(299 / 10300**0.5))


def test_students_t_is_close_enough() -> None:
    for degrees in (2, 5, 10, 100, 10_000):
        assert bootstrap._student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.04)


def test_one_model_right_everywhere_and_one_nowhere() -> None:
    """Every resample gives 1; that 40 rows tell and 3 do not is Clopper and Pearson's bound."""
    for rows, clear in ((40, True), (3, False)):
        targets = torch.zeros(rows, dtype=torch.int64)
        right, wrong = torch.tensor([[1.0, 0.0]] * rows), torch.tensor([[0.0, 1.0]] * rows)
        tallies = [ClassificationTally(logits, targets, ["a", "b"]) for logits in (right, wrong)]
        found = paired(*tallies, 0)["accuracy"]
        assert (found.value, found.high, found.clear) == (1.0, 1.0, clear)
        assert found.low == pytest.approx(2 * 0.025 ** (1 / rows) - 1)
        assert paired(*reversed(tallies), 0)["accuracy"].clear is clear
