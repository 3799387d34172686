"""Collects what a run left in its directory, and writes report.html from it; nothing is scored again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import safetensors

from llmtool.core import config, files
from llmtool.core.environment import environment
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.store import CARD
from llmtool.evaluation import compare, html
from llmtool.evaluation.differences import STAGES
from llmtool.evaluation.report import NOTHING
from llmtool.stages import lineage
from llmtool.training.profile import FIGURES

PAGE = "report.html"
RESULT: dict[str, Any] = {
    name: {} for name in ("key", "versions", "metrics", "fingerprints", "throughput", "best", "start")
}
WRITTEN: dict[str, Any] = {  # of a report, beside its evidence
    "model": {},
    "metrics": {},
    "dataset": {},
    "rows": {},
    "undefined": {},
    "details": {},
    "requirements": [],
    "samples": [],
}
LARGEST = 200_000_000  # bytes of metrics.jsonl that are read


def collect(root: Path, doing: str = "") -> dict[str, Any]:
    """The contents of a run's files; None for those that are not there or cannot be read.

    doing: the stage that is being done, whose result.json is that of an earlier time. Raises ConfigError for
    a directory that holds no run.
    """
    found = {stage: _read(root / stage / "result.json") for stage in STAGES if stage != doing}
    results = {stage: _sound(result, RESULT) for stage, result in found.items() if _is_result(result)}
    if not doing:
        lineage.root_of(str(root))
    report = _read(root / "evaluate" / compare.REPORT)
    report = _sound(report, NOTHING | WRITTEN) if isinstance(report, dict) else {}
    fits = {stage: rows for stage in ("train", "finetune") if (rows := _rows(root / stage / "metrics.jsonl"))}
    paths = {stage: root / stage / "experiment.yaml" for stage in ("train", "finetune")}
    experiment = next((path for path in reversed(paths.values()) if path.is_file()), None)
    about = {stage: _read(root / stage / "environment.json") for stage in paths}
    made = lineage.of_run(root)
    return {
        "root": str(root),
        "results": results,
        "report": {**NOTHING, **WRITTEN, **report} if report.get("metrics") else None,
        "metrics": fits,
        "experiment": _text(experiment) if experiment else None,
        "experiments": {stage: found for stage, path in paths.items() if (found := _config(path))},
        "environments": {stage: found for stage, found in about.items() if isinstance(found, dict)},
        "profiles": {stage: one for stage in paths if (one := _profile(root / stage / FIGURES))},
        "lineage": lineage.rows(made.chain),
        "data": lineage.rows(made.data),
        "weights": made.weights,
        "warnings": made.warnings,
        "card": _whole(root / "prepare" / CARD, "inputs", "encoding", "splits", "notes", "fingerprint"),
        "ledger": _whole(root / "prepare" / "ledger.json", "read", "kept", "dropped", "quarantined"),
        "leakage": _whole(root / "prepare" / "leakage.json", "findings"),
        "model": _model(made.model),
        "explain": _whole(root / "evaluate" / "explain.json", "split", "examples"),
        "describe": _whole(root / "describe" / "describe.json", "parameters", "memory"),
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


def _is_result(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("status"), str)


def _sound(found: dict[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """What was read, without parts of another kind than a command writes: a file may have been edited."""
    kinds = {name: type(value) for name, value in like.items() if value is not None}
    sound = {name: value for name, value in found.items() if isinstance(value, kinds.get(name, object))}
    metrics = sound.get("metrics", {}).items()
    return sound | {"metrics": {split: value for split, value in metrics if isinstance(value, dict)}}


def _model(place: Path | None) -> dict[str, Any] | None:
    """How many numbers the weights of a checkpoint have, from the headers of their files."""
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


def _whole(path: Path, *names: str) -> dict[str, Any] | None:
    """A JSON object that has these parts; None for anything else."""
    found = _read(path)
    return found if isinstance(found, dict) and set(names) <= found.keys() else None


def _profile(path: Path) -> dict[str, Any] | None:
    """What training.profile has written there, as far as the page shows it."""
    found = _read(path)
    try:
        return {
            "steps": int(found["steps"]),
            "step": float(found["step_seconds"]),
            "parts": {str(name): float(seconds) for name, seconds in found["parts"].items()},
            "top": {str(one["name"]): float(one["seconds"]) for one in found["top"]},
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _config(path: Path) -> dict[str, Any]:
    try:
        return config.read(str(path), ()).data
    except (LlmtoolError, OSError):
        return {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return []
    try:
        lines = files.read_lines(path)
    except LlmtoolError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
