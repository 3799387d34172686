"""llmtool report: a run's report.html, or several runs side by side; nothing is scored again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtool.commands import ReportOptions
from llmtool.core import console, files
from llmtool.core.errors import ConfigError
from llmtool.evaluation import events, html
from llmtool.evaluation.report import AVERAGES, interval, number
from llmtool.stages import report as stage


def run(options: ReportOptions) -> dict[str, Any]:
    """Write the page of one run, or compare several; returns the document for `--json`."""
    roots, page = [_root(path) for path in options.runs], options.html
    found = [stage.collect(root) for root in roots]
    if options.tensorboard is not None:
        for one in found:
            written = events.write(Path(options.tensorboard) / Path(one["root"]).name, one["metrics"])
            console.say(f"events: {written}")
    if len(roots) == 1:
        path = _written(page, html.page(found[0])) if page else stage.write(roots[0])
        console.say(f"report: {path}")
        return {"runs": [_figures(found[0])], "report": str(path)}
    said = stage.differences(roots)
    names = [one["root"] for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"a run stands twice: {', '.join(names)}")
    rows = _rows(found)
    console.table(["", *names], rows)
    for line in said:
        console.say(line)
    keys = html.different_keys(found)
    if keys:
        console.table(["what differs", *names], [[key, *values] for key, values in keys.items()])
    document = {"runs": [_figures(one) for one in found], "says": said, "keys": keys}
    if page:
        document["report"] = str(_written(page, html.side_by_side(found, said)))
        console.say(f"report: {document['report']}")
    return document


def _root(path: str) -> Path:
    """The run that a path stands for: the run's directory, or one of its stages."""
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run's, as in runs/iris")
    return root.parent if root.name in html.STAGES and (root / "result.json").is_file() else root


def _written(page: str, content: str) -> Path:
    path = Path(page)
    if not path.parent.is_dir():
        raise ConfigError(f"--html {page}: there is no directory {path.parent}")
    files.write_text(path, content)
    return path


def _figures(run: Mapping[str, Any]) -> dict[str, Any]:
    report = run["report"] or {}
    parts = {key: report.get(key) for key in ("metrics", "intervals", "requirements", "against", "model")}
    return {"run": run["root"], "stages": {k: v.get("status") for k, v in run["results"].items()}, **parts}


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each figure of each split, a column for each run."""
    rows = []
    reports = [run["report"] or {} for run in runs]
    for split in dict.fromkeys(split for one in reports for split in one.get("metrics", {})):
        names = dict.fromkeys(name for one in reports for name in one.get("metrics", {}).get(split, {}))
        for name in names:
            if name.endswith(tuple(f"_{average}" for average in AVERAGES)):
                continue
            cells = []
            for one in reports:
                bounds = one.get("intervals", {}).get(split, {}).get(name)
                value = number(one.get("metrics", {}).get(split, {}).get(name))
                cells.append(f"{value} ({interval(bounds)})" if bounds else value)
            rows.append([f"{split} {name}", *cells])
    for stage_name in html.STAGES:
        states = [run["results"].get(stage_name, {}).get("status", "-") for run in runs]
        if any(state not in ("-", "done") for state in states):
            rows.append([stage_name, *states])
    return rows
