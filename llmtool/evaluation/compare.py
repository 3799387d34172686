"""Two runs scored on the same rows: read back from what `evaluate` wrote, and compared row by row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtool.core import files
from llmtool.core.contracts import Tally
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.evaluation import answers
from llmtool.evaluation.report import PROBABILITY, harmless
from llmtool.evaluation.sentences import sentence
from llmtool.metrics import bootstrap
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally
from llmtool.metrics.suites import SuiteTally

REPORT, PREDICTIONS = "report.json", "predictions.csv"
SMALLEST = 1e-300  # a probability of 0 in the file was smaller than a number can be


@dataclass(frozen=True)
class Saved:
    """What an earlier `evaluate` found: its report, and the evidence of splits and suites read back."""

    directory: Path
    report: dict[str, Any]
    tallies: dict[str, Tally]
    suites: dict[str, SuiteTally]


def find_evaluation(path: str) -> Path:
    """The evaluate directory that a run, or that directory itself, stands for. ConfigError where none is."""
    for candidate in (Path(path), Path(path) / "evaluate"):
        if (candidate / REPORT).is_file():
            return candidate
    raise ConfigError(f"{path}: no evaluation here (no {REPORT} in it or in evaluate/); run evaluate there")


def saved(path: str) -> Saved:
    """The evidence that an evaluation left. ConfigError where there is none, or it is not whole."""
    directory = find_evaluation(path)
    try:
        report = files.read_json(directory / REPORT)
        if files.hash_file(directory / PREDICTIONS) != report["predictions"]["file"]:
            raise ValueError(f"{PREDICTIONS} is not the file that was written with {REPORT}")
        str(report["dataset"]["fingerprint"])  # what comparisons read of it
        tallies = _tallies(report, _columns(directory / PREDICTIONS))
        return Saved(directory, report, tallies, answers.saved(directory, report.get("suites", {})))
    except (LlmtoolError, ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        raise ConfigError(
            f"{directory}: not a whole evaluation of this version ({error}); run evaluate there again"
        ) from None


def compare(
    tallies: Mapping[str, Tally], fingerprint: str, other: Saved, figure: str, seed: int
) -> dict[str, Any]:
    """How these splits did beside `other`, for report.json: each figure here, there, and their difference.

    fingerprint: of the dataset scored here. figure: the one that is spoken of first. Never raises: where
    nothing can be compared, `says` has the reason.
    """
    splits: dict[str, dict[str, Any]] = {}
    says: list[str] = []
    theirs = other.report["dataset"]["fingerprint"]
    if theirs != fingerprint:
        says = [f"not compared with {other.directory}: it was scored on another dataset ({theirs})"]
        return {"with": str(other.directory), "splits": {}, "says": says}
    for split, tally in tallies.items():
        there = other.tallies.get(split)
        if there is None or type(there) is not type(tally) or there.units != tally.units:
            what = "did not score it" if there is None else "has other rows or another kind of target"
            says.append(f"{split}: not compared, since {other.directory} {what}")
            continue
        splits[split] = _figures(tally, there, seed)
        shown = [name for name in dict.fromkeys([figure, *splits[split]]) if name in splits[split]][:1]
        says += [f"{split} {name}: {splits[split][name]['says']}" for name in shown]
    return {"with": str(other.directory), "splits": splits, "says": says}


def _figures(tally: Tally, there: Tally, seed: int) -> dict[str, Any]:
    if isinstance(tally, RegressionTally) and isinstance(there, RegressionTally):
        there.log_scale = tally.log_scale  # which its file does not say; the data is the same
    found = bootstrap.paired(tally, there, seed)
    here, other = tally.metrics(), there.metrics()
    p = None
    if isinstance(tally, ClassificationTally) and isinstance(there, ClassificationTally):
        mine, theirs = tally.judgement(), there.judgement()
        p = bootstrap.mcnemar(mine.predicted == mine.targets, theirs.predicted == theirs.targets)
    return {
        name: {
            "here": here[name],
            "there": other[name],
            "difference": difference.value,
            "interval": None if difference.low is None else [difference.low, difference.high],
            "p": p if name == "accuracy" else None,
            "says": sentence(name, difference, p if name == "accuracy" else None),
        }
        for name, difference in found.items()
    }


# --- what evaluate wrote ---


def _columns(path: Path) -> dict[str, dict[str, list[str]]]:
    """Split -> column -> cells."""
    result: dict[str, dict[str, list[str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        rows: dict[str, list[list[str]]] = {}
        for row in reader:
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} of {path.name} has {len(row)} cells of {len(header)}"
                )
            rows.setdefault(row[0], []).append(row)
    for split, lines in rows.items():
        result[split] = dict(zip(header, map(list, zip(*lines, strict=True)), strict=True))
    return result


def _tallies(
    report: Mapping[str, Any], columns: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, Tally]:
    return {split: _tally(cells, report["details"].get(split, {})) for split, cells in columns.items()}


def _tally(cells: Mapping[str, Sequence[str]], details: Mapping[str, Any]) -> Tally:
    names = [name.removeprefix(PROBABILITY) for name in cells if name.startswith(PROBABILITY)]
    if names and "target" not in cells:
        shares = np.stack([_numbers(cells[PROBABILITY + name]) for name in names], axis=1)
        logits = torch.special.logit(torch.from_numpy(shares), eps=SMALLEST)
        labels = torch.tensor([[int(one) for one in cells[f"target {name}"]] for name in names]).T
        return LabelTally(logits, labels, names, [one["threshold"] for one in details.get("per_class", [])])
    if names:
        place = {harmless(name): index for index, name in enumerate(names)}
        shares = np.stack([_numbers(cells[PROBABILITY + name]) for name in names], axis=1)
        logits = torch.from_numpy(np.log(np.maximum(shares, SMALLEST)))
        targets = torch.tensor([place[name] for name in cells["target"]])
        positive = names.index(details["positive"]) if "positive" in details else 1
        return ClassificationTally(logits, targets, names, positive)
    if "judged" in cells:
        columns = ("nats", "tokens", "correct", "legal", "legal_mass", "judged")
        return GamesTally(*(torch.from_numpy(_numbers(cells[name])) for name in columns))
    if "nats" in cells:
        nats, tokens, correct = (torch.from_numpy(_numbers(cells[n])) for n in ("nats", "tokens", "correct"))
        return LanguageTally(nats, tokens, correct, details.get("bytes"))
    found = [name.removeprefix("target").strip() for name in cells if name.startswith("target")]
    values = np.stack([_numbers(cells[f"target {name}".strip()]) for name in found], axis=1)
    predictions = np.stack([_numbers(cells[f"prediction {name}".strip()]) for name in found], axis=1)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0
    standard = torch.from_numpy((predictions - mean) / scale)
    return RegressionTally(standard, torch.from_numpy(values), found, list(mean), list(scale))


def _numbers(cells: Sequence[str]) -> np.ndarray:
    """(n,) float64; an empty cell is a number that was not finite."""
    return np.array([float(cell) if cell else math.nan for cell in cells])
