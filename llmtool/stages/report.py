"""Collects what a run left in its directory, and writes report.html from it; nothing is scored again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import safetensors

from llmtool.core import config, files
from llmtool.core.environment import environment
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.store import CARD
from llmtool.evaluation import compare, html
from llmtool.evaluation.report import NOTHING

PAGE = "report.html"
LARGEST = 200_000_000  # bytes of metrics.jsonl that are read


def collect(root: Path, doing: str = "") -> dict[str, Any]:
    """The contents of a run's files; None for those that are not there or cannot be read.

    doing: the stage that is being done, whose result.json is that of an earlier time. Raises ConfigError for
    a directory that holds no run.
    """
    found = {stage: _read(root / stage / "result.json") for stage in html.STAGES if stage != doing}
    results = {stage: result for stage, result in found.items() if isinstance(result, dict)}
    if not results and not doing:
        raise ConfigError(
            f"{root}: no run here (no result.json of prepare, describe, train, finetune, evaluate)"
        )
    report = _read(root / "evaluate" / compare.REPORT)
    good = isinstance(report, dict) and isinstance(report.get("metrics"), dict)
    fits = {stage: rows for stage in ("train", "finetune") if (rows := _rows(root / stage / "metrics.jsonl"))}
    paths = {stage: root / stage / "experiment.yaml" for stage in ("train", "finetune")}
    experiment = next((path for path in reversed(paths.values()) if path.is_file()), None)
    return {
        "root": str(root),
        "results": results,
        "report": {**NOTHING, **report} if good and report is not None else None,
        "metrics": fits,
        "experiment": _text(experiment) if experiment else None,
        "config": _config(experiment) if experiment else None,
        "experiments": {stage: found for stage, path in paths.items() if (found := _config(path))},
        "card": _read(root / "prepare" / CARD),
        "ledger": _read(root / "prepare" / "ledger.json"),
        "leakage": _read(root / "prepare" / "leakage.json"),
        "model": _model(root),
        "describe": _read(root / "describe" / "describe.json"),
    }


def write(root: Path, doing: str = "", seconds: float = 0.0) -> Path:
    """Write the run's report.html, beside its evaluation where there is one; returns where.

    doing: the stage that ends with this page, after so many seconds.
    """
    directory, found = root / "evaluate", collect(root, doing)
    if doing:
        started = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        about = {"status": "done", "seconds": seconds, "started": started, "versions": environment()}
        found["results"][doing] = about
    path = (directory if (directory / compare.REPORT).is_file() else root) / PAGE
    files.write_text(path, html.page(found))
    return path


def differences(runs: Sequence[Path], seed: int = 0) -> list[str]:
    """How each run differs from the first, row by row, from what their evaluations saved."""
    said: list[str] = []
    try:
        first = compare.saved(str(runs[0]))
    except ConfigError as error:
        return [str(error)]
    for root in runs[1:]:
        try:
            other = compare.saved(str(root))
        except ConfigError as error:
            said.append(str(error))
            continue
        against = first.report.get("against") or {}
        figure = against.get("metric", "accuracy")
        fingerprint = other.report["dataset"]["fingerprint"]
        found = compare.compare(other.tallies, fingerprint, first, figure, seed)
        said += [f"{root} beside {runs[0]}: {line}" for line in found["says"]]
    return said


def _model(root: Path) -> dict[str, Any] | None:
    """How many numbers the weights have, from the headers of their files."""
    place = next(
        (root / stage / "best" for stage in ("finetune", "train") if (root / stage / "best").is_dir()), None
    )
    if place is None:
        return None
    total = 0
    try:
        for path in place.glob("*.safetensors"):
            with safetensors.safe_open(path, "np") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return {"parameters": total}


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (LlmtoolError, OSError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _config(path: Path) -> Any:
    try:
        return config.read(str(path), ()).data
    except (LlmtoolError, OSError):
        return None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return []
    rows = []
    for line in (_text(path) or "").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
