"""What classical models learn from, of any kind of data: a matrix that has a row for each row of a split."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtool.core import seeds
from llmtool.core.contracts import Images, Tokens
from llmtool.data.store import Dataset
from llmtool.evaluation.pixels import matrix, side_of, width_of
from llmtool.evaluation.words import looks_at, most_texts, texts_of_split, words_of

CELLS = 100_000_000  # rows x features x classes that a classical model learns from


@dataclass(frozen=True)
class Design:
    """The training rows, as many of them as the work allows, and how those of a split look the same.

    inputs: (n, f) float32, or sparse. targets: (n, ...) as they are stored. note: what was left out.
    of: split -> (rows, f), all of its rows.
    """

    inputs: Any
    targets: np.ndarray
    note: str
    of: Callable[[str], Any]


@dataclass(frozen=True)
class View:
    """One way in which classical models see the rows.

    name: what stands before a model's own, where there are several ways. on: what that is, for a person.
    design: (dataset, model, outputs, seed) -> what this model learns from. trees: whether they suit it.
    """

    name: str
    on: str
    design: Callable[[Dataset, Any, int, int], Design]
    trees: bool = False

    def named(self, model: str) -> str:
        """A model's name, with what it sees."""
        return f"{self.name}, {model}" if self.name else model


def views(dataset: Dataset) -> list[View]:
    """Every way for this kind of data."""
    if isinstance(dataset.inputs, Images):
        return [View("", "on pictures of {} x {} pixels".format(*side_of(dataset.inputs)), of_features)]
    if isinstance(dataset.inputs, Tokens):
        found, columns = [View("TF-IDF", looks_at(dataset), of_words)], "on the columns beside the text"
        if dataset.inputs.features:
            found.append(View("columns", columns, of_features, trees=True))
            found.append(View("TF-IDF and columns", f"{looks_at(dataset)}, and {columns}", of_both))
        return found
    return [View("", "on the same inputs", of_features, trees=True)]


def of_features(dataset: Dataset, model: Any, outputs: int, seed: int) -> Design:
    """The features of a table, of texts those beside them, or the pixels of pictures."""
    features = _features(dataset, model)
    rows, note = _sample(dataset, _most_rows(len(features), outputs), "rows", seed)
    inputs = matrix(dataset, "train", rows)[:, features]
    return Design(inputs, _targets(dataset, rows), note, lambda split: matrix(dataset, split)[:, features])


def of_words(dataset: Dataset, model: Any, outputs: int, seed: int) -> Design:
    """How much of a text each word is."""
    rows, note = _sample(dataset, most_texts(dataset), "texts", seed)
    words, inputs = words_of(dataset, rows)
    return Design(
        inputs, _targets(dataset, rows), note, lambda split: words.transform(texts_of_split(dataset, split))
    )


def of_both(dataset: Dataset, model: Any, outputs: int, seed: int) -> Design:
    """How much of a text each word is, and the features beside it."""
    from scipy.sparse import csr_matrix, hstack

    most = min(most_texts(dataset), _most_rows(width_of(dataset), outputs))
    rows, note = _sample(dataset, most, "texts", seed)
    words, inputs = words_of(dataset, rows)

    def beside(found: Any, split: str, rows: np.ndarray | None = None) -> Any:
        return hstack([found, csr_matrix(matrix(dataset, split, rows))], format="csr")

    return Design(
        beside(inputs, "train", rows),
        _targets(dataset, rows),
        note,
        lambda split: beside(words.transform(texts_of_split(dataset, split)), split),
    )


def _most_rows(features: int, outputs: int) -> int:
    return max(1000, CELLS // max(1, features * outputs))


def _features(dataset: Dataset, model: Any) -> np.ndarray:
    """(f,) the features a model is given: all, but for trees those bins of a number that follow from it."""
    if isinstance(dataset.inputs, Images):
        return np.arange(width_of(dataset))
    names = [str(name) for name in dataset.card["inputs"]["names"]]
    if not hasattr(model, "max_leaf_nodes"):
        return np.arange(len(names))
    known = set(names)
    bins = [re.sub(r"\[\d+\]$", "", name) for name in names]
    return np.array([at for at, name in enumerate(names) if bins[at] == name or bins[at] not in known])


def _sample(dataset: Dataset, allowed: int, what: str, seed: int) -> tuple[np.ndarray | None, str]:
    """Which training rows are learned from, None: all, and what was left out."""
    count = dataset.split("train").rows
    if count <= allowed:
        return None, ""
    rows = np.sort(seeds.generator(seed, "baselines").choice(count, allowed, replace=False))
    return rows, f"learned from {allowed:,} of {count:,} {what}"


def _targets(dataset: Dataset, rows: np.ndarray | None) -> np.ndarray:
    targets = np.asarray(dataset.split("train").arrays["targets"])
    return targets if rows is None else targets[rows]
