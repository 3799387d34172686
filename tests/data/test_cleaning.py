"""Cleaning steps: what leaves, for which reason, and that nothing else changes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError
from llmtool.data import CleanStep
from llmtool.data.cleaning import Cleaned, clean, contents, on_new_rows
from llmtool.data.sources import frame

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)


def table(**columns: list) -> pd.DataFrame:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return frame(list(columns), rows, np.arange(100, 100 + len(rows)))


def run(data: pd.DataFrame, *steps: dict) -> Cleaned:
    return clean([STEP.validate_python(step) for step in steps], data)


def rows(found: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {reason: [int(row) - 100 for row in ordinals] for reason, ordinals in found.items()}


def test_require_and_drop_missing() -> None:
    data = table(a=["x", "", None, "NA", "?", " "], b=["1", "2", "3", "4", "", "6"])
    result = run(data, {"step": "require", "columns": ["a"]})
    assert rows(result.dropped) == {"a is missing": [1, 2, 4, 5]}
    assert result.frame["a"].tolist() == ["x", "NA"]
    result = run(data, {"step": "require", "columns": ["b", "a"], "missing": ["NA"]})
    assert rows(result.dropped) == {"b is missing": [4], "a is missing": [1, 2, 3, 5]}
    assert rows(run(data, {"step": "drop_missing"}).dropped) == {"a value is missing": [1, 2, 4, 5]}
    assert rows(run(data, {"step": "drop_missing", "columns": ["b"]}).dropped) == {"a value is missing": [4]}


def test_types_read_dates_in_the_order_that_is_said() -> None:
    data = table(d=["17/3/2021", "2021-03-18", "31/2/2021", "NA", "19.3.2021 8:30"])
    step = {"step": "types", "columns": {"d": "date"}, "dates": "day/month/year", "missing": ["NA"]}
    result = run(data, step)
    assert rows(result.bad) == {"d is not a date": [2]}
    stamps = ["2021-03-17T00:00:00", "2021-03-18T00:00:00", None, "2021-03-19T08:30:00"]
    assert result.frame["d"].tolist() == stamps
    with pytest.raises(ValidationError, match="read only with a column of dates"):
        run(data, {**step, "columns": {"d": "text"}})


def test_types_convert_and_quarantine() -> None:
    data = table(
        n=["1.5", "x", "1e400", "", "0x10", "-3", "1_000"],
        i=["1", "2", "3", "4", "5", "6.5", "7.0"],
        d=["2024-05-31", "2024-02-30", "2024-05-31T10:00:00", None, "1850-01-01", "2024-01-01", "soon"],
    )
    result = run(data, {"step": "types", "columns": {"n": "number"}})
    assert rows(result.bad) == {"n is not a number": [1, 2, 4, 6]}
    assert result.frame["n"].tolist() == [1.5, None, -3.0]
    result = run(data, {"step": "types", "columns": {"i": "integer"}})
    assert rows(result.bad) == {"i is not an integer": [5]}
    assert result.frame["i"].tolist() == [1, 2, 3, 4, 5, 7]
    result = run(data, {"step": "types", "columns": {"d": "date"}})
    assert rows(result.bad) == {"d is not a date": [1, 6]}
    stamps = [
        "2024-05-31T00:00:00",
        "2024-05-31T10:00:00",
        None,
        "1850-01-01T00:00:00",
        "2024-01-01T00:00:00",
    ]
    assert result.frame["d"].tolist() == stamps
    result = run(table(b=["Yes", "0", "maybe", "", True]), {"step": "types", "columns": {"b": "boolean"}})
    assert rows(result.bad) == {"b is not a boolean": [2]}
    assert result.frame["b"].tolist() == [True, False, None, True]
    result = run(table(t=[1, 2.5, " x ", None]), {"step": "types", "columns": {"t": "text"}})
    assert result.frame["t"].tolist() == ["1", "2.5", "x", None]
    assert not result.bad
    assert set(result.frame.dtypes) == {np.dtype(object)}


def test_range() -> None:
    data = table(a=["1", "5", "9", "", "x", "1e999"])
    result = run(data, {"step": "range", "column": "a", "min": 2, "max": 9})
    assert rows(result.dropped) == {"a out of range": [0]}
    assert rows(result.bad) == {"a is not a number": [4, 5]}
    assert result.frame["a"].tolist() == ["5", "9", ""]


def test_filter_and_replace() -> None:
    data = table(a=["x", "y", "z", None])
    assert rows(run(data, {"step": "filter", "column": "a", "keep": ["x", "z"]}).dropped) == {
        "a filtered": [1, 3]
    }
    assert rows(run(data, {"step": "filter", "column": "a", "drop": ["x"]}).dropped) == {"a filtered": [0]}
    assert rows(run(data, {"step": "filter", "column": "a", "matches": "^[xz]$"}).dropped) == {
        "a filtered": [1, 3]
    }
    result = run(data, {"step": "replace", "column": "a", "mapping": {"x": "X", "y": None}})
    assert result.frame["a"].tolist() == ["X", None, "z", None]
    assert data["a"].tolist() == ["x", "y", "z", None]  # what came in is not changed


def test_join_makes_one_text_of_a_list() -> None:
    cells = ['["a", "b"]', "[]", "[1, 2]", '["a", null]', "[not json", "[" * 100_000, "plain", None]
    data = pd.DataFrame({"t": pd.Series(cells, dtype=object)})
    result = run(data, {"step": "join", "columns": ["t"]})
    assert result.frame["t"].tolist() == ["a\nb", "", *cells[2:]]
    result = run(data, {"step": "join", "columns": ["t"], "by": ""})
    assert result.frame["t"].tolist()[0] == "ab"


def test_normalize_and_length() -> None:
    data = table(t=[" e\u0301<br />B  \n", "ﬁn", None, 7])
    step = {"step": "normalize", "columns": ["t"]}
    assert run(data, {**step, "unicode": "NFC"}).frame["t"].iloc[0] == " é<br />B  \n"
    every = {"unicode": "NFKC", "strip_tags": True, "lower": True, "collapse_space": True, "strip": True}
    assert run(data, {**step, **every}).frame["t"].tolist() == ["é b", "fin", None, 7]
    assert run(table(t=["a < b > c"]), {**step, "strip_tags": True}).frame["t"].tolist() == ["a < b > c"]
    result = run(data, {"step": "length", "column": "t", "min": 1, "max": 4})
    assert rows(result.dropped) == {"t too short": [2], "t too long": [0]}
    cut = {"step": "length", "column": "t", "max": 1, "action": "cut"}
    assert run(data, cut).frame["t"].tolist() == [" ", "ﬁ", None, 7]


def test_a_row_leaves_once_at_the_first_step_that_wants_it() -> None:
    data = table(a=["", "1", "x"], b=["", "2", "3"])
    steps = [{"step": "require", "columns": ["a", "b"]}, {"step": "types", "columns": {"a": "number"}}]
    result = run(data, *steps)
    assert rows(result.dropped) == {"a is missing": [0]}
    assert rows(result.bad) == {"a is not a number": [2]}


def test_duplicates_are_named_by_content_at_that_step() -> None:
    data = table(a=["x", "X", "x", "y"], b=["1", "1", "2", ""])
    result = run(
        data,
        {"step": "require", "columns": ["b"]},
        {"step": "normalize", "columns": ["a"], "lower": True},
        {"step": "drop_duplicates"},
        {"step": "drop_duplicates", "columns": ["a"]},
    )
    ordinals, keys = result.keys[2]
    assert ordinals.tolist() == [100, 101, 102]
    assert len(np.unique(keys, axis=0)) == 2
    assert len(np.unique(result.keys[3][1], axis=0)) == 1


def test_content_tells_rows_apart() -> None:
    data = table(
        a=["x", "xy", "", None, "None", 1, "1", True, 1.0],
        b=["yz", "z", None, "", None, None, None, None, None],
    )
    assert len(np.unique(contents(data, ["a", "b"]), axis=0)) == 9
    assert contents(data.iloc[:0], ["a", "b"]).shape == (0, 2)
    assert (contents(data, ["a"]) == contents(data.copy(), ["a"])).all()


@pytest.mark.parametrize(
    "step",
    [
        {"step": "require", "columns": ["incom"]},
        {"step": "drop_missing", "columns": ["incom"]},
        {"step": "drop_duplicates", "columns": ["incom"]},
        {"step": "types", "columns": {"incom": "number"}},
        {"step": "range", "column": "incom", "min": 1},
        {"step": "filter", "column": "incom", "keep": ["1"]},
        {"step": "replace", "column": "incom", "mapping": {"1": "2"}},
        {"step": "normalize", "columns": ["incom"], "strip": True},
        {"step": "length", "column": "incom", "max": 1},
    ],
)
def test_an_unknown_column_is_named_with_the_nearest(step: dict) -> None:
    data = table(income=["1"], age=["2"])
    with pytest.raises(ConfigError, match=f"{step['step']}: no column 'incom'; did you mean \"income\""):
        run(data, step)
    known = {
        key: ("income" if value == "incom" else ["income"] if value == ["incom"] else value)
        for key, value in step.items()
    }
    if "incom" not in str(known.get("columns", "")).replace("income", ""):
        run(data.iloc[:0], known)  # no rows are no error


@pytest.mark.parametrize(
    "step",
    [
        {"step": "range", "column": "a"},
        {"step": "range", "column": "a", "min": 2, "max": 1},
        {"step": "filter", "column": "a"},
        {"step": "filter", "column": "a", "keep": ["x"], "drop": ["y"]},
        {"step": "filter", "column": "a", "drop": ["y"], "matches": "x"},
        {"step": "filter", "column": "a", "matches": "("},
        {"step": "normalize", "columns": ["a"]},
        {"step": "length", "column": "a", "min": 1, "action": "cut"},
        {"step": "types", "columns": {}},
        {"step": "require", "columns": []},
    ],
)
def test_steps_that_make_no_sense(step: dict) -> None:
    with pytest.raises(ValidationError):
        STEP.validate_python(step)


def test_new_rows_are_cleaned_without_looking_at_a_target_that_nobody_knows() -> None:
    steps = [
        STEP.validate_python(step)
        for step in (
            {"step": "drop_duplicates"},
            {"step": "require", "columns": ["a", "y"]},
            {"step": "filter", "column": "y", "keep": ["1"]},
            {"step": "types", "columns": {"a": "number", "y": "integer"}},
            {"step": "drop_missing"},
            {"step": "replace", "column": "b", "mapping": {"x": "z"}},
            {"step": "range", "column": "gone", "max": 3},
        )
    ]
    kept, notes = on_new_rows(steps, ["a", "b"], ["y"], ["a", "b", "more"])
    assert [step.step for step in kept] == ["require", "types", "drop_missing", "replace"]
    assert kept[0].columns == ["a"]
    assert kept[1].columns == {"a": "number"}
    assert kept[2].columns == ["a", "b"]
    assert notes == ["data.clean.6 (range) is left out: no column 'gone' here"]
    found = clean(kept, table(a=["1", "x", "2"], b=["x", "x", None], more=[None, None, None]))
    assert found.frame["b"].tolist() == ["z"]
    assert rows(found.bad) == {"a is not a number": [1]}
    assert rows(found.dropped) == {"a value is missing": [2]}
