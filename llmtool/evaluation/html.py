"""report.html: what is known of a run on one page that needs nothing else - no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmtool.core import console
from llmtool.core.lineage import short
from llmtool.evaluation import charts
from llmtool.evaluation.charts import Curve
from llmtool.evaluation.differences import STAGES, differences
from llmtool.evaluation.html_explain import explained
from llmtool.evaluation.html_results import (
    bar,
    calibration,
    figures,
    headline,
    mistakes,
    probe,
    samples,
    slices,
    suites,
)
from llmtool.evaluation.html_run import TIMES, Run, asked, cost, data, model, profile
from llmtool.evaluation.markup import bullets, card, document, section, table, text
from llmtool.evaluation.report import interval, is_average, number, requirement_said


def page(run: Run) -> str:
    """The whole report of one run; a section that has nothing to say is left out."""
    sections = (_summary, asked, figures, suites, probe, mistakes, explained, calibration, slices, samples,
                _curves, data, model, cost, profile, _lineage, _config)  # fmt: skip
    return document(
        run["root"], f"<h1>{text(run['root'])}</h1>", "".join(map(str, (s(run) for s in sections)))
    )


def side_by_side(runs: Sequence[Run], compared: Sequence[str] = ()) -> str:
    """Several runs on one page. compared: sentences on how they differ, row by row."""
    names = [run["root"] for run in runs]
    parts = [f"<p class='soft'>{', '.join(map(text, names))}</p>"]
    parts += [f"<p class='unmet'>{text(line)}</p>" for run in runs for line in run.get("warnings") or []]
    parts += [f"<p>{text(line)}</p>" for line in compared]
    for split in dict.fromkeys(split for run in runs for split in (run["report"] or {}).get("metrics", {})):
        parts.append(_together(runs, split))
    parts.append(section("Training", *(_curves_of(runs, stage) for stage in ("train", "finetune"))))
    for title, found in differences(runs).items():
        rows = [[text(name), *map(text, values)] for name, values in found.items()]
        parts.append(section(f"What differs: {title}", table("", ["", *map(text, names)], rows)))
    return document("runs side by side", "<h1>Runs side by side</h1>", "".join(parts))


# --- the sections ---


def _summary(run: Run) -> str:
    """What a reader wants first: the verdict, the headline figure, and what to be careful about."""
    report, cards = run["report"], []
    last = next((stage for stage in reversed(STAGES) if stage in run["results"]), None)
    result = run["results"].get(last, {})
    failed = [f"<p class='unmet'>{text(stage)} {text(one['status'])}: {text(one['error'])}</p>"
              for stage, one in run["results"].items()
              if one.get("status") not in ("done", "requirement_unmet")]  # fmt: skip
    failed += [f"<p class='unmet'>{text(line)}</p>" for line in run.get("warnings") or []]
    version = result.get("versions", {}).get("llmtool", "")
    said = f"<p class='soft'>{text(result.get('started', ''))} · llmtool {text(version)}</p>"
    if report:
        split, figure = headline(report)
        value = report["metrics"].get(split, {}).get(figure)
        bounds = report["intervals"].get(split, {}).get(figure)
        between = f"95 %: {interval(bounds)}" if bounds else ""
        cards.append(card(f"{split} {figure}", number(value), between))
        if against := report["against"]:
            word = against["says"].rpartition(": ")[2]
            cards.append(card(f"strongest baseline: {against['baseline']}", number(against["theirs"]), word))
        if outcomes := report["requirements"]:
            met = sum(one["met"] for one in outcomes)
            cards.append(card("requirements met", f"{met} of {len(outcomes)}", ""))
    lines = []
    for one in (report or {}).get("requirements", []):
        word = "met" if one["met"] else "unmet"
        lines.append(f"<li class='{word}'>{word}: {text(requirement_said(one))}</li>")
    found = [finding for finding in (run["leakage"] or {}).get("findings", []) if finding["warning"]]
    lines += [
        f"<li class='unmet'>{text(finding['says'])}; {text(finding['advice'])}</li>" for finding in found
    ]
    return (
        said
        + "".join(failed)
        + (f"<div class='cards'>{''.join(cards)}</div>" if cards else "")
        + bullets(lines)
    )


def _curves(run: Run) -> str:
    parts = []
    for stage, rows in run["metrics"].items():
        refused = [row["refused"]["says"] for row in rows if isinstance(row.get("refused"), Mapping)]
        if refused:
            number_of = f"{len(refused)} updates were" if len(refused) > 1 else "an update was"
            parts.append(
                f"<p class='unmet'>{stage}: {number_of} refused, the last at {text(refused[-1])}</p>"
            )
        parts.append(_curves_of([run], stage))
    return section("Training", *parts)


def _curves_of(runs: Sequence[Run], stage: str) -> str:
    """Loss, validation, learning rate and throughput of one stage, a line for each run."""
    drawn = []
    chosen = dict.fromkeys(name for run in runs if (name := _chosen(run, stage)))
    for key in ("loss", *(f"validation {name}" for name in chosen), "lr", *TIMES):
        title = {"loss": "training loss", "lr": "learning rate"}.get(key, key.replace("_", " "))
        curves = [Curve(run["root"], *_series(run["metrics"].get(stage, []), key)) for run in runs]
        drawn.append(charts.lines(f"{stage}: {title}", curves, even=key in ("lr", *TIMES)))
    inside = "".join(drawn)
    return f"<div class='two'>{inside}</div>" if inside else ""


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float | None]]:
    """Steps and values of one column of metrics.jsonl."""
    steps: list[float] = []
    values: list[float | None] = []
    name = key.removeprefix("validation ")
    for row in rows:
        place = row.get("validation") if key.startswith("validation ") else row
        place = row.get("time") if key in TIMES else place
        if isinstance(place, dict) and isinstance(place.get(name), int | float):
            steps.append(row["step"])
            values.append(place[name])
    return steps, values


def _lineage(run: Run) -> str:
    """Data -> encoder -> checkpoint -> figures, by the hashes that cover everything before them."""
    rows = [
        [str(link["number"]), text(link["what"]), f"<code>{text(short(link['hash']))}</code>",
         ", ".join(map(str, link["of"])), f"<code>{text(link['where'])}</code>"]
        for link in run.get("lineage") or []
    ]  # fmt: skip
    code = next((one["key"]["code"] for one in run["results"].values() if one.get("key")), None)
    made = f"<p class='soft'>made by llmtool {text(code)}; a hash covers its link and all before it</p>"
    return section(
        "Lineage", table("", ["", "what", "hash", "made from", "where"], rows), made if rows else ""
    )


def _config(run: Run) -> str:
    if not run["experiment"]:
        return ""
    inside = f"<pre>{escape(console.clean(run['experiment']))}</pre>"
    return section("The whole file", f"<details><summary>with every default</summary>{inside}</details>")


# --- several runs ---


def _together(runs: Sequence[Run], split: str) -> str:
    found = [(run["report"] or {}) for run in runs]
    names = dict.fromkeys(name for one in found for name in one.get("metrics", {}).get(split, {}))
    names = dict.fromkeys(name for name in names if not is_average(name))
    rows = []
    for name in names:
        cells = [text(name)]
        for one in found:
            bounds = one.get("intervals", {}).get(split, {}).get(name)
            value = number(one.get("metrics", {}).get(split, {}).get(name))
            cells.append(f"{value} <span class='soft'>{interval(bounds) if bounds else ''}</span>")
        rows.append(cells)
    figure = headline(found[-1])[1] if found[-1] else next(iter(names), "")
    bars = []
    for run, one in zip(runs, found, strict=True):
        parts = [one.get(key, {}).get(split, {}) for key in ("metrics", "intervals")]
        bars.append(bar(run["root"], parts[0], parts[1], figure, True))
    drawn = charts.intervals(f"{split} {figure}", [one for one in bars if one], number)
    return section(text(split), drawn, table("", ["figure", *(text(run["root"]) for run in runs)], rows))


def _chosen(run: Run, stage: str) -> str:
    """The figure that training selected by; else the first of a validation."""
    if best := run["results"].get(stage, {}).get("best"):
        return str(best["metric"])
    found = (row["validation"] for row in run["metrics"].get(stage, []) if row.get("validation"))
    return str(next(iter(next(found, {})), ""))
