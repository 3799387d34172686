"""What a model is held against: trivial and classical models of the same split and encoding.

Bounded by work, not by the clock, so that their figures do not depend on how busy the machine is; the clock
only leaves out what has not begun when the time is up, by name.
"""

from __future__ import annotations

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
from llmtool.core.contracts import Tally
from llmtool.core.environment import code_version
from llmtool.core.errors import first_line
from llmtool.data.games.legality import Legality
from llmtool.data.store import Dataset, Split
from llmtool.evaluation import kept
from llmtool.evaluation.design import View, views
from llmtool.evaluation.ngrams import MOST_TOKENS, NGrams, best_order, by_unit, stream_of
from llmtool.metrics import direction
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally
from llmtool.metrics.target_scale import LogScale, target_scale

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
        description="all: with logistic or ridge regression (of texts: on TF-IDF, and on columns "
        "beside them) and gradient boosting, or n-grams; simple: those that cost nothing (the majority, the "
        "mean, single tokens)",
    )
    seconds: float = Field(default=60.0, gt=0, description="no further one is begun after this time")


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
                made.missing = first_line(error)
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


# --- one of several classes ---


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
        drawn = "a class drawn by its share of the training rows"
        boosting = partial(_boosting, "Classifier", rounds, self.seed)
        yield _Plan(
            "majority", "always the most frequent class", partial(self._each, self._most), simple=True
        )
        yield _Plan("stratified", drawn, partial(self._each, self._drawn), simple=True)
        yield from _learned(self, "logistic regression", _logistic, rounds, boosting)

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

    def fitted(self, make: Callable[[], Any], view: View, splits: Sequence[str]) -> tuple[Evidence, str]:
        """The evidence of one model."""
        model = make()
        seen = view.design(self.dataset, model, len(self.names), self.seed)
        model, more = _fit(model, seen.inputs, seen.targets)

        def predict(split: Split) -> np.ndarray:
            return self._likely(model, seen.of(split.name))

        return self._each(predict, splits, _joined(seen.note, more))


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=SOLVER)


def _boosting(what: str, rounds: int, seed: int) -> Any:
    from sklearn import ensemble

    random = seeds.derive(seed, "boosting") % 2**32
    return getattr(ensemble, f"HistGradientBoosting{what}")(max_iter=rounds, random_state=random)


# --- numbers ---


class _Values:
    """Evidence: (n, k) float32 predictions, standardised as the card says."""

    def __init__(self, dataset: Dataset, positive: int, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.names = [str(name) for name in dataset.targets["names"]]
        self.mean, scale = (np.atleast_1d(np.asarray(dataset.targets[k], float)) for k in ("mean", "scale"))
        self.scale = np.where(scale == 0, 1.0, scale)
        transform = target_scale(dataset.targets.get("transform"))
        self.logs = transform if isinstance(transform, LogScale) else None

    def tally(self, split: Split, evidence: np.ndarray) -> Tally:
        """Judged as a model's predictions are."""
        targets, predictions = torch.from_numpy(self._targets(split)), torch.from_numpy(evidence)
        mean, scale = list(self.mean), list(self.scale)
        return RegressionTally(predictions, targets, self.names, mean, scale, log_scale=self.logs)

    def plans(self) -> Iterator[_Plan]:
        """Mean, median, ridge regression, gradient boosting."""
        rounds = max(1, min(ROUNDS, TREES // len(self.names)))
        boosting = partial(_boosting, "Regressor", rounds, self.seed)
        yield _Plan("mean", "always the mean of the training rows", self._mean, simple=True)
        yield _Plan("median", "always the median of the training rows", self._median, simple=True)
        yield from _learned(self, "ridge regression", _ridge, rounds, boosting)

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

    def fitted(self, make: Callable[[], Any], view: View, splits: Sequence[str]) -> tuple[Evidence, str]:
        """The evidence of a model for each number."""
        seen = view.design(self.dataset, make(), len(self.names), self.seed)
        values = (seen.targets.reshape(len(seen.targets), -1).astype(np.float64) - self.mean) / self.scale
        models, notes = zip(*(_fit(make(), seen.inputs, column) for column in values.T), strict=True)
        evidence = {}
        for name in splits:
            rows = seen.of(name)
            evidence[name] = np.stack([model.predict(rows) for model in models], axis=1).astype(np.float32)
        return evidence, _joined(seen.note, *notes)


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
        """How frequent each label is, and logistic regression of each."""
        said = "the share of the training rows that have a label, for every row"
        yield _Plan("frequencies", said, lambda splits: (self._logits(self._shares(splits)), ""), simple=True)
        for view in views(self.dataset):
            about = f"linear, {view.on}; a model for each label"
            yield _Plan(view.named("logistic regression"), about, partial(self._fitted, view))

    def _shares(self, splits: Sequence[str]) -> Evidence:
        return {name: np.tile(self.shares, (self.dataset.split(name).rows, 1)) for name in splits}

    def _logits(self, found: Evidence) -> Evidence:
        clipped = {name: np.clip(shares, SMALLEST, 1 - 1e-12) for name, shares in found.items()}
        return {name: np.log(part / (1 - part)).astype(np.float32) for name, part in clipped.items()}

    def _fitted(self, view: View, splits: Sequence[str]) -> tuple[Evidence, str]:
        """A model for each label; of one that all rows have, or none, its share."""
        seen = view.design(self.dataset, _logistic(), len(self.names), self.seed)
        rows = {name: seen.of(name) for name in splits}
        found, notes, targets = self._shares(splits), [seen.note], seen.targets
        for at in np.flatnonzero((targets.min(axis=0) == 0) & (targets.max(axis=0) == 1)):
            model, more = _fit(_logistic(), seen.inputs, targets[:, at])
            notes.append(more)
            for name, part in rows.items():
                found[name][:, at] = model.predict_proba(part)[:, 1]
        return self._logits(found), _joined(*notes)


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


def _learned(
    kind: _Classes | _Values, linear: str, make: Callable[[], Any], rounds: int, boosting: Callable[[], Any]
) -> Iterator[_Plan]:
    """The linear model of every way to see the rows, and gradient boosting where trees suit it."""
    seen = views(kind.dataset)
    for view in seen:
        yield _Plan(view.named(linear), f"linear, {view.on}", partial(kind.fitted, make, view))
    trees = f"{rounds} rounds of decision trees"
    for view in seen:
        if view.trees:
            name = view.named("gradient boosting")
            yield _Plan(name, f"{trees}, {view.on}", partial(kind.fitted, boosting, view))


def _fit(model: Any, inputs: Any, targets: np.ndarray) -> tuple[Any, str]:
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
