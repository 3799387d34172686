"""Evidence kept between evaluations: exactly what it was, and only under its own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtool.core.contracts import Tally
from llmtool.evaluation import kept
from llmtool.evaluation.requirements import FIGURES
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally

KEY = {"weights": "xxh3:1", "split": "test"}


def tallies() -> dict[str, Tally]:
    random = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(50, 3, generator=random)
    targets = torch.randint(3, (50,), generator=random)
    values = torch.randn(50, 2, generator=random).double()
    nats, tokens = 100 * torch.rand(7, generator=random).double(), torch.arange(7).double()
    return {
        "classes": ClassificationTally(logits, targets, ["a", "b", "c"], 2),
        "values": RegressionTally(values + 0.1, 5 * values + 3, ["x", "y"], [3.0, 3.0], [5.0, 5.0]),
        "text": LanguageTally(nats, tokens, tokens // 2, 1234.5),
        "games": GamesTally(nats, tokens, tokens // 2, tokens // 3, tokens / 2, tokens),
        "broken": ClassificationTally(logits / 0, targets, ["a", "b", "c"]),
    }


def everything(tally: Tally) -> Any:
    columns = {name: column.tolist() for name, column in tally.predictions().items()}
    return tally.metrics(), tally.undefined, tally.details(), tally.units, repr(columns)


@pytest.mark.parametrize("kind", list(tallies()))
def test_a_tally_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    tally, path = tallies()[kind], tmp_path / "made" / "test.safetensors"
    kept.write_tally(path, KEY, tally)
    again = kept.read_tally(path, KEY)
    assert type(again) is type(tally)
    assert everything(again) == everything(tally)
    if tally.metrics():
        weights = np.ones((1, tally.units), np.int64)
        assert repr(again.resampled(weights)) == repr(tally.resampled(weights))


@pytest.mark.parametrize(
    ("kind", "data"),
    [("classes", "classes"), ("values", "values"), ("next_token", "text"), ("games", "games")],
)
def test_figures_are_those_that_may_be_required(kind: str, data: str) -> None:
    tally = tallies()[data]
    of_many = {"top_5_accuracy"}  # there is none of five classes and fewer
    assert {*tally.metrics(), *tally.undefined} == {*FIGURES[kind]} - of_many


def test_figures_of_no_row_and_of_many_classes_are_those_that_may_be_required() -> None:
    broken = ClassificationTally(torch.zeros(0, 2), torch.zeros(0), ["a", "b"])
    assert {*broken.undefined} == {*FIGURES["classes"]} - {"top_5_accuracy"}
    many = ClassificationTally(torch.eye(6), torch.arange(6), list("abcdef"))
    assert {*many.metrics(), *many.undefined} == {*FIGURES["classes"]}


def test_another_key_or_other_bytes_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "test.safetensors"
    kept.write_tally(path, KEY, tallies()["classes"])
    assert kept.read_tally(path, {**KEY, "weights": "xxh3:2"}) is None
    assert kept.read_tally(path, {**KEY, "more": ""}) is None
    assert kept.read_tally(tmp_path / "nowhere", KEY) is None
    data = bytearray(path.read_bytes())
    for at in (-1, -300, 5):
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert kept.read_tally(path, KEY) is None, at
    path.write_bytes(data[:-4])
    assert kept.read_tally(path, KEY) is None
    path.write_bytes(data)
    assert kept.read_tally(path, KEY) is not None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept.write_tally(tmp_path / "file" / "below", KEY, tallies()["text"])
    assert kept.read_tally(tmp_path / "file" / "below", KEY) is None
