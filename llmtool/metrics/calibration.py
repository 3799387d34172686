"""Whether a classifier's confidence is right: expected calibration error, reliability table, temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtool.metrics.classification import ClassificationTally, log_softmax

Floats = NDArray[np.float64]

BINS = 15  # of equal width, as https://arxiv.org/abs/1706.04599 has them
COLDEST, HOTTEST = 0.05, 20.0  # temperatures tried


def calibration(tally: ClassificationTally, temperature: float | None = None) -> dict[str, Any]:
    """ece, bins and log_loss of a classifier; with a temperature, those of its scaled probabilities too.

    ece: mean over the rows of |accuracy - confidence| of their bin, where confidence is the probability of
    the class chosen (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3). Empty where the model's
    outputs are not finite or there are no rows.
    """
    seen = tally.judgement()
    if seen.broken or not len(seen.targets):
        return {}
    right = seen.predicted == seen.targets
    ece, bins = reliability(np.exp(seen.log_probabilities.max(axis=1)), right)
    result: dict[str, Any] = {
        "ece": ece,
        "bins": bins,
        "log_loss": _loss(seen.log_probabilities, seen.targets),
    }
    if temperature is not None:
        scaled = log_softmax(seen.logits.astype(np.float64) / temperature)
        result["ece_scaled"] = reliability(np.exp(scaled.max(axis=1)), right)[0]
        result["log_loss_scaled"] = _loss(scaled, seen.targets)
    return result


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error, and each bin's low, high, rows, mean confidence, accuracy (None if empty).

    confidence: (n,) from 0 to 1; a bin holds its upper end, the first also 0.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    sums, hits = (np.bincount(place, weights, BINS) for weights in (confidence, right.astype(float)))
    bins = [
        {
            "low": at / BINS,
            "high": (at + 1) / BINS,
            "rows": int(rows[at]),
            "confidence": float(sums[at] / rows[at]) if rows[at] else None,
            "accuracy": float(hits[at] / rows[at]) if rows[at] else None,
        }
        for at in range(BINS)
    ]
    return float(np.abs(hits - sums).sum() / max(1, len(confidence))), bins


def temperature(tally: ClassificationTally) -> tuple[float | None, str]:
    """The temperature that makes these rows likeliest, and "" - or None and why there is none.

    Logits are divided by it; which class is chosen does not change. The loss is convex in 1 / temperature, so
    that its slope is 0 in one place.
    """
    seen = tally.judgement()
    if seen.broken or not len(seen.targets):
        return None, "there are no rows" if not seen.broken else "the model's outputs are not finite"
    logits = seen.logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    of_target = logits[np.arange(len(logits)), seen.targets].sum()

    def slope(inverse: float) -> float:
        return float((np.exp(log_softmax(inverse * logits)) * logits).sum() - of_target)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if not logits.any():
        return None, "every class is as likely as the others in every row"
    if slope(high) < 0:
        return None, "the surer the better on these rows: they are too few, or too easy"
    if slope(low) > 0:
        return None, "the model's confidence says nothing on these rows"
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float((low * high) ** -0.5), ""


def _loss(log_probabilities: Floats, targets: NDArray[np.int64]) -> float:
    return float(-log_probabilities[np.arange(len(targets)), targets].mean())
