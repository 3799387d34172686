"""What a model is held against: trivial and classical models of the same split and encoding.

Bounded by work, not by the clock, so that their figures do not depend on how busy the machine is; the clock
only leaves out what has not begun when the time is up, by name.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from llmtool.core import seeds
from llmtool.core.config import Section
from llmtool.core.contracts import Images, Tally, Tokens
from llmtool.core.environment import code_version
from llmtool.data.games.legality import Legality
from llmtool.data.store import Dataset, Split
from llmtool.evaluation import kept
from llmtool.evaluation.ngrams import MOST_TOKENS, NGrams, best_order, by_unit, stream_of
from llmtool.evaluation.pixels import matrix, side_of, width_of
from llmtool.evaluation.words import looks_at, texts_of_split, words_of
from llmtool.metrics import direction
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally

CELLS = 100_000_000  # rows x features x classes that a classical model learns from
TREES = 1500  # of gradient boosting, over all classes
ROUNDS = 100  # of gradient boosting, scikit-learn's default
SOLVER = 100  # iterations of logistic regression, scikit-learn's default
MANY = 50_000_000  # cells from which more than one thread is worth having
LONGEST = 20_000_000  # tokens of a split that n-grams score
SMALLEST = 1e-15  # probability, below which scikit-learn's log loss does not go either

Evidence = dict[str, np.ndarray]  # split -> what a tally is made from


class BaselinesConfig(Section):
    """Which simple models are fitted on the same data, to be held against."""

    kind: Literal["all", "simple"] = Field(
        default="all",
        description="all: with logistic or ridge regression (of texts: on TF-IDF) and gradient boosting, or "
        "n-grams; simple: those that cost nothing (the majority, the mean, single tokens)",
    )
    seconds: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="no further one is begun after this time"
    )


@dataclass
class Baseline:
    """tallies: the evidence of each split; none where it is `missing`, which says why. note: what was cut."""

    name: str
    about: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    note: str = ""
    missing: str = ""
    seconds: float = 0.0
    cached: bool = False


@dataclass
class _Plan:
    """A baseline before it is fitted; `fit` gives the evidence of each split, and a note."""

    name: str
    about: str
    fit: Callable[[Sequence[str]], tuple[Evidence, str]]
    simple: bool = False


class _Kind(Protocol):
    """One kind of data: its baselines, and the tally that their evidence makes."""

    def plans(self) -> Iterator[_Plan]:
        """The baselines, cheap ones first."""

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """The tally of a split's evidence."""


def baselines(
    dataset: Dataset,
    splits: Sequence[str],
    config: BaselinesConfig,
    *,
    positive: int,
    seed: int,
    cache: Path | None = None,
) -> list[Baseline]:
    """Every baseline of this kind of data, scored on the splits; one that cannot be had says why.

    positive: index of the positive class of two. cache: a directory where their predictions are kept. All is
    a function of dataset and seed, but for what the time leaves out.
    """
    kinds: dict[str, Callable[[Dataset, int, int], _Kind]] = {
        "classes": _Classes, "labels": _Labels, "values": _Values, "next_token": _Tokens
    }  # fmt: skip
    if isinstance(dataset.inputs, Tokens):
        kinds |= {"classes": _ClassesOfTexts, "values": _ValuesOfTexts}
    kind = kinds[dataset.targets["kind"]](dataset, positive, seed)
    began = time.monotonic()
    found = []
    for plan in kind.plans():
        if config.kind == "simple" and not plan.simple:
            continue
        started = time.monotonic()
        made = Baseline(plan.name, plan.about)
        found.append(made)
        place = None if cache is None or plan.simple else cache / f"{plan.name.replace(' ', '_')}.safetensors"
        key = {"dataset": dataset.fingerprint, "seed": str(seed), "code": code_version(), "about": plan.about}
        evidence = _kept(place, key, splits, made)
        if not evidence and started - began > config.seconds:
            made.missing = f"the limit of {config.seconds:g} s was reached (evaluate.baselines.seconds)"
        elif not evidence:
            try:
                evidence, made.note = plan.fit(splits)
            except (ValueError, ArithmeticError, np.linalg.LinAlgError, MemoryError) as error:
                made.missing = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            made.seconds = time.monotonic() - started
            if place and evidence:
                kept.write(place, key, evidence, {"note": made.note, "seconds": round(made.seconds, 3)})
        made.tallies = {name: kind.tally(dataset.split(name), part) for name, part in evidence.items()}
    return found


def _kept(place: Path | None, key: Mapping[str, str], splits: Sequence[str], made: Baseline) -> Evidence:
    """What this baseline predicted the last time, if that was for all of these splits."""
    found = kept.read(place, key) if place else None
    if found is None or not set(splits) <= set(found[0]):
        return {}
    made.note, made.seconds, made.cached = found[1]["note"], found[1]["seconds"], True
    return {name: found[0][name] for name in splits}


def strongest(found: Sequence[Baseline], split: str, figure: str) -> Baseline | None:
    """The one with the best figure of this split; None where none has it."""
    sign = 1.0 if direction(figure) == "max" else -1.0
    scored = [
        (sign * one.tallies[split].metrics()[figure], one)
        for one in found
        if split in one.tallies and figure in one.tallies[split].metrics()
    ]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


# --- tables: one of several classes ---


class _Classes:
    """Evidence: (n, C) float32 logarithms of the classes' probabilities."""

    def __init__(self, dataset: Dataset, positive: int, seed: int) -> None:
        self.dataset, self.positive, self.seed = dataset, positive, seed
        self.names = [str(name) for name in dataset.targets["names"]]
        counts = np.asarray(dataset.targets["counts"], np.float64)
        self.shares = counts / counts.sum()

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """Judged as a model's logits are."""
        targets = torch.from_numpy(np.asarray(split.arrays["targets"]).astype(np.int64))
        return ClassificationTally(torch.from_numpy(evidence), targets, self.names, self.positive)

    def plans(self) -> Iterator[_Plan]:
        """Majority, stratified, logistic regression, gradient boosting."""
        rounds = max(1, min(ROUNDS, TREES // (1 if len(self.names) == 2 else len(self.names))))
        trees = f"{rounds} rounds of decision trees, on the same inputs"
        drawn = "a class drawn by its share of the training rows"
        boosting = partial(_boosting, "Classifier", rounds, self.seed)
        yield _Plan(
            "majority", "always the most frequent class", partial(self._each, self._most), simple=True
        )
        yield _Plan("stratified", drawn, partial(self._each, self._drawn), simple=True)
        yield _Plan("logistic regression", _linear(self.dataset), partial(self._fitted, _logistic))
        if not isinstance(self.dataset.inputs, Images):
            yield _Plan("gradient boosting", trees, partial(self._fitted, boosting))

    def _likely(self, model: Any, inputs: Any) -> np.ndarray:
        """(n, C) probabilities; 0 of a class that the model never saw."""
        shares = np.zeros((inputs.shape[0], len(self.names)))
        shares[:, model.classes_] = model.predict_proba(inputs)
        return shares

    def _each(
        self, predict: Callable[[Split], np.ndarray], splits: Sequence[str], note: str = ""
    ) -> tuple[Evidence, str]:
        shares = {name: predict(self.dataset.split(name)) for name in splits}
        return {
            name: np.log(np.maximum(part, SMALLEST)).astype(np.float32) for name, part in shares.items()
        }, note

    def _most(self, split: Split) -> np.ndarray:
        return np.tile(self.shares, (split.rows, 1))

    def _drawn(self, split: Split) -> np.ndarray:
        random = seeds.generator(self.seed, "stratified", split.name)
        return np.eye(len(self.names))[random.choice(len(self.names), split.rows, p=self.shares)]

    def _fitted(self, make: Callable[[], Any], splits: Sequence[str]) -> tuple[Evidence, str]:
        model = make()
        features = _features(self.dataset, model)
        inputs, targets, note = _sample(self.dataset, features, len(self.names), self.seed)
        model, more = _fit(model, inputs, targets)

        def predict(split: Split) -> np.ndarray:
            return self._likely(model, matrix(self.dataset, split.name)[:, features])

        return self._each(predict, splits, _joined(note, more))


def _linear(dataset: Dataset) -> str:
    if not isinstance(dataset.inputs, Images):
        return "linear, on the same inputs"
    return "linear, on pictures of {} x {} pixels".format(*side_of(dataset.inputs))


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=SOLVER)


def _boosting(what: str, rounds: int, seed: int) -> Any:
    from sklearn import ensemble

    random = seeds.derive(seed, "boosting") % 2**32
    return getattr(ensemble, f"HistGradientBoosting{what}")(max_iter=rounds, random_state=random)


# --- tables: numbers ---


class _Values:
    """Evidence: (n, k) float32 predictions, standardised as the card says."""

    def __init__(self, dataset: Dataset, positive: int, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.names = [str(name) for name in dataset.targets["names"]]
        self.mean, scale = (np.atleast_1d(np.asarray(dataset.targets[k], float)) for k in ("mean", "scale"))
        self.scale = np.where(scale == 0, 1.0, scale)

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """Judged as a model's predictions are."""
        targets, predictions = torch.from_numpy(self._targets(split)), torch.from_numpy(evidence)
        return RegressionTally(predictions, targets, self.names, list(self.mean), list(self.scale))

    def plans(self) -> Iterator[_Plan]:
        """Mean, median, ridge regression, gradient boosting."""
        rounds = max(1, min(ROUNDS, TREES // len(self.names)))
        trees = f"{rounds} rounds of decision trees, on the same inputs"
        boosting = partial(_boosting, "Regressor", rounds, self.seed)
        yield _Plan("mean", "always the mean of the training rows", self._mean, simple=True)
        yield _Plan("median", "always the median of the training rows", self._median, simple=True)
        yield _Plan("ridge regression", _linear(self.dataset), partial(self._fitted, _ridge))
        if not isinstance(self.dataset.inputs, Images):
            yield _Plan("gradient boosting", trees, partial(self._fitted, boosting))

    def _targets(self, split: Split) -> np.ndarray:
        """(n, k) float64."""
        return np.asarray(split.arrays["targets"], np.float64).reshape(split.rows, -1)

    def _mean(self, splits: Sequence[str]) -> tuple[Evidence, str]:
        return self._constant(np.zeros(len(self.names)), splits)

    def _median(self, splits: Sequence[str]) -> tuple[Evidence, str]:
        middle = np.median(self._targets(self.dataset.split("train")), axis=0)
        return self._constant((middle - self.mean) / self.scale, splits)

    def _constant(self, value: np.ndarray, splits: Sequence[str]) -> tuple[Evidence, str]:
        rows = {name: self.dataset.split(name).rows for name in splits}
        return {name: np.tile(value.astype(np.float32), (count, 1)) for name, count in rows.items()}, ""

    def _fitted(self, make: Callable[[], Any], splits: Sequence[str]) -> tuple[Evidence, str]:
        features = _features(self.dataset, make())
        inputs, targets, note = _sample(self.dataset, features, len(self.names), self.seed)
        values = (targets.reshape(len(inputs), -1).astype(np.float64) - self.mean) / self.scale
        models, notes = zip(*(_fit(make(), inputs, column) for column in values.T), strict=True)
        evidence = {}
        for name in splits:
            rows = matrix(self.dataset, name)[:, features]
            evidence[name] = np.stack([model.predict(rows) for model in models], axis=1).astype(np.float32)
        return evidence, _joined(note, *notes)


def _ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


# --- several labels a row ---


class _Labels:
    """Evidence: (n, C) float32 logits of the labels."""

    def __init__(self, dataset: Dataset, positive: int, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.names = [str(name) for name in dataset.targets["names"]]
        self.shares = np.asarray(dataset.targets["counts"], np.float64) / max(1, dataset.targets["rows"])

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """Judged as a model's logits are, at thresholds of 0.5."""
        targets = torch.from_numpy(np.asarray(split.arrays["targets"]).astype(np.uint8))
        return LabelTally(torch.from_numpy(evidence), targets, self.names)

    def plans(self) -> Iterator[_Plan]:
        """How frequent each label is, and logistic regression of each, of texts on TF-IDF."""
        said = "the share of the training rows that have a label, for every row"
        yield _Plan("frequencies", said, lambda splits: (self._logits(self._shares(splits)), ""), simple=True)
        texts = isinstance(self.dataset.inputs, Tokens)
        about = looks_at(self.dataset) if texts else _linear(self.dataset)
        name = "TF-IDF, logistic regression" if texts else "logistic regression"
        yield _Plan(name, f"{about}; a model for each label", self._fitted)

    def _shares(self, splits: Sequence[str]) -> Evidence:
        return {name: np.tile(self.shares, (self.dataset.split(name).rows, 1)) for name in splits}

    def _logits(self, found: Evidence) -> Evidence:
        clipped = {name: np.clip(shares, SMALLEST, 1 - 1e-12) for name, shares in found.items()}
        return {name: np.log(part / (1 - part)).astype(np.float32) for name, part in clipped.items()}

    def _fitted(self, splits: Sequence[str]) -> tuple[Evidence, str]:
        """A model for each label; of one that all rows have, or none, its share."""
        if isinstance(self.dataset.inputs, Tokens):
            words, inputs, targets, note = words_of(self.dataset, self.seed)
            rows = {name: words.transform(texts_of_split(self.dataset, name)) for name in splits}
        else:
            features = _features(self.dataset, _logistic())
            inputs, targets, note = _sample(self.dataset, features, len(self.names), self.seed)
            rows = {name: matrix(self.dataset, name)[:, features] for name in splits}
        found, notes = self._shares(splits), [note]
        for at in np.flatnonzero((targets.min(axis=0) == 0) & (targets.max(axis=0) == 1)):
            model, more = _fit(_logistic(), inputs, targets[:, at])
            notes.append(more)
            for name, part in rows.items():
                found[name][:, at] = model.predict_proba(part)[:, 1]
        return self._logits(found), _joined(*notes)


# --- labelled texts ---


class _ClassesOfTexts(_Classes):
    """The same evidence, from the texts' words."""

    def plans(self) -> Iterator[_Plan]:
        """Majority, stratified, and TF-IDF with logistic regression."""
        yield from (plan for plan in super().plans() if plan.simple)
        yield _Plan("TF-IDF, logistic regression", looks_at(self.dataset), self._of_words)

    def _of_words(self, splits: Sequence[str]) -> tuple[Evidence, str]:
        words, inputs, targets, note = words_of(self.dataset, self.seed)
        model, more = _fit(_logistic(), inputs, targets)
        return self._each(
            lambda split: self._likely(model, words.transform(texts_of_split(self.dataset, split.name))),
            splits,
            _joined(note, more),
        )


class _ValuesOfTexts(_Values):
    """The same evidence, from the texts' words."""

    def plans(self) -> Iterator[_Plan]:
        """Mean, median, and TF-IDF with ridge regression."""
        yield from (plan for plan in super().plans() if plan.simple)
        yield _Plan("TF-IDF, ridge regression", looks_at(self.dataset), self._of_words)

    def _of_words(self, splits: Sequence[str]) -> tuple[Evidence, str]:
        words, inputs, targets, note = words_of(self.dataset, self.seed)
        values = (targets.reshape(len(targets), -1).astype(np.float64) - self.mean) / self.scale
        model, more = _fit(_ridge(), inputs, values)
        evidence = {}
        for name in splits:
            found = model.predict(words.transform(texts_of_split(self.dataset, name)))
            evidence[name] = found.reshape(-1, len(self.names)).astype(np.float32)
        return evidence, _joined(note, more)


# --- text: the next token ---


class _Tokens:
    """Evidence: (3, u) nats, scored tokens and first choices of each unit of the text; of games (6, u), as of
    metrics.games.GamesTally."""

    def __init__(self, dataset: Dataset, positive: int, seed: int) -> None:
        self.dataset, self.vocabulary = dataset, int(dataset.targets["vocabulary"])
        self.legality = Legality.of(dataset.card) if "game" in dataset.targets else None

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """Judged as a model's evidence is."""
        if self.legality is not None:
            return GamesTally(*torch.from_numpy(evidence))
        nats, tokens, correct = torch.from_numpy(evidence)
        whole = split.meta.get("bytes")
        size = whole * float(tokens.sum()) / split.meta["tokens"] if whole else None
        return LanguageTally(nats, tokens, correct, size)

    def plans(self) -> Iterator[_Plan]:
        """Unigram, trigram, and the order that does best on a part of the training text."""
        yield _Plan("unigram", "each token by its share of the training text", self._of(1), simple=True)
        yield _Plan("trigram", "from the two tokens before, Kneser-Ney", self._of(3))
        yield _Plan("n-gram", "from as many tokens before as help, Kneser-Ney", self._of(None))

    def _of(self, order: int | None) -> Callable[[Sequence[str]], tuple[Evidence, str]]:
        return partial(self._fitted, order)

    def _fitted(self, order: int | None, splits: Sequence[str]) -> tuple[Evidence, str]:
        train = self.dataset.split("train")
        total, length = len(train.arrays["tokens"]), min(len(train.arrays["tokens"]), MOST_TOKENS)
        cut = f"learned from the first {length:,} of {total:,} tokens" if length < total else ""
        stream = stream_of(train).part(0, length)
        chosen = best_order(stream, self.vocabulary) if order is None else order
        model = NGrams(stream, self.vocabulary, chosen)
        evidence = {}
        for name in splits:
            split = self.dataset.split(name)
            if len(split.arrays["tokens"]) > LONGEST:
                raise ValueError(f"{name} has more than {LONGEST:,} tokens")
            highest = min(chosen, model.highest)
            stream = stream_of(split)
            nats, guess = model.score(stream, [highest])[highest]
            evidence[name] = by_unit(split, nats, guess == stream.tokens)
            if self.legality is not None:
                legal, judged = self.legality.counted(self.dataset, name, guess)
                unknown = np.full(len(legal), np.nan)
                evidence[name] = np.concatenate([evidence[name], [legal, unknown, judged]])
        said = f"order {chosen}, chosen on the last tenth of the training text" if order is None else ""
        return evidence, _joined(said, cut)


# --- what they share ---


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


def _sample(
    dataset: Dataset, features: np.ndarray, outputs: int, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """The training rows, as many of them as the work allows, and what was left out."""
    split = dataset.split("train")
    targets = np.asarray(split.arrays["targets"])
    allowed = max(1000, CELLS // max(1, len(features) * outputs))
    if split.rows <= allowed:
        return matrix(dataset, "train")[:, features], targets, ""
    rows = np.sort(seeds.generator(seed, "baselines").choice(split.rows, allowed, replace=False))
    inputs = matrix(dataset, "train", rows)[:, features]
    return inputs, targets[rows], f"learned from {allowed:,} of {split.rows:,} rows"


def _fit(model: Any, inputs: np.ndarray, targets: np.ndarray) -> tuple[Any, str]:
    """The model, fitted; that it did not converge goes into the note."""
    from threadpoolctl import threadpool_limits

    # Threads that wait for each other in turn make a busy machine ten times slower.
    few = threadpool_limits(1 if inputs.size < MANY else None)
    with warnings.catch_warnings(record=True) as said, few:
        warnings.simplefilter("always")
        model.fit(inputs, targets)
    unfinished = any("converge" in str(warning.message).lower() for warning in said)
    return model, f"stopped after {SOLVER} iterations, before converging" if unfinished else ""


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
