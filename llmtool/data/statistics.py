"""What the train rows say about a column, gathered chunk by chunk in memory that does not grow with them.

Each chunk is looked at alone, anywhere, and what was seen is merged in their order: the same on any machines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmtool.core import seeds
from llmtool.core.errors import DataError
from llmtool.data import decimals
from llmtool.data.cells import BLANK, Cells

if TYPE_CHECKING:
    from llmtool.data.encoding import Chunks
    from llmtool.data.sources import Chunk

SAMPLE = 1_000_000  # values kept of one column: up to here medians and quantiles are exact
SAMPLES = 32_000_000  # values kept of all columns together (384 MB, with their draws)
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

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Those of (n,) finite float64 values."""
        made = cls()
        if len(values):
            made.count, made._origin = len(values), float(values[0])
            made.minimum, made.maximum = float(values.min()), float(values.max())
            with np.errstate(over="ignore", invalid="ignore"):  # 1e300 squared: `deviation` is not finite
                values = values - made._origin
                made._mean = float(np.mean(values))
                made._squares = float(np.sum((values - made._mean) ** 2))
        return made

    def merge(self, other: Moments) -> None:
        """Take in the values that `other` has seen."""
        if self.count == 0:
            self.__dict__.update(vars(other))
        elif other.count:
            with np.errstate(over="ignore", invalid="ignore"):
                delta = np.float64(other._origin) - self._origin + other._mean - self._mean
                total = self.count + other.count
                between = delta * delta * (self.count * other.count / total)
                self._squares = float(self._squares + other._squares + between)
                self._mean = float(self._mean + delta * (other.count / total))
            self.count = total
            self.minimum = min(self.minimum, other.minimum)
            self.maximum = max(self.maximum, other.maximum)

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


class FairSample:
    """A fair sample of values: all of them up to `capacity`, then those whose places draw the least numbers.

    A place's draw is a function of it and the seed alone: so samples of parts merge to the sample of the
    whole. Bottom-k sampling, Cohen and Kaplan 2007: https://doi.org/10.1145/1281100.1281133
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.seen, self._capacity, self._seed = 0, capacity, seed
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # values and their draws
        self._held = 0

    @property
    def exact(self) -> bool:
        """Whether every value seen is in the sample."""
        return self.seen <= self._capacity

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """Take in (n,) values; places: (n,) whole numbers, each value's own."""
        self._take(values.copy(), _draws(places, self._seed), len(values))

    def merge(self, other: FairSample) -> None:
        """Take in what `other`, of the same capacity and seed, has seen of other places."""
        self._take(*other._whole(), other.seen)

    def values(self) -> np.ndarray:
        """(m,) the sample."""
        return self._whole()[0]

    def _take(self, values: np.ndarray, draws: np.ndarray, seen: int) -> None:
        self.seen += seen
        self._held += len(values)
        self._parts.append((values, draws))
        if self._held > 1.25 * self._capacity:
            self._whole()

    def _whole(self) -> tuple[np.ndarray, np.ndarray]:
        """All parts as one, of which no more is left than the sample."""
        if len(self._parts) != 1 or self._held > self._capacity:
            values = np.concatenate([part for part, _ in self._parts] or [np.empty(0)])
            draws = np.concatenate([part for _, part in self._parts] or [np.empty(0, np.uint32)])
            if len(values) > self._capacity:
                least = np.sort(np.argsort(draws, kind="stable")[: self._capacity])
                values, draws = values[least], draws[least]
            self._parts, self._held = [(values, draws)], len(values)
        return self._parts[0]


def _draws(places: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint32: a number for each place that looks drawn by chance; the upper half mixes best."""
    numbers = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return (seeds.scrambled(numbers) >> np.uint64(32)).astype(np.uint32)


class ColumnStatistics:
    """One column of the train rows, read as whatever it may turn out to be.

    columns: how many there are, which share the memory. seed: of the samples.
    """

    def __init__(self, name: str, markers: frozenset[str], columns: int, seed: int) -> None:
        self.name, self._markers = name, markers
        sample = max(1000, min(SAMPLE, SAMPLES // max(columns, 1)))
        self._limit = max(1000, min(DISTINCT, DISTINCTS // max(columns, 1)))
        self.rows = self.missing = self.blank = self.wrong = self.infinite = self.not_dates = 0
        self.numbers, self.number_sample = Moments(), FairSample(sample, seed)
        self.days, self.day_sample = Moments(), FairSample(sample, seed)
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
        counts = cells.counts.tolist()
        self.length += sum(len(word) * count for word, count in zip(cells.words, counts, strict=True))
        present = ~np.isnan(numbers.values)
        self._add_numbers(numbers.values[present], ordinals[present], complete=bool(present.all()))
        if numbers.wrong.any():
            if not self.first_wrong:
                self.first_wrong = cells.words[cells.codes[np.argmax(numbers.wrong)]]
            self._add_dates(cells, ordinals, numbers.wrong)
        each = zip(cells.words, counts, strict=True)
        self._count(Counter({word: count for word, count in each if word not in BLANK}))

    def merge(self, other: ColumnStatistics) -> None:
        """Take in what `other` has seen of the same column, in the rows behind these."""
        for name in ("rows", "missing", "blank", "wrong", "infinite", "not_dates", "length"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("numbers", "number_sample", "days", "day_sample", "years"):
            getattr(self, name).merge(getattr(other, name))
        for name in ("months", "weekdays", "hours"):
            getattr(self, name).update(getattr(other, name))
        self.whole = self.whole and other.whole
        self.first_wrong = self.first_wrong or other.first_wrong
        self._offset = other._offset if self._offset is None else self._offset
        self.counts_rows = self.counts_rows and other.counts_rows and other._offset in (None, self._offset)
        self._count(other.words)

    def _count(self, words: Counter[str]) -> None:
        """Take in words, until there are too many different ones."""
        if not self.overflow:
            self.words.update(words)
            limit = self._limit if self.wrong else min(self._limit, 10_000)  # numbers are seldom categories
            self.overflow = len(self.words) > limit

    def _add_numbers(self, values: np.ndarray, ordinals: np.ndarray, complete: bool) -> None:
        self.numbers.merge(Moments.of(values))
        self.number_sample.add(values, ordinals)
        self.whole = self.whole and bool((values == np.floor(values)).all())
        if self.counts_rows:
            offsets = values - ordinals
            if complete and self._offset is None:
                self._offset = float(offsets[0])
            self.counts_rows = complete and bool((offsets == self._offset).all())

    def _add_dates(self, cells: Cells, ordinals: np.ndarray, wrong: np.ndarray) -> None:
        dates = cells.dates(self._markers) if cells.looks_like_dates(self._markers) else None
        if dates is None:
            self.not_dates += int(wrong.sum())
            return
        self.not_dates += int(dates.wrong.sum())
        present = ~np.isnan(dates.values)
        seconds = dates.values[present]
        self.days.merge(Moments.of(seconds / 86400))
        self.day_sample.add(seconds / 86400, ordinals[present])
        year, month, weekday, hour = calendar(seconds)
        self.years.merge(Moments.of(year))
        self.months.update(np.unique(month).astype(int).tolist())
        self.weekdays.update(np.unique(weekday).astype(int).tolist())
        self.hours.update(np.unique(hour).tolist()[:100])

    @property
    def distinct(self) -> int:
        """Different words; at least this many when `overflow`."""
        return len(self.words)

    @property
    def decimal_commas(self) -> bool:
        """Whether it would hold numbers, were a comma the decimal mark."""
        return self.wrong > 0 and decimals.found_in(self.words, self._markers)

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


@dataclass(frozen=True)
class Survey:
    """Looks at columns: work that can be sent. seed: of the samples that are kept of each."""

    names: list[str]
    markers: frozenset[str]
    seed: int

    def __call__(self, chunk: Chunk) -> list[ColumnStatistics]:
        """What the rows of a chunk say of each column."""
        ordinals = chunk.frame.index.to_numpy()
        found = self.nothing()
        for one in found:
            one.add(Cells(chunk.frame[one.name]), ordinals)
        return found

    def nothing(self) -> list[ColumnStatistics]:
        """Of each column, what no row says."""
        count = len(self.names)
        return [
            ColumnStatistics(name, self.markers, count, seeds.derive(self.seed, "sample", name))
            for name in self.names
        ]

    def over(self, chunks: Chunks) -> list[ColumnStatistics]:
        """What all rows say of each column. DataError where there is no row."""
        return self.merged(chunks.map(self))

    def merged(self, of_each: Iterable[list[ColumnStatistics]]) -> list[ColumnStatistics]:
        """The same, of what the rows of each chunk say."""
        found = self.nothing()
        for parts in of_each:
            for one, part in zip(found, parts, strict=True):
                one.merge(part)
        if not found[0].rows:
            raise DataError("the train split has no rows; nothing can be learned from it")
        return found


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
