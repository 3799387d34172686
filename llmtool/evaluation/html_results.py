"""The sections of report.html that an evaluation fills: figures, mistakes, calibration, slices, samples."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from llmtool.core import console
from llmtool.evaluation import answers, charts
from llmtool.evaluation.charts import Bar
from llmtool.evaluation.markup import bullets, section, table, text
from llmtool.evaluation.report import (
    PROBED,
    calibration_line,
    interval,
    interval_line,
    is_average,
    missing_lines,
    number,
    overlap_line,
    probe_lines,
    probe_view,
    slice_lines,
)
from llmtool.metrics import HEADLINE

MOST_CELLS = 26  # classes of the confusion matrix

Run = Mapping[str, Any]


def figures(run: Run) -> str:
    report = run["report"]
    if not report:
        return ""
    split, figure = headline(report)
    bars = [
        bar("this model", report["metrics"].get(split, {}), report["intervals"].get(split, {}), figure, True)
    ]
    bars += [bar(one["name"], one["metrics"].get(split, {}), {}, figure) for one in report["baselines"]]
    drawn = charts.intervals(f"{split} {figure} beside baselines", [bar for bar in bars if bar], number)
    head, rows = ["figure"], []
    for name in report["metrics"]:
        head += [text(name), "95 %"]
    for key in dict.fromkeys(key for figures in report["metrics"].values() for key in figures):
        if not is_average(key):
            cells = [text(key)]
            for name, figures in report["metrics"].items():
                cells += [number(figures.get(key)), interval(report["intervals"].get(name, {}).get(key))]
            rows.append(cells)
    rows.append(
        ["rows", *(cell for name in report["metrics"] for cell in (f"{report['rows'].get(name, 0):,}", ""))]
    )
    names = [
        figure,
        *(n for n in ("accuracy", "f1", "roc_auc", "log_loss", "rmse", "mae", "r2", "loss") if n != figure),
    ]
    names = [n for n in names if any(n in one["metrics"].get(split, {}) for one in report["baselines"])]
    beside = [
        [text(one["name"]), *(number(one["metrics"].get(split, {}).get(n)) for n in names),
         text(f"missing: {one['missing']}" if one["missing"] else one["note"] or one["about"])]
        for one in report["baselines"]
    ]  # fmt: skip
    notes = [f"<li>{text(line)}</li>" for line in missing_lines(report)]
    sure = f"<p class='soft'>{text(interval_line(report))}</p>"
    compared = report["comparison"] or {"says": []}
    against = f"<p>{text(report['against']['says'])}</p>" if report["against"] else ""
    said = [f"<p>beside {text(compared['with'])}: {text(line)}</p>" for line in compared["says"]]
    overlaps = [
        f"<p>{text(overlap_line(name, one))}</p>" for name, one in report["overlap"].items() if one["shared"]
    ]
    return section(
        "Figures", against, drawn, table("", head, rows), sure, bullets(notes),
        table(f"baselines on {text(split)}", ["", *map(text, names), "what it is"], beside), *said, *overlaps,
    )  # fmt: skip


def bar(
    name: str, metrics: Mapping[str, float], bounds: Mapping[str, Any], figure: str, strong: bool = False
) -> Bar | None:
    value = metrics.get(figure)
    low, high = bounds.get(figure) or (None, None)
    return None if value is None else Bar(name, value, low, high, strong)


def mistakes(run: Run) -> str:
    report = run["report"] or {"details": {}, "examples": {}}
    split = list(report["details"])[-1] if report["details"] else ""
    details = report["details"].get(split) or {}
    columns = ("precision", "recall", "f1", "roc_auc", "pr_auc")
    rows = [
        [text(one["class"]), *(number(one[c]) for c in columns), f"{one['support']:,}"]
        for one in details.get("per_class", [])
    ]
    classes = table(f"classes of {text(split)}", ["class", *columns, "rows"], rows)
    confusion, drawn = details.get("confusion") or {"names": []}, ""
    if 0 < len(confusion["names"]) <= MOST_CELLS:
        names = [text(name) for name in confusion["names"]]
        cells = []
        for name, counts in zip(names, confusion["matrix"], strict=True):
            total = sum(counts) or 1
            cells.append([name, *(_shaded(count, total) for count in counts)])
        drawn = table("confusion: the true class by line, the predicted one by column", ["", *names], cells)
    per_target = details.get("per_target", [])
    keys = ("mae", "rmse", "r2", "mean", "spread", "predicted_mean", "predicted_spread")
    targets = [[text(one["target"]), *(number(one[k]) for k in keys)] for one in per_target]
    values = table(f"targets of {text(split)}", ["target", *(k.replace("_", " ") for k in keys)], targets)
    title = "Classes and mistakes" if rows else "Mistakes" if targets else "Hardest parts"
    return section(title, drawn, classes, values, _examples(report))


def _shaded(count: int, total: int) -> str:
    share = round(45 * count / total)  # pale enough for the number to be read in both themes
    style = f"background:color-mix(in srgb,var(--accent) {share}%,transparent)" if share else ""
    return f"<span style='display:block;padding:0 .4rem;border-radius:.3rem;{style}'>{count:,}</span>"


def _examples(report: Run) -> str:
    """The rows on which the model was furthest off."""
    parts = []
    for split, found in report["examples"].items():
        columns = list(found[0]) if found else []
        words = [at for at, name in enumerate(columns) if isinstance(found[0][name], str)]
        rows = [
            [number(value) if isinstance(value, float) else text(value) for value in one.values()]
            for one in found
        ]
        parts.append(table(f"furthest off in {text(split)}", [text(c) for c in columns], rows, words=words))
    return "".join(parts)


def calibration(run: Run) -> str:
    """Accuracy by confidence of the last split, drawn and as a table."""
    found = (run["report"] or {}).get("calibration") or {}
    parts = []
    for split, one in list(found.items())[-1:]:
        drawn = charts.reliability(f"{split}: accuracy by confidence", one["bins"])
        rows = [
            [f"{number(bin_['low'])} to {number(bin_['high'])}", f"{bin_['rows']:,}",
             number(bin_["confidence"]), number(bin_["accuracy"])]
            for bin_ in one["bins"] if bin_["rows"]
        ]  # fmt: skip
        below = table("", ["confidence", "rows", "mean confidence", "accuracy"], rows)
        parts.append(f"<p>{text(calibration_line(split, one))}</p><div class='two'>{drawn}{below}</div>")
    return section("Calibration", *parts)


def slices(run: Run) -> str:
    parts = []
    for split, found in ((run["report"] or {}).get("slices") or {}).items():
        head = slice_lines(split, found)[0].plain
        rows = [
            [text(one["slice"]), f"{one['rows']:,}", number(one["value"]), interval(one["interval"]),
             number(one["rest"]), f"{one['p_corrected']:.2g}"]
            for one in found["worst"]
        ]  # fmt: skip
        columns = ["slice", "rows", text(found["metric"]), "95 %", "the rest", "p, corrected"]
        strong = [at for at, one in enumerate(found["worst"]) if one["differs"]]
        bold = (
            "<p class='soft'>bold: unlike the rest, by p below 0.05 after Holm's correction</p>"
            if strong
            else ""
        )
        parts.append(f"<p>{text(head)}</p>" + table("", columns, rows, strong) + bold)
    return section("Slices", *parts)


def suites(run: Run) -> str:
    """The figures of evaluation suites, and what must be known beside them."""
    asked = (run["report"] or {}).get("suites") or {}
    lines = [[text(cell) for cell in line] for line in answers.rows(asked)]
    notes = [f"<li>{text(line)}</li>" for line in answers.notes(asked)]
    columns = ["suite", "figure", "value", "95 %", "questions"]
    return section("Suites", table("", columns, lines, words=(1,)), bullets(notes))


def probe(run: Run) -> str:
    """The board read out of the hidden states: accuracy by layer, errors by square."""
    found = (run["report"] or {}).get("probe") or {}
    if not found:
        return ""
    curves = [
        charts.Curve(name, [one["layer"] for one in layers], [one[view] for one in layers])
        for view in PROBED
        for name, layers in (
            (probe_view(found, view), found["layers"]),
            (f"{probe_view(found, view)}, untrained", found["untrained"] or []),
        )
        if layers
    ]
    drawn = [charts.lines("squares read right, by layer", curves, x_name="layer")]
    for view in PROBED:
        title = f"squares misread, percent: {probe_view(found, view)}"
        drawn.append(charts.board(title, found["squares"], found["errors"][view], found["board"]))
    lines = "".join(f"<p>{text(line)}</p>" for line in probe_lines(found))
    return section("The board in the hidden states", lines, *drawn)


def samples(run: Run) -> str:
    written = (run["report"] or {}).get("samples") or []
    shown = [
        f"<pre>{_written(str(one['prompt']), str(one['text']))}</pre>"
        + (f"<p>nothing more: {text(one['missing'])}</p>" if one.get("missing") else "")
        for one in written[:20]
    ]
    return section("What it writes", *shown)


def _written(prompt: str, whole: str) -> str:
    """A text whose beginning was given."""
    given = prompt if whole.startswith(prompt) else ""
    rest = escape(console.clean(whole[len(given) :]))
    return f"<b>{escape(console.clean(given))}</b>{rest}" if given else rest


def headline(report: Mapping[str, Any]) -> tuple[str, str]:
    """The split and the figure a report is about."""
    if against := report.get("against"):
        return against["split"], against["metric"]
    split = list(report["metrics"])[-1]
    names = report["metrics"][split]
    return split, next((name for name in (*HEADLINE.values(), *names) if name in names), "")
