"""Slices: a planted weak spot is found first, chance alone is not, and ugly columns do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtool.evaluation import slices as room
from llmtool.evaluation.slices import holm, slices
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally


def columns(random: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {
        "city": random.choice(["Bern", "Basel", "Zug", "Genf"], rows).astype(object),
        "age": random.integers(18, 90, rows).astype(float),
        "grade": random.integers(1, 4, rows).astype(float),
    }


def classified(random: np.random.Generator, wrong: np.ndarray) -> ClassificationTally:
    targets = random.integers(2, size=len(wrong))
    chosen = np.where(random.random(len(wrong)) < wrong, 1 - targets, targets)
    return ClassificationTally(torch.from_numpy(np.eye(2)[chosen]), torch.from_numpy(targets), ["a", "b"])


def test_a_planted_weak_spot_comes_first() -> None:
    first = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        found = columns(random, 1500)
        wrong = np.where(found["city"] == "Zug", 0.4, 0.1)
        result = slices(classified(random, wrong), found, "accuracy", seed)
        worst = result["worst"][0]
        first += worst["slice"] == "city = Zug" and worst["differs"]
        assert worst["interval"][0] <= worst["value"] <= worst["interval"][1]
        assert worst["difference"] == pytest.approx(worst["value"] - worst["rest"])
        assert result["looked_at"] == 4 + 4 + 3
    assert first >= 19


@pytest.mark.parametrize("wrong", [0.15, 0.98, 0.02])
def test_chance_alone_is_rarely_taken_for_a_weak_spot(wrong: float) -> None:
    """Nor where a slice has no row that is right, or none that is wrong, whose resamples are all the same."""
    alarms = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        result = slices(classified(random, np.full(600, wrong)), columns(random, 600), "accuracy", seed)
        alarms += any(one["differs"] for one in result["worst"])
    assert alarms <= 6  # 5 % of sets, plus what chance allows


@pytest.mark.parametrize("figure", ["rmse", "loss", "roc_auc", "f1"])
def test_any_figure_can_be_looked_at(figure: str) -> None:
    random = np.random.default_rng(0)
    found = columns(random, 800)
    spread = np.where(found["city"] == "Zug", 3.0, 1.0)
    targets = torch.from_numpy(random.normal(0, 2, (800, 1)))
    noise = torch.from_numpy(random.normal(0, spread)[:, None])
    if figure == "rmse":
        tally = RegressionTally(targets + noise, targets, ["y"], [0.0], [1.0])
    elif figure == "loss":
        tokens = random.integers(20, 60, 800)
        nats = tokens * random.normal(2 * spread**0.5, 0.2)
        tally = LanguageTally(torch.from_numpy(nats), torch.from_numpy(tokens), torch.from_numpy(tokens // 2))
    else:
        score = (targets[:, 0] > 0).double() * 2 - 1 + noise[:, 0]
        logits = torch.stack([torch.zeros(800), score], dim=1)
        tally = ClassificationTally(logits, (targets[:, 0] > 0).long(), ["no", "yes"])
    worst = slices(tally, found, figure, 0)["worst"][0]
    assert (worst["slice"], worst["differs"]) == ("city = Zug", True)


def test_ugly_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    tally = classified(random, np.full(200, 0.2))
    days = np.array(["2024-01-01", "NaT"] * 100, dtype="datetime64[D]")
    found = {
        "same": np.full(200, "x", object), "each": np.arange(200).astype(str).astype(object),
        "gaps": np.where(np.arange(200) % 3, np.nan, np.arange(200.0)), "day": days,
        "few": np.arange(200) % 2 * 1.0,
    }  # fmt: skip
    result = slices(tally, found, "accuracy", 0)
    names = {one["slice"] for one in result["worst"]}
    assert {"gaps missing", "day = 2024-01-01", "day missing", "few = 0", "few = 1.0000"} & names
    assert not any(one["column"] in ("same", "each") for one in result["worst"])
    assert slices(tally, {"same": found["same"]}, "accuracy", 0) == {}
    assert slices(tally, {}, "accuracy", 0) == {}
    monkeypatch.setattr(room, "MOST_ROWS", 100)
    assert all(one["rows"] <= 80 for one in slices(tally, {"few": found["few"]}, "accuracy", 0)["worst"])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]
