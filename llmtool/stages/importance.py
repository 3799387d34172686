"""Which columns a scored model leans on: how much worse a figure is when one of them is shuffled."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmtool.core import seeds
from llmtool.core.contracts import Batch, Tally, Tokens
from llmtool.core.errors import ConfigError
from llmtool.data import decoding
from llmtool.data.batches import gather
from llmtool.evaluation import EvaluateConfig, attribution
from llmtool.evaluation.loop import evaluate
from llmtool.metrics import HEADLINE
from llmtool.stages import score
from llmtool.stages.assemble import Assembled


def importance(assembled: Assembled, split: str, config: EvaluateConfig) -> dict[str, Any]:
    """What explain.json says of the columns of a table, or of those beside texts."""
    asked = config.explain
    assert asked is not None
    data, figure = assembled.dataset.split(split), config.metric or HEADLINE[assembled.targets["kind"]]
    rows = np.arange(data.rows)
    if data.rows > asked.most_rows:
        chosen = seeds.generator(assembled.seed, "explain", split).choice(
            data.rows, asked.most_rows, replace=False
        )
        rows = np.sort(chosen)
    inputs = torch.from_numpy(decoding.features_of(data)[rows])
    targets = torch.from_numpy(np.asarray(data.arrays["targets"][rows]))
    model, texts = assembled.model, None
    if isinstance(assembled.dataset.inputs, Tokens):
        model, texts = _Head(model), _vectors(assembled, split, rows, config)

    def measure(changed: Tensor) -> Tally:
        parts = (
            Batch(changed[at], targets[at])
            if texts is None
            else Batch(texts[at], targets[at], features=changed[at])
            for at in torch.arange(len(rows)).split(score.FEATURE_ROWS)
        )
        autocast = lambda: assembled.precision.autocast(assembled.device)  # noqa: E731
        return evaluate(assembled.task, model, parts, assembled.device, autocast)

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


class _Head(nn.Module):
    """The head of a model that reads columns beside texts: what stands for a text stays the same however the
    columns are shuffled, and takes almost all of the time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, texts: Tensor, segments: None, features: Tensor) -> Tensor:
        """(B, D) vectors of texts, (B, F) -> (B, C)."""
        found: Tensor = self.head(texts, features)
        return found


def _vectors(assembled: Assembled, split: str, rows: np.ndarray, config: EvaluateConfig) -> Tensor:
    """(n, D) on the host: what the model's head reads of the text of each of these rows."""
    model: Any = assembled.model
    batches = assembled.batches(split)
    assert batches.scored is not None
    sorted_rows = batches.scored[np.isin(batches.scored, rows)]  # shorter texts first: little is padding
    size = score.auto_batch(assembled, batches.tokens_per_row) if config.batch == "auto" else config.batch

    def read(count: int) -> Tensor:
        seen: list[Tensor] = []
        handle = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
        try:
            parts = (gather(batches, sorted_rows[at : at + count]) for at in range(0, len(rows), count))
            autocast = lambda: assembled.precision.autocast(assembled.device)  # noqa: E731
            evaluate(assembled.task, model, parts, assembled.device, autocast)
        finally:
            handle.remove()
        return torch.cat(seen)

    found, _ = score.in_parts(read, size, f"explaining {split}", 1 if config.batch == "auto" else size)
    return found[torch.from_numpy(np.argsort(sorted_rows))]
