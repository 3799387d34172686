"""Targets of several labels a row: cells of every kind, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from llmtool.core import seeds
from llmtool.core.errors import DataError
from llmtool.data.cells import MARKERS, Cells
from llmtool.data.features import FeaturesEncode
from llmtool.data.images import ImagesEncode
from llmtool.data.labelled import TextEncode
from llmtool.data.statistics import ColumnStatistics
from llmtool.data.targets import LabelTarget, fit_target, labels_in, stand_in, target_from_state

_MARKERS = frozenset(MARKERS)


def fitted(columns: dict[str, list[Any]], separator: str = ",") -> tuple[LabelTarget, list[str]]:
    found = []
    for name, cells in columns.items():
        one = ColumnStatistics(name, _MARKERS, len(columns), seeds.derive(0, name))
        one.add(Cells(pd.Series(cells, dtype=object)), np.arange(len(cells)))
        found.append(one)
    notes: list[str] = []
    target = fit_target(found, "labels", notes, separator=separator)
    assert isinstance(target, LabelTarget)
    assert target_from_state(target.state()) == target
    return target, notes


@pytest.mark.parametrize(
    ("cell", "separator", "labels"),
    [
        ("a,b", ",", ["a", "b"]),
        (" a ; b;;a ", ";", ["a", "b"]),
        ("", ",", []),
        ("诗、词", "、", ["诗", "词"]),
        ('["a, b", "c"]', ",", ["a, b", "c"]),
        ('["b", "b", 3, ""]', ",", ["b", "3"]),
        ("[]", ",", []),
        ("['a']", ",", None),
        ('["a", ["b"]]', ",", None),
        ("[" * 100_000, ",", None),
    ],
)
def test_labels_in_a_cell(cell: str, separator: str, labels: list[str] | None) -> None:
    assert labels_in(cell, separator) == labels


def test_lists_of_labels() -> None:
    target, _ = fitted({"tags": ["b,a", "b", "", '["b", "x,y"]', "['oops']"]})
    assert (target.names, target.counts, target.rows) == (["a", "b", "x,y"], [1, 3, 1], 5)
    rows, refused = target.encode(pd.DataFrame({"tags": ["b", None, '["x,y","a"]', "a,new", "[1"]}), _MARKERS)
    assert rows[:3].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert refused == {3: "target class not in train", 4: "tags (target) is no JSON list of labels"}
    assert stand_in(target.spec()) == {"tags": "[]"}
    assert target.encode(pd.DataFrame([stand_in(target.spec())]), _MARKERS)[1] == {}


def test_columns_of_zero_and_one() -> None:
    target, notes = fitted({"a": ["1", "0", "yes"], "b": [True, False, False], "c": ["0", "0", "0"]})
    assert (target.names, target.counts, target.separator) == (["a", "b", "c"], [2, 1, 0], None)
    assert notes == ["labels that all train rows have, or none: 'c'"]
    frame = pd.DataFrame({"a": ["1", "", "2"], "b": ["no", "1", "1"], "c": [1.0, 0.0, 0.0]})
    rows, refused = target.encode(frame, _MARKERS)
    assert rows[0].tolist() == [1, 0, 1]
    assert refused == {1: "a (target) is missing", 2: "a (target) is neither 0 nor 1"}
    assert stand_in(target.spec()) == {"a": "0", "b": "0", "c": "0"}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"a": ["1", "0"], "b": ["red", "blue"]}, "'b': a column of labels holds 0 and 1 .* not 'red'"),
        ({"tags": ["a", "a"]}, r"in all train rows or in none.*label_separator is ','"),
        ({"tags": ["", ""]}, "each of 0 labels"),
        ({"tags": [f"word{n}" for n in range(1200)]}, "1,200 different labels; at most 1,000"),
    ],
)
def test_what_are_no_labels(columns: dict[str, list[str]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        fitted(columns)


def test_what_stands_in_for_a_class_is_no_mark_of_nothing() -> None:
    assert stand_in({"kind": "classes", "column": "y", "names": ["NA", "p"]}) == {"y": "p"}


@pytest.mark.parametrize("config", [FeaturesEncode, TextEncode, ImagesEncode])
def test_keys_that_do_not_go_together(config: Any) -> None:
    config(target="y", target_kind="labels", label_separator="|")
    config(target=["a", "b"], target_kind="labels")
    with pytest.raises(ValidationError, match="label_separator is read only"):
        config(target="y", label_separator=";")
    with pytest.raises(ValidationError, match="label_separator is read only"):
        config(target=["a", "b"], target_kind="labels", label_separator=";")
    with pytest.raises(ValidationError, match="target_kind: labels"):
        config(target=["a", "b"], target_kind="classes")
