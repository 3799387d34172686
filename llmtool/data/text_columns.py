"""The text of each row, which stands in one column or in several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtool.data.tokens import problem_of

if TYPE_CHECKING:
    import pandas as pd

_NOTHING = ("is missing", "is empty")


def names_of(columns: str | list[str]) -> list[str]:
    """One name or several, as a list."""
    return [columns] if isinstance(columns, str) else list(columns)


def texts_of(frame: pd.DataFrame, columns: str | list[str]) -> list[Any]:
    """The text of each row: a cell as it is, or the cells of several columns that are not empty, joined."""
    if isinstance(columns, str):
        return frame[columns].tolist()
    cells = [frame[name].tolist() for name in columns]
    there = [[cell for cell in row if problem_of(cell) not in _NOTHING] for row in zip(*cells, strict=True)]
    return [" ".join(map(str, row)) for row in there]


def columns_of(frame: pd.DataFrame, columns: str | list[str]) -> list[list[str]]:
    """The text of each row by column; one that is not there is empty."""
    cells = [frame[name].tolist() for name in names_of(columns)]
    clean = [["" if problem_of(cell) in _NOTHING else str(cell) for cell in column] for column in cells]
    return [list(row) for row in zip(*clean, strict=True)]
