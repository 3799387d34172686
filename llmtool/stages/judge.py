"""What the figures of a scored model are worth: how sure they are, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.core import console
from llmtool.core.contracts import Tally, Tokens
from llmtool.data import decoding, overlap
from llmtool.data.batches import in_stretches, is_labelled, unit_edges
from llmtool.data.store import Dataset, Split
from llmtool.evaluation import EvaluateConfig, baselines, compare, examples, slices
from llmtool.evaluation.baselines import Baseline
from llmtool.evaluation.sentences import sentence
from llmtool.metrics import HEADLINE, bootstrap, calibration, direction
from llmtool.metrics.classification import ClassificationTally
from llmtool.stages import by_part
from llmtool.stages.assemble import Assembled
from llmtool.stages.score import origin

CACHE = ".cache"  # beside the stages of a run: what model and baselines predicted, for the next evaluation


def judge(
    assembled: Assembled,
    tallies: Mapping[str, Tally],
    config: EvaluateConfig,
    *,
    other: compare.Saved | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """The parts of report.json that say what the figures are worth, and under `seconds` what they took.

    other: the evaluation to compare with. cache: where the predictions of baselines are kept.
    """
    dataset, seed = assembled.dataset, assembled.seed
    figure = config.metric or HEADLINE[dataset.targets["kind"]]
    sure = {split: bootstrap.intervals(tally, seed) for split, tally in tallies.items()}
    simple = baselines.baselines(
        dataset, list(tallies), config.baselines, positive=_positive(tallies), seed=seed, cache=cache
    )
    held = against(tallies, simple, figure, seed)
    return {
        "intervals": {split: found.found for split, found in sure.items()},
        "no_interval": {split: found.missing for split, found in sure.items()},
        "bootstrap": {
            "draws": {split: found.draws for split, found in sure.items()},
            "level": bootstrap.LEVEL,
            "unit": {split: unit(dataset, dataset.split(split)) for split in tallies},
        },
        "baselines": [_baseline(one) for one in simple],
        "calibration": _calibration(tallies),
        "slices": _slices(dataset, tallies, figure, seed) if config.slices else {},
        "parts": {
            split: by_part.by_part(dataset.split(split), tally)
            for split, tally in tallies.items()
            if by_part.parts_of(dataset.card)
        },
        "examples": _examples(dataset, tallies),
        "overlap": _overlap(dataset, list(tallies)),
        "seconds": {one.name: round(one.seconds, 3) for one in simple if not one.cached},
        "against": held,
        "no_against": "" if held else _no_against(tallies, simple, figure),
        "comparison": compare.compare(tallies, dataset.fingerprint, other, figure, seed) if other else None,
    }


def _calibration(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Of each split; the temperature is fitted on validation alone."""
    found: dict[str, Any] = {}
    fitted, why = None, "the temperature is fitted on validation, which was not scored"
    if isinstance(validation := tallies.get("validation"), ClassificationTally):
        fitted, why = calibration.temperature(validation)
    for split, tally in tallies.items():
        if isinstance(tally, ClassificationTally) and (made := calibration.calibration(tally, fitted)):
            found[split] = {**made, "temperature": fitted, "no_temperature": why}
    return found


def _slices(dataset: Dataset, tallies: Mapping[str, Tally], figure: str, seed: int) -> dict[str, Any]:
    """Of the last split: by the columns of a table and its classes, the length of documents, the part of a
    mixture."""
    split, tally = list(tallies.items())[-1]
    if figure not in tally.metrics():
        return {}
    # nothing but their part tells stretches apart
    columns = {} if _stretches(dataset, split) else decoding.columns_of(dataset, split)
    columns = by_part.columns(dataset.split(split)) | columns
    if isinstance(tally, ClassificationTally) and figure in ("accuracy", "log_loss"):
        names = np.array(tally.names, dtype=object)
        columns["class"] = names[tally.judgement().targets]
    return {split: made} if (made := slices.slices(tally, columns, figure, seed)) else {}


def _examples(dataset: Dataset, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Of the last split."""
    split, tally = list(tallies.items())[-1]
    known = origin(dataset, [split]).get(split)
    edges = unit_edges(dataset.split(split)) if _stretches(dataset, split) else None

    def place(row: int) -> str:
        if edges is not None:
            return f"tokens {edges[row]:,} to {edges[row + 1]:,}"
        if not known:
            return f"{row + 1:,}"
        return f"{known['file'][row]}" + (f":{known['line'][row]}" if "line" in known else "")

    found = examples.examples(tally, place)
    return {split: found} if found else {}


def _no_against(tallies: Mapping[str, Tally], simple: Sequence[Baseline], figure: str) -> str:
    """Why the model cannot be held against a baseline."""
    split, tally = list(tallies.items())[-1]
    if figure in tally.undefined:
        return f"no {figure} of {split}: {tally.undefined[figure]}"
    why = "; ".join(f"{one.name}: {one.missing}" for one in simple if one.missing)
    return f"no baseline has {figure} of {split}" + f" ({why})" * bool(why)


def _stretches(dataset: Dataset, split: str) -> bool:
    """Whether the units of this split are stretches of one length, of a text that has few documents."""
    return isinstance(dataset.inputs, Tokens) and in_stretches(dataset.split(split))


def _overlap(dataset: Dataset, splits: Sequence[str]) -> dict[str, Any]:
    if not isinstance(dataset.inputs, Tokens):
        return {}
    return {split: overlap.overlap(dataset, split) for split in splits if split != "train"}


def _positive(tallies: Mapping[str, Tally]) -> int:
    return next((tally.positive for tally in tallies.values() if isinstance(tally, ClassificationTally)), 1)


def _baseline(one: Baseline) -> dict[str, Any]:
    fields = {key: getattr(one, key) for key in ("name", "about", "note", "missing")}
    return {**fields, "metrics": {split: tally.metrics() for split, tally in one.tallies.items()}}


def against(
    tallies: Mapping[str, Tally], simple: Sequence[Baseline], figure: str, seed: int
) -> dict[str, Any] | None:
    """The model beside the strongest baseline, by the headline figure of the last split, row by row."""
    split = list(tallies)[-1]
    best = baselines.strongest(simple, split, figure)
    if best is None or figure not in tallies[split].metrics():
        return None
    mine, theirs = tallies[split], best.tallies[split]
    found = bootstrap.paired(mine, theirs, seed)[figure]
    better = (found.value > 0) == (direction(figure) == "max")
    values = [tally.metrics()[figure] for tally in (mine, theirs)]
    return {
        "split": split,
        "metric": figure,
        "baseline": best.name,
        "value": values[0],
        "theirs": values[1],
        "difference": found.value,
        "interval": None if found.low is None else [found.low, found.high],
        "beats": better and found.clear,
        "says": f"{split} {figure} {console.number(values[0])} against {console.number(values[1])} of "
        f"{best.name}: {sentence(figure, found)}",
    }


def unit(dataset: Dataset, split: Split) -> str:
    """What is drawn, in words."""
    if not isinstance(dataset.inputs, Tokens):
        return "row"
    if is_labelled(split):
        return "text"
    if not _stretches(dataset, split.name):
        return "game" if "game" in dataset.targets else "document"
    edges = unit_edges(split)
    length = int(edges[-1]) / max(1, len(edges) - 1)
    return f"stretch of about {int(float(f'{length:.1g}')):,} tokens"
