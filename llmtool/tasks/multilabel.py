"""Multi-label classification: any number of labels for a row, each of them by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.config import Section
from llmtool.core.contracts import Batch, Labels, Loss
from llmtool.core.errors import ConfigError
from llmtool.metrics.labels import HALF, LabelTally
from llmtool.tasks.classification import Weights, find_class, given_weights
from llmtool.tasks.members import member_outputs

NEEDS = (
    "task.kind: multilabel needs labels as target; set data.encode.target_kind: labels (columns of 0 and 1, "
    "or one column of lists)"
)
Share = Annotated[float, Field(gt=0, lt=1)]
Thresholds = Annotated[
    Annotated[Share, Tag("number")]
    | Annotated[Literal["tuned"], Tag("word")]
    | Annotated[dict[str, Share], Tag("mapping")],
    Discriminator(lambda given: {str: "word", dict: "mapping"}.get(type(given), "number")),
]


class MultilabelConfig(Section):
    """Any of the labels of the target; learned by binary cross entropy of each."""

    kind: Literal["multilabel"] = Field("multilabel", description="any number of labels for a row")
    positive_weights: Weights = Field(
        "none",
        description="how much a row that has a label counts in that label's loss, beside one that lacks it: "
        "balanced (as much as all that lack it together do), a list in the order of the labels, or label: "
        "weight (1 where not named)",
    )
    thresholds: Thresholds = Field(
        HALF,
        description="the probability from which a label is given: one for all, label: threshold (0.5 where "
        "not named), or tuned: of each the one with the highest F1 on validation, which flatters the figures "
        "of validation itself",
    )

    def outputs(self, targets: dict[str, Any]) -> Labels:
        """One logit for each label. ConfigError where the target is not labels."""
        if targets["kind"] != "labels":
            raise ConfigError(NEEDS)
        return Labels(len(targets["names"]))

    def build(self, card: dict[str, Any]) -> MultilabelTask:
        """The task for a dataset's card. ConfigError where a label that the file names is not there."""
        targets = card["targets"]
        self.outputs(targets)
        names = [str(name) for name in targets["names"]]
        return MultilabelTask(
            names,
            self._weights(names, targets),
            self._thresholds(names, targets),
            tunes=self.thresholds == "tuned",
        )

    def _thresholds(self, names: list[str], targets: Mapping[str, Any]) -> list[float]:
        if isinstance(self.thresholds, dict):
            given = self.thresholds.items()
            known = {find_class(name, names, "task.thresholds", "label"): share for name, share in given}
            return [known.get(at, HALF) for at in range(len(names))]
        if isinstance(self.thresholds, float):
            return [self.thresholds] * len(names)
        return list(targets.get("thresholds") or [HALF] * len(names))

    def _weights(self, names: list[str], targets: Mapping[str, Any]) -> list[float] | None:
        given = self.positive_weights
        if not isinstance(given, str):
            return given_weights(given, names, "task.positive_weights", "label")
        if given == "none":
            return None
        rows, counts = targets.get("rows"), targets.get("counts")
        if rows is None or counts is None:
            raise ConfigError(
                "task.positive_weights: balanced needs the rows of each label; the data's card has none"
            )
        return [max(rows - count, 1) / max(count, 1) for count in counts]


class MultilabelTask:
    """Binary cross entropy of each of C labels. weights: of rows that have the label, or None for 1.

    tunes: whether thresholds are chosen on validation.
    """

    metric = "log_loss"
    mode = "min"

    def __init__(
        self, names: list[str], weights: Sequence[float] | None, thresholds: list[float], tunes: bool = False
    ) -> None:
        self.names, self.thresholds, self.tunes = names, thresholds, tunes
        self._weights = None if weights is None else torch.tensor(weights)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum over rows and labels of the cross entropies (nats); the count is how many these are."""
        logits = member_outputs(model, batch).float()  # (B, K, C)
        targets = batch.targets.float()
        if batch.mixed is not None:  # a picture that is two has of each label what it has of each picture
            others, share = batch.mixed
            targets = share.unsqueeze(1) * targets + (1 - share.unsqueeze(1)) * others.float()
        total = F.binary_cross_entropy_with_logits(
            logits,
            targets.unsqueeze(1).expand_as(logits),
            reduction="sum",
            pos_weight=self._on(logits.device),
        )
        return Loss(total / logits.shape[1], torch.full_like(total, targets.numel()))

    def measure(self, model: nn.Module, batch: Batch) -> LabelTally:
        """The logits of the rows; weights play no part in how a model is judged."""
        logits = model(*batch.arguments).float()
        return LabelTally(logits, batch.targets, self.names, self.thresholds)

    def tune(self, tally: LabelTally) -> LabelTally:
        """Take over the thresholds that are best on these rows; the tally with them."""
        self.thresholds = tally.best_thresholds()
        seen = tally.seen()
        return LabelTally(
            torch.from_numpy(seen.logits), torch.from_numpy(seen.targets), self.names, self.thresholds
        )

    def _on(self, device: torch.device) -> Tensor | None:
        """The weights where the logits are; copied once, since a copy a step would wait for the device."""
        if self._weights is not None and self._weights.device != device:
            self._weights = self._weights.to(device)
        return self._weights
