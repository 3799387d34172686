"""The report of a scored model: report.json, predictions.csv, and the tables a person reads."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmtool.core import console, files
from llmtool.core.contracts import Tally
from llmtool.evaluation import answers
from llmtool.evaluation.requirements import BASELINE, Outcome
from llmtool.metrics import direction
from llmtool.metrics.bootstrap import Difference
from llmtool.metrics.classification import AVERAGES, is_average

MOST_CLASSES = 30  # rows of the per-class table; beyond it, those with the lowest F1
BASELINE_FIGURES = (
    "accuracy", "mean_average_precision", "f1", "roc_auc", "log_loss", "rmse", "mae", "r2", "loss",
    "token_accuracy",
)  # fmt: skip
OF_GAMES = ("match", "legal")
MOST_CELLS = 12  # classes of the confusion matrix on a screen
NOTHING: dict[str, Any] = {  # the evidence of a report that has none
    "intervals": {},
    "no_interval": {},
    "bootstrap": {},
    "baselines": [],
    "against": None,
    "no_against": "",
    "comparison": None,
    "calibration": {},
    "parts": {},
    "slices": {},
    "examples": {},
    "overlap": {},
    "suites": {},
    "probe": {},
}
ABOUT = "what it is"  # a column of words
PROBED = ("relative", "absolute")  # how squares are called: mine and theirs, or by colour
PROBABILITY = "probability "  # begins the name of a column of predictions.csv


def report(
    tallies: Mapping[str, Tally],
    *,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    rows: Mapping[str, int],
    outcomes: Sequence[Outcome] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    evidence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of report.json; a number that is not finite stands as None.

    model: where the weights lie and their hash. dataset: its directory and fingerprint. rows: of each split.
    evidence: what stages.judge found of the figures: their intervals, baselines, comparison, slices ...
    """
    return files.plain(
        {
            "format": 2,
            "model": dict(model),
            "dataset": dict(dataset),
            "rows": dict(rows),
            "metrics": {split: tally.metrics() for split, tally in tallies.items()},
            "undefined": {split: tally.undefined for split, tally in tallies.items()},
            "details": {split: tally.details() for split, tally in tallies.items()},
            "requirements": [asdict(outcome) | {"says": str(outcome)} for outcome in outcomes],
            "samples": [dict(sample) for sample in samples],
        }
        | {**NOTHING, **(evidence or {})}
    )


# --- predictions.csv ----------------------------------------------------------------------------------------


def write_predictions(
    path: Path, tallies: Mapping[str, Tally], origin: Mapping[str, Mapping[str, np.ndarray]] | None = None
) -> int:
    """Write the prediction of every scored row, the sums of every unit of a text; returns the rows written.

    Columns: split, those of `origin` (split -> column -> (n,) where rows came from), then the tally's own.
    Text is quoted; a text that a spreadsheet would run as a formula begins with a quote mark (').
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    header: list[str] = []
    written = 0
    for split, tally in tallies.items():
        predicted = tally.predictions()
        columns = dict((origin or {}).get(split, {})) | predicted
        if not header:
            header = ["split", *columns]
            writer.writerow([harmless(name) for name in header])
        assert header == ["split", *columns]
        count = len(next(iter(predicted.values())))
        cells = [_cells(column, 9 if PROBABILITY in name else 12) for name, column in columns.items()]
        writer.writerows(zip([split] * count, *cells, strict=True))
        written += count
    files.write_text(path, text.getvalue())
    return written


def predictions_hash(tallies: Mapping[str, Tally]) -> str:
    """One hash over the predictions of every split, without where their rows came from."""
    digest = xxhash.xxh3_128()
    for split, tally in tallies.items():
        for name, column in tally.predictions().items():
            text = column.dtype.kind not in "fiu"
            data = files.json_bytes(column.tolist()) if text else np.ascontiguousarray(column).data
            digest.update(files.json_bytes([split, name, len(column)]))
            digest.update(data)
    return f"xxh3:{digest.hexdigest()}"


def figures_hash(
    metrics: Mapping[str, Any], predictions: str, suites: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """One hash over the figures of a report, of its suites too, and the predictions that they are of."""
    more = [{name: [one["metrics"], one["answers"]] for name, one in suites.items()}] if suites else []
    return files.hash_bytes(files.json_bytes([metrics, predictions, *more]))


def _cells(column: np.ndarray, digits: int) -> list[Any]:
    """digits: nine give a float32 back exactly; a date in seconds takes more."""
    if column.dtype.kind == "f":
        return [float(f"{value:.{digits}g}") if math.isfinite(value) else "" for value in column.tolist()]
    if column.dtype.kind in "iu":
        return list(column.tolist())
    return [harmless(value) for value in column.tolist()]


def harmless(value: object) -> str:
    """A text cell that no spreadsheet runs: `=1+1` becomes `'=1+1`; a number such as `-1` stays as it is.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    text = str(value)
    if not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


# --- tables -------------------------------------------------------------------------------------------------


def show(report: Mapping[str, Any]) -> Group:
    """The report for a person: figures by split, classes and mistakes of the last split, requirements."""
    parts: list[RenderableType] = [metrics_table(report["metrics"], report["rows"], report["intervals"])]
    parts += [Text(line, style="dim") for line in [interval_line(report)] if line]
    parts += [parts_table(split, found) for split, found in report["parts"].items()]
    if report["baselines"]:
        parts.append(baselines_table(report["baselines"], report["against"]))
    if report["against"]:
        parts.append(Text(report["against"]["says"], style="" if report["against"]["beats"] else "bold"))
    parts += [Text(console.clean(line, lines=False)) for line in missing_lines(report)]
    parts += [Text(line, style="dim") for line in judged_lines(report)]
    split = list(report["details"])[-1] if report["details"] else ""
    details = report["details"].get(split, {})
    if "per_class" in details:
        parts.append(class_table(details["per_class"], report["metrics"][split], split))
    if len(details.get("confusion", {}).get("names", [])) in range(1, MOST_CELLS + 1):
        parts.append(Text(f"confusion of {split}: true class by line, predicted class by column"))
        parts.append(confusion_table(details["confusion"]))
    for mistake in details.get("most_confused", [])[:5]:
        target, prediction = (
            console.clean(mistake["target"], lines=False),
            console.clean(mistake["prediction"], lines=False),
        )
        parts.append(Text(f"{mistake['rows']} rows of {target} were taken for {prediction}"))
    if suites := report["suites"]:
        parts += [
            suites_table(suites),
            *(Text(console.clean(line, lines=False)) for line in answers.notes(suites)),
        ]
    if found := report["probe"]:
        parts += [probe_table(found), *(Text(line, style="dim") for line in probe_lines(found))]
    for sample in report["samples"]:
        written = Text(console.clean(sample["text"]), style="dim")
        parts += [Text(f"\n--- after {sample['prompt']!r}"), written]
        if why := sample.get("missing"):
            parts.append(Text(f"(nothing more: {why})"))
    parts += [
        Text(calibration_line(split, found)) for split, found in list(report["calibration"].items())[-1:]
    ]
    parts += [line for split, found in report["slices"].items() for line in slice_lines(split, found)]
    parts += [
        Text(overlap_line(split, found)) for split, found in report["overlap"].items() if found["shared"]
    ]
    compared = report["comparison"]
    if compared:
        parts.append(Text(f"beside {compared['with']}:", style="bold"))
        parts += [Text(f"  {console.clean(line, lines=False)}") for line in compared["says"]]
    parts += [requirement_line(outcome) for outcome in report["requirements"]]
    return Group(*parts)


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]],
    rows: Mapping[str, int],
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Table:
    """A line for each figure, a column for each split, its 95 % interval beside it; averages over classes
    stand in the per-class table."""
    intervals = intervals or {}
    table = _table(
        "", ["figure", *(head for split in metrics for head in [split, *["95 %"] * (split in intervals)])]
    )
    for name in dict.fromkeys(name for figures in metrics.values() for name in figures):
        if is_average(name):
            continue
        cells: list[str | Text] = []
        for split, figures in metrics.items():
            cells.append(number(figures.get(name)))
            if split in intervals:
                cells.append(Text(interval(intervals[split].get(name)), style="dim"))
        table.add_row(name, *cells)
    counts = [
        [f"{rows[split]:,}" if split in rows else "-", *[""] * (split in intervals)] for split in metrics
    ]
    table.add_row("rows", *(cell for cells in counts for cell in cells), style="dim")
    return table


def parts_table(split: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each part of a mixture, with its figures on a split."""
    names = list(dict.fromkeys(name for one in found.values() for name in one["metrics"]))
    names = [name for name in names if not is_average(name)]
    table = _table(f"parts of {split}", ["part", *names, "units"])
    for name, one in found.items():
        table.add_row(name, *(number(one["metrics"].get(figure)) for figure in names), f"{one['units']:,}")
    return table


def baselines_table(found: Sequence[Mapping[str, Any]], against: Mapping[str, Any] | None) -> Table:
    """A line for each baseline, with its figures on the last split; what it is, or why it is missing."""
    split = next((list(one["metrics"])[-1] for one in found if one["metrics"]), "")
    names = list(dict.fromkeys(name for one in found for name in one["metrics"].get(split, {})))
    names = [name for name in names if not is_average(name)]
    first = [against["metric"]] if against else []
    shown = [name for name in dict.fromkeys([*first, *BASELINE_FIGURES, *OF_GAMES]) if name in names][:4]
    table = _table(f"baselines on {split}" if split else "baselines", ["", *shown, ABOUT])
    for one in found:
        figures = one["metrics"].get(split, {})
        about = f"missing: {one['missing']}" if one["missing"] else one["note"] or one["about"]
        table.add_row(one["name"], *(number(figures.get(name)) for name in shown), Text(about, style="dim"))
    return table


def suites_table(suites: answers.Suites) -> Table:
    """A line for each figure of each suite, with its interval."""
    table = _table("suites", ["suite", "figure", "value", "95 %", "questions"])
    table.columns[1].justify = "left"
    for line in answers.rows(suites):
        table.add_row(*map(Text, line))
    return table


def class_table(per_class: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], split: str) -> Table:
    """A line for each class, then the averages."""
    columns = ("precision", "recall", "f1", "roc_auc", "pr_auc")
    shown, title = list(per_class), f"classes of {split}"
    if len(shown) > MOST_CLASSES:
        lowest = sorted(shown, key=lambda entry: -1.0 if entry["f1"] is None else entry["f1"])
        shown, title = (
            lowest[:MOST_CLASSES],
            f"{title}: the {MOST_CLASSES} of {len(shown)} with the lowest F1",
        )
    more = ["threshold"] if shown and "threshold" in shown[0] else []  # of labels
    title = title.replace("classes", "labels", 1) if more else title
    table = _table(title, ["label" if more else "class", *columns, *more, "rows"])
    for entry in shown:
        figures = (number(entry[column]) for column in (*columns, *more))
        table.add_row(Text(console.clean(entry["class"], lines=False)), *figures, f"{entry['support']:,}")
    table.add_section()
    total = f"{sum(entry['support'] for entry in per_class):,}"
    for average in AVERAGES:
        if f"f1_{average}" not in metrics:
            continue
        values = [number(metrics[f"{c}_{average}"]) if f"{c}_{average}" in metrics else "" for c in columns]
        table.add_row(average, *values, *[""] * len(more), total)
    return table


def confusion_table(confusion: Mapping[str, Any]) -> Table:
    """Rows counted by true class (lines) and predicted class (columns)."""
    names = [console.clean(name, lines=False) for name in confusion["names"]]
    table = _table("", ["", *names])
    for at, (name, counts) in enumerate(zip(names, confusion["matrix"], strict=True)):
        cells = (
            Text(f"{count:,}", style="bold" if column == at else "") for column, count in enumerate(counts)
        )
        table.add_row(Text(name), *cells)
    return table


def before_after(
    pairs: Mapping[str, tuple[Mapping[str, float] | None, Mapping[str, float]]],
    changes: Mapping[str, Mapping[str, Difference]],
) -> Table:
    """Figures before and after fine-tuning, side by side; pairs: "new validation" -> (before, after).

    Before is None where the start could not be scored (its head knew other classes). changes: the
    differences, row by row, with their intervals.
    """
    table = _table("", ["figure", "before", "after", "change", "95 %"])
    for title, (before, after) in pairs.items():
        table.add_section()
        for name in dict.fromkeys([*(before or {}), *after]):
            if is_average(name):
                continue
            old, new = (before or {}).get(name), after.get(name)
            change = f"{new - old:+.4f}" if old is not None and new is not None else "-"
            found = changes.get(title, {}).get(name)
            bounds = None if found is None or found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
            table.add_row(
                f"{title} {name}", number(old), number(new), change, Text(bounds or "-", style="dim")
            )
    return table


def interval_line(report: Mapping[str, Any]) -> str:
    """How the 95 % intervals were had; empty where no figure has one."""
    about, there = report["bootstrap"], [split for split, found in report["intervals"].items() if found]
    how = {f"{about['draws'][split]:,} draws by {about['unit'][split]}" for split in there}
    return f"95 %: bootstrap intervals, {' and '.join(sorted(how))}" if how and about else ""


def missing_lines(report: Mapping[str, Any]) -> list[str]:
    """Why figures or their intervals are not there, those of one reason together."""
    notes: dict[str, list[str]] = {}
    for what, key in (("", "undefined"), ("interval of ", "no_interval")):
        for split, reasons in report[key].items():
            for name, reason in reasons.items():
                if not is_average(name):
                    notes.setdefault(f"no {what}{{}} of {split}: {reason}", []).append(name)
    return [note.replace("{}", ", ".join(names), 1) for note, names in notes.items()]


def judged_lines(report: Mapping[str, Any]) -> list[str]:
    """Of game records: in how many positions legality was looked at."""
    found = {split: one for split, one in report["details"].items() if one.get("judged")}
    said = "legality of {judged:,} of {tokens:,} positions of "
    return [said.format(**one) + split for split, one in found.items()]


def probe_table(found: Mapping[str, Any]) -> Table:
    """A line for each layer: the share of squares that a linear map reads right."""
    untrained = found["untrained"]
    relative, absolute = (probe_view(found, view) for view in PROBED)
    columns = ["layer", relative, "95 %", absolute, *(["untrained"] if untrained else [])]
    table = _table(f"squares read out of the hidden states, {found['split']}", columns)
    for at, one in enumerate(found["layers"]):
        cells = [
            str(at),
            number(one["relative"]),
            interval(one["relative_interval"]),
            number(one["absolute"]),
        ]
        table.add_row(*cells, *([number(untrained[at]["relative"])] if untrained else []))
    return table


def probe_view(found: Mapping[str, Any], view: str) -> str:
    """What the squares are called, in a word or two: `mine, theirs`; not a name for each piece of chess."""
    names = found["views"][view][1:]
    return (
        ", ".join(names) if len(names) == 2 else {"relative": "mine, theirs", "absolute": "by colour"}[view]
    )


def probe_lines(found: Mapping[str, Any]) -> list[str]:
    """What was probed, and what to hold against it."""
    split, counts = found["split"], found["positions"]
    usual = found["commonest"]["relative"]
    return [
        f"linear maps learned from {counts['train']:,} positions of train, scored on {counts[split]:,} of "
        f"{split}; layer 0 is what goes into the first block",
        f"what a square holds most often is right in {number(usual)} of squares",
    ]


def requirement_line(outcome: Mapping[str, Any]) -> Text:
    """One requirement: met or unmet, the figure, the bound."""
    met = outcome["met"]
    said = f"{'met' if met else 'UNMET':<6}{requirement_said(outcome)}"
    return Text(said, style="green" if met else "bold red")


def requirement_said(outcome: Mapping[str, Any]) -> str:
    """What is said of a requirement, which where it is not met names the bound already."""
    number_wanted = outcome["met"] and outcome["name"] != BASELINE
    return f"{outcome['says']} ({outcome['bound']})" if number_wanted else str(outcome["says"])


def calibration_line(split: str, found: Mapping[str, Any]) -> str:
    """Whether the model's confidence is right, and what a temperature would do."""
    said = f"confidence on {split}: expected calibration error {number(found['ece'])}"
    if found["temperature"] is None:
        return f"{said}; no temperature: {found['no_temperature']}"
    return (
        f"{said}; with temperature {found['temperature']:.3g}, from validation, {number(found['ece_scaled'])}"
    )


def slice_lines(split: str, found: Mapping[str, Any]) -> list[Text]:
    """The slices that are clearly worse than the rest, at most five."""
    looked = f"{found['looked_at']:,} slices looked at in {found['rows']:,} rows"
    sign = 1 if direction(found["metric"]) == "max" else -1
    worse = [one for one in found["worst"] if one["differs"] and sign * one["difference"] < 0]
    if not worse:
        return [Text(f"no slice of {split} is clearly worse than the rest ({looked})")]
    head = f"worse than the rest of {split} by {found['metric']} ({looked}):"
    lines = [
        f"  {console.clean(one['slice'], lines=False)}: {number(one['value'])} against "
        f"{number(one['rest'])}, {one['rows']:,} rows, p {one['p_corrected']:.1g}"
        for one in worse[:5]
    ]
    return [Text(head), *map(Text, lines)]


def overlap_line(split: str, found: Mapping[str, Any]) -> str:
    """How much of a split stands in the training text."""
    share = f"{100 * found['runs_shared']:.2g} % of all runs"
    parts = f"{found['shared']:,} of {found['units']:,} parts of {split}"
    return f"{parts} share a run of {found['run']} tokens with the training text ({share})"


def number(value: float | None) -> str:
    """A figure at a readable precision; `-` for none."""
    return "-" if value is None else console.number(float(value))


def interval(bounds: Sequence[float] | None) -> str:
    """`0.842 to 0.861`; `-` for none."""
    return "-" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    for index, column in enumerate(columns):
        style = console.LESSER if column in ("95 %", ABOUT) else None
        if index == 0 or column == ABOUT:
            table.add_column(Text(column), style=style, overflow="fold")
        else:
            table.add_column(Text(column), style=style, justify="right", no_wrap=True)
    return table
