"""How fast training goes: rows or tokens per second, share of the peak, time left, the loop's overhead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmtool.training.profile import ASIDE, NOTHING, Profile

SKIP = 3  # first steps of a session that are not counted: compilation, allocation, cold caches


@dataclass
class Meter:
    """Clocks of one session. Validation and saving stand aside and are not counted.

    rows: of one optimizer step. tokens_per_row: 1 for tables. flops_per_row: forward and backward, if known.
    peak: FLOP/s that the device can reach, if known. profile: records a few steps, which are not counted.
    """

    rows: int
    tokens_per_row: int = 1
    flops_per_row: float | None = None
    peak: float | None = None
    profile: Profile | None = None
    steps: int = 0  # counted ones
    seconds: float = 0.0  # of the counted steps
    work: float = 0.0  # of these, inside forward, backward, clipping and optimizer
    waited: float = 0.0  # of these, until rows were there
    _seen: int = 0
    _last: tuple[int, float, float] = (0, 0.0, 0.0)  # steps, seconds and those waited, at the last line
    _mark: float = field(default_factory=time.perf_counter)

    def step(self, work: float, waited: float = 0.0) -> None:
        """A step is done; `work` seconds of it went into forward, backward, clipping and optimizer, `waited`
        until its rows were there."""
        now = time.perf_counter()
        self._seen += 1
        recorded = self.profile is not None and self.profile.stepped()
        if self._seen > SKIP and not recorded:
            self.steps += 1
            self.seconds += now - self._mark
            self.work += work
            self.waited += waited
        self._mark = now if self.profile is None else time.perf_counter()

    def part(self, name: str) -> AbstractContextManager[Any]:
        """A part of a step, by its name in a profile."""
        return NOTHING if self.profile is None else self.profile.part(name)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time in here is not training time."""
        before = time.perf_counter()
        try:
            with self.part(ASIDE):
                yield
        finally:
            self._mark += time.perf_counter() - before

    def line(self) -> dict[str, float]:
        """Figures since the last call: rows_per_second (or tokens_per_second), peak_share where known, and
        `waiting`, the share of time until rows were there."""
        now = (self.steps, self.seconds, self.waited)
        steps, seconds, waited = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        return self._figures(int(steps), seconds, waited)

    def summary(self) -> dict[str, float]:
        """The same over the session, with `overhead`: the share of time outside the model's own work."""
        figures = self._figures(self.steps, self.seconds, self.waited)
        if self.seconds > 0:
            figures["overhead"] = max(0.0, 1 - self.work / self.seconds)
        return figures

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` more steps will take at the pace so far."""
        return self.seconds / self.steps * steps if self.steps else None

    def _figures(self, steps: int, seconds: float, waited: float) -> dict[str, float]:
        if not steps or seconds <= 0:
            return {}
        rows = steps * self.rows / seconds
        name = "rows_per_second" if self.tokens_per_row == 1 else "tokens_per_second"
        figures = {name: rows * self.tokens_per_row, "waiting": waited / seconds}
        if self.flops_per_row and self.peak:
            figures["peak_share"] = rows * self.flops_per_row / self.peak
        return figures
