"""Classification: one of several classes for a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.config import Section, suggest
from llmtool.core.contracts import IGNORE, Batch, Classes, Loss
from llmtool.core.errors import ConfigError, DataError
from llmtool.metrics.classification import ClassificationTally
from llmtool.tasks.members import member_outputs

UNFIT = {
    "labels": "this data has several labels a row; set task.kind: multilabel",
    "values": "this data has numbers; set data.encode.target_kind: classes, or task.kind: regression",
    "next_token": "this data is text without labels; set task.kind: language",
}
Weight = Annotated[float, Field(gt=0)]
Weights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("word")]
    | Annotated[list[Weight], Tag("list")]
    | Annotated[dict[str, Weight], Tag("mapping")],
    Discriminator(lambda given: {list: "list", dict: "mapping"}.get(type(given), "word")),
]


class ClassificationConfig(Section):
    """One of the classes of the target; learned by cross entropy."""

    kind: Literal["classification"] = Field("classification", description="one of several classes for a row")
    class_weights: Weights = Field(
        "none",
        description="how much a row of each class counts in the loss: balanced (rarer counts more), "
        "a list in the order of the classes, or class: weight (1 where not named)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all classes"
    )
    positive: str | int | bool | None = Field(
        None,
        description="of two classes, the one that precision, recall and F1 speak of; default: the second",
    )

    def outputs(self, targets: dict[str, Any]) -> Classes:
        """One logit for each class. ConfigError where the target is not classes, DataError for one class."""
        if targets["kind"] != "classes":
            raise ConfigError(f"task.kind: classification needs classes as target; {UNFIT[targets['kind']]}")
        names = [str(name) for name in targets["names"]]
        if len(names) < 2:
            only = f"one class ({names[0]})" if names else "no class"
            raise DataError(f"the target has {only} in the training rows: nothing to learn")
        return Classes(len(names))

    def build(self, card: dict[str, Any]) -> ClassificationTask:
        """The task for a dataset's card. ConfigError where a class that the file names is not there."""
        targets = card["targets"]
        self.outputs(targets)
        names = [str(name) for name in targets["names"]]
        positive = (
            second(names) if self.positive is None else find_class(self.positive, names, "task.positive")
        )
        if self.positive is not None and len(names) != 2:
            raise ConfigError(f"task.positive is for two classes; the target has {len(names)}")
        weights = self._weights(names, targets.get("counts"))
        return ClassificationTask(names, positive, weights, self.label_smoothing)

    def _weights(self, names: list[str], counts: Sequence[int] | None) -> list[float] | None:
        given = self.class_weights
        if not isinstance(given, str):
            return given_weights(given, names, "task.class_weights", "class")
        if given == "none":
            return None
        if counts is None:
            raise ConfigError(
                "task.class_weights: balanced needs the rows of each class; the data's card has none"
            )
        # As scikit-learn's class_weight="balanced": every class weighs as much as every other in the sum.
        return [sum(counts) / (len(names) * max(count, 1)) for count in counts]


class ClassificationTask:
    """Cross entropy of one of C classes. names: the C classes. weights: of each class, or None for 1."""

    metric = "log_loss"
    mode = "min"

    def __init__(
        self, names: list[str], positive: int, weights: list[float] | None, smoothing: float
    ) -> None:
        self.names, self.positive, self.smoothing = names, positive, smoothing
        self._weights = torch.ones(len(names)) if weights is None else torch.tensor(weights)
        self.weighted = weights is not None

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Weighted sum of the rows' cross entropies (nats); the count is the sum of the rows' weights."""
        logits = member_outputs(model, batch).float()  # (B, K, C)
        weights = self._on(logits.device)
        if batch.mixed is None:
            total = self._entropies(logits, batch.targets, weights, "sum")
            return Loss(total / logits.shape[1], self._counts(batch.targets, weights).sum())
        others, share = batch.mixed  # a picture that is two counts as much as each has of it
        own, other = (
            self._entropies(logits, each, weights, "none")
            .view(logits.shape[:2])
            .mean(dim=1)  # (B * K,) -> (B,)
            for each in (batch.targets, others)
        )
        counts = share * self._counts(batch.targets, weights) + (1 - share) * self._counts(others, weights)
        return Loss((share * own + (1 - share) * other).sum(), counts.sum())

    def _entropies(self, logits: Tensor, targets: Tensor, weights: Tensor, reduction: str) -> Tensor:
        """Cross entropy of each member of each row, (B * K,), or their sum; 0 where a row is not scored."""
        return F.cross_entropy(
            logits.flatten(0, 1),
            targets.repeat_interleave(logits.shape[1]),
            weights if self.weighted else None,
            ignore_index=IGNORE,
            reduction=reduction,
            label_smoothing=self.smoothing,
        )

    def _counts(self, targets: Tensor, weights: Tensor) -> Tensor:
        """(B,) how much each row counts."""
        scored = targets != IGNORE
        return torch.where(scored, weights[targets.clamp(min=0)], 0.0) if self.weighted else scored

    def measure(self, model: nn.Module, batch: Batch) -> ClassificationTally:
        """The logits of the rows; weights and smoothing play no part in how a model is judged."""
        logits = model(*batch.arguments).float()
        return ClassificationTally(logits, batch.targets, self.names, self.positive)

    def _on(self, device: torch.device) -> Tensor:
        """The weights where the logits are; copied once, since a copy a step would wait for the device."""
        if self._weights.device != device:
            self._weights = self._weights.to(device)
        return self._weights


def given_weights(
    given: list[float] | dict[str, float], names: list[str], key: str, what: str = "class"
) -> list[float]:
    """A weight for each name, 1 where a mapping has none; what: a word for one of the names."""
    if isinstance(given, dict):
        known = {find_class(name, names, key, what): weight for name, weight in given.items()}
        return [known.get(index, 1.0) for index in range(len(names))]
    if len(given) != len(names):
        raise ConfigError(f"{key}: {len(given)} weights for {len(names)} {plural(what)} ({shown(names)})")
    return list(given)


def plural(what: str) -> str:
    """Of `class` and `label`."""
    return f"{what}es" if what.endswith("s") else f"{what}s"


def second(names: list[str]) -> int:
    """Index of the second name in sorted order (numbers by value): "yes" of no/yes, 1 of 0/1."""
    try:
        order = sorted(range(len(names)), key=lambda index: float(names[index]))
    except ValueError:
        order = sorted(range(len(names)), key=lambda index: names[index])
    return order[1]


def find_class(name: str | int | bool, names: list[str], key: str, what: str = "class") -> int:
    """Index of a class (or a label) that the file names; ConfigError with the choices when there is none."""
    wanted = str(name)
    if wanted not in names and isinstance(name, bool):
        wanted = wanted.lower()  # YAML's true may be a file's "true" or "True"
    elif wanted not in names and isinstance(name, int):
        wanted = next((other for other in names if other in (f"{name}.0", f"{name}.")), wanted)
    if wanted not in names:
        hint = suggest(wanted, names)
        choices = f"{plural(what)}: {shown(names)}"
        raise ConfigError(f"{key}: {wanted!r} is not a {what} of the target{hint} ({choices})")
    return names.index(wanted)


def shown(names: list[str]) -> str:
    """The names, the first twenty of them where there are more."""
    return ", ".join(names[:20]) + ", ..." * (len(names) > 20)
