"""report.html: what is known of a run on one page that needs nothing else - no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from llmtool.core import console
from llmtool.core.lineage import short
from llmtool.evaluation import charts
from llmtool.evaluation.charts import Bar, Curve
from llmtool.evaluation.differences import STAGES, differences
from llmtool.evaluation.report import AVERAGES, calibration_line, interval, number, overlap_line, slice_lines

MOST_CELLS = 26  # classes of the confusion matrix
TIMES = ("rows_per_second", "tokens_per_second")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#676b73;--rule:#e3e1dc;
--accent:#1f6f8b;--second:#c8772e;--third:#6a8f3c;--fourth:#8a5a9e;--fifth:#b23a48;--good:#2e7d4f;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--card:#1d2024;--ink:#e7e6e3;--soft:#9aa0a8;--rule:#33373d;
--accent:#5fb3cf;--second:#e5a05f;--third:#a3c677;--fourth:#c39ad6;--fifth:#e77a85;--good:#6fc38f;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p{margin:.4rem 0}
.soft,figcaption,caption{color:var(--soft)}.soft{font-size:.9rem}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));margin:1rem 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.6rem;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.met{color:var(--good)}.unmet{color:var(--bad);font-weight:600}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;padding-bottom:.3rem;font-size:.9rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.text,th.text{text-align:left;white-space:normal;min-width:12rem}
thead th{color:var(--soft);font-weight:500}tr.strong td{font-weight:600}
figure{margin:.8rem 0;background:var(--card);border:1px solid var(--rule);border-radius:.6rem;
padding:.6rem .8rem}
figure.small{max-width:22rem}figcaption{font-size:.88rem;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--rule)}svg .even{stroke:var(--soft);stroke-dasharray:4 4}
svg .whisker{stroke-width:3;stroke-linecap:round;opacity:.55}
.key{margin-left:.8rem;white-space:nowrap}
.key i{display:inline-block;width:.8em;height:.25em;margin-right:.3em;vertical-align:middle}
.two{display:grid;gap:0 .8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
pre{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem;
overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--soft)}ul{padding-left:1.2rem;margin:.4rem 0}
@media print{body{background:#fff}.wide{overflow:visible}}
"""

Run = Mapping[
    str, Any
]  # what stages.report collects: root, results by stage, and the files' contents or None


def page(run: Run) -> str:
    """The whole report of one run; a section that has nothing to say is left out."""
    sections = (_summary, _figures, _curves, _mistakes, _calibration, _slices, _samples, _data, _model, _cost,
                _lineage, _config)  # fmt: skip
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
    for key in ("loss", *dict.fromkeys(f"validation {_headline(run)}" for run in runs)):
        parts.append(charts.lines(key, [Curve(run["root"], *_series(run, key)) for run in runs]))
    for title, found in differences(runs).items():
        rows = [[text(name), *map(text, values)] for name, values in found.items()]
        parts.append(section(f"What differs: {title}", table("", ["", *map(text, names)], rows)))
    return document("runs side by side", "<h1>Runs side by side</h1>", "".join(parts))


def document(title: str, head: str, body: str) -> str:
    """A page of its own."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{text(title)} - llmtool</title><style>{STYLE}</style></head>"
        f"<body><main>{head}{body}</main></body></html>\n"
    )


def text(value: Any) -> str:
    """Any value as text of the page: escaped, control characters written out."""
    return escape(console.clean(str(value), lines=False))


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where there is nothing."""
    inside = "".join(parts)
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[int] = ()
) -> str:
    """A table that scrolls by itself on a narrow screen. Cells are HTML already; strong: numbers of rows."""
    if not rows:
        return ""
    words = {at for at in range(1, len(columns)) if columns[at] in WORDY}
    of = lambda at: " class='text'" if at in words else ""  # noqa: E731
    head = "".join(f"<th scope='col'{of(at)}>{name}</th>" for at, name in enumerate(columns))
    lines = ""
    for number_, row in enumerate(rows):
        cells = "".join(f"<td{of(at)}>{cell}</td>" for at, cell in enumerate(row))
        lines += f"<tr{' class=strong' * (number_ in strong)}>{cells}</tr>"
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f"<div class='wide'><table>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


WORDY = ("what it is", "value")


# --- the sections ---


def _summary(run: Run) -> str:
    """What a reader wants first: the verdict, the headline figure, and what to be careful about."""
    report, cards = run["report"], []
    last = next((stage for stage in reversed(STAGES) if stage in run["results"]), None)
    result = run["results"].get(last, {})
    failed = [f"<p class='unmet'>{text(stage)} {text(one['status'])}: {text(one['error'])}</p>"
              for stage, one in run["results"].items() if one.get("status") != "done"]  # fmt: skip
    failed += [f"<p class='unmet'>{text(line)}</p>" for line in run.get("warnings") or []]
    version = result.get("versions", {}).get("llmtool", "")
    said = f"<p class='soft'>{text(result.get('started', ''))} · llmtool {text(version)}</p>"
    if report:
        split, figure = _headline_of(report)
        value = report["metrics"].get(split, {}).get(figure)
        bounds = report["intervals"].get(split, {}).get(figure)
        between = f"95 %: {interval(bounds)}" if bounds else ""
        cards.append(_card(f"{split} {figure}", number(value), between))
        if against := report["against"]:
            word = "better" if against["beats"] else "not clearly better"
            cards.append(_card(f"strongest baseline: {against['baseline']}", number(against["theirs"]), word))
        if outcomes := report["requirements"]:
            met = sum(one["met"] for one in outcomes)
            cards.append(_card("requirements met", f"{met} of {len(outcomes)}", ""))
    lines = []
    for one in (report or {}).get("requirements", []):
        word = "met" if one["met"] else "unmet"
        lines.append(f"<li class='{word}'>{word}: {text(one['says'])}</li>")
    found = [finding for finding in (run["leakage"] or {}).get("findings", []) if finding["warning"]]
    lines += [
        f"<li class='unmet'>{text(finding['says'])}; {text(finding['advice'])}</li>" for finding in found
    ]
    return (
        said
        + "".join(failed)
        + (f"<div class='cards'>{''.join(cards)}</div>" if cards else "")
        + _list(lines)
    )


def _card(name: str, value: str, below: str) -> str:
    small = "<span class='soft'>{}</span>"
    inside = f"{small.format(text(name))}<b>{text(value)}</b>{small.format(text(below))}"
    return f"<div class='card'>{inside}</div>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _figures(run: Run) -> str:
    report = run["report"]
    if not report:
        return ""
    split, figure = _headline_of(report)
    bars = [
        _bar("this model", report["metrics"].get(split, {}), report["intervals"].get(split, {}), figure, True)
    ]
    bars += [_bar(one["name"], one["metrics"].get(split, {}), {}, figure) for one in report["baselines"]]
    drawn = charts.intervals(f"{split} {figure} beside baselines", [bar for bar in bars if bar], number)
    head, rows = ["figure"], []
    for name in report["metrics"]:
        head += [text(name), "95 %"]
    for key in dict.fromkeys(key for figures in report["metrics"].values() for key in figures):
        if not key.endswith(tuple(f"_{average}" for average in AVERAGES)):
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
    notes = [f"<li>no {text(name)} of {text(split)}: {text(why)}</li>"
             for split, reasons in report["undefined"].items() for name, why in reasons.items()]  # fmt: skip
    compared = report["comparison"] or {"says": []}
    against = f"<p>{text(report['against']['says'])}</p>" if report["against"] else ""
    said = [f"<p>beside {text(compared['with'])}: {text(line)}</p>" for line in compared["says"]]
    overlaps = [
        f"<p>{text(overlap_line(name, one))}</p>" for name, one in report["overlap"].items() if one["shared"]
    ]
    return section(
        "Figures", against, drawn, table("", head, rows), _list(notes),
        table(f"baselines on {text(split)}", ["", *map(text, names), "what it is"], beside), *said, *overlaps,
    )  # fmt: skip


def _bar(
    name: str, metrics: Mapping[str, float], bounds: Mapping[str, Any], figure: str, strong: bool = False
) -> Bar | None:
    value = metrics.get(figure)
    low, high = bounds.get(figure) or (None, None)
    return None if value is None else Bar(name, value, low, high, strong)


def _curves(run: Run) -> str:
    if not run["metrics"]:
        return ""
    parts = []
    for stage, rows in run["metrics"].items():
        one = {**run, "metrics": {stage: rows}}
        chosen = _headline(one)
        drawn = [
            charts.lines(f"{stage}: training loss", [Curve("loss", *_series(one, "loss"))]),
            charts.lines(
                f"{stage}: validation {chosen}", [Curve(chosen, *_series(one, f"validation {chosen}"))]
            ),
            charts.lines(f"{stage}: learning rate", [Curve("lr", *_series(one, "lr"))]),
            *(
                charts.lines(f"{stage}: {rate.replace('_', ' ')}", [Curve(rate, *_series(one, rate))])
                for rate in TIMES
            ),
        ]
        spikes = [row for row in rows if "spike" in row]
        said = f"<p>{len(spikes)} spikes of the loss were recorded</p>" if spikes else ""
        parts.append(f"{said}<div class='two'>{''.join(drawn)}</div>")
    return section("Training", *parts)


def _series(run: Run, key: str) -> tuple[list[float], list[float | None]]:
    """Steps and values of one column of metrics.jsonl."""
    steps: list[float] = []
    values: list[float | None] = []
    for rows in run["metrics"].values():
        for row in rows:
            name = key.removeprefix("validation ")
            place = row.get("validation") if key.startswith("validation ") else row
            place = row.get("time", {}) if key in TIMES else place
            if isinstance(place, Mapping) and isinstance(place.get(name), int | float):
                steps.append(row["step"])
                values.append(place[name])
    return steps, values


def _mistakes(run: Run) -> str:
    report = run["report"] or {"details": {}}
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
    body = drawn + classes + table("", ["target", *(k.replace("_", " ") for k in keys)], targets)
    return section("Classes and mistakes" if rows else "Targets", body)


def _shaded(count: int, total: int) -> str:
    share = round(100 * count / total)
    style = f"background:color-mix(in srgb,var(--accent) {min(85, share)}%,transparent)" if share else ""
    return f"<span style='display:block;padding:0 .4rem;border-radius:.3rem;{style}'>{count:,}</span>"


def _calibration(run: Run) -> str:
    found = (run["report"] or {}).get("calibration") or {}
    parts = []
    for split, one in list(found.items())[-1:]:
        drawn = charts.reliability(f"{split}: accuracy by confidence", one["bins"])
        parts.append(f"<p>{text(calibration_line(split, one))}</p>{drawn}")
    return section("Calibration", *parts)


def _slices(run: Run) -> str:
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
        parts.append(f"<p>{text(head)}</p>" + table("", columns, rows, strong))
    return section("Slices", *parts)


def _samples(run: Run) -> str:
    samples = (run["report"] or {}).get("samples") or []
    shown = [f"<pre>{escape(console.clean(str(sample['text'])))}</pre>" for sample in samples[:20]]
    return section("What it writes", *shown)


def _data(run: Run) -> str:
    card, ledger = run["card"], run["ledger"]
    if not card:
        return ""
    rows = []
    if ledger:
        rows = [["read", f"{ledger['read']:,}"]]
        rows += [
            [f"kept for {text(split)}", f"{count:,}"] for split, count in ledger["kept"].items() if count
        ]
        for fate in ("dropped", "quarantined"):
            rows += [[f"{fate}: {text(why)}", f"{count:,}"] for why, count in ledger[fate].items()]
    size = {key: value for key, value in card["inputs"].items() if isinstance(value, int)}
    about = ", ".join(f"{text(key)} {value:,}" for key, value in size.items())
    sources = ", ".join(text(name) for name in card.get("sources", [])[:5])
    notes = [f"<li>{text(note)}</li>" for note in card["notes"]]
    return section(
        "Data",
        f"<p>{sources}: {text(card['encoding'])}, {about}</p>",
        table("", ["", "rows"], rows),
        _list(notes),
    )


def _model(run: Run) -> str:
    found = run["describe"]
    if not found:
        return ""
    memory = found.get("memory") or {}
    rows = (
        [["parameters", f"{found['parameters']['total']:,}"]]
        if isinstance(found.get("parameters"), Mapping) and "total" in found["parameters"]
        else []
    )
    rows += [
        [text(key.replace("_", " ")), text(console.bytes_(value))]
        for key, value in memory.items()
        if isinstance(value, int | float)
    ]
    return section("Model", table("", ["", ""], rows))


def _cost(run: Run) -> str:
    rows = []
    for stage, result in run["results"].items():
        speed = [(key, value) for key, value in (result.get("throughput") or {}).items() if key in TIMES]
        rate = "".join(f"{console.count(value)} {key.removesuffix('_per_second')}/s" for key, value in speed)
        steps = f"{result['steps']:,}" if "steps" in result else ""
        rows.append([text(stage), text(console.seconds(result.get("seconds") or 0.0)), steps, rate])
    machine: Mapping[str, Any] = next(
        (result["versions"] for result in run["results"].values() if result.get("versions")), {}
    )
    words = [f"{machine[key]} {key}" if key in ("cpus", "threads") else str(machine[key])
             for key in ("gpu", "cpus", "platform") if machine.get(key)]  # fmt: skip
    return section(
        "Cost",
        table("", ["stage", "time", "steps", "rate"], rows),
        f"<p class='soft'>{text(', '.join(words))}</p>",
    )


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
    return section(
        "What was asked", f"<details><summary>the experiment, resolved</summary>{inside}</details>"
    )


# --- several runs ---


def _together(runs: Sequence[Run], split: str) -> str:
    found = [(run["report"] or {}) for run in runs]
    names = dict.fromkeys(name for one in found for name in one.get("metrics", {}).get(split, {}))
    names = dict.fromkeys(name for name in names if not name.endswith(tuple(f"_{a}" for a in AVERAGES)))
    rows = []
    for name in names:
        cells = [text(name)]
        for one in found:
            bounds = one.get("intervals", {}).get(split, {}).get(name)
            value = number(one.get("metrics", {}).get(split, {}).get(name))
            cells.append(f"{value} <span class='soft'>{interval(bounds) if bounds else ''}</span>")
        rows.append(cells)
    figure = _headline_of(found[-1])[1] if found[-1] else next(iter(names), "")
    bars = []
    for run, one in zip(runs, found, strict=True):
        parts = [one.get(key, {}).get(split, {}) for key in ("metrics", "intervals")]
        bars.append(_bar(run["root"], parts[0], parts[1], figure, True))
    drawn = charts.intervals(f"{split} {figure}", [bar for bar in bars if bar], number)
    return section(text(split), drawn, table("", ["figure", *(text(run["root"]) for run in runs)], rows))


def _headline(run: Run) -> str:
    """The figure that training selected by; else the first of a validation."""
    for result in run["results"].values():
        if best := result.get("best"):
            return str(best["metric"])
    for rows in run["metrics"].values():
        for row in rows:
            if row.get("validation"):
                return str(next(iter(row["validation"])))
    return "loss"


def _headline_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """The split and the figure a report is about."""
    if against := report.get("against"):
        return against["split"], against["metric"]
    split = list(report["metrics"])[-1]
    names = report["metrics"][split]
    return split, next(
        (name for name in ("accuracy", "rmse", "loss") if name in names), next(iter(names), "")
    )
