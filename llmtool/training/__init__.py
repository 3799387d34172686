"""The `train:` section: budget, batch, optimizer, schedule and what happens when; generic over the task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.config import Section
from llmtool.training.augment import AugmentConfig
from llmtool.training.budget import Budget
from llmtool.training.guard import GuardConfig
from llmtool.training.optimizers import AdamWConfig, OptimizerConfig
from llmtool.training.schedules import CosineSchedule, ScheduleConfig

SMALLEST = 1e-6  # share of a part of a mixture: one row in a million
Weight = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(gt=0)] | Literal["auto"]


class Select(Section):
    """Which validation figure makes a checkpoint the best one."""

    metric: str = Field(description="a figure of the validation scores, such as f1 or loss")
    mode: Literal["min", "max"] = Field(description="whether less (min) or more (max) of it is better")


class Stop(Section):
    """When training ends before its budget."""

    patience: int = Field(gt=0, description="validations in a row without a new best")


class TrainConfig(Section):
    """How a model is trained."""

    budget: Budget = Field(default=Budget(epochs=10), description="how long: steps, epochs, tokens or time")
    mixture: dict[str, Weight] | None = Field(
        default=None,
        description="weight of each part of the data (data.source.format: mixture): each gives its share of "
        "the rows that are learned from, exactly in every long stretch, and goes through its own rows in "
        "epochs of its own; 0 leaves a part out. An epoch of the budget is as many rows as the parts with a "
        "weight have together; default: every row once in it",
    )
    batch: Count = Field(default="auto", description="rows of one optimizer step")
    micro_batch: Count = Field(
        default="auto",
        description="rows that go through the model at once; the result does not depend on it, but for the "
        "norms of a convnet, which are over these rows; auto: as much of the batch as fits into memory, and "
        "less where a step does not fit after all",
    )
    optimizer: OptimizerConfig = Field(default=AdamWConfig(name="adamw"), description="the update rule")
    schedule: ScheduleConfig = Field(
        default=CosineSchedule(name="cosine"), description="how the learning rate moves over the run"
    )
    clip: float | None = Field(default=1.0, gt=0, description="longest gradient (its norm); null: no limit")
    guard: GuardConfig = Field(
        default=GuardConfig(), description="updates that are refused: not finite, or a loss that jumps"
    )
    augment: AugmentConfig = Field(
        default=AugmentConfig(),
        description="pictures: what is done to them at random before a step sees them",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="weights are averaged over the steps, each average keeping so much of the last (0.999; "
        "less in the first steps): the averaged ones are validated, saved and evaluated; null: no average",
    )
    compile: bool | Literal["auto", "graphs"] = Field(
        default="auto",
        description="torch.compile; graphs: recorded as CUDA graphs too, which pays where a model is small; "
        "auto: on CUDA, recorded if it is small, and on a CPU where the run is long enough to pay",
    )
    activation_checkpointing: Annotated[int, Field(ge=0)] | Literal["auto", "none", "all"] = Field(
        default="auto",
        description="blocks, from the first on, whose activations are computed again for the backward pass "
        "instead of kept: less memory, the same result, up to a third more work; auto: none where a step "
        "fits into the device's memory, else as few as do",
    )
    log_every: Count = Field(default="auto", description="steps between two lines of metrics.jsonl")
    validate_every: Count = Field(default="auto", description="steps between two validations")
    checkpoint_every: Count = Field(default="auto", description="steps between two checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept, beside the best one")
    select: Select | None = Field(
        default=None, description="what makes a checkpoint the best; default: the task's figure"
    )
    stop: Stop | None = Field(default=None, description="early stopping")

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        weights = list((self.mixture or {"": 1.0}).values())
        if not any(weights):
            raise ValueError("mixture: some part needs a weight above 0")
        if (share := min(weight for weight in weights if weight) / sum(weights)) < SMALLEST:
            raise ValueError(
                f"mixture: a share of {share:.1g} is less than a row in a million; leave it out: 0"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if (
            isinstance(self.batch, int)
            and isinstance(self.micro_batch, int)
            and self.batch % self.micro_batch
        ):
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")
        return self


__all__ = [
    "AugmentConfig",
    "Budget",
    "GuardConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Select",
    "Stop",
    "TrainConfig",
]
