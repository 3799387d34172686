"""Numbers with a decimal comma: told from thousands and other text, and written with a point."""

from __future__ import annotations

from collections import Counter

import pytest

from llmtool.data.cells import MISSING
from llmtool.data.decimals import found_in, with_point, with_points


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("12,5", "12.5"), (" -0,125 ", " -0.125 "), (",5", ".5"), ("1,5e-3", "1.5e-3"), ("12", "12"),
        ("12.5", "12.5"), ("1,2,3", "1,2,3"), ("1,", "1,"), ("a,b", "a,b"), ("24.12.2024", "24.12.2024"),
        ("1.234,5", "1.234,5"), (None, None), ("", ""), (7, 7),
        ("1.234", "1,234"), ("-12.345", "-12,345"), ("0.234", "0.234"),  # a thousand is no number, not 1.234
    ],
)  # fmt: skip
def test_a_comma_in_a_number_becomes_a_point(cell: object, expected: object) -> None:
    assert with_point(cell) == expected
    assert with_points([cell, cell]) == [expected, expected]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["12,5", "13,25", "7", "NA"], True),
        (["0,125", "0,250"], True),
        (["1,234", "12,345", "999"], False),  # thousands, for all one knows
        (["1,234"] * 50 + ["1,5"], False),
        (["12,345"] * 9 + ["12,34"], True),
        (["12,5"] * 9 + ["cold"], False),
        (["12.5", "13.25"], False),
        (["1", "2"], False),
        (["1,2", "1,2,3"], False),
        ([], False),
    ],
)
def test_what_a_column_of_them_looks_like(cells: list[str], expected: bool) -> None:
    assert found_in(Counter(cells), MISSING) is expected
