"""Classification: the logits of the rows scored, and the figures that follow: counts, rankings, log loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtool.core.contracts import IGNORE

MOST_PENDING = 2**27  # logits (512 MiB) left on the device before they move to the host
# classes; beyond it the report carries the most frequent confusions in place of the matrix
LARGEST_MATRIX = 100
CONFUSIONS = 20  # that it carries then, at most

RATES, AVERAGES = ("precision", "recall", "f1"), ("macro", "micro", "weighted")
FIGURES = (
    "accuracy", "balanced_accuracy", "top_5_accuracy",
    *(name for rate in RATES for name in (rate, *(f"{rate}_{average}" for average in AVERAGES))),
    "roc_auc", "pr_auc", "log_loss",
)  # fmt: skip
_AVERAGED = tuple(f"_{average}" for average in AVERAGES)

FEW = 5  # guesses; with more classes than these it is a figure whether the true one is among the likeliest

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def is_average(name: str) -> bool:
    """Whether a figure is an average over the classes, as f1_macro is."""
    return name.endswith(_AVERAGED)


class ClassificationTally:
    """The logits and the targets of the rows scored so far; the figures are exact, whatever the batches were.

    logits: (n, C) float32 on any device. targets: (n,) int64; rows with IGNORE are left out.
    names: of the C classes. positive: index of the positive class of a binary problem.
    """

    def __init__(self, logits: Tensor, targets: Tensor, names: list[str], positive: int = 1) -> None:
        # Copies: a compiled model may write its next outputs over these, and a loader its next batch.
        self._logits = [logits.detach().to(torch.float32, copy=True)]
        self._targets = [targets.detach().to(torch.int64, copy=True)]
        self._pending = logits.numel()
        self.names, self.positive = names, positive
        self._judgement: Judgement | None = None

    def add(self, other: Self) -> None:
        """Take in the rows of another batch, after those here; waits for the device every 2**27 logits."""
        self._logits += other._logits
        self._targets += other._targets
        self._pending += other._pending
        self._judgement = None
        if self._pending > MOST_PENDING:
            self.to_host()

    def to_host(self) -> None:
        """Everything so far in one piece in the host's memory."""
        self._logits = [torch.cat([part.cpu() for part in self._logits])]
        self._targets = [torch.cat([part.cpu() for part in self._targets])]
        self._pending = 0

    def judgement(self) -> Judgement:
        """The rows as arrays on the host, and what follows from them."""
        if self._judgement is None:
            self.to_host()
            logits, targets = self._logits[0].numpy(), self._targets[0].numpy()
            scored = targets != IGNORE
            self._judgement = Judgement(logits[scored], targets[scored], len(self.names), self.positive)
        return self._judgement

    def metrics(self) -> dict[str, float]:
        """accuracy, balanced_accuracy, top_5_accuracy (of more than five classes), precision, recall, f1,
        their averages, roc_auc, pr_auc, log_loss."""
        return figures(self.judgement(), self.names)[0]

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these rows leave undefined: name -> reason."""
        return figures(self.judgement(), self.names)[1]

    def details(self) -> dict[str, Any]:
        """`per_class`: one entry a class; `confusion`: {names, matrix}, a row for each true class.

        Beyond 100 classes `most_confused` (the 20 most frequent mistakes) stands in place of `confusion`.
        """
        seen = self.judgement()
        if seen.broken:
            return {}
        result: dict[str, Any] = {"positive": self.names[self.positive]} if len(self.names) == 2 else {}
        result["per_class"] = per_class(seen, self.names)
        if len(self.names) <= LARGEST_MATRIX:
            result["confusion"] = {"names": self.names, "matrix": seen.confusion.tolist()}
        else:
            result["most_confused"] = most_confused(seen.confusion, self.names)
        return result

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns `target`, `prediction` (class names) and `probability <name>` of each class (float64)."""
        seen, names = self.judgement(), np.asarray(self.names, dtype=object)
        columns = {"target": names[seen.targets], "prediction": names[seen.predicted]}
        probabilities = seen.probabilities
        return columns | {f"probability {name}": probabilities[:, i] for i, name in enumerate(self.names)}

    @property
    def units(self) -> int:
        """Rows."""
        return len(self.judgement().targets)

    @property
    def width(self) -> int:
        """Rankings: one of two classes, else one of each class."""
        return 1 if len(self.names) == 2 else len(self.names)

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, Floats]:
        """Every figure with row i counted weights[b, i] times: name -> (B,), NaN where undefined."""
        return resampled(self.judgement(), weights, only)

    def take(self, units: np.ndarray) -> ClassificationTally:
        """The evidence of these rows alone; units: their numbers, or a bool for each."""
        seen, rows = self.judgement(), np.asarray(units)
        logits, targets = torch.from_numpy(seen.logits[rows]), torch.from_numpy(seen.targets[rows])
        return ClassificationTally(logits, targets, self.names, self.positive)


@dataclass(frozen=True)
class Judgement:
    """Scored rows on the host. logits: (n, C) float32. targets: (n,) int64, none of them ignored."""

    logits: NDArray[np.float32]
    targets: Integers
    classes: int
    positive: int

    @cached_property
    def broken(self) -> int:
        """Rows whose logits are NaN or infinite: nothing can be said of them."""
        return int((~np.isfinite(self.logits)).any(axis=1).sum())

    @cached_property
    def predicted(self) -> Integers:
        """(n,) the class with the largest logit, the first of equals."""
        return self.logits.argmax(axis=1).astype(np.int64)

    @cached_property
    def within(self) -> NDArray[np.bool_]:
        """(n,) whether the true class is among the five of the largest logits, of equals the first."""
        own = np.take_along_axis(self.logits, self.targets[:, None], axis=1)
        before = np.arange(self.classes) < self.targets[:, None]
        return ((self.logits > own) | ((self.logits == own) & before)).sum(axis=1) < FEW

    @cached_property
    def log_probabilities(self) -> Floats:
        """(n, C) float64, from the logits: a probability too small for float32 still has its logarithm."""
        with np.errstate(invalid="ignore"):
            return log_softmax(self.logits)

    @property
    def probabilities(self) -> Floats:
        """(n, C) float64."""
        return np.exp(self.log_probabilities)

    @cached_property
    def confusion(self) -> Integers:
        """(C, C) rows counted by true class (row) and predicted class (column)."""
        pairs = self.targets * self.classes + self.predicted
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @cached_property
    def areas(self) -> tuple[Floats, Floats]:
        """(C,) ROC-AUC and average precision of each class against the rest; NaN where undefined."""
        scores = self.probabilities  # what predictions() gives, so that anyone finds the same areas
        pairs = [ranking_areas(scores[:, c], self.targets == c) for c in range(self.classes)]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def figures(seen: Judgement, names: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Every figure of the rows: those defined, and the reasons of those that are not."""
    every = _counted(seen, names) | _ranked(seen, names) | {"log_loss": _log_loss(seen)}
    if seen.classes > FEW:
        every["top_5_accuracy"] = float(seen.within.mean()) if len(seen.targets) else ""
    if not len(seen.targets):
        every = dict.fromkeys(every, "there are no rows")
    elif seen.broken:
        every = dict.fromkeys(every, f"the model's outputs are not finite in {seen.broken} rows")
    defined = {name: value for name, value in every.items() if not isinstance(value, str)}
    return defined, {name: value for name, value in every.items() if isinstance(value, str)}


def _counted(seen: Judgement, names: list[str]) -> dict[str, float | str]:
    """The figures of the confusion matrix, with the reason where there is none."""
    confusion = seen.confusion
    found = count_figures(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0), seen.positive)
    name = repr(names[seen.positive])
    reasons = {
        "precision": f"class {name} was never predicted",
        "recall": f"class {name} has no rows",
        "f1": f"class {name} has no rows and no predictions",
    }
    every = {figure: float(value) for figure, value in found.items()}
    return {f: reasons.get(f, "there are no rows") if np.isnan(v) else v for f, v in every.items()}


def count_figures(
    hits: NDArray[Any], support: NDArray[Any], chosen: NDArray[Any], positive: int
) -> dict[str, Floats]:
    """Figures of the rows counted by class; hits, support (true), chosen (predicted): (..., C).

    `precision`, `recall` and `f1` are those of the positive class of two classes, else the macro average;
    NaN where undefined. Averages run over the classes that occur as target or prediction; a class that was
    never predicted counts 0 in them (scikit-learn's zero_division=0).
    """
    rates = {"precision": (hits, chosen), "recall": (hits, support), "f1": (2 * hits, support + chosen)}
    total, there, right = support.sum(axis=-1), support > 0, hits.sum(axis=-1)
    present = there | (chosen > 0)
    accuracy = ratio(right, total)
    result = {"accuracy": accuracy, "balanced_accuracy": _mean(ratio(hits, support), there)}
    for name, (above, below) in rates.items():
        values = ratio(above, below)
        macro = np.nan_to_num(_mean(values, present))
        one = np.where(below[..., positive] > 0, values[..., positive], np.nan)
        result |= {name: one if hits.shape[-1] == 2 else macro, f"{name}_macro": macro}
        result |= {
            f"{name}_micro": accuracy,
            f"{name}_weighted": ratio((values * support).sum(axis=-1), total),
        }
    return result


def _mean(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """Mean over the last axis where it holds; NaN where it holds nowhere."""
    count = where.sum(axis=-1)
    return np.where(count > 0, ratio((values * where).sum(axis=-1), count), np.nan)


def _ranked(seen: Judgement, names: list[str]) -> dict[str, float | str]:
    """ROC-AUC and PR-AUC (average precision) of the positive class, or of each against the rest, averaged."""
    support = np.bincount(seen.targets, minlength=seen.classes)
    absent = [name for name, count in zip(names, support, strict=True) if not count]
    reason = f"only class {names[int(support.argmax())]!r} occurs" if (support > 0).sum() <= 1 else ""
    if not reason and absent:
        reason = f"no rows of class {', '.join(map(repr, absent[:5]))}{' and others' * (len(absent) > 5)}"
    if reason or seen.broken:
        return {"roc_auc": reason, "pr_auc": reason}
    of = slice(seen.positive, seen.positive + 1) if seen.classes == 2 else slice(None)
    roc, precision = seen.areas
    return {"roc_auc": float(roc[of].mean()), "pr_auc": float(precision[of].mean())}


def log_softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """(n, C) logarithms of the probabilities."""
    shifted = np.subtract(logits, logits.max(axis=1, keepdims=True, initial=-np.inf), dtype=np.float64)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _log_loss(seen: Judgement) -> float | str:
    """Mean of minus the logarithm of the probability given to the true class, in nats."""
    if not len(seen.targets) or seen.broken:
        return ""
    return float(-seen.log_probabilities[np.arange(len(seen.targets)), seen.targets].mean())


def ratio(above: Any, below: Any) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below != 0)


def ranking_areas(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Area under the ROC curve and average precision of `scores`, rows of equal score taken together.

    scores: (n,). positive: (n,). NaN for both without rows of either kind. The counts are integers, so the
    first is exact: the share of (positive, negative) pairs in the right order, ties a half
    (https://doi.org/10.1148/radiology.143.1.7063747). Average precision sums precision over the steps of
    recall, without interpolation (https://doi.org/10.1145/1143844.1143874 says why).
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(
        np.flatnonzero(np.diff(scores[order])), len(scores) - 1
    )  # last row of each stretch of equals
    hits = np.concatenate([[0], np.cumsum(positive[order])[ends]]).astype(np.int64)
    misses = np.concatenate([[0], ends + 1]) - hits
    twice_area = int((np.diff(misses) * (hits[1:] + hits[:-1])).sum())
    precision = hits[1:] / (hits[1:] + misses[1:])
    return twice_area / (2 * positives * negatives), float((np.diff(hits) * precision).sum() / positives)


def resampled(seen: Judgement, weights: Integers, only: str | None = None) -> dict[str, Floats]:
    """Every figure with row i counted weights[b, i] times: name -> (B,), NaN where undefined.

    only: the figure wanted; rankings and surprise are then left out where it is neither.
    """
    classes = range(seen.classes)
    cells = seen.targets * seen.classes + seen.predicted
    order = np.argsort(cells, kind="stable")
    found, starts = np.unique(cells[order], return_index=True)
    counts = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, cells that occur)
    true, predicted = np.divmod(found, seen.classes)
    by = lambda label: counts @ (label[:, None] == np.arange(seen.classes)).astype(np.int64)  # noqa: E731
    hits = counts @ ((true == predicted)[:, None] & (true[:, None] == np.arange(seen.classes))).astype(
        np.int64
    )
    result = count_figures(hits, by(true), by(predicted), seen.positive)
    if seen.classes > FEW:
        result["top_5_accuracy"] = weights @ seen.within / weights.sum(axis=1)
    if only in result:
        return result
    scores = seen.probabilities
    of = [seen.positive] if seen.classes == 2 else classes
    areas = [resampled_areas(scores[:, c], seen.targets == c, weights) for c in of]
    result["roc_auc"] = np.mean([roc for roc, _ in areas], axis=0)
    result["pr_auc"] = np.mean([precision for _, precision in areas], axis=0)
    surprise = -seen.log_probabilities[np.arange(len(seen.targets)), seen.targets]
    return result | {"log_loss": weights @ surprise / weights.sum(axis=1)}


def resampled_areas(scores: Floats, positive: NDArray[np.bool_], weights: Integers) -> tuple[Floats, Floats]:
    """(B,) ROC-AUC and average precision, as `ranking_areas`, with row i counted weights[b, i] times."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    drawn = weights[:, order]
    zero = np.zeros((len(weights), 1), np.int64)
    hits = np.concatenate([zero, np.cumsum(drawn * positive[order], axis=1)[:, ends]], axis=1)
    misses = np.concatenate([zero, np.cumsum(drawn, axis=1)[:, ends]], axis=1) - hits
    gained, positives, negatives = np.diff(hits, axis=1), hits[:, -1], misses[:, -1]
    twice_area = (np.diff(misses, axis=1) * (hits[:, 1:] + hits[:, :-1])).sum(axis=1)
    precision = (gained * ratio(hits[:, 1:], hits[:, 1:] + misses[:, 1:])).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        roc, average = twice_area / (2 * positives * negatives), precision / positives
    return roc, np.where(negatives > 0, average, np.nan)


def per_class(seen: Judgement, names: list[str]) -> list[dict[str, Any]]:
    """One entry a class: precision, recall, f1, both areas (None where undefined) and support (rows)."""
    hits, support, chosen = np.diag(seen.confusion), seen.confusion.sum(axis=1), seen.confusion.sum(axis=0)
    return entries(names, hits, support, chosen, seen.areas)


def entries(
    names: list[str], hits: np.ndarray, support: np.ndarray, chosen: np.ndarray, areas: Any
) -> list[dict[str, Any]]:
    """One entry a name, as `per_class` says. hits, support, chosen: (C,) rows that were rightly given the
    name, that have it, and that were given it. areas: (C,) under both curves, NaN where undefined."""
    share = lambda above, below: float(above / below) if below else None  # noqa: E731
    number = lambda value: None if np.isnan(value) else float(value)  # noqa: E731
    return [
        {
            "class": name,
            "precision": share(hits[c], chosen[c]),
            "recall": share(hits[c], support[c]),
            "f1": share(2 * hits[c], support[c] + chosen[c]),
            "roc_auc": number(areas[0][c]),
            "pr_auc": number(areas[1][c]),
            "support": int(support[c]),
        }
        for c, name in enumerate(names)
    ]


def most_confused(confusion: Integers, names: list[str]) -> list[dict[str, Any]]:
    """The CONFUSIONS most frequent mistakes, largest first."""
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:CONFUSIONS]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {"target": names[t], "prediction": names[p], "rows": int(mistakes[t, p])}
        for t, p in places
        if mistakes[t, p]
    ]
