"""How two figures differ, in a sentence."""

from __future__ import annotations

from llmtool.core import console
from llmtool.metrics import direction
from llmtool.metrics.bootstrap import Difference

# Figures that are no shares.
UNITS = {"mae", "rmse", "rmse_log", "r2", "log_loss", "loss", "perplexity", "bits_per_byte"}
UNITS |= {"byte_perplexity", "word_perplexity"}


def sentence(name: str, difference: Difference, p: float | None = None) -> str:
    """ "better by 0.8 points, interval 0.2 to 1.4"; shares are in points of a hundred."""
    share = name not in UNITS
    shown = lambda value: f"{100 * value:.2f}" if share else console.number(value)  # noqa: E731
    unit = " points" * share
    low, high, value = difference.low, difference.high, difference.value
    if low is None or high is None:
        return f"{'+' * (value > 0)}{shown(value)}{unit}, no interval: {difference.reason}"
    if low == high == 0:
        return "no difference at all"
    test = "" if p is None else f", McNemar p {p:.2g}"
    clear = difference.clear if p is None else p < 0.05  # accuracy goes by McNemar's test
    if not clear:
        sign = "+" * (value > 0)
        return (
            f"no clear difference: {sign}{shown(value)}{unit}, interval {shown(low)} to {shown(high)}{test}"
        )
    word = "better" if (value > 0) == (direction(name) == "max") else "worse"
    if value < 0:
        low, high, value = -high, -low, -value
    return f"{word} by {shown(value)}{unit}, interval {shown(low)} to {shown(high)}{test}"
