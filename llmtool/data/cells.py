"""Reads the cells of a column as text, numbers or dates, the same way when fitting and when encoding."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.data.dates import Order, iso

if TYPE_CHECKING:
    import pandas as pd

BLANK = frozenset({"", "?"})  # missing in every kind of column; "NA" or "None" may be a category's name
MARKERS = ("", "?", "NA", "N/A", "NaN", "nan", "null", "None", "NULL")
MISSING = frozenset(MARKERS)  # what stands for no value where a configuration does not say


class Nested(str):
    """The JSON text of a list or an object in a cell, which is written back as what it stands for."""


_NUMBER_CHARACTERS = frozenset("0123456789+-.eE \t\n")
# Python's float() also reads "1_000", other scripts' digits and "infinity"; a table's number is plain ASCII.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
LARGEST = float(np.finfo(np.float32).max)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Numbers:
    """values: (rows,) float64, NaN where there is none; the masks say why: missing, text, or 1e300.

    infinite: beyond float32, in which models compute.
    """

    values: np.ndarray
    missing: np.ndarray
    wrong: np.ndarray
    infinite: np.ndarray

    def of(self, codes: np.ndarray) -> Numbers:
        """Those at these places."""
        return Numbers(self.values[codes], self.missing[codes], self.wrong[codes], self.infinite[codes])


class Cells:
    """The cells of one column in one chunk. Each different text is looked at once.

    words: the different texts; codes: (rows,) int64, the place of each cell's text in them.
    """

    def __init__(self, column: pd.Series) -> None:
        self._values: list[Any] = column.tolist()
        self._kinds = set(map(type, self._values))

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def _coded(self) -> tuple[list[str], np.ndarray]:
        import pandas as pd

        raw = self._values if self._kinds <= {str, type(None)} else list(map(_plain, self._values))
        cells = np.empty(len(raw), dtype=object)
        cells[:] = raw
        codes, distinct = pd.factorize(cells)  # None has the code -1
        places: dict[str, int] = {}
        place = [places.setdefault(word.strip(), len(places)) for word in distinct]
        if (codes < 0).any():
            place.append(places.setdefault("", len(places)))
        return list(places), np.array(place, np.int64)[codes]

    @property
    def words(self) -> list[str]:
        return self._coded[0]

    @property
    def codes(self) -> np.ndarray:
        return self._coded[1]

    @cached_property
    def text(self) -> list[str]:
        """Each cell as text without blanks around it; "" where there is nothing."""
        words = self.words
        return [words[code] for code in self.codes.tolist()]

    @cached_property
    def counts(self) -> np.ndarray:
        """(words,) int64: how many cells have each."""
        return np.bincount(self.codes, minlength=len(self.words))

    def missing(self, markers: frozenset[str]) -> np.ndarray:
        """(rows,) bool: nothing there, or one of the words that mean missing."""
        return self._missing(markers)[self.codes]

    def _missing(self, markers: frozenset[str]) -> np.ndarray:
        """(words,) bool."""
        return np.fromiter((word in markers for word in self.words), dtype=bool, count=len(self.words))

    def numbers(self, markers: frozenset[str]) -> Numbers:
        """The cells as float64."""
        if self._kinds <= {int, float, type(None)} and int not in self._kinds:
            values = np.array(self._values, dtype=np.float64)  # None becomes NaN
            missing, infinite = np.isnan(values), np.abs(values) > LARGEST
            values[infinite] = np.nan
            return Numbers(values, missing, np.zeros(len(self), dtype=bool), infinite)
        missing = self._missing(markers)
        found = _fast_numbers(self.words, missing) or _slow_numbers(self.words, missing)
        return found.of(self.codes)

    def dates(self, markers: frozenset[str], order: Order = "iso") -> Numbers:
        """The cells as seconds since 1970-01-01 UTC; a time without zone counts as UTC. order: in which dates
        may be written that are not ISO ones."""
        missing = self._missing(markers)
        seconds = np.full(len(missing), np.nan)
        for at in np.flatnonzero(~missing):
            seconds[at] = _seconds(iso(self.words[at], order))
        wrong = np.isnan(seconds) & ~missing
        return Numbers(seconds, missing, wrong, np.zeros(len(missing), dtype=bool)).of(self.codes)

    def looks_like_dates(self, markers: frozenset[str]) -> bool:
        """Whether one of the first texts that hold anything is a date: cheap, before reading all."""
        present = (word for word in self.words if word not in markers)
        return any(_DATE.fullmatch(word) for word in itertools.islice(present, 20))


def _plain(value: Any) -> str:
    """Anything a reader can give, as the text that a CSV file would hold."""
    if isinstance(value, str):
        return value.strip()
    import pandas as pd  # here, as elsewhere below: commands that read no rows start 0.3 s sooner without it

    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        number = float(value)
        if number != number:
            return ""
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "inf" if value > 0 else "-inf"  # Python refuses to print it, and no number type holds it
    return str(value)


def _fast_numbers(words: list[str], missing: np.ndarray) -> Numbers | None:
    """The words as numbers, where all that are not missing are plain ones."""
    present = [word for word, absent in zip(words, missing.tolist(), strict=True) if not absent]
    if not set("\n".join(present)) <= _NUMBER_CHARACTERS:
        return None
    values = np.full(len(words), np.nan)
    try:
        values[~missing] = list(map(float, present))
    except ValueError:
        return None
    infinite = np.abs(values) > LARGEST
    values[infinite] = np.nan
    return Numbers(values, missing, np.zeros(len(words), dtype=bool), infinite)


def _slow_numbers(text: list[str], missing: np.ndarray) -> Numbers:
    values = np.full(len(text), np.nan)
    wrong = np.zeros(len(text), dtype=bool)
    infinite = np.zeros(len(text), dtype=bool)
    for row in np.flatnonzero(~missing):
        word = text[row]
        if _NUMBER.fullmatch(word):
            number = float(word)
            infinite[row] = abs(number) > LARGEST
            values[row] = np.nan if infinite[row] else number
        elif _NOT_FINITE.fullmatch(word):
            infinite[row] = True
        else:
            wrong[row] = True
    return Numbers(values, missing, wrong, infinite)


def _seconds(word: str) -> float:
    """A date as seconds since 1970, NaN when it is none (also 2023-02-30)."""
    if not _DATE.fullmatch(word):
        return float("nan")
    try:
        moment = datetime.fromisoformat(word)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()
    except (ValueError, OverflowError):
        return float("nan")
