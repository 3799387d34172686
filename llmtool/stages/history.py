"""What a training leaves as it goes (metrics.jsonl, checkpoints, bundles): cleared, or cut at a step."""

from __future__ import annotations

import json
from pathlib import Path

from llmtool.core import files
from llmtool.stages import divergence
from llmtool.training.profile import FIGURES, TRACE

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


def forget_after(directory: Path, step: int) -> None:
    """Drop what a run that goes on from `step` will write again."""
    truncate_metrics(directory / METRICS, step)
    divergence.forget_after(directory / divergence.DIRECTORY, step)


def truncate_metrics(path: Path, step: int) -> None:
    """Drop rows past `step` and a torn last line: a resumed run then writes what a straight one would."""
    kept = []
    for line in files.read_lines(path) if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    files.write_text(path, "".join(kept))


def clear(directory: Path) -> None:
    """Remove what an earlier run left, of which nothing is gone on with."""
    files.make_directories(directory)
    for name in ("best", "last", METRICS, CHECKPOINTS, divergence.DIRECTORY, FIGURES, TRACE):
        files.remove_tree(directory / name)
