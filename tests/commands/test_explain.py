"""evaluate: explain: of tables and texts: what is written, what it adds up to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REVIEWS, TABLE, Run, people, reviews

HOMES = """\
data: {source: {format: csv, path: homes.csv}, encode: {as: features, target: price, target_kind: values}}
model: {family: mlp, hidden: [8]}
train: {budget: {steps: 60}, batch: 16, optimizer: {name: adamw, lr: 0.02}}
evaluate: {explain: {examples: 1, repeats: 2}}
"""


def explained(directory: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "runs" / run / "evaluate" / "explain.json").read_text())
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    directory = tmp_path_factory.mktemp("explained")
    (directory / "people.csv").write_text(people())
    (directory / "table.yaml").write_text(TABLE)
    longer = ("--set", "train.budget={steps: 150}", "--set", "train.optimizer={name: adamw, lr: 0.02}")
    ended = llmtool("train", "table.yaml", *longer, cwd=directory)
    assert ended.code == 0, ended.err
    return directory


def test_a_table_by_column_and_by_row(table: Path, llmtool: Run) -> None:
    ended = llmtool("evaluate", "table.yaml", "--set", "evaluate.explain={}", cwd=table)
    assert ended.code == 0, ended.err
    assert "test accuracy" in ended.out
    assert "is worse with a column shuffled, by: " in ended.out
    assert "6 rows of test explained" in ended.out
    found = explained(table, "table")
    importance = found["importance"]
    assert {one["column"] for one in importance["columns"]} == {"age", "hours", "city", "member"}
    assert importance["columns"][0]["column"] == "age"  # what the class was made from, most of all
    assert importance["columns"][0]["low"] > 0.05
    assert (importance["rows"], importance["repeats"], importance["metric"]) == (45, 5, "accuracy")
    assert [one["why"] for one in found["examples"]] == [
        *["surest right"] * 2, *["surest wrong"] * 2, *["least sure"] * 2
    ]  # fmt: skip
    for one in found["examples"]:
        total = sum(part["attribution"] for part in one["parts"])
        error = abs(one["completeness_error"]) + 1e-4
        assert total == pytest.approx(one["output"] - one["output_of_that"], abs=error)
        assert one["complete"]
        assert {part["name"] for part in one["parts"]} == {"age", "hours", "city", "member"}
        line = int(one["where"].rpartition(":")[2])
        cells = people().splitlines()[line - 1].split(",")
        assert one["target"] == cells[4]
        (age,) = [part["value"] for part in one["parts"] if part["name"] == "age"]
        assert age == pytest.approx(int(cells[0]), rel=1e-5)
    page = (table / "runs/table/evaluate/report.html").read_text()
    assert "<h2>Why</h2>" in page
    assert "surest wrong" in page
    assert "is not written" not in page
    again = llmtool("evaluate", "table.yaml", "--set", "evaluate.explain={}", "--force", cwd=table)
    assert again.code == 0
    assert explained(table, "table") == found  # seeded


def test_a_column_may_be_called_target(tmp_path: Path, llmtool: Run) -> None:
    rows = [f"{n % 10}.5,{'ab'[n % 10 > 4]}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["target,kind", *rows]) + "\n")
    (tmp_path / "t.yaml").write_text(
        "data: {source: {format: csv, path: t.csv}, encode: {as: features, target: kind}}\n"
        "model: {family: mlp, hidden: [4]}\ntrain: {budget: {steps: 2}}\n"
        "evaluate: {explain: {rows: [1], repeats: 0}}\n"
    )
    for command in ("train", "evaluate"):
        assert llmtool(command, "t.yaml", cwd=tmp_path).code == 0
    one = explained(tmp_path, "t")["examples"][0]
    line = int(one["where"].rpartition(":")[2])
    assert [one["parts"][0]["value"], one["target"]] == [float(rows[line - 2][:3]), rows[line - 2][4:]]


def test_the_rows_that_are_asked_for(table: Path, llmtool: Run) -> None:
    asked = "evaluate.explain={rows: [3, 1], repeats: 0, split: validation}"
    ended = llmtool("evaluate", "table.yaml", "--set", asked, cwd=table)
    assert ended.code == 0, ended.err
    found = explained(table, "table")
    assert found["importance"] is None
    assert [(one["row"], one["why"]) for one in found["examples"]] == [(3, "asked for"), (1, "asked for")]


def test_a_text_by_token(tmp_path: Path, llmtool: Run) -> None:
    (tmp_path / "reviews.csv").write_text(reviews())
    (tmp_path / "reviews.yaml").write_text(REVIEWS)
    assert llmtool("train", "reviews.yaml", cwd=tmp_path).code == 0
    ended = llmtool("evaluate", "reviews.yaml", "--set", "evaluate.explain={examples: 1}", cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = explained(tmp_path, "reviews")
    assert found["importance"] is None
    texts = dict(enumerate(reviews().splitlines(), 1))
    for one in found["examples"]:
        first, *parts = one["parts"]
        assert first["attribution"] == 0  # what stands before every text is the baseline's too
        text = "".join(part["name"] for part in parts)
        assert texts[int(one["where"].rpartition(":")[2])].startswith(text)
        total = sum(part["attribution"] for part in parts)
        assert total == pytest.approx(one["output"] - one["output_of_that"], abs=0.02)
    page = (tmp_path / "runs/reviews/evaluate/report.html").read_text()
    assert "<p class='marked'><span" in page


def test_values_in_their_own_unit(tmp_path: Path, llmtool: Run) -> None:
    rows = ["size,rooms,price", *(f"{n},{n % 5},{1000 * n + 7}" for n in range(20, 140))]
    (tmp_path / "homes.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "homes.yaml").write_text(HOMES)
    assert llmtool("train", "homes.yaml", cwd=tmp_path).code == 0
    assert llmtool("evaluate", "homes.yaml", cwd=tmp_path).code == 0
    found = explained(tmp_path, "homes")
    assert [one["why"] for one in found["examples"]] == ["furthest off", "closest"]
    assert found["importance"]["columns"][0]["column"] == "size"
    for one in found["examples"]:
        assert one["output"] == pytest.approx(one["prediction"], rel=1e-4)
        assert one["explained"] == "price"
        total = sum(part["attribution"] for part in one["parts"])
        assert total == pytest.approx(one["output"] - one["output_of_that"], rel=0.02, abs=400)


def test_labels_by_the_one_that_a_row_has_most_of(tmp_path: Path, llmtool: Run) -> None:
    rows = ["a,b,left,right", *(f"{n},{n % 7},{int(n > 60)},{int(n % 7 > 3)}" for n in range(120))]
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "l.yaml").write_text(
        "data:\n  source: {format: csv, path: l.csv}\n"
        "  encode: {as: features, target: [left, right], target_kind: labels, numbers: [a]}\n"
        "model: {family: mlp, hidden: [8]}\n"
        "train: {budget: {steps: 60}, batch: 16, optimizer: {name: adamw, lr: 0.02}}\n"
        "evaluate: {explain: {examples: 1}, baselines: {kind: simple}}\n"
    )
    for command in ("train", "evaluate"):
        ended = llmtool(command, "l.yaml", cwd=tmp_path)
        assert ended.code == 0, ended.err
    found = explained(tmp_path, "l")
    assert found["importance"]["metric"] == "mean_average_precision"
    for one in found["examples"]:
        assert one["explained"] in ("log-odds of left", "log-odds of right")
        total = sum(part["attribution"] for part in one["parts"])
        assert total == pytest.approx(one["output"] - one["output_of_that"], rel=0.02, abs=0.02)


def test_what_cannot_be_explained_is_refused_before_it_is_scored(copy: Path, llmtool: Run) -> None:
    for project, asked, said in (
        ("text", "{}", "is for classes, labels and values"),
        ("table", "{split: train}", "split: train is not scored"),
        ("table", "{baseline: blur}", "choices: auto, mean"),
        ("table", "{rows: [46]}", "test has the rows 1 to 45"),
        ("table", "{tolerance: 0}", "tolerance"),
    ):
        ended = llmtool("evaluate", f"{project}.yaml", "--set", f"evaluate.explain={asked}", cwd=copy)
        assert ended.code == 2, ended.err
        assert said in ended.err
