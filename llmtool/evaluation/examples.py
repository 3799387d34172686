"""The rows on which a model was furthest off: what a person looks at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmtool.core.contracts import Tally
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally

MOST = 8
SHORTEST = 20  # tokens of a part of a text that is looked at


def examples(tally: Tally, place: Callable[[int], str]) -> list[dict[str, Any]]:
    """The rows (parts of a text) with the highest loss or error, worst first, for report.json.

    place: says where a row came from. Empty where the model's outputs are not finite.
    """
    if not tally.metrics():
        return []
    if isinstance(tally, ClassificationTally):
        off, columns = _classes(tally)
    elif isinstance(tally, LabelTally):
        off, columns = _labels(tally)
    elif isinstance(tally, RegressionTally):
        off, columns = _values(tally)
    else:
        assert isinstance(tally, LanguageTally)
        off, columns = _text(tally)
    worst = [int(row) for row in np.argsort(-off, kind="stable")[:MOST] if np.isfinite(off[row])]
    return [{"row": place(row)} | {name: column[row] for name, column in columns.items()} for row in worst]


def _classes(tally: ClassificationTally) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    seen, names = tally.judgement(), np.asarray(tally.names, dtype=object)
    off = -seen.log_probabilities[np.arange(len(seen.targets)), seen.targets]
    columns = {"target": names[seen.targets], "prediction": names[seen.predicted]}
    return off, columns | {"probability of the target": np.exp(-off)}


def _labels(tally: LabelTally) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """By the mean log loss of a row's labels."""
    seen, names = tally.seen(), np.asarray(tally.names, dtype=object)
    spoken = lambda rows: np.array([", ".join(names[row]) or "none" for row in rows], dtype=object)  # noqa: E731
    columns = {"target": spoken(seen.targets), "prediction": spoken(seen.given), "log loss": seen.surprise}
    return seen.surprise, columns


def _values(tally: RegressionTally) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of several targets, by the one that is furthest off in its own scale."""
    predictions, targets = tally.pairs()
    error = predictions - targets
    far = np.abs(error) / np.where(tally.scale == 0, 1.0, tally.scale)
    rows, worst = np.arange(len(error)), far.argmax(axis=1)
    columns = {"target": targets[rows, worst], "prediction": predictions[rows, worst]}
    columns |= {"error": error[rows, worst]}
    several = {"of": np.asarray(tally.names, dtype=object)[worst]} if len(tally.names) > 1 else {}
    return far[rows, worst], several | columns


def _text(tally: LanguageTally) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    nats, tokens, correct = tally.sums()[:3]
    long = tokens >= SHORTEST
    loss = np.divide(nats, tokens, out=np.full(len(nats), -np.inf), where=long)
    right = np.divide(correct, tokens, out=np.zeros(len(nats)), where=long)
    return loss, {"tokens": tokens.astype(np.int64), "loss": loss, "token accuracy": right}
