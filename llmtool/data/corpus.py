"""What the cleaning steps for text corpora share: each says of a text whether it goes, or what it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmtool.data.cleaning import Applied, Masks, need, with_columns
from llmtool.data.writing_systems import RANGES, UNSPACED

if TYPE_CHECKING:
    import pandas as pd

_WORD = re.compile(rf"[{RANGES}]|[^\s{RANGES}]+")


@dataclass(frozen=True)
class Verdict:
    """What becomes of a text. drop: why its row leaves. Else `text` stands there, and `changed` says what was
    done to it: nothing, where it is empty."""

    text: str
    drop: str | None = None
    changed: tuple[str, ...] = ()


def over_texts(
    frame: pd.DataFrame,
    columns: Sequence[str],
    step: str,
    look: Callable[[str], Verdict],
    others: bool = False,
) -> Applied:
    """Ask `look` of every text; one that is missing is empty. A cell that holds something else is bad, or
    stays as it is where `others` may be there.

    Reasons begin with the column. Raises ConfigError for a column that is not there.
    """
    need(frame, columns, step)
    masks: tuple[Masks, Masks, Masks] = {}, {}, {}
    dropped, bad, changed = masks
    written: dict[str, Sequence[object]] = {}

    def mark(where: Masks, reason: str, row: int) -> None:
        where.setdefault(reason, np.zeros(len(frame), bool))[row] = True

    for name in columns:
        cells = frame[name].tolist()
        for row, cell in enumerate(cells):
            if cell is not None and not isinstance(cell, str):
                if not others:
                    mark(bad, f"{name} is no text", row)
                continue
            verdict = look(cell or "")
            if verdict.drop is not None:
                mark(dropped, f"{name}: {verdict.drop}", row)
            elif verdict.changed:
                cells[row] = verdict.text
                written[name] = cells
                for what in verdict.changed:
                    mark(changed, f"{name}: {what}", row)
    return with_columns(frame, written) if written else frame, *masks


def words_of(text: str) -> list[str]:
    """What blanks part; in scripts that put none between words (Chinese, Thai) each character is a word."""
    return text.split() if text.isascii() or not UNSPACED.search(text) else _WORD.findall(text)


def below(value: float, bound: float | None) -> bool:
    """Whether there is a bound and the value lies under it."""
    return bound is not None and value < bound


def above(value: float, bound: float | None) -> bool:
    """Whether there is a bound and the value lies over it."""
    return bound is not None and value > bound
