"""How often the 95 % intervals hold the true figure: 1 000 simulated data sets for each case.

    python scripts/benchmarks/coverage.py --save

The truth is the figure's value on two million rows (documents) of the same make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import numpy as np
import torch

from llmtool.metrics.bootstrap import intervals
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally

SETS, TRUTH = 1000, 2_000_000
Random = np.random.Generator


def classes(random: Random, rows: int) -> ClassificationTally:
    """Two classes, three rows in ten positive, scores two deviations apart: accuracy about 0.85."""
    targets = (random.random(rows) < 0.3).astype(np.int64)
    score = random.normal(2.0 * targets - 1.2, 1.0)
    logits = np.stack([np.zeros(rows), score], axis=1)
    return ClassificationTally(torch.from_numpy(logits), torch.from_numpy(targets), ["no", "yes"])


def values(random: Random, rows: int, heavy: bool = False) -> RegressionTally:
    """Normal errors that grow with the target; heavy: a Student's t with 8 degrees of freedom, whose squares
    have no fourth moment (no resampling method is good at that)."""
    targets = random.normal(0.0, 2.0, (rows, 1))
    errors = random.standard_t(8, (rows, 1)) if heavy else random.normal(0, 1 + np.abs(targets) / 4)
    predictions = targets + errors
    return RegressionTally(torch.from_numpy(predictions), torch.from_numpy(targets), ["y"], [0.0], [1.0])


def documents(random: Random, rows: int) -> LanguageTally:
    """Documents of log-normal length, each of its own difficulty."""
    tokens = np.maximum(1, random.lognormal(5.0, 0.6, rows)).astype(np.int64)
    nats = tokens * np.maximum(0.1, random.normal(2.0, 0.4, rows))
    parts = (torch.from_numpy(part) for part in (nats, tokens, tokens // 3))
    nats_, tokens_, correct = parts
    return LanguageTally(nats_, tokens_, correct)


CASES: dict[str, tuple[Callable[[Random, int], Any], int]] = {
    "accuracy": (classes, 500),
    "f1": (classes, 500),
    "roc_auc": (classes, 500),
    "rmse": (values, 500),
    "rmse, heavy tails": (partial(values, heavy=True), 500),
    "perplexity": (documents, 200),
}


def covered(name: str, sets: int, truth_rows: int) -> dict[str, Any]:
    """The share of the sets whose interval holds the truth."""
    make, rows = CASES[name]
    name = name.partition(",")[0]
    truth = make(np.random.default_rng(10**6), truth_rows).metrics()[name]
    inside = below = 0
    widths = []
    for number in range(sets):
        low, high = intervals(make(np.random.default_rng(number), rows), number).found[name]
        inside += low <= truth <= high
        below += truth < low
        widths.append(high - low)
    share = inside / sets
    return {
        "rows": rows,
        "truth": truth,
        "covered": share,
        "error95": 1.96 * math.sqrt(share * (1 - share) / sets),
        "truth_below": below / sets,
        "truth_above": 1 - share - below / sets,
        "mean_width": float(np.mean(widths)),
    }


def main() -> None:
    options = common.parser(__doc__ or "").parse_args()
    sets, truth = (50, 200_000) if options.short else (SETS, TRUTH)
    figures = {name: covered(name, sets, truth) for name in CASES}
    rows = [[name, f["rows"], f["covered"], f["error95"], f["truth_below"], f["truth_above"]]
            for name, f in figures.items()]  # fmt: skip
    common.table(f"95 % intervals of {sets} sets", ["figure", "rows", "covered", "±", "below", "above"], rows)
    common.save(options, "coverage", {"sets": sets, **figures}, common.versions("numpy", "torch"))


if __name__ == "__main__":
    main()
