"""Columns of label lists are told from classes whose names have a comma in them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from llmtool.data.cells import MISSING, Cells
from llmtool.data.lists import separator_of
from llmtool.data.statistics import ColumnStatistics


def column(cells: list[str]) -> ColumnStatistics:
    found = ColumnStatistics("tags", MISSING, 1, 0)
    found.add(Cells(pd.Series(cells, dtype=object)), np.arange(len(cells)))
    return found


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["biz", "biz,long", "tech", "tech, long", "long"] * 9, ","),
        (["biz", "biz;long", "tech", "tech;long", ""] * 9, ";"),
        ([json.dumps(one) for one in (["a"], ["b"], ["a", "b"], ["b", "c"], ["c", "a"])] * 9, ","),
        (["biz", "tech", "long"] * 9, None),
        (["home, garden", "sport, outdoors", "toys"] * 9, None),  # names of classes
        (["Bern, CH", "Basel, CH", "Graz, AT", "CH"] * 9, None),
        (["red,big", "red,small", "blue,big", "blue,small"] * 9, None),  # always two
        (["12,5", "5,12", "12", "5", "7,5", "7"] * 9, None),  # numbers
        (["biz", "tech", "long"] * 50 + ["biz,tech", "tech,long"], None),  # hardly ever several
        ([], None),
    ],
)
def test_what_joins_the_labels_of_a_column(cells: list[str], expected: str | None) -> None:
    assert separator_of(column(cells)) == expected


def test_who_asks_for_labels_gets_them_from_other_lists_too() -> None:
    found = column(["red|big", "blue|small"] * 9)
    assert (separator_of(found), separator_of(found, asked=True)) == (None, "|")
    assert separator_of(column(["red", "blue"] * 9), asked=True) is None
