"""The section Why: what it says, what is escaped, and that an edited file breaks no page."""

from __future__ import annotations

from typing import Any

import pytest

from llmtool.evaluation import html_explain

ROW: dict[str, Any] = {
    "row": 3, "where": "a.csv:4", "why": "surest wrong", "target": "<b>",
    "prediction": "no", "probability": 0.9,
    "explained": "log-odds of no", "output": 2.0, "compared_with": "padding", "output_of_that": 0.5,
    "completeness_error": 0.01, "complete": False, "steps": 64,
    "parts": [{"name": "<script>", "attribution": 1.0}, {"name": " dull", "attribution": -0.5}],
}  # fmt: skip
IMPORTANCE = {
    "metric": "accuracy", "value": 0.9, "rows": 100, "repeats": 5, "together": [["a", "b", 0.95]],
    "columns": [{"column": f"c{n}", "mean": 0.1 - n / 300, "low": 0.0, "high": 0.2} for n in range(25)],
}  # fmt: skip
FOUND: dict[str, Any] = {"split": "test", "importance": IMPORTANCE, "examples": [ROW], "notes": ["a note"]}


def test_the_section_says_what_was_found_and_runs_nothing() -> None:
    page = html_explain.explained({"explain": FOUND})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "by how much accuracy of test is worse when a column is shuffled" in page
    assert "the other 5 columns are worth less" in page
    assert "a and b (0.95)" in page
    assert "a note" in page
    said = html_explain.lines(FOUND)
    assert said[0].startswith("test accuracy 0.9")
    assert "to within 0.01" in said[1]
    assert "1 of them miss the tolerance" in said[2]


def test_a_text_with_columns_beside_it_shows_both() -> None:
    cell = {"name": "age", "value": 41.0, "attribution": 2.0}
    row = ROW | {"parts": [*ROW["parts"], cell]}
    page = html_explain.explained({"explain": {**FOUND, "examples": [row]}})
    assert page.index("> dull</span>") < page.index("<td>age</td>") < page.index(">+2</span>")
    assert "41.0" in page


@pytest.mark.parametrize("broken", [{"examples": 3}, {"importance": 7}, {"examples": [{}]}, {"notes": None}])
def test_an_edited_file_breaks_no_page(broken: dict[str, Any]) -> None:
    html_explain.explained({"explain": {**FOUND, **broken}})
    assert html_explain.explained({}) == ""


def test_only_pictures_of_our_own_making_are_shown() -> None:
    row = {key: value for key, value in ROW.items() if key != "parts"}
    row |= {"pixels": [[1.0]], "picture": "data:image/png;base64,AA", "heat": "https://example.org/x.png"}
    page = html_explain.explained({"explain": {**FOUND, "examples": [row]}})
    assert page.count("<img") == 1
    assert "example.org" not in page
