"""What the figures of a scored model are worth: how sure they are, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtool.core.contracts import Tally, Tokens
from llmtool.core.errors import ConfigError
from llmtool.data.batches import FEW, unit_edges
from llmtool.data.store import Dataset, Split
from llmtool.evaluation import EvaluateConfig, compare
from llmtool.metrics import bootstrap
from llmtool.stages.assemble import Assembled

HEADLINE = {"classes": "accuracy", "values": "rmse", "next_token": "loss"}


def judge(
    assembled: Assembled, tallies: Mapping[str, Tally], config: EvaluateConfig, other: compare.Saved | None
) -> dict[str, Any]:
    """The parts of report.json that say what the figures are worth.

    other: the evaluation to compare with. Raises ConfigError for an `evaluate.metric` that is no figure.
    """
    dataset, seed = assembled.dataset, assembled.seed
    figure = headline(config, dataset, tallies)
    sure = {split: bootstrap.intervals(tally, seed) for split, tally in tallies.items()}
    return {
        "intervals": {split: found.found for split, found in sure.items()},
        "no_interval": {split: found.missing for split, found in sure.items()},
        "bootstrap": {
            "draws": {split: found.draws for split, found in sure.items()},
            "level": bootstrap.LEVEL,
            "unit": {split: unit(dataset, dataset.split(split)) for split in tallies},
        },
        "comparison": compare.compare(tallies, dataset.fingerprint, other, figure, seed) if other else None,
    }


def headline(config: EvaluateConfig, dataset: Dataset, tallies: Mapping[str, Tally]) -> str:
    """The figure that the model is judged by. ConfigError with the choices where the task has none such."""
    figure = config.metric or HEADLINE[dataset.targets["kind"]]
    known = sorted({name for tally in tallies.values() for name in [*tally.metrics(), *tally.undefined]})
    if figure not in known:
        choices = ", ".join(known)
        raise ConfigError(f"evaluate.metric: {figure!r} is not a figure of this task (choices: {choices})")
    return figure


def unit(dataset: Dataset, split: Split) -> str:
    """What is drawn, in words."""
    if not isinstance(dataset.inputs, Tokens):
        return "row"
    documents = len(split.arrays["documents"])
    if documents >= FEW:
        return "document"
    edges = unit_edges(split)
    return f"stretch of {int(edges[-1]) // max(1, len(edges) - 1):,} tokens"
