"""The section of report.html that says why: the columns a model leans on, and what spoke for its answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from llmtool.core import console
from llmtool.evaluation import charts
from llmtool.evaluation.charts import Bar
from llmtool.evaluation.markup import section, table, text

MOST_COLUMNS = 20
MOST_PARTS = 10  # of a table's row, those that add most
PICTURE = "data:image/png;base64,"

Run = Mapping[str, Any]


def lines(found: Mapping[str, Any]) -> list[str]:
    """What the document says, in sentences for a screen."""
    said = []
    if one := found["importance"]:
        best = [f"{c['column']} {console.number(c['mean'])}" for c in one["columns"][:5]]
        value = console.number(one["value"])
        said.append(
            f"{found['split']} {one['metric']} {value} is worse with a column shuffled, by: {', '.join(best)}"
        )
    rows = found["examples"]
    if rows:
        worst = max(rows, key=lambda row: abs(row["completeness_error"]))
        error = console.number(abs(worst["completeness_error"]))
        said.append(
            f"{len(rows)} rows of {found['split']} explained; the parts of each add up to its answer, "
            f"to within {error} ({worst['steps']:,} steps)"
        )
        if short := [row for row in rows if not row["complete"]]:
            said.append(f"{len(short)} of them miss the tolerance: read their parts with care")
    return said + [str(note) for note in found.get("notes", [])]


def explained(run: Run) -> str:
    """Nothing where there is no explanation, or the file was edited into something else."""
    found = run.get("explain")
    if not found:
        return ""
    parts: list[str] = []
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        parts = [
            _importance(found),
            *(f"<p class='soft'>{text(note)}</p>" for note in found.get("notes", [])),
        ]
        parts += [_example(one) for one in found["examples"]]
    return section("Why", *parts)


def _importance(found: Mapping[str, Any]) -> str:
    one = found["importance"]
    if not one:
        return ""
    name = f"by how much {one['metric']} of {found['split']} is worse when a column is shuffled"
    columns = one["columns"][:MOST_COLUMNS]
    bars = [Bar(str(c["column"]), c["mean"], c["low"], c["high"], strong=c["low"] > 0) for c in columns]
    said = (
        f"{one['rows']:,} rows, each column shuffled {one['repeats']} times: the mean, the least and the most"
    )
    if len(one["columns"]) > MOST_COLUMNS:
        said += f"; the other {len(one['columns']) - MOST_COLUMNS} columns are worth less"
    pairs = [f"{a} and {b} ({r:.2f})" for a, b, r in one["together"][:8]]
    also = f"<p class='soft'>move together, so that each seems worth less: {text(', '.join(pairs))}</p>"
    return (
        charts.intervals(name, bars, console.number)
        + f"<p class='soft'>{text(said)}</p>"
        + also * bool(pairs)
    )


def _example(one: Mapping[str, Any]) -> str:
    sure = f", probability {one['probability']:.3f}" if "probability" in one else ""
    head = f"<h3>{text(one['why'])}: {text(one['where'])}</h3>"
    output, base, error = (
        console.number(value)
        for value in (one["output"], one["output_of_that"], abs(one["completeness_error"]))
    )
    said = (
        f"{_shown(one['prediction'])} was said{sure}; it is {_shown(one['target'])}. {one['explained']}: "
        f"{output}, of {one['compared_with']} {base}; what is between them is shared out, up to {error}"
    )
    drawn = _pixels(one) if "pixels" in one else _parts(one["parts"])
    return f"{head}<p class='soft'>{text(said)}</p>{drawn}"


def _shown(value: Any) -> str:
    return console.number(value) if isinstance(value, float) else str(value)


def _parts(parts: Sequence[Mapping[str, Any]]) -> str:
    """The tokens of a text with colours behind them, the cells of a row as a table; of a text with columns
    beside it, both."""
    most = max((abs(part["attribution"]) for part in parts), default=0.0) or 1.0
    cells = [part for part in parts if "value" in part]
    tokens = [part for part in parts if "value" not in part]
    spans = [
        f"<span style='{_colour(part['attribution'], most)}' title='{part['attribution']:+.3g}'>"
        f"{text(part['name'])}</span>"
        for part in tokens
    ]
    rows = [
        [text(part["name"]), text("" if part["value"] is None else part["value"]),
         f"<span style='{_colour(part['attribution'], most)}'>{part['attribution']:+.3g}</span>"]
        for part in cells[:MOST_PARTS]
    ]  # fmt: skip
    marked = f"<figure><p class='marked'>{''.join(spans)}</p></figure>"
    return marked * bool(tokens) + (table("", ["column", "cell", "adds"], rows) if cells else "")


def _colour(value: float, most: float) -> str:
    share = round(55 * min(1.0, abs(value) / most))
    return f"background:color-mix(in srgb,var(--{'bad' if value > 0 else 'accent'}) {share}%,transparent)"


def _pixels(one: Mapping[str, Any]) -> str:
    shown = ""
    for name, said in (("picture", "the picture"), ("heat", "what spoke for the answer and against it")):
        if str(one[name]).startswith(PICTURE):
            shown += f"<img src='{text(one[name])}' alt='{said}'>"
    below = "<figcaption>red speaks for the answer, blue against it</figcaption>"
    return f"<figure>{below}<div class='seen'>{shown}</div></figure>"
