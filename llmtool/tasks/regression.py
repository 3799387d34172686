"""Regression: one or several real numbers for a row."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.config import Section
from llmtool.core.contracts import Batch, Loss, Values
from llmtool.core.errors import ConfigError
from llmtool.metrics.regression import RMSE_LOG, RegressionTally
from llmtool.metrics.target_scale import LogScale, TargetScale, target_scale
from llmtool.tasks.members import member_outputs

UNFIT = {
    "labels": "this data has several labels a row; set task.kind: multilabel",
    "classes": "this data has classes; set data.encode.target_kind: values, or task.kind: classification",
    "next_token": "this data is text without labels; set task.kind: language",
}


class RegressionConfig(Section):
    """The number in the target column; learned on the standardised target, judged in its own units."""

    kind: Literal["regression"] = Field("regression", description="a number for a row")
    loss: Literal["squared", "absolute", "huber"] = Field(
        "squared",
        description="what an error costs: its square, its size, or the square up to delta and size beyond",
    )
    delta: float | None = Field(
        None,
        gt=0,
        description="huber: where it turns, in standard deviations (default 1)",
    )

    @model_validator(mode="after")
    def _delta_is_read(self) -> Self:
        if self.delta is not None and self.loss != "huber":
            raise ValueError("delta is for loss: huber")
        return self

    def outputs(self, targets: dict[str, Any]) -> Values:
        """One number for each target of the data. ConfigError where the target is not numbers."""
        if targets["kind"] != "values":
            raise ConfigError(f"task.kind: regression needs numbers as target; {UNFIT[targets['kind']]}")
        return Values(len(_each(targets["mean"])))

    def build(self, card: dict[str, Any]) -> RegressionTask:
        """The task for a dataset's card, which carries mean and scale of the training rows' target."""
        targets = card["targets"]
        outputs = self.outputs(targets)
        names = [str(name) for name in targets.get("names", [])] or [
            f"value {i + 1}" for i in range(outputs.n)
        ]
        scale = [
            value or 1.0 for value in _each(targets["scale"])
        ]  # a constant target has no spread to divide by
        mean, transform = _each(targets["mean"]), target_scale(targets.get("transform"))
        return RegressionTask(names, mean, scale, self.loss, self.delta or 1.0, transform)


class RegressionTask:
    """Error of n standardised numbers a row. names, mean, scale: n of each, in the targets' own units.

    transform: the scale they are learned on in place of mean and scale. Of logarithms the best checkpoint is
    that of the least error of these, which is what is learned.
    """

    mode = "min"

    def __init__(
        self,
        names: list[str],
        mean: list[float],
        scale: list[float],
        kind: str,
        delta: float,
        transform: TargetScale | None = None,
    ) -> None:
        self.metric = RMSE_LOG if isinstance(transform, LogScale) else "rmse"
        self.transform = transform
        self.names, self.mean, self.scale, self.kind, self.delta = names, mean, scale, kind, delta
        self._moments = torch.tensor([mean, scale], dtype=torch.float64)  # (2, n)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum of the errors' costs, in standard deviations; the count is how many numbers are predicted."""
        predictions = member_outputs(model, batch).float()  # (B, K, n)
        targets = self._standardised(batch.targets)  # (B, n)
        count, targets = targets.numel(), targets.unsqueeze(1).expand_as(predictions)
        if self.kind == "squared":
            total = F.mse_loss(predictions, targets, reduction="sum")
        elif self.kind == "absolute":
            total = F.l1_loss(predictions, targets, reduction="sum")
        else:
            total = F.huber_loss(predictions, targets, reduction="sum", delta=self.delta)
        return Loss(total / predictions.shape[1], torch.full_like(total, count))

    def measure(self, model: nn.Module, batch: Batch) -> RegressionTally:
        """The predictions of the rows beside their targets."""
        predictions = model(*batch.arguments).float()
        return RegressionTally(predictions, batch.targets, self.names, self.mean, self.scale, self.transform)

    def _standardised(self, targets: Tensor) -> Tensor:
        """(B, n) as they are learned, float32."""
        if self.transform is not None:
            return self.transform.standardise(targets)
        mean, scale = self._on(targets.device)
        # Float64 for the difference: a mean of 1.7e9 seconds, rounded to float32, is off by up to a minute.
        return ((targets.double() - mean) / scale).float()

    def _on(self, device: torch.device) -> Tensor:
        """Mean and scale where the predictions are; copied once: a copy a step would wait for the device."""
        if self._moments.device != device:
            self._moments = self._moments.to(device)
        return self._moments


def _each(value: float | list[float]) -> list[float]:
    return [float(item) for item in value] if isinstance(value, list) else [float(value)]
