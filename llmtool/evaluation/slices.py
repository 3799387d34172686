"""Figures by slice of the rows: a column's value, a stretch of its numbers, a class; the worst first.

Many slices are looked at, and some look bad by chance: a slice is said to differ only where its p-value
stands Holm's correction for all of them (1979, https://www.jstor.org/stable/4615733).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtool.core import seeds
from llmtool.core.contracts import Tally
from llmtool.metrics import bootstrap, direction

SMALLEST = 20  # rows of a slice, and of the rest
VALUES, QUARTERS = 12, 4  # most frequent values of a column; stretches of a number
MOST = 10  # slices shown
DRAWS = 200  # of the rows, for the difference of each slice from the rest
MOST_ROWS, FEWEST_ROWS = 50_000, 2_000  # looked at, drawn by chance from more
WORK = 400_000_000  # rows x draws x slices that MOST_ROWS is lowered to meet
LEVEL = 0.05


def slices(tally: Tally, columns: Mapping[str, np.ndarray], figure: str, seed: int) -> dict[str, Any]:
    """The slices on which the model does worst by a figure, for report.json.

    columns: (units,) values; words are sliced by value, numbers and dates into quarters. Differences are of a
    slice from all other rows; p by a normal approximation to the bootstrap of the two, which are independent.
    Intervals are 95 %. Empty where no column can be sliced.
    """
    many = sum(VALUES if values.dtype.kind in "OU" else QUARTERS for values in columns.values())
    allowed = min(MOST_ROWS, max(FEWEST_ROWS, WORK // (DRAWS * max(1, many))))
    if tally.units > allowed:
        rows = np.sort(seeds.generator(seed, "slices").choice(tally.units, allowed, replace=False))
        tally, columns = tally.take(rows), {name: values[rows] for name, values in columns.items()}
    sign = 1.0 if direction(figure) == "max" else -1.0
    found = []
    for column, name, mask in _slices(columns, tally.units):
        one = _judge(tally, figure, mask, seed)
        if one is not None:
            found.append({"slice": name, "column": column, **one})
    if not found:
        return {}
    for entry, corrected in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_corrected"] = corrected
        entry["differs"] = corrected < LEVEL
    found.sort(key=lambda entry: (not (entry["differs"] and sign * entry["difference"] < 0),
                                  sign * entry["difference"]))  # fmt: skip
    return {"metric": figure, "looked_at": len(found), "rows": tally.units, "worst": found[:MOST]}


def _judge(tally: Tally, figure: str, mask: NDArray[np.bool_], seed: int) -> dict[str, Any] | None:
    """One slice: its figure with interval, the rest's, their difference and its p-value."""
    inside, outside = tally.take(mask), tally.take(~mask)
    here, there = inside.metrics().get(figure), outside.metrics().get(figure)
    if here is None or there is None:
        return None
    draws = [_draw(part, figure, seed) for part in (inside, outside)]
    if any(part is None for part in draws):
        return None
    mine, theirs = (part for part in draws if part is not None)
    # Were the slice as the rest is, it would vary as so many rows of the rest do: twenty rows that are all
    # right, whose resamples are too, tell little.
    others = float(theirs.std(ddof=1))
    own = max(float(mine.std(ddof=1)), others * math.sqrt(outside.units / inside.units))
    spread = math.hypot(own, others)
    low, high = bootstrap.certain(figure, here, inside.units) or np.quantile(mine, [0.025, 0.975])
    z = abs(here - there) / spread if spread else 0.0 if here == there else math.inf
    return {
        "rows": inside.units,
        "value": here,
        "interval": [min(float(low), here), max(float(high), here)],
        "rest": there,
        "difference": here - there,
        "p": math.erfc(z / math.sqrt(2)),
    }


def _draw(tally: Tally, figure: str, seed: int) -> NDArray[np.float64] | None:
    """(DRAWS,) the figure of resampled rows; None where it is undefined too often."""
    drawn = bootstrap.draw(tally, seed, DRAWS, figure)
    defined = drawn[np.isfinite(drawn)]
    return defined if len(defined) >= 0.95 * len(drawn) else None


def _slices(columns: Mapping[str, np.ndarray], units: int) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """(column, name of the slice, rows) of every slice that is large enough, and whose rest is."""
    for column, values in columns.items():
        assert len(values) == units, f"{column} has {len(values)} values for {units} rows"
        for name, mask in _words(values) if values.dtype.kind in "OU" else _stretches(values):
            if SMALLEST <= mask.sum() <= units - SMALLEST:
                yield column, f"{column} {name}", mask


def _words(values: np.ndarray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    words, counts = np.unique(values.astype(str), return_counts=True)
    for at in np.argsort(-counts, kind="stable")[:VALUES]:
        yield f"= {words[at]}", values.astype(str) == words[at]


def _stretches(values: np.ndarray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Quarters of a number or a date; each value where there are few; the missing ones."""
    missing = np.isnat(values) if values.dtype.kind == "M" else np.isnan(values)
    if missing.any():
        yield "missing", missing
    present = values[~missing]
    shown = str if values.dtype.kind == "M" else "{:.6g}".format
    distinct = np.unique(present)
    if len(distinct) <= QUARTERS:
        for value in distinct:
            yield f"= {shown(value)}", values == value
        return
    edges = np.unique(np.quantile(present, np.linspace(0, 1, QUARTERS + 1), method="nearest"))
    for at, (low, high) in enumerate(pairwise(edges)):
        last = at == len(edges) - 2
        mask = ~missing & (values >= low) & ((values <= high) if last else (values < high))
        yield f"from {shown(low)} {'to' if last else 'to below'} {shown(high)}", mask


def holm(p: list[float]) -> list[float]:
    """p-values corrected for how many they are (Holm)."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[at]))
        corrected[at] = largest
    return corrected
