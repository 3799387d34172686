"""llmtool report: a run's report.html, or several runs side by side; nothing is scored again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtool.commands import ReportOptions, describe
from llmtool.core import console, files
from llmtool.core.errors import ConfigError
from llmtool.evaluation import differences, events, html
from llmtool.stages import lineage
from llmtool.stages import report as stage


def run(options: ReportOptions) -> dict[str, Any]:
    """Write the page of one run, or compare several; returns the document for `--json`."""
    roots, page = [lineage.root_of(path)[0] for path in options.runs], options.html
    places = [root.resolve() for root in roots]
    if len(set(places)) < len(places):
        raise ConfigError(f"a run stands twice: {', '.join(map(str, roots))}")
    found = [stage.collect(root) for root in roots]
    if options.tensorboard is not None:
        for name, one in zip(_names(places), found, strict=True):
            console.say(f"events: {events.write(Path(options.tensorboard) / name, one['metrics'])}")
    if len(roots) == 1:
        path = _written(page, html.page(found[0])) if page else stage.write(roots[0])
        console.say(f"report: {path}")
        describe.warn(found[0]["warnings"])
        return {"runs": [_figures(found[0])], "report": str(path)}
    said = stage.differences(roots)
    names = [one["root"] for one in found]
    console.table(["", *names], [*differences.figures(found, intervals=True), *_states(found)])
    for line in said:
        console.say(line)
    differs = differences.differences(found)
    rows = [
        [f"{section}: {name}", *values] for section, part in differs.items() for name, values in part.items()
    ]
    if rows:
        console.table(["what differs", *names], rows)
    describe.warn([line for one in found for line in one["warnings"]])
    document = {"runs": [_figures(one) for one in found], "says": said, "differs": differs}
    if page:
        document["report"] = str(_written(page, html.side_by_side(found, said)))
        console.say(f"report: {document['report']}")
    return document


def _names(places: Sequence[Path]) -> list[Path]:
    """Runs by the last parts of their paths, which are whole: as many parts as tell all of them apart."""
    for count in range(1, max(len(place.parts) for place in places) + 1):
        names = [Path(*place.parts[1:][-count:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def _written(page: str, content: str) -> Path:
    path = Path(page)
    if not path.parent.is_dir():
        raise ConfigError(f"--html {page}: there is no directory {path.parent}")
    files.write_text(path, content)
    return path


def _figures(run: Mapping[str, Any]) -> dict[str, Any]:
    report = run["report"] or {}
    parts = {key: report.get(key) for key in ("metrics", "intervals", "requirements", "against", "model")}
    parts["warnings"] = run["warnings"]
    return {"run": run["root"], "stages": {k: v.get("status") for k, v in run["results"].items()}, **parts}


def _states(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each stage that is not done in all runs."""
    rows = []
    for name in differences.STAGES:
        states = [run["results"].get(name, {}).get("status", "-") for run in runs]
        if any(state not in ("-", "done") for state in states):
            rows.append([name, *states])
    return rows
