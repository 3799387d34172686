"""Answers to the questions of an evaluation suite: one record for each, and the figures that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Record = dict[str, Any]  # plain data, as one line of JSON keeps it

LARGEST = 700.0  # e**709 is the largest float


@dataclass(frozen=True)
class Ratio:
    """A figure: the sum of one field of the records over the sum of another (None: over their number).

    power: the figure is e to that ratio. scale: what the ratio is multiplied with.
    """

    above: str
    below: str | None = None
    power: bool = False
    scale: float = 1.0


# Kind of suite -> its figures; the first is the one that is spoken of.
FIGURES: dict[str, dict[str, Ratio]] = {
    "multiple_choice": {"accuracy": Ratio("right"), "accuracy_norm": Ratio("right_norm")},
    "exact_match": {"exact_match": Ratio("right"), "exact_match_flexible": Ratio("right_flexible")},
    "last_word": {"accuracy": Ratio("right"), "perplexity": Ratio("nats", power=True)},
    "play": {
        "score": Ratio("score"),
        "won": Ratio("won"),
        "drawn": Ratio("drawn"),
        "lost": Ratio("lost"),
        "illegal": Ratio("illegal", "guesses"),
    },
    "perplexity": {
        "bits_per_byte": Ratio("nats", "bytes", scale=1 / math.log(2)),
        "byte_perplexity": Ratio("nats", "bytes", power=True),
        "word_perplexity": Ratio("nats", "words", power=True),
    },
}


class SuiteTally:
    """The answers to a suite's questions, in the order of its file.

    kind: of the suite, a key of FIGURES. records: one mapping for each question, with the fields that the
    figures are made of (`right` as true or false, `nats` as minus a log-likelihood) and whatever a person
    may want to read beside them. Raises KeyError or TypeError where a record lacks one of these fields.
    """

    def __init__(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
        self.kind, self.records = kind, [dict(record) for record in records]
        names = dict.fromkeys(
            name for ratio in FIGURES[kind].values() for name in (ratio.above, ratio.below) if name
        )
        self._place = {name: place for place, name in enumerate(names)}
        rows = [[_number(record[name]) for name in names] for record in self.records]
        self._columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))  # (questions, fields)

    def add(self, other: Self) -> None:
        """Take in the answers to further questions."""
        assert other.kind == self.kind
        self.records += other.records
        self._columns = np.concatenate([self._columns, other._columns])

    def to_host(self) -> None:
        """Answers have never been elsewhere."""

    def column(self, figure: str) -> Floats:
        """(questions,) the field that a figure sums."""
        return self._columns[:, self._place[FIGURES[self.kind][figure].above]]

    def metrics(self) -> dict[str, float]:
        """The figures of this kind of suite."""
        found = self.resampled(np.ones((1, self.units), dtype=np.int64))
        return {name: float(value[0]) for name, value in found.items() if np.isfinite(value[0])}

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these answers leave undefined: name -> reason."""
        if not self.units:
            return dict.fromkeys(FIGURES[self.kind], "there is no question")
        why = "too large for a number" if np.isfinite(self._columns).all() else "the outputs are not finite"
        known = self.metrics()
        return {name: why for name in FIGURES[self.kind] if name not in known}

    def details(self) -> dict[str, Any]:
        """How many questions there are."""
        return {"questions": self.units}

    def predictions(self) -> dict[str, np.ndarray]:
        """A column for each field of the records."""
        names = dict.fromkeys(name for record in self.records for name in record)
        return {name: np.array([r.get(name) for r in self.records], dtype=object) for name in names}

    @property
    def units(self) -> int:
        """Questions, or documents of a text."""
        return len(self._columns)

    @property
    def width(self) -> int:
        """Sums are all it takes."""
        return 1

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, Floats]:
        """Every figure with question i counted weights[b, i] times: name -> (B,), NaN where undefined."""
        sums, count = weights @ self._columns, weights.sum(axis=1)  # (B, fields), (B,)
        found = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, ratio in FIGURES[self.kind].items():
                below = count if ratio.below is None else sums[:, self._place[ratio.below]]
                value = ratio.scale * sums[:, self._place[ratio.above]] / below
                if ratio.power:
                    value = np.exp(np.where(value < LARGEST, value, np.nan))
                found[name] = np.where(np.isfinite(value), value, np.nan)
        return found

    def take(self, units: np.ndarray) -> SuiteTally:
        """The answers to these questions alone; units: their numbers, or a bool for each."""
        return SuiteTally(self.kind, [self.records[place] for place in np.arange(self.units)[units]])


def _number(value: Any) -> float:
    if value is None:  # JSON has no number that is not finite
        return math.nan
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
