"""The report: JSON that any reader takes, CSV that no spreadsheet runs, tables that show what matters."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console, RenderableType

from llmtool.core import files
from llmtool.evaluation.report import (
    before_after,
    harmless,
    number,
    probe_view,
    report,
    requirement_said,
    show,
    write_predictions,
)
from llmtool.evaluation.requirements import check
from llmtool.metrics.bootstrap import Difference
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally


def classified(names: list[str], rows: int = 40, seed: int = 0) -> ClassificationTally:
    torch.manual_seed(seed)
    return ClassificationTally(torch.randn(rows, len(names)), torch.randint(len(names), (rows,)), names)


def written(tallies: dict[str, Any], **more: Any) -> dict[str, Any]:
    rows = dict.fromkeys(tallies, 40)
    return report(
        tallies, model={"path": "m", "hash": "xxh3:1"}, dataset={"fingerprint": "xxh3:2"}, rows=rows, **more
    )


def rendered(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_requirement_that_is_met_says_its_bound_once() -> None:
    met = {"name": "test.f1", "bound": ">0.5", "met": True, "says": "test.f1 is 0.9"}
    assert requirement_said(met) == "test.f1 is 0.9 (>0.5)"
    assert requirement_said({**met, "met": False, "says": "test.f1 is 0.4, must be >0.5"}).count(">0.5") == 1
    beats = {"name": "beats_baseline", "bound": "true", "met": True, "says": "beats_baseline: better"}
    assert requirement_said(beats) == "beats_baseline: better"


def test_the_report_is_plain_json() -> None:
    tallies = {
        "validation": classified(["a", "b"]),
        "test": ClassificationTally(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), ["a", "b"]),
    }
    figures = {split: tally.metrics() for split, tally in tallies.items()}
    outcomes = check({"test.accuracy": ">=2", "test.nope": ">1"}, figures)
    made = written(tallies, outcomes=outcomes)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["metrics"]["validation"] == tallies["validation"].metrics()
    assert made["undefined"]["test"]["roc_auc"] == "only class 'a' occurs"
    assert made["details"]["test"]["confusion"]["names"] == ["a", "b"]
    assert [entry["met"] for entry in made["requirements"]] == [False, False]
    assert made["requirements"][0]["says"].endswith("must be >=2")
    assert made["model"]["hash"] == "xxh3:1"


def test_numbers_that_json_lacks_become_none() -> None:
    found = files.plain({"a": [math.nan, math.inf, np.float32(0.5), np.int64(3)], "b": (1, True, "x", None)})
    assert json.dumps(found, allow_nan=False) == '{"a": [null, null, 0.5, 3], "b": [1, true, "x", null]}'


# --- predictions.csv ----------------------------------------------------------------------------------------

NASTY = [
    "=1+1",
    "+x",
    "-x",
    "@SUM(A1)",
    "\tx",
    "\r=1",
    "a,b",
    'say "hi"',
    "two\nlines",
    "two\rlines",
    "é中",
    " ",
    "-1",
    "+2.5",
]


def test_every_row_comes_back_from_the_csv(tmp_path: Path) -> None:
    tally = classified(NASTY, 60)
    origin = {"file": np.array(["=a.csv"] * 60, dtype=object), "line": np.arange(2, 62)}
    assert write_predictions(tmp_path / "p.csv", {"test": tally}, {"test": origin}) == 60
    for frame in (
        pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False),
        pd.DataFrame(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_bytes().decode(), newline=""))),
    ):
        columns = tally.predictions()
        assert frame["target"].tolist() == [harmless(name) for name in columns["target"]]
        assert frame["prediction"].tolist() == [harmless(name) for name in columns["prediction"]]
        assert frame["line"].astype(int).tolist() == list(range(2, 62))
        assert set(frame["file"]) == {"'=a.csv"}
        found = frame["probability a,b"].astype(float)
        np.testing.assert_allclose(found, columns["probability a,b"], rtol=1e-8)


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "\r=1", "\n=1", "=", "-1+cmd|' /C calc'!A0"]
)
def test_a_formula_becomes_text(text: str) -> None:
    assert harmless(text) == "'" + text


@pytest.mark.parametrize("text", ["-1", "+2.5", "-1e-3", "-inf", "a=1", "", "'x", "1-1", " =1"])
def test_numbers_and_plain_text_stay(text: str) -> None:
    assert harmless(text) == text


def test_numbers_are_never_quoted_and_float32_comes_back_exactly(tmp_path: Path) -> None:
    values = torch.tensor([[-1.5], [-0.0], [1e-30], [16777217.0]])
    tally = RegressionTally(values, values, ["x"], [0.0], [1.0])
    write_predictions(tmp_path / "p.csv", {"a": tally, "b": tally})
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == '"split","target","prediction"'
    assert lines[1] == '"a",-1.5,-1.5'
    assert len(lines) == 9
    found = pd.read_csv(tmp_path / "p.csv")["target"].astype(np.float32)
    assert found[:4].tolist() == values[:, 0].tolist()


def test_the_predictions_of_a_text_are_the_sums_of_its_units(tmp_path: Path) -> None:
    tally = LanguageTally(torch.tensor([1.0, 2.5]), torch.tensor([2, 3]), torch.tensor([1, 0]))
    assert write_predictions(tmp_path / "p.csv", {"test": tally}) == 2
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines == ['"split","nats","tokens","correct"', '"test",1.0,2,1', '"test",2.5,3,0']


# --- tables -------------------------------------------------------------------------------------------------


def test_tables_show_figures_by_split_classes_and_requirements() -> None:
    tallies = {"validation": classified(["cat", "dog"]), "test": classified(["cat", "dog"], seed=1)}
    figures = {split: tally.metrics() for split, tally in tallies.items()}
    text = rendered(
        show(written(tallies, outcomes=check({"test.f1": ">=0.99", "test.accuracy": ">=0"}, figures)))
    )
    assert f"{figures['test']['roc_auc']:.4f}" in text
    assert f"{figures['validation']['log_loss']:.4f}" in text
    for word in (
        "validation",
        "test",
        "cat",
        "dog",
        "macro",
        "weighted",
        "true class",
        "UNMET test.f1",
        "met   test.accuracy",
    ):
        assert word in text
    assert "f1_macro" not in text
    assert text.splitlines()[-1].startswith("met")


def test_undefined_figures_are_explained_once() -> None:
    tally = ClassificationTally(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), ["a", "b"])
    text = rendered(show(written({"test": tally})))
    assert "no roc_auc, pr_auc of test: only class 'a' occurs" in text


def test_class_names_cannot_steer_the_terminal_or_the_markup() -> None:
    names = ["[red]x[/red]", "\x1b[31mred\x1b[0m", "[/]", "a\nb"]
    text = rendered(show(written({"test": classified(names)})), width=200)
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert "\\x1b[31mred" in text
    assert "a\\nb" in text


def test_many_classes_show_the_worst_and_the_mistakes() -> None:
    names = [f"class-{index}" for index in range(120)]
    text = rendered(show(written({"test": classified(names, 4000)})))
    assert "the 30 of 120 with the lowest F1" in text
    assert "were taken for class-" in text
    assert len(text.splitlines()) < 80
    assert "true class" not in text


def test_language_and_regression_reports() -> None:
    language = LanguageTally(torch.tensor(20.0), torch.tensor(10), torch.tensor(4), 25)
    samples = [{"prompt": "To be\n", "text": "To be\nor \x1b[2Jnot [bold]"}]
    text = rendered(show(written({"test": language}, samples=samples)))
    assert "perplexity" in text
    assert "7.3891" in text
    assert "or \\x1b[2Jnot [bold]" in text
    regression = RegressionTally(torch.randn(9, 1), torch.randn(9, 1), ["x"], [0.0], [1.0])
    assert "rmse" in rendered(show(written({"test": regression})))


def test_before_and_after_stand_side_by_side() -> None:
    pairs = {"new": ({"f1": 0.5, "f1_macro": 0.4}, {"f1": 0.75}), "old": (None, {"accuracy": 0.9})}
    changes = {"new": {"f1": Difference(0.25, -0.1, 0.4)}}
    lines = [line.split() for line in rendered(before_after(pairs, changes)).splitlines()]
    assert ["new", "f1", "0.5000", "0.7500", "+0.2500", "-0.1000", "to", "+0.4000"] in lines
    assert ["old", "accuracy", "-", "0.9000", "-", "-"] in lines
    assert not any("f1_macro" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.98765, "0.9877"),
        (12345.6, "12,346"),
        (1e-5, "1e-05"),
        (-0.5, "-0.5000"),
    ],
)
def test_figures_are_shown_at_a_readable_precision(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_probes_of_two_sorts_of_pieces_and_of_many() -> None:
    many = [f"{side} {piece}" for side in ("my", "their") for piece in ("pawn", "king")]
    for relative, absolute, said in (
        (["mine", "theirs"], ["black", "white"], ["mine, theirs", "black, white"]),
        (many, many, ["mine, theirs", "by colour"]),
    ):
        found = {"views": {"relative": ["empty", *relative], "absolute": ["empty", *absolute]}}
        assert [probe_view(found, view) for view in ("relative", "absolute")] == said
