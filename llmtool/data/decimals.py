"""Numbers with a decimal comma (12,5): how they are told from other text, and written with a point."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

HINT = "looks like numbers with a decimal comma: set data.source.decimal: ',' (of CSV and TSV)"
SHARE = 0.99  # of the cells that hold numbers, from which a column is of numbers
SURE = 0.05  # of the cells with a comma that no thousands separator explains, from which it is a decimal one

_WHOLE = re.compile(r"[+-]?[0-9]+")
_COMMA = re.compile(r"\s*[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?\s*")
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")  # 1,234: it may be more than a thousand
_THOUSAND = re.compile(r"\s*[+-]?[1-9][0-9]{0,2}\.[0-9]{3}\s*")  # the same where a comma is the decimal mark
_EXCHANGED = str.maketrans(".,", ",.")


def with_point(cell: Any) -> Any:
    """The cell, with a point for the comma where it is such a number.

    Of 1.234 the point becomes a comma, so that it is no number: it stands for 1234 where the comma is the
    decimal mark, and 1.234 would be wrong by a factor of 1000.
    """
    if isinstance(cell, str) and (_COMMA.fullmatch(cell) or _THOUSAND.fullmatch(cell)):
        return cell.translate(_EXCHANGED)
    return cell


def with_points(cells: Sequence[Any]) -> list[Any]:
    """The same of the cells of a column, each different one looked at once."""
    plain = {cell: with_point(cell) for cell in set(cells)}
    return [plain[cell] for cell in cells]


def found_in(words: Mapping[str, int], markers: Collection[str]) -> bool:
    """Whether a column of these words (and how often each stands there) holds numbers with a decimal comma.

    markers: words for a missing value. 1,234 alone does not tell: it may be a thousand.
    """
    whole = comma = grouped = other = 0
    for word, count in words.items():
        if word in markers:
            continue
        if _COMMA.fullmatch(word):
            comma += count
            grouped += count * bool(_GROUPED.fullmatch(word))
        elif _WHOLE.fullmatch(word):
            whole += count
        else:
            other += count
    numbers = whole + comma
    return comma - grouped > SURE * comma and numbers >= SHARE * (numbers + other)
