"""Several labels a row: the logits of the rows scored, and the figures that follow, averaged two ways."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtool.metrics.classification import entries, ranking_areas, ratio, resampled_areas

RATES = ("precision", "recall", "f1")
FIGURES = (
    *(name for rate in RATES for name in (rate, f"{rate}_micro", f"{rate}_macro")),
    "subset_accuracy", "hamming_loss", "mean_average_precision", "roc_auc", "log_loss",
)  # fmt: skip
HALF = 0.5

Floats = NDArray[np.float64]


class LabelTally:
    """The logits and the targets of the rows scored so far; a label is given from its threshold on.

    logits: (n, C) float32 on any device. targets: (n, C), 1 where the row has the label. names: of the C
    labels. thresholds: (C,) probabilities.
    """

    def __init__(
        self, logits: Tensor, targets: Tensor, names: list[str], thresholds: list[float] | None = None
    ) -> None:
        # Copies: a compiled model may write its next outputs over these, and a loader its next batch.
        self._logits = [logits.detach().to(torch.float32, copy=True)]
        self._targets = [targets.detach().to(torch.uint8, copy=True)]
        self.names = names
        self.thresholds = list(thresholds or [HALF] * len(names))
        self._seen: Seen | None = None

    def add(self, other: Self) -> None:
        """Take in the rows of another batch, after those here; nothing waits for the device."""
        self._logits += other._logits
        self._targets += other._targets
        self._seen = None

    def to_host(self) -> None:
        """Everything so far in one piece in the host's memory."""
        self._logits = [torch.cat([part.cpu() for part in self._logits])]
        self._targets = [torch.cat([part.cpu() for part in self._targets])]

    def seen(self) -> Seen:
        """The rows as arrays on the host, and what follows from them."""
        if self._seen is None:
            self.to_host()
            thresholds = np.asarray(self.thresholds, np.float64)
            self._seen = Seen(self._logits[0].numpy(), self._targets[0].numpy() > 0, thresholds)
        return self._seen

    def metrics(self) -> dict[str, float]:
        """Precision, recall and F1 over all labels together (micro) and of each, averaged (macro); the share
        of rows with all labels right; of labels wrong; areas averaged over labels; log loss of a label."""
        return self._figures()[0]

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these rows leave undefined: name -> reason."""
        return self._figures()[1]

    def details(self) -> dict[str, Any]:
        """`per_class`: an entry a label, with its threshold; `labels_a_row`: how many are true, and given."""
        seen = self.seen()
        if not len(seen.targets) or seen.broken:
            return {}
        rows = {"true": float(seen.targets.sum(axis=1).mean()), "given": float(seen.given.sum(axis=1).mean())}
        return {"per_class": self._per_label(), "labels_a_row": rows}

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns `target <name>`, `prediction <name>` (0 or 1) and `probability <name>` of each label."""
        seen = self.seen()
        columns = {f"target {name}": seen.targets[:, i].astype(np.int64) for i, name in enumerate(self.names)}
        columns |= {
            f"prediction {name}": seen.given[:, i].astype(np.int64) for i, name in enumerate(self.names)
        }
        return columns | {f"probability {name}": seen.shares[:, i] for i, name in enumerate(self.names)}

    @property
    def units(self) -> int:
        """Rows."""
        return len(self.seen().targets)

    @property
    def width(self) -> int:
        """Rankings: one of each label."""
        return len(self.names)

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, Floats]:
        """Every figure with row i counted weights[b, i] times: name -> (B,), NaN where undefined."""
        seen = self.seen()
        hits, support, chosen = (
            weights @ part.astype(np.int64) for part in (seen.targets & seen.given, seen.targets, seen.given)
        )  # (B, C)
        rows = weights.sum(axis=1)
        result = counted(hits, support, chosen)
        result["subset_accuracy"] = weights @ seen.exact / rows
        result["hamming_loss"] = weights @ seen.wrong / rows
        if only in result:
            return result
        result["log_loss"] = weights @ seen.surprise / rows
        areas = [
            resampled_areas(seen.shares[:, c], seen.targets[:, c], weights)
            for c in np.flatnonzero(seen.varies)
        ]
        none = np.full(len(weights), np.nan)
        result["roc_auc"] = np.mean([roc for roc, _ in areas], axis=0) if areas else none
        result["mean_average_precision"] = np.mean([one for _, one in areas], axis=0) if areas else none
        return result

    def take(self, units: np.ndarray) -> LabelTally:
        """The evidence of these rows alone; units: their numbers, or a bool for each."""
        seen, rows = self.seen(), np.asarray(units)
        logits, targets = torch.from_numpy(seen.logits[rows]), torch.from_numpy(seen.targets[rows])
        return LabelTally(logits, targets, self.names, self.thresholds)

    def best_thresholds(self) -> list[float]:
        """(C,) the threshold of each label with the highest F1 on these rows, 0.5 where none has it."""
        seen = self.seen()
        return [best_threshold(seen.shares[:, c], seen.targets[:, c]) for c in range(len(self.names))]

    def _figures(self) -> tuple[dict[str, float], dict[str, str]]:
        seen = self.seen()
        if seen.broken or not len(seen.targets):
            why = f"the model's outputs are not finite in {seen.broken} rows" if seen.broken else ""
            return {}, dict.fromkeys(FIGURES, why or "there are no rows")
        result = {name: float(value) for name, value in counted(*self._counts()).items()}
        result |= {"subset_accuracy": float(seen.exact.mean()), "hamming_loss": float(seen.wrong.mean())}
        missing = {}
        if seen.varies.any():
            roc, precision = (part[seen.varies].mean() for part in seen.areas)
            result |= {"mean_average_precision": float(precision), "roc_auc": float(roc)}
        else:
            reason = "each label is in all of the rows or in none"
            missing = dict.fromkeys(("mean_average_precision", "roc_auc"), reason)
        return result | {"log_loss": float(seen.surprise.mean())}, missing

    def _per_label(self) -> list[dict[str, Any]]:
        found = entries(self.names, *self._counts(), self.seen().areas)
        return [
            {**entry, "threshold": threshold} for entry, threshold in zip(found, self.thresholds, strict=True)
        ]

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C,) each: rows that were rightly given the label, that have it, and that were given it."""
        seen = self.seen()
        parts = seen.targets & seen.given, seen.targets, seen.given
        hits, support, chosen = (part.sum(axis=0) for part in parts)
        return hits, support, chosen


class Seen:
    """Scored rows on the host. logits: (n, C) float32. targets: (n, C) bool. thresholds: (C,)."""

    def __init__(self, logits: NDArray[np.float32], targets: NDArray[np.bool_], thresholds: Floats) -> None:
        self.logits, self.targets, self.thresholds = logits, targets, thresholds

    @cached_property
    def broken(self) -> int:
        """Rows whose logits are NaN or infinite: nothing can be said of them."""
        return int((~np.isfinite(self.logits)).any(axis=1).sum())

    @cached_property
    def shares(self) -> Floats:
        """(n, C) probabilities."""
        return torch.from_numpy(self.logits).double().sigmoid().numpy()

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """(n, C) the labels that the model gives."""
        return self.shares >= self.thresholds

    @cached_property
    def exact(self) -> Floats:
        """(n,) 1 where all labels of the row are right."""
        return (self.given == self.targets).all(axis=1).astype(np.float64)

    @cached_property
    def wrong(self) -> Floats:
        """(n,) share of the row's labels that are wrong."""
        return (self.given != self.targets).mean(axis=1)

    @cached_property
    def surprise(self) -> Floats:
        """(n,) mean over the labels of minus the logarithm of the probability of what is true, in nats."""
        logits = torch.from_numpy(self.logits).double()
        true = torch.where(torch.from_numpy(self.targets), logits, -logits)
        return -torch.nn.functional.logsigmoid(true).mean(dim=1).numpy()

    @cached_property
    def varies(self) -> NDArray[np.bool_]:
        """(C,) whether some rows have the label and some have not."""
        count = self.targets.sum(axis=0)
        return (count > 0) & (count < len(self.targets))

    @cached_property
    def areas(self) -> tuple[Floats, Floats]:
        """(C,) ROC-AUC and average precision of each label; NaN where undefined."""
        pairs = [ranking_areas(self.shares[:, c], self.targets[:, c]) for c in range(self.targets.shape[1])]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def counted(hits: NDArray[Any], support: NDArray[Any], chosen: NDArray[Any]) -> dict[str, Floats]:
    """Precision, recall and F1 of (..., C) counts: over all labels together, and the mean of each label's,
    which is 0 where it is undefined (scikit-learn's zero_division=0). `f1` is `f1_micro`."""
    rates = {"precision": (hits, chosen), "recall": (hits, support), "f1": (2 * hits, support + chosen)}
    result = {}
    for name, (above, below) in rates.items():
        result[name] = result[f"{name}_micro"] = ratio(above.sum(axis=-1), below.sum(axis=-1))
        result[f"{name}_macro"] = ratio(above, below).mean(axis=-1)
    return result


def best_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The threshold with the highest F1, in the middle of two scores; 0.5 without rows of either kind."""
    if not positive.any() or positive.all():
        return HALF
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[ends]
    best = int(np.argmax(2 * hits / (positive.sum() + ends + 1)))
    lowest = scores[order][ends[best]]
    below = scores[order][ends[best] + 1] if best + 1 < len(ends) else 0.0
    return float((lowest + below) / 2)
