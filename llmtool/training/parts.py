"""The parts of a batch that go through the model at once: which there are, and what ends one too large."""

from __future__ import annotations

from collections.abc import Callable


class WeightsMovedError(MemoryError):
    """Memory ran out in the middle of an update: the weights are neither those before it nor those after."""


def divisor(batch: int, most: int) -> int:
    """The largest part of a batch that divides it and is not more than `most` (at least 1)."""
    return next(part for part in range(min(max(most, 1), batch), 0, -1) if batch % part == 0)


def smaller(batch: int, part: int, least: int = 1) -> int | None:
    """The next smaller part that divides the batch; None where that is below `least`."""
    found = divisor(batch, part - 1) if part > 1 else 0
    return found if found >= least else None


def most_that_fits(batch: int, most: int, fits: Callable[[int], bool], least: int = 1) -> int | None:
    """The largest part that divides the batch, fits, and is not above `most`; None where none does.

    What fits is asked for as few parts as can be: a part fits where a larger one does.
    """
    parts = [size for size in range(min(most, batch), least - 1, -1) if batch % size == 0]
    low, high = 0, len(parts)  # the answer is parts[low] to parts[high - 1], or none
    while low < high:
        middle = (low + high) // 2
        if fits(parts[middle]):
            high = middle
        else:
            low = middle + 1
    return parts[low] if low < len(parts) else None
