"""The answers to evaluation suites in a report: kept on disk, held against another run's, shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtool.core import console, files
from llmtool.evaluation import requirements
from llmtool.evaluation.sentences import sentence
from llmtool.metrics import bootstrap
from llmtool.metrics.suites import SuiteTally

FOLDER = "suites"
Suites = Mapping[str, Mapping[str, Any]]  # of report.json: suite -> what is known of it


def place(directory: Path, name: str) -> Path:
    """Where an evaluation keeps the answers to a suite: a line of JSON for each question."""
    return directory / FOLDER / f"{name}.jsonl"


def write(directory: Path, name: str, tally: SuiteTally) -> str:
    """Write the answers to a suite; returns the hash of the file."""
    path = place(directory, name)
    files.make_directories(path.parent)
    lines = [json.dumps(files.plain(record), ensure_ascii=False) for record in tally.records]
    files.write_text(path, "".join(f"{line}\n" for line in lines))
    return files.hash_file(path)


def saved(directory: Path, suites: Suites) -> dict[str, SuiteTally]:
    """The answers that an evaluation left. ValueError where a file is not the one that was written."""
    found = {}
    for name, one in suites.items():
        path = place(directory, name)
        if files.hash_file(path) != one["answers"]:
            raise ValueError(f"{path.name} is not the file that was written with its report")
        found[name] = SuiteTally(one["kind"], [json.loads(line) for line in files.read_lines(path)])
    return found


def judged(tally: SuiteTally, seed: int) -> dict[str, Any]:
    """The figures of a suite for report.json, and how sure they are."""
    sure = bootstrap.intervals(tally, seed)
    return {
        "kind": tally.kind,
        "questions": tally.units,
        "metrics": tally.metrics(),
        "undefined": tally.undefined,
        "intervals": sure.found,
        "no_interval": sure.missing,
        "draws": sure.draws,
    }


def changes(after: SuiteTally, before: SuiteTally, seed: int) -> dict[str, dict[str, Any]]:
    """Figure -> its change, question by question, with the interval of the change and a sentence."""
    here, there = after.metrics(), before.metrics()
    found = {}
    for name, difference in bootstrap.paired(after, before, seed).items():
        p = None
        if name in bootstrap.COUNTED:
            p = bootstrap.mcnemar(after.column(name) > 0, before.column(name) > 0)
        found[name] = {
            "here": here[name],
            "there": there[name],
            "difference": difference.value,
            "interval": None if difference.low is None else [difference.low, difference.high],
            "p": p,
            "says": sentence(name, difference, p),
        }
    return found


def compared(
    here: Suites, tallies: Mapping[str, SuiteTally], there: Suites, theirs: Mapping[str, SuiteTally],
    directory: str, seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Suite -> how it went beside another evaluation: `with`, `figures`, and `says` where there are none.

    Only answers to the same questions under the same settings are compared.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, tally in tallies.items():
        why = ""
        if name not in theirs:
            why = f"{directory} did not answer it"
        elif any(here[name][key] != there[name].get(key) for key in ("kind", "settings")):
            why = f"{directory} was asked otherwise"
        elif list(here[name]["files"].values()) != list(there[name].get("files", {}).values()):
            why = f"{directory} was asked other questions"
        figures = {} if why else changes(tally, theirs[name], seed)
        found[name] = {"with": directory, "figures": figures, "says": f"not compared: {why}" if why else ""}
    return found


def required(suites: Suites) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """The figures of suites that a requirement may name, and why others are missing, as
    requirements.with_bounds gives those of splits."""
    figures: dict[str, dict[str, float]] = {}
    reasons: dict[str, dict[str, str]] = {}
    for name, one in suites.items():
        key = requirements.SUITES + name
        beside = one.get("comparison")
        evidence = {
            "intervals": {key: one["intervals"]},
            "no_interval": {key: one["no_interval"]},
            "overlap": {},
            "comparison": beside and {"splits": {key: beside["figures"]}, "says": [beside["says"]]},
        }
        found = requirements.with_bounds({key: one["metrics"]}, {key: one["undefined"]}, evidence)
        figures |= found[0]
        reasons |= found[1]
    return figures, reasons


# --- for people ---


def rows(suites: Suites) -> list[list[str]]:
    """A line for each figure: suite, figure, value, interval, questions."""
    found = []
    for name, one in suites.items():
        for at, figure in enumerate([*one["metrics"], *one["undefined"]]):
            bounds = one["intervals"].get(figure)
            value = one["metrics"].get(figure)
            found.append(
                [
                    name if at == 0 else "",
                    figure,
                    "-" if value is None else console.number(value),
                    f"{console.number(bounds[0])} to {console.number(bounds[1])}" if bounds else "-",
                    f"{one['questions']:,}" if at == 0 else "",
                ]
            )
    return found


def notes(suites: Suites) -> list[str]:
    """What must be known beside the figures: what was cut, which intervals are missing, comparisons."""
    found = []
    for name, one in suites.items():
        if cut := one.get("cut"):
            found.append(
                f"{name}: {cut:,} texts were longer than the model's context and lost their beginning"
            )
        reasons: dict[str, list[str]] = {}
        for what, key in (("", "undefined"), ("interval of ", "no_interval")):
            for figure, why in one[key].items():
                reasons.setdefault(f"no {what}{{}}: {why}", []).append(figure)
        found += [f"{name}: {why.replace('{}', ', '.join(of), 1)}" for why, of in reasons.items()]
        if beside := one.get("comparison"):
            found += [f"{name} {figure}: {said['says']}" for figure, said in beside["figures"].items()]
            found += [f"{name}: {beside['says']}"] if beside["says"] else []
    return found


def before_after(before: Suites, after: Suites, found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line for each figure of suites before and after fine-tuning: suite, figure, both, what changed."""
    lines = []
    for name, one in after.items():
        for figure, value in one["metrics"].items():
            was = before[name]["metrics"].get(figure)
            change = found[name].get(figure)
            lines.append(
                [name, figure, "-" if was is None else console.number(was), console.number(value),
                 change["says"] if change else "-"]
            )  # fmt: skip
    return lines
