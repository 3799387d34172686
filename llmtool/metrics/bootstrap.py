"""How sure a figure is: bootstrap intervals, paired differences of two tallies, McNemar's test.

Rows (or documents) are drawn with replacement as often as there are any, and every figure is taken again
(Efron 1979, https://doi.org/10.1214/aos/1176344552). Two models scored on the same rows are drawn together:
what they share then cancels, and the interval is that of their difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmtool.core import seeds
from llmtool.core.contracts import Tally

Floats = NDArray[np.float64]

LEVEL = 0.95
_NORMAL = statistics.NormalDist()
MOST, FEWEST = 1000, 200  # draws
WORK = 40_000_000  # cells (draws x units x columns of a unit) that MOST is lowered to meet
HOPELESS = 2_000_000_000  # cells of FEWEST draws beyond which there is no interval
CHUNK = 2_000_000  # cells in memory at once
GROUPS = 200  # of units, left out one after the other to see how lopsided a figure's error is
# Of these each unit is right or wrong.
COUNTED = {"accuracy", "top_5_accuracy", "subset_accuracy", "accuracy_norm", "exact_match"}
COUNTED |= {"exact_match_flexible", "won", "drawn", "lost"}
ALLOWED = 0.05  # share of the draws that may leave a figure undefined


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two figures is; where there is no interval, the reason."""

    value: float
    low: float | None
    high: float | None
    reason: str = ""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass
class Intervals:
    """found: figure -> (low, high). missing: figure -> why it has none. draws: how often rows were drawn."""

    draws: int
    found: dict[str, tuple[float, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def intervals(tally: Tally, seed: int) -> Intervals:
    """A 95 % interval for each figure of `tally.metrics()`."""
    metrics = tally.metrics()
    draws, reason = _draws(tally)
    result = Intervals(draws)
    if reason:
        result.missing = dict.fromkeys(metrics, reason)
        return result
    drawn = _gathered(tally.resampled(weights) for weights in _weights(tally, draws, seed))
    left = _gathered(tally.resampled(weights) for weights in _left_out(tally, seed))
    for name, value in metrics.items():
        found = _interval(value, drawn[name], left[name], tally.units)
        if isinstance(found, str):
            found = certain(name, value, tally.units) or found
        if isinstance(found, str):
            result.missing[name] = found
        else:
            # A figure that bends (an F1, a square root) may lie outside its own draws: never shown so.
            result.found[name] = (min(found[0], value), max(found[1], value))
    return result


def draw(tally: Tally, seed: int, draws: int, figure: str) -> Floats:
    """(draws,) a figure of rows drawn with replacement, NaN where it is undefined."""
    chunks = _weights(tally, draws, seed)
    return np.concatenate([tally.resampled(weights, figure)[figure] for weights in chunks])


def paired(first: Tally, second: Tally, seed: int) -> dict[str, Difference]:
    """The difference first - second of each figure that both have; they were scored on the same units."""
    assert first.units == second.units, "tallies of other rows cannot be compared row by row"
    mine, theirs = first.metrics(), second.metrics()
    values = {name: mine[name] - theirs[name] for name in mine if name in theirs}
    draws, reason = _draws(first)
    if reason:
        return {name: Difference(value, None, None, reason) for name, value in values.items()}
    both = lambda weights: _minus(first.resampled(weights), second.resampled(weights))  # noqa: E731
    drawn = _gathered(both(weights) for weights in _weights(first, draws, seed))
    left = _gathered(both(weights) for weights in _left_out(first, seed))
    result = {}
    for name, value in values.items():
        found = _interval(value, drawn[name], left[name], first.units)
        if isinstance(found, str):
            found = _unanimous(name, value, first.units) or found
        if not isinstance(found, str):
            result[name] = Difference(value, *found)
        elif value == 0 and not np.any(drawn[name]):
            result[name] = Difference(0.0, 0.0, 0.0)  # the same predictions
        else:
            result[name] = Difference(value, None, None, found)
    return result


def mcnemar(mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    """Two-sided p that two models are right equally often, from the rows where only one of them is.

    The mid-p form of the exact test (https://doi.org/10.1186/1471-2288-13-91); its normal form with
    continuity correction beyond 10 000 such rows. 1 where they never differ.
    """
    only_mine, only_theirs = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    total, less = only_mine + only_theirs, min(only_mine, only_theirs)
    if only_mine == only_theirs:
        return 1.0
    if total > 10_000:
        z = (abs(only_mine - only_theirs) - 1) / math.sqrt(total)
        return math.erfc(z / math.sqrt(2))
    logarithms = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(less + 1)
    ]
    terms = [math.exp(value) for value in logarithms]
    return min(1.0, 2 * math.fsum(terms) - terms[-1])


def _draws(tally: Tally) -> tuple[int, str]:
    """How many draws are taken, or the reason why none are."""
    units, columns = tally.units, tally.width
    if units < 3:
        return 0, f"{units} unit{'s' * (units != 1)} cannot be drawn from; it takes at least 3"
    cells = units * columns
    if cells * FEWEST > HOPELESS:
        return 0, f"drawing from {units:,} rows x {columns:,} classes would take too long"
    return max(FEWEST, min(MOST, WORK // cells)), ""


def _weights(tally: Tally, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each unit is drawn: (b, units), in chunks; a function of seed, draws and units alone."""
    units, columns = tally.units, tally.width
    random = seeds.generator(seed, "bootstrap")
    size = max(1, CHUNK // (units * columns))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        places = random.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * units).reshape(count, units)


def _gathered(chunks: Iterable[Mapping[str, Floats]]) -> dict[str, Floats]:
    parts: dict[str, list[Floats]] = {}
    for chunk in chunks:
        for name, values in chunk.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _minus(mine: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: mine[name] - theirs[name] for name in mine if name in theirs}


def _left_out(tally: Tally, seed: int) -> Iterator[NDArray[np.int64]]:
    """Weights that leave out one group of units after the other: (b, units), in chunks."""
    units, groups = tally.units, min(tally.units, GROUPS)
    group = np.arange(units) % groups
    group = seeds.generator(seed, "jackknife").permutation(group) if groups < units else group
    size = max(1, CHUNK // (units * tally.width))
    for start in range(0, groups, size):
        yield (group != np.arange(start, min(start + size, groups))[:, None]).astype(np.int64)


def _interval(value: float, drawn: Floats, left: Floats, units: int) -> tuple[float, float] | str:
    """Percentiles of the draws, or why there is no interval.

    Which percentiles is corrected for the draws' bias and for an error that grows with the figure (BCa, Efron
    1987, https://doi.org/10.1080/01621459.1987.10478410; the acceleration from the figures with one group of
    units left out). They lie a little further out than 2.5 and 97.5, since a resample of n has the spread of
    n - 1 and a mean's error follows Student's t (Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789).
    """
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - ALLOWED) * len(drawn):
        share = 100 * (1 - len(defined) / len(drawn))
        return f"undefined in {share:.0f} % of the draws: some class or value is too rare here"
    if defined.max() == defined.min():
        return "every draw gives the same value: there is too little to tell"
    out = math.sqrt(units / (units - 1)) * _student(units - 1)
    below = ((defined < value).sum() + (defined == value).sum() / 2) / len(defined)
    bias = _NORMAL.inv_cdf(min(max(float(below), 0.1), 0.9))
    influence = left.mean() - left  # of each group
    spread = float(np.square(influence).sum())
    lean = float((influence**3).sum()) / (6 * spread**1.5) if np.isfinite(spread) and spread > 0 else 0.0
    tails = [_NORMAL.cdf(bias + (bias + z) / max(1 - lean * (bias + z), 0.1)) for z in (-out, out)]
    low, high = np.quantile(defined, tails)
    return float(low), float(high)


def certain(name: str, value: float, units: int) -> tuple[float, float] | None:
    """The exact interval of a share of right units that is 1 or 0, which no resample can doubt (Clopper and
    Pearson 1934)."""
    if name not in COUNTED or value not in (0.0, 1.0):
        return None
    bound = ((1 - LEVEL) / 2) ** (1 / units)
    return (bound, 1.0) if value else (0.0, 1 - bound)


def _unanimous(name: str, value: float, units: int) -> tuple[float, float] | None:
    """The same for a difference of 1 or -1: one model is right in every row, the other in none."""
    if name not in COUNTED or abs(value) != 1.0:
        return None
    bound = 2 * ((1 - LEVEL) / 2) ** (1 / units) - 1
    return (bound, 1.0) if value > 0 else (-1.0, -bound)


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal one (Cornish and Fisher)."""
    z = 1.959963984540054
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
