"""One fitted encoder per column: numbers, categories and dates become the numbers of a feature row.

Each is a frozen dataclass of plain values, so that its state is JSON and comes back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from llmtool.core.errors import DataError
from llmtool.data import normal
from llmtool.data.cells import BLANK, Cells
from llmtool.data.statistics import ColumnStatistics, FairSample, Moments, calendar

Scale = Annotated[
    Literal["standard", "quantile", "piecewise", "none"],
    Field(
        description="standard: mean 0, deviation 1; quantile: to a normal distribution; "
        "piecewise: standard and bins beside it; none: as they are."
    ),
]
Missing = Annotated[
    Literal["median", "mean", "zero"],
    Field(description="What stands for a missing number: the train rows' median or mean, or 0."),
]
Ignored = Annotated[list[str], Field(description="Columns to leave out.")]
Numbers = Annotated[list[str], Field(description="Columns to read as numbers, whatever they look like.")]
Categories = Annotated[
    list[str], Field(description="Columns to read as categories, whatever they look like.")
]
Dates = Annotated[list[str], Field(description="Columns to read as dates, whatever they look like.")]
Reasons = dict[str, np.ndarray]  # reason -> (rows,) bool, the rows a column cannot encode

VALUES = {  # what the circle of a part goes through
    "month": [str(month) for month in range(1, 13)],
    "weekday": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
    "hour": [str(hour) for hour in range(24)],
}
QUANTILES = 1000  # landmarks of the quantile transform, as scikit-learn's default
RARE, ABSENT, OTHER = "(rare)", "(missing)", "(other)"
_EDGE = 1e-7  # scikit-learn's BOUNDS_THRESHOLD: how near to an end counts as the end


@dataclass(frozen=True)
class NumberColumn:
    """A number: scaled, and with `flag` a second feature that is 1 where it was missing."""

    name: str
    scale: Scale
    fill: float  # stands for a missing value, before scaling
    mean: float
    deviation: float
    flag: bool
    landmarks: list[float] = field(
        default_factory=list
    )  # quantile: its references; piecewise: the edges of its bins
    limit: float | None = None  # what the standardised value stays below, both ways
    kind: str = "number"

    @property
    def features(self) -> list[str]:
        """A name for each feature it makes."""
        bins = (
            [f"{self.name}[{i}]" for i in range(len(self.landmarks) - 1)] if self.scale == "piecewise" else []
        )
        return [self.name, *bins, *([f"{self.name} {ABSENT}"] if self.flag else [])]

    @property
    def groups(self) -> list[int]:
        """How many features belong together: all of them."""
        return [len(self.features)]

    def encode(self, cells: Cells, markers: frozenset[str], out: np.ndarray) -> Reasons:
        """Write (rows, features) into `out`."""
        numbers = cells.numbers(markers)
        values = np.where(np.isnan(numbers.values), self.fill, numbers.values)
        if self.scale == "quantile":
            out[:, 0] = to_normal(values, np.array(self.landmarks))
        else:
            standardised = (values - self.mean) / self.deviation
            out[:, 0] = standardised if self.limit is None else bent(standardised, self.limit)
        if self.scale == "piecewise":
            out[:, 1 : len(self.landmarks)] = piecewise(values, np.array(self.landmarks))
        if self.flag:
            out[:, -1] = numbers.missing
        return {
            f"{self.name} is not a number": numbers.wrong,
            f"{self.name} is infinite or beyond 3.4e38": numbers.infinite,
        }

    def decode(self, block: np.ndarray) -> np.ndarray:
        """(n,) float64 in the column's own unit, as far as float32 holds it; NaN where it was missing.

        Without a flag, what stood in for missing values cannot be told from them.
        """
        values = block[:, 0].astype(np.float64)
        if self.scale == "quantile":
            share = normal.share_below(values)
            values = np.interp(share, np.linspace(0, 1, len(self.landmarks)), self.landmarks)
        else:
            values = values if self.limit is None else straightened(values, self.limit)
            values = values * self.deviation + self.mean
        return np.where(block[:, -1] > 0.5, np.nan, values) if self.flag else values


@dataclass(frozen=True)
class CategoryColumn:
    """A category: one feature for each of the train split's, 1 where it is that one.

    A category that training did not see counts as rare; where training had no rare ones, all features are 0.
    """

    name: str
    categories: list[str]
    rare: bool
    missing: bool
    kind: str = "category"

    @property
    def features(self) -> list[str]:
        """A name for each feature it makes."""
        extra = [RARE] * self.rare + [ABSENT] * self.missing
        return [f"{self.name}={category}" for category in self.categories] + [
            f"{self.name} {word}" for word in extra
        ]

    @property
    def groups(self) -> list[int]:
        """How many features belong together: all of them."""
        return [len(self.features)]

    @cached_property
    def _slots(self) -> dict[str, int]:
        slots = {category: i for i, category in enumerate(self.categories)}
        absent = len(self.categories) + self.rare if self.missing else -1
        return {**slots, **dict.fromkeys(BLANK, absent)}

    def encode(self, cells: Cells, markers: frozenset[str], out: np.ndarray) -> Reasons:
        """Write (rows, features) into `out`; every text is some category, so no row is refused."""
        slots, unseen = self._slots, len(self.categories) if self.rare else -1
        chosen = np.array([slots.get(word, unseen) for word in cells.words], np.int64)[cells.codes]
        out[:] = 0
        rows = np.flatnonzero(chosen >= 0)
        out[rows, chosen[rows]] = 1
        return {}

    def decode(self, block: np.ndarray) -> np.ndarray:
        """(n,) object: the category, `(rare)`, `(missing)`, or `(other)` for one that train did not have."""
        words = [*self.categories, *[RARE] * self.rare, *[ABSENT] * self.missing, OTHER]
        chosen = np.where(block.any(axis=1), block.argmax(axis=1), len(words) - 1)
        return np.array(words, dtype=object)[chosen]


@dataclass(frozen=True)
class DateColumn:
    """A date: days since 1970 and the year, standardised; month, weekday and hour as a point on a circle.

    each: beside the point, a feature for each month, weekday and hour, 1 where it is that one.
    """

    name: str
    fill: float  # in days since 1970
    mean: float
    deviation: float
    year_mean: float
    year_deviation: float
    parts: list[str]  # those of year, month, weekday, hour that differ between train rows
    flag: bool
    each: bool = False
    kind: str = "date"

    @property
    def features(self) -> list[str]:
        """A name for each feature it makes."""
        return [feature for part in self._named() for feature in part]

    @property
    def groups(self) -> list[int]:
        """How many features belong together: those of each part."""
        return [len(part) for part in self._named()]

    def _named(self) -> list[list[str]]:
        """The features of each part: the day, the year, ..., whether it is missing."""
        found = [[self.name]]
        for part in self.parts:
            name = f"{self.name} {part}"
            if part == "year":
                found.append([name])
                continue
            more = [f"{name}={value}" for value in VALUES[part]] if self.each else []
            found.append([f"{name} sin", f"{name} cos", *more])
        return [*found, *([[f"{self.name} {ABSENT}"]] if self.flag else [])]

    def encode(self, cells: Cells, markers: frozenset[str], out: np.ndarray) -> Reasons:
        """Write (rows, features) into `out`."""
        dates = cells.dates(markers)
        absent = np.isnan(dates.values)
        seconds = np.where(absent, self.fill * 86400, dates.values)
        out[:, 0] = (seconds / 86400 - self.mean) / self.deviation
        year, month, weekday, hour = calendar(seconds)
        circles = {"month": month, "weekday": weekday, "hour": hour}
        at = 1
        for part in self.parts:
            if part == "year":
                out[:, at] = (year - self.year_mean) / self.year_deviation
                at += 1
                continue
            value, period = circles[part], len(VALUES[part])
            angle = value * (2 * math.pi / period)
            # The circle's middle where there is no date: no month rather than a wrong one.
            out[:, at] = np.where(absent, 0, np.sin(angle))
            out[:, at + 1] = np.where(absent, 0, np.cos(angle))
            at += 2
            if self.each:
                out[:, at : at + period] = (np.floor(value)[:, None] == np.arange(period)) & ~absent[:, None]
                at += period
        if self.flag:
            out[:, -1] = dates.missing
        return {f"{self.name} is not a date": dates.wrong}

    def decode(self, block: np.ndarray) -> np.ndarray:
        """(n,) datetime64[D]; NaT where it was missing and a flag says so."""
        days = np.round(block[:, 0].astype(np.float64) * self.deviation + self.mean)
        dates = np.clip(days, -(10**6), 10**7).astype("datetime64[D]")
        return np.where(block[:, -1] > 0.5, np.datetime64("NaT"), dates) if self.flag else dates


Column = NumberColumn | CategoryColumn | DateColumn
_KINDS: dict[str, Callable[..., Column]] = {
    "number": NumberColumn,
    "category": CategoryColumn,
    "date": DateColumn,
}


def column_state(column: Column) -> dict[str, Any]:
    """The column as JSON."""
    return asdict(column)


def column_from_state(state: dict[str, Any]) -> Column:
    """The column that `column_state` described."""
    try:
        return _KINDS[state["kind"]](**state)
    except (KeyError, TypeError):
        raise DataError(
            f"the card describes a column that this version does not know: {str(state)[:100]}"
        ) from None


# --- fitting ---


def fit_number(
    found: ColumnStatistics, scale: Scale, missing: Missing, flag: bool, bins: int, limit: float | None
) -> NumberColumn:
    """A number column as the train rows have it."""
    mean, deviation = _centre(found.numbers) if scale != "none" else (0.0, 1.0)
    sample = found.number_sample
    landmarks: list[float] = []
    if scale == "quantile":
        count = max(1, min(QUANTILES, len(sample.values())))
        landmarks = np.percentile(sample.values(), np.linspace(0, 1, count) * 100).tolist()
    elif scale == "piecewise":
        edges = bin_edges(sample.values(), bins)
        landmarks = edges.tolist() if len(edges) > 2 else []  # one bin says no more than the number itself
    fill = _fill(found.numbers, sample, missing)
    return NumberColumn(found.name, scale, fill, mean, deviation, flag, landmarks, limit)


def bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of about `bins` bins of equal mass; a value that alone outweighs a bin is an edge of its own.

    Plain quantiles of a column that is mostly 0 are nearly all 0; here its other values keep their share.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= bins + 1:
        return distinct
    heavy = np.zeros(len(distinct), dtype=bool)
    while True:
        left = max(1, bins - int(heavy.sum()))
        new = ~heavy & (counts * left > counts[~heavy].sum())
        if left == 1 or not new.any():
            break
        heavy |= new
    light = np.repeat(distinct[~heavy], counts[~heavy])
    quantiles = np.quantile(light, np.linspace(0, 1, left + 1), method="nearest") if len(light) else light
    return np.unique(np.concatenate([distinct[[0, -1]], distinct[heavy], quantiles]))


def fit_date(found: ColumnStatistics, missing: Missing, flag: bool, each: bool) -> DateColumn:
    """A date column as the train rows have it."""
    mean, deviation = _centre(found.days)
    year_mean, year_deviation = _centre(found.years)
    varies = {
        "year": found.years.minimum < found.years.maximum,
        "month": len(found.months) > 1,
        "weekday": len(found.weekdays) > 1,
        "hour": len(found.hours) > 1,
    }
    parts = [part for part, differs in varies.items() if differs]
    fill = _fill(found.days, found.day_sample, missing)
    return DateColumn(found.name, fill, mean, deviation, year_mean, year_deviation, parts, flag, each)


def fit_category(found: ColumnStatistics, rare: int, most: int) -> CategoryColumn:
    """A category column: those seen at least `rare` times, at most `most` of them (the most frequent)."""
    often = [word for word, count in found.words.items() if count >= rare]
    if len(often) > most:
        often = sorted(often, key=lambda word: (-found.words[word], word))[:most]
    has_rare = len(often) < found.distinct or found.overflow
    return CategoryColumn(found.name, sorted(often), has_rare, found.blank > 0)


def _centre(moments: Moments) -> tuple[float, float]:
    """Mean and deviation to standardise by, as scikit-learn's StandardScaler: a constant is divided by 1."""
    return moments.mean, 1.0 if moments.constant else moments.deviation


def _fill(moments: Moments, sample: FairSample, missing: Missing) -> float:
    if missing == "zero" or moments.count == 0:
        return 0.0
    return moments.mean if missing == "mean" else float(np.median(sample.values()))


# --- transforms ---


def bent(values: np.ndarray, limit: float) -> np.ndarray:
    """Values that stay between -limit and limit, hardly moved where they are small beside it.

    The smooth clipping of Holzmüller et al. 2024, https://arxiv.org/abs/2407.04491, section 3.
    """
    result: np.ndarray = values / np.sqrt(1 + np.square(values / limit))
    return result


def straightened(values: np.ndarray, limit: float) -> np.ndarray:
    """What `bent` made these of; of the limit itself a large number."""
    share = np.minimum(np.abs(values) / limit, 1 - 1e-9)
    result: np.ndarray = values / np.sqrt(1 - np.square(share))
    return result


def to_normal(values: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(n,) values through the train split's distribution function into a standard normal one.

    The same as scikit-learn's QuantileTransformer(output_distribution="normal"): the mean of an interpolation
    from below and one from above puts a value that stands many times in the middle of its stretch.
    """
    references = np.linspace(0, 1, len(landmarks))
    below = np.interp(values, landmarks, references)
    above = -np.interp(-values, -landmarks[::-1], -references[::-1])
    share = 0.5 * (below + above)
    share[values + _EDGE > landmarks[-1]] = 1
    share[values - _EDGE < landmarks[0]] = 0
    lowest = _EDGE - np.spacing(1)
    share = np.clip(share, lowest, 1 - lowest)  # the ends would be infinite
    return normal.quantile(share)


def piecewise(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n, bins): how far each value has gone through each bin, from 0 to 1.

    Piecewise linear encoding, Gorishniy et al. 2022, https://arxiv.org/abs/2203.05556, section 3.2; here the
    first and last bin end at 0 and 1 too, since the standardised value beside them goes on.
    """
    if len(edges) < 3:
        return np.empty((len(values), 0))
    return np.clip((values[:, None] - edges[:-1]) / np.diff(edges), 0, 1)  # (n, bins)
