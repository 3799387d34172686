"""The guard: whether a step's loss and gradient may move the weights, judged by the steps before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from llmtool.core.config import Section

WINDOW = 128  # losses of the last steps that a new one is held against
ENOUGH = 32  # of them before a jump is looked for: at first a loss moves fast
QUARTER = 0.25

Why = Literal["", "not finite", "jumped"]


class GuardConfig(Section):
    """What happens to an update whose loss or gradient is not finite, or whose loss jumps."""

    action: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: training ends before that update; skip: it is left out and counted "
        "(on CUDA the device is then waited for at every step)",
    )
    spread: float | None = Field(
        default=20.0,
        gt=0,
        description="a loss jumps when it is above all of the last 128 steps', so many of their standard "
        "deviations above their mean, and no less than a quarter of the loss that training began with; "
        "null: only what is not finite is refused",
    )
    most: int = Field(
        default=10, gt=0, description="updates left out in a row, after which training stops all the same"
    )


def mean_and_deviation(recent: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of losses, of which there is at least one."""
    mean = math.fsum(recent) / len(recent)
    return mean, math.dist(recent, [mean] * len(recent)) / math.sqrt(len(recent))


@dataclass(frozen=True)
class Memory:
    """recent: losses of the last updates made, the oldest first. began: the median of the very first."""

    recent: list[float]
    began: float | None

    def limit(self, spread: float | None) -> float:
        """The loss above which a step's jumps; infinity while too few are known.

        A model that knows its rows by heart has losses near 0 and stumbles now and then, many deviations high
        and harmless: below a quarter of what it began with nothing is a jump.
        """
        if spread is None or not self.began:  # one that began with no loss at all has no scale to go by
            return math.inf
        mean, deviation = mean_and_deviation(self.recent)
        return max(*self.recent, mean + spread * deviation, QUARTER * self.began)


def verdict(loss: float, norm: float, most: float) -> Why:
    """What is wrong with a step; "" where nothing is."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "not finite"
    return "jumped" if loss > most else ""


class Guard:
    """Judges losses that the host knows, by those of the updates that were made."""

    def __init__(self, spread: float | None, memory: Memory) -> None:
        self.spread, self.began = spread, memory.began
        self.recent = deque(memory.recent, maxlen=WINDOW)

    def judge(self, loss: float, norm: float) -> Why:
        """Why this step must change nothing; "" for a good one."""
        # most losses lie below one of the two that are quickly had
        low = not self.began or loss <= QUARTER * self.began or loss <= max(self.recent)
        return verdict(loss, norm, math.inf if low else self.limit())

    def remember(self, loss: float) -> None:
        """The update of the step that had this loss is made."""
        self.recent.append(loss)
        if len(self.recent) == ENOUGH and self.began is None:
            self.began = sorted(self.recent)[ENOUGH // 2]

    def limit(self) -> float:
        """The loss above which the next step's jumps."""
        return self.memory().limit(self.spread)

    def memory(self) -> Memory:
        """What a resumed run needs."""
        return Memory(list(self.recent), self.began)


class DeviceGuard:
    """The same on the device, where nobody waits for it: from the first bad step on all steps are bad.

    first: int64 scalar, the number (from 0) of the first bad step, or -1.
    """

    def __init__(self, spread: float | None, memory: Memory, device: torch.device) -> None:
        self.spread = spread
        self.first = torch.tensor(-1, device=device)
        self._ring = torch.zeros(WINDOW, dtype=torch.float64, device=device)
        self._seen = len(memory.recent)
        self._ring[: self._seen] = torch.tensor(memory.recent, dtype=torch.float64)
        began = memory.began
        self._began = None if began is None else torch.tensor(began, dtype=torch.float64, device=device)

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Bool scalar: whether this step must change nothing. loss, norm: float64 scalars."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self.spread is not None and self._began is not None:
            recent = self._ring[: min(self._seen, WINDOW)]
            deviation, mean = torch.std_mean(recent, correction=0)
            floor = torch.where(self._began > 0, QUARTER * self._began, math.inf)
            limit = torch.maximum(mean + self.spread * deviation, floor)
            bad |= loss > torch.maximum(recent.max(), limit)
        self.first = torch.where((self.first < 0) & bad, step, self.first)
        return self.first >= 0

    def remember(self, loss: Tensor) -> None:
        """The update of the step that had this loss is made, unless a bad one came before it."""
        place = self._ring[self._seen % WINDOW]
        place.copy_(torch.where(self.first >= 0, place, loss))
        self._seen += 1
        if self._seen == ENOUGH and self._began is None:
            self._began = self._ring[:ENOUGH].sort().values[ENOUGH // 2]

    def forget(self, steps: int) -> None:
        """The last so many steps came from the first bad one on: they left nothing behind."""
        self._seen -= steps

    def memory(self) -> Memory:
        """What a resumed run needs; the device is waited for."""
        ring: list[float] = self._ring.tolist()
        start = self._seen % WINDOW if self._seen > WINDOW else 0
        recent = [*ring[start:], *ring[:start]][: min(self._seen, WINDOW)]
        known = self._began is not None and self._seen >= ENOUGH
        return Memory(recent, float(self._began) if self._began is not None and known else None)
