"""report.html: what is known of a run on one page that needs nothing else - no network, no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from llmtool.core import console
from llmtool.evaluation import charts
from llmtool.evaluation.charts import Curve
from llmtool.evaluation.html_results import bar, calibration, figures, headline, mistakes, samples, slices
from llmtool.evaluation.markup import bullets, card, document, section, table, text
from llmtool.evaluation.report import AVERAGES, interval, number

STAGES = ("prepare", "describe", "train", "finetune", "evaluate")
TIMES = ("rows_per_second", "tokens_per_second")

Run = Mapping[str, Any]  # what stages.report collects: root, results by stage, the files' contents or None


def page(run: Run) -> str:
    """The whole report of one run; a section that has nothing to say is left out."""
    sections = (_summary, figures, _curves, mistakes, calibration, slices, samples, _data, _model, _cost,
                _lineage, _config)  # fmt: skip
    return document(
        run["root"], f"<h1>{text(run['root'])}</h1>", "".join(map(str, (s(run) for s in sections)))
    )


def side_by_side(runs: Sequence[Run], compared: Sequence[str] = ()) -> str:
    """Several runs on one page. compared: sentences on how they differ, row by row."""
    names = [run["root"] for run in runs]
    parts = [f"<p class='soft'>{', '.join(map(text, names))}</p>"]
    parts += [f"<p>{text(line)}</p>" for line in compared]
    for split in dict.fromkeys(split for run in runs for split in (run["report"] or {}).get("metrics", {})):
        parts.append(_together(runs, split))
    for key in ("loss", *dict.fromkeys(f"validation {_headline(run)}" for run in runs)):
        parts.append(charts.lines(key, [Curve(run["root"], *_series(run, key)) for run in runs]))
    if keys := different_keys(runs):
        rows = [[text(key), *(text(value) for value in values)] for key, values in keys.items()]
        parts.append(section("What differs in the files", table("", ["key", *map(text, names)], rows)))
    return document("runs side by side", "<h1>Runs side by side</h1>", "".join(parts))


# --- the sections ---


def _summary(run: Run) -> str:
    """What a reader wants first: the verdict, the headline figure, and what to be careful about."""
    report, cards = run["report"], []
    last = next((stage for stage in reversed(STAGES) if stage in run["results"]), None)
    result = run["results"].get(last, {})
    failed = [f"<p class='unmet'>{text(stage)} {text(one['status'])}: {text(one['error'])}</p>"
              for stage, one in run["results"].items() if one.get("status") != "done"]  # fmt: skip
    version = result.get("versions", {}).get("llmtool", "")
    said = f"<p class='soft'>{text(result.get('started', ''))} · llmtool {text(version)}</p>"
    if report:
        split, figure = headline(report)
        value = report["metrics"].get(split, {}).get(figure)
        bounds = report["intervals"].get(split, {}).get(figure)
        between = f"95 %: {interval(bounds)}" if bounds else ""
        cards.append(card(f"{split} {figure}", number(value), between))
        if against := report["against"]:
            word = "better" if against["beats"] else "not clearly better"
            cards.append(card(f"strongest baseline: {against['baseline']}", number(against["theirs"]), word))
        if outcomes := report["requirements"]:
            met = sum(one["met"] for one in outcomes)
            cards.append(card("requirements met", f"{met} of {len(outcomes)}", ""))
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
        + bullets(lines)
    )


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
        bullets(notes),
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
    rows = list(_links(run))
    return section(
        "Lineage",
        table("", ["", "value"], [[text(name), f"<code>{text(value)}</code>"] for name, value in rows]),
    )


def _links(run: Run) -> Iterator[tuple[str, str]]:
    """Data -> encoder -> checkpoint -> figures, by their hashes."""
    prepare, report = run["results"].get("prepare", {}), run["report"] or {}
    for path, found in (prepare.get("key") or {}).get("inputs", {}).items():
        yield str(path), str(found)
    if run["card"]:
        yield "dataset", str(run["card"]["fingerprint"])
    for stage in ("train", "finetune"):
        result = run["results"].get(stage, {})
        if weights := result.get("fingerprints", {}).get("weights"):
            yield f"{stage} weights", f"{weights} ({result.get('checkpoint')})"
    if model := report.get("model"):
        yield "weights scored", f"{model['hash']} ({model['path']})"
    if code := next((one["key"]["code"] for one in run["results"].values() if one.get("key")), None):
        yield "llmtool", str(code)


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
    figure = headline(found[-1])[1] if found[-1] else next(iter(names), "")
    bars = []
    for run, one in zip(runs, found, strict=True):
        parts = [one.get(key, {}).get(split, {}) for key in ("metrics", "intervals")]
        bars.append(bar(run["root"], parts[0], parts[1], figure, True))
    drawn = charts.intervals(f"{split} {figure}", [one for one in bars if one], number)
    return section(text(split), drawn, table("", ["figure", *(text(run["root"]) for run in runs)], rows))


def different_keys(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The keys of the resolved experiments that are not the same in all runs, with the value of each."""
    flat = [dict(_flat(run["config"] or {})) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [str(one.get(key, "-")) for one in flat] for key in keys if key != "run"}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
