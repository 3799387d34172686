"""The parts of a batch that go through the model at once: which there are, and what ends one too large."""

from __future__ import annotations


class WeightsMovedError(MemoryError):
    """Memory ran out in the middle of an update: the weights are neither those before it nor those after."""


def divisor(batch: int, most: int) -> int:
    """The largest part of a batch that divides it and is not more than `most` (at least 1)."""
    return next(part for part in range(min(max(most, 1), batch), 0, -1) if batch % part == 0)


def smaller(batch: int, part: int, least: int = 1) -> int | None:
    """The next smaller part that divides the batch; None where that is below `least`."""
    found = divisor(batch, part - 1) if part > 1 else 0
    return found if found >= least else None
