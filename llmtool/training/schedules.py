"""How the learning rate moves over a run: factors in 0..1, pure functions of the position in the run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from llmtool.core.config import Section

Warmup = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]
WARMUP = "linear rise from 0: a share of the run (0.05) or a whole number of steps (100)"
FINAL = "share of the rate that is left at the end"


class Schedule(Section):
    """What all schedules share: the warm-up, and the position between its end and the end of the run."""

    warmup: Warmup = Field(default=0.05, description=WARMUP)

    def factor(self, step: int, total: int | None, progress: float = 0.0) -> float:
        """The share of the full rate that step `step` (from 0) uses.

        total: steps of the run; None when wall time is the budget, whose share used up is then `progress`.
        """
        if total is not None:
            warm = self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)
            if step < warm:
                return (step + 1) / (warm + 1)
            return self._after(min(1.0, (step - warm) / max(1, total - warm)))
        if isinstance(self.warmup, int):
            return min((step + 1) / (self.warmup + 1), self._after(min(1.0, progress)))
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        return self._after(min(1.0, (progress - self.warmup) / (1 - self.warmup)))

    def _after(self, position: float) -> float:
        """The factor at `position` in 0..1 after the warm-up."""
        raise NotImplementedError


class ConstantSchedule(Schedule):
    """The full rate throughout."""

    name: Literal["constant"] = Field(description="the full rate after the warm-up")
    warmup: Warmup = Field(default=0, description=WARMUP)

    def _after(self, position: float) -> float:
        return 1.0


class CosineSchedule(Schedule):
    """Half a cosine wave down (https://arxiv.org/abs/1608.03983, without restarts)."""

    name: Literal["cosine"] = Field(description="half a cosine wave from the full rate to `final`")
    final: float = Field(default=0.0, ge=0, le=1, description=FINAL)

    def _after(self, position: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * position))


class LinearSchedule(Schedule):
    """A straight line down."""

    name: Literal["linear"] = Field(description="a straight line from the full rate to `final`")
    final: float = Field(default=0.0, ge=0, le=1, description=FINAL)

    def _after(self, position: float) -> float:
        return 1 - (1 - self.final) * position


class WSDSchedule(Schedule):
    """Warm-up, stable, decay (https://arxiv.org/abs/2404.06395): the full rate, then a line down."""

    name: Literal["wsd"] = Field(
        description="the full rate, then a straight line down over the last `decay` of the run"
    )
    decay: float = Field(
        default=0.2, gt=0, le=1, description="share of the run after the warm-up that the line takes"
    )
    final: float = Field(default=0.0, ge=0, le=1, description=FINAL)

    def _after(self, position: float) -> float:
        return 1 - (1 - self.final) * max(0.0, (position - (1 - self.decay)) / self.decay)


ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | LinearSchedule | WSDSchedule, Field(discriminator="name")
]
