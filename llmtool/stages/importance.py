"""Which columns a scored model leans on: how much worse a figure is when one of them is shuffled."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtool.core import seeds
from llmtool.core.contracts import Batch, Tally
from llmtool.core.errors import ConfigError
from llmtool.data import decoding
from llmtool.evaluation import attribution
from llmtool.evaluation.attribution import ExplainConfig
from llmtool.evaluation.loop import evaluate
from llmtool.stages.assemble import Assembled
from llmtool.stages.judge import HEADLINE


def importance(assembled: Assembled, split: str, asked: ExplainConfig, metric: str | None) -> dict[str, Any]:
    """What explain.json says of the columns. metric: the figure; None: the headline of such targets."""
    arrays = assembled.dataset.split(split).arrays
    count, figure = len(arrays["inputs"]), metric or HEADLINE[assembled.targets["kind"]]
    rows = np.arange(count)
    if count > asked.most_rows:
        chosen = seeds.generator(assembled.seed, "explain", split).choice(
            count, asked.most_rows, replace=False
        )
        rows = np.sort(chosen)
    inputs = torch.from_numpy(np.asarray(arrays["inputs"][rows]))
    targets = torch.from_numpy(np.asarray(arrays["targets"][rows]))

    def measure(changed: Tensor) -> Tally:
        parts = (Batch(a, b) for a, b in zip(changed.split(8192), targets.split(8192), strict=True))
        autocast = lambda: assembled.precision.autocast(assembled.device)  # noqa: E731
        return evaluate(assembled.task, assembled.model, parts, assembled.device, autocast)

    blocks = decoding.blocks_of(assembled.dataset.card)
    if figure not in measure(inputs).metrics():
        raise ConfigError(f"evaluate.explain: {figure} of {split} is not defined for these rows")
    whole, found = attribution.permutation_importance(
        measure, inputs, blocks, figure, asked.repeats, assembled.seed
    )
    return {
        "metric": figure,
        "value": whole,
        "rows": len(rows),
        "repeats": asked.repeats,
        "columns": [asdict(one) for one in found],
        "together": [list(pair) for pair in attribution.together(inputs.numpy(), blocks)],
    }
