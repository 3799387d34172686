"""What the train rows say about a column, gathered chunk by chunk in memory that does not grow with them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import numpy as np

from llmtool.data.cells import BLANK, Cells

SAMPLE = 1_000_000  # values kept of one column: up to here medians and quantiles are exact
SAMPLES = 32_000_000  # values kept of all columns together (256 MB)
DISTINCT = 100_000  # different words counted in one column
DISTINCTS = 2_000_000  # and in all columns together
KIND_SHARE = 0.99  # a column is of numbers (or dates) when this share of its cells is

Kind = Literal["number", "date", "category", "nothing"]


class Moments:
    """Count, mean, variance and range; chunks are merged to what a pass over all values would give.

    The first value is the origin: what is small beside it is not lost to rounding.
    Chan, Golub and LeVeque 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
    """

    def __init__(self) -> None:
        self.count, self._origin, self._mean, self._squares = 0, 0.0, 0.0, 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take in (n,) finite float64 values."""
        count = len(values)
        if count == 0:
            return
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        with np.errstate(over="ignore", invalid="ignore"):  # 1e300 squared: `deviation` is then not finite
            if self.count == 0:
                self._origin = float(values[0])
            values = values - self._origin
            mean = np.mean(values)
            squares = float(np.sum((values - mean) ** 2))
            total = self.count + count
            delta = mean - self._mean
            self._squares = float(self._squares + squares + delta * delta * (self.count * count / total))
            self._mean = float(self._mean + delta * (count / total))
        self.count = total

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self._origin + self._mean

    @property
    def deviation(self) -> float:
        """The population's standard deviation; 0 for a constant."""
        if self.minimum >= self.maximum:
            return 0.0
        return math.sqrt(self._squares / self.count)

    @property
    def constant(self) -> bool:
        """Whether what varies is no more than rounding, by the bound that StandardScaler uses too."""
        variance = self._squares / max(self.count, 1)
        epsilon = float(np.finfo(np.float64).eps)
        bound = self.count * epsilon * variance + (self.count * self.mean * epsilon) ** 2
        return self.minimum >= self.maximum or variance <= bound


class Reservoir:
    """A fair sample of the values seen: all of them up to `capacity`, afterwards each with the same chance.

    Vitter 1985, algorithm R: https://doi.org/10.1145/3147.3165
    """

    def __init__(self, capacity: int, generator: np.random.Generator) -> None:
        self.seen, self._capacity, self._generator = 0, capacity, generator
        self._parts: list[np.ndarray] = []

    @property
    def exact(self) -> bool:
        """Whether every value seen is in the sample."""
        return self.seen <= self._capacity

    def add(self, values: np.ndarray) -> None:
        """Take in (n,) values."""
        free = max(self._capacity - self.seen, 0)
        if len(values[:free]):
            self._parts.append(values[:free].copy())
        rest = values[free:]
        if len(rest):
            sample = self.values()
            at = self.seen + free + np.arange(len(rest))  # how many values came before each
            slots = self._generator.integers(0, at + 1)
            chosen = slots < self._capacity
            sample[slots[chosen]] = rest[chosen]  # of two for one slot the later stays, as one by one
        self.seen += len(values)

    def values(self) -> np.ndarray:
        """(m,) the sample."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts) if self._parts else np.empty(0)]
        return self._parts[0]


class ColumnStatistics:
    """One column of the train rows, read as whatever it may turn out to be."""

    def __init__(
        self, name: str, markers: frozenset[str], columns: int, generator: np.random.Generator
    ) -> None:
        self.name, self._markers = name, markers
        sample = max(1000, min(SAMPLE, SAMPLES // max(columns, 1)))
        self._limit = max(1000, min(DISTINCT, DISTINCTS // max(columns, 1)))
        self.rows = self.missing = self.blank = self.wrong = self.infinite = self.not_dates = 0
        self.numbers, self.number_sample = Moments(), Reservoir(sample, generator)
        self.days, self.day_sample = Moments(), Reservoir(sample, generator)
        self.months, self.weekdays, self.hours = set[int](), set[int](), set[float]()
        self.years = Moments()
        self.words: Counter[str] = Counter()
        self.overflow = False  # more different words than are counted
        self.whole = True  # every number is a whole one
        self.length = 0  # characters in all cells
        self._offset: float | None = None
        self.counts_rows = True  # every value is the row's own number plus a constant
        self.first_wrong = ""

    def add(self, cells: Cells, ordinals: np.ndarray) -> None:
        """Take in the column's cells of some rows; `ordinals` (rows,) are their numbers in the source."""
        if len(cells) == 0:
            return
        blank = cells.missing(BLANK)
        numbers = cells.numbers(self._markers)
        self.rows += len(cells)
        self.blank += int(blank.sum())
        self.missing += int(numbers.missing.sum())
        self.wrong += int(numbers.wrong.sum())
        self.infinite += int(numbers.infinite.sum())
        self.length += sum(map(len, cells.text))
        present = ~np.isnan(numbers.values)
        self._add_numbers(numbers.values[present], ordinals[present], complete=bool(present.all()))
        if numbers.wrong.any():
            if not self.first_wrong:
                self.first_wrong = cells.text[int(np.argmax(numbers.wrong))]
            self._add_dates(cells, numbers.wrong)
        if not self.overflow:
            self.words.update(word for word, absent in zip(cells.text, blank, strict=True) if not absent)
            limit = self._limit if self.wrong else min(self._limit, 10_000)  # numbers are seldom categories
            self.overflow = len(self.words) > limit

    def _add_numbers(self, values: np.ndarray, ordinals: np.ndarray, complete: bool) -> None:
        self.numbers.add(values)
        self.number_sample.add(values)
        self.whole = self.whole and bool((values == np.floor(values)).all())
        if self.counts_rows:
            offsets = values - ordinals
            if complete and self._offset is None:
                self._offset = float(offsets[0])
            self.counts_rows = complete and bool((offsets == self._offset).all())

    def _add_dates(self, cells: Cells, wrong: np.ndarray) -> None:
        dates = cells.dates(self._markers) if cells.looks_like_dates(self._markers) else None
        if dates is None:
            self.not_dates += int(wrong.sum())
            return
        self.not_dates += int(dates.wrong.sum())
        seconds = dates.values[~np.isnan(dates.values)]
        self.days.add(seconds / 86400)
        self.day_sample.add(seconds / 86400)
        year, month, weekday, hour = calendar(seconds)
        self.years.add(year)
        self.months.update(np.unique(month).astype(int).tolist())
        self.weekdays.update(np.unique(weekday).astype(int).tolist())
        self.hours.update(np.unique(hour).tolist()[:100])

    @property
    def distinct(self) -> int:
        """Different words; at least this many when `overflow`."""
        return len(self.words)

    def kind(self) -> Kind:
        """What the column holds, judged by nearly all of its cells."""
        present = self.rows - self.missing
        if self.rows == self.blank:
            return "nothing"
        if present > 0 and self.wrong <= (1 - KIND_SHARE) * present:
            return "number"
        if present > 0 and self.days.count > 0 and present - self.days.count <= (1 - KIND_SHARE) * present:
            return "date"
        return "category"


def calendar(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Year, month (0 to 11), weekday (0 is Monday) and hour with its fraction of (n,) seconds since 1970."""
    days = np.floor(seconds / 86400).astype(np.int64)
    months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    hours = (seconds - days * 86400.0) / 3600
    return (
        1970 + np.floor(months / 12),
        (months % 12).astype(np.float64),
        ((days + 3) % 7).astype(np.float64),
        hours,
    )
