"""The model card: a description as a Markdown document."""

from __future__ import annotations

from typing import Any

from llmtool.stages import advise
from llmtool.stages.describe import UNCHOSEN, cost_rows, data_lines, facts, grouped, title, words


def model_card(description: dict[str, Any]) -> str:
    """The description as a Markdown document."""
    family = f"A model of the family `{description['family']}`" if description["family"] else UNCHOSEN
    lines = [f"# {_plain(description['name'])}", "", _sentence(family), ""]
    lines += [f"- Assumed: {note}" for note in description["assumed"]]
    lines += [f"- Not known yet: {note}" for note in description["needs_prepare"]]
    own = next((f for f in description["families"] if f["chosen"]), None)
    if own:
        lines += ["", "## What it is for", "", f"Suits {own['suits']}.", ""]
    if description["auto"]:
        lines += [f"Chosen for this data: {description['auto']}.", ""]
    if works := description["works"]:
        lines += ["## How it works", "", _sentence(works), ""]
    if description["inputs"]:
        lines += [f"Takes {words(description['inputs'])}; gives {words(description['outputs'])}.", ""]
    targets = (description["data"] or {}).get("targets") or {}
    if targets.get("names"):
        names = [_plain(str(name)) for name in targets["names"]]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        lines += [f"Targets: {', '.join(names[:20])}{more}.", ""]
    lines += _card_data(description)
    lines += _card_advice(description["advice"])
    if description["structure"]:
        lines += ["## Costs", "", "| | |", "|---|---|"]
        lines += [f"| {name.strip()} | {value} |" for name, value in cost_rows(description)]
        lines += ["", f"{description['flops']['note']}. Memory: {description['memory']['note']}.", ""]
        lines += ["## Structure", "", *_card_tree(description["structure"], description["family"], 0), ""]
    settings = [f"| `{key}` | `{_code(str(value))}` |" for key, value in description["config"].items()]
    lines += ["## Configuration", "", "| key | value |", "|---|---|", *settings, ""]
    lines += ["## Limits", "", "What it says is only as good as the data it learned from. It is scored by "]
    lines[-1] += "`llmtool evaluate`; a figure that does not stand in its report was not measured."
    return "\n".join(lines) + "\n"


def _card_data(description: dict[str, Any]) -> list[str]:
    if description["data"] is None:
        return []
    lines = ["## Data", "", *(f"- {_plain(line)}" for line in data_lines(description))]
    return [*lines, *(f"- {_plain(note)}" for note in description["data"]["notes"]), ""]


def _card_advice(advice: dict[str, Any] | None) -> list[str]:
    if advice is None:
        return []
    lines = ["## Alternatives", "", f"| {' | '.join(advise.WHY)} |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in advise.reasons(advice)]
    return [*lines, "", f"To beat: {_plain(advice['baseline'])}.", ""]


def _card_tree(part: dict[str, Any], name: str, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}- **{title(part, name)}**: {facts(part)}"]
    for child, alike in grouped(part["parts"]):
        lines += _card_tree(child, alike, depth + 1)
    return lines


def _plain(text: str) -> str:
    """Text of others (names of classes and columns) on one line, without Markdown's own signs."""
    return " ".join(text.split()).translate({ord(sign): f"\\{sign}" for sign in "|<>`*[]"})


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _code(text: str) -> str:
    """Text between backticks in a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
