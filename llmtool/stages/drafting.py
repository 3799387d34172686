"""The first YAML file for some data: valid, complete, and every guess with what led to it beside its key."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtool.core import config
from llmtool.core.console import seconds
from llmtool.core.contracts import NextToken
from llmtool.core.devices import resolve_device, resolve_precision
from llmtool.data import DataConfig
from llmtool.data.guessing import Task
from llmtool.data.looking import Sight
from llmtool.data.surroundings import split_of
from llmtool.experiment import Experiment, flow
from llmtool.models.choice import Choice, choices
from llmtool.stages import advise
from llmtool.stages.plans import Plan, plan_of

WIDTH = 110  # of a line, with its comment
SAID = {
    "optimizer": "what went well with this family",
    "augment": "pictures are moved and mirrored at random: no flip where left and right mean something",
    "ema": "the mean of the last weights is what is kept",
    "stop": "validations without a better figure, after which training ends",
}


@dataclass
class Draft:
    """Lines of a file, each with its comment."""

    lines: list[str] = field(default_factory=list)

    def put(self, depth: int, key: str, value: Any = None, why: str = "") -> None:
        """`key: value` (a section's name where there is none), and beside or above it why."""
        text = "  " * depth + key + (":" if not key.startswith("- ") else "")
        text += "" if value is None else f" {flow(value)}"
        why = " ".join(why.split())
        if why and len(text) + 3 + len(why) <= WIDTH:
            text += f"  # {why}"
        elif why:
            self.lines += _comments(why, 2 * depth)
        self.lines.append(text)

    def item(self, depth: int, value: Any, why: str = "") -> None:
        """An element of a list."""
        self.put(depth, "- " + flow(value), None, why)

    def say(self, *lines: str) -> None:
        """Comments on lines of their own."""
        for line in lines:
            self.lines += _comments(line, 0)

    def text(self) -> str:
        """The file."""
        return "\n".join(self.lines) + "\n"


def draft(
    sight: Sight, path: str, output: str, command: str, target: str | None = None, task: Task | None = None
) -> tuple[str, dict[str, Any]]:
    """The file's text, and what was guessed, for JSON. path: of the data; output: where the file goes;
    command: what the user typed.

    ConfigError where nothing can be learned from the data, or the user asked for what is not in it.
    """
    device = resolve_device("auto")
    plan = plan_of(sight, target, task, "cuda" if device.type == "cuda" else "cpu")
    found = choices(plan.problem)
    choice = found[0]
    costs = advise.costs(
        choice, plan.problem, device.type, advise.rate_of(device, resolve_precision("auto", device))
    )
    lines = Draft()
    _head(lines, plan, path, output, command)
    _data(lines, sight, plan)
    _model(lines, choice, found[1:])
    _train(lines, plan, choice, costs)
    _evaluate(lines, plan)
    text = lines.text()
    config.validate(config.parse(text, output), Experiment)  # what it says must load
    guessed = {
        "kind": sight.kind,
        "rows": sight.rows,
        "source": sight.source,
        "target": next((value for key, value, _ in plan.encode if key == "target"), None),
        "encode": {key: value for key, value, _ in plan.encode},
        "split": plan.split,
        "model": {"family": choice.family, **choice.model},
        "train": choice.train,
        "why": {**sight.why, "model": choice.why, **{key: why for key, _, why in plan.encode if why}},
        "costs": costs,
    }
    return text, guessed


def name_of(path: str) -> str:
    """A name for the run: the file's, or its folder's where the file is called train."""
    place = Path(path).resolve()
    name = place.name.split(".")[0] or "run"
    if split_of(name) and not place.is_dir():
        name = place.parent.name
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name).strip("_") or "run"


# --- the sections -----------------------------------------------------------------------------------------


def _head(lines: Draft, plan: Plan, path: str, output: str, command: str) -> None:
    said = shlex.quote(output) if output != "-" else "config.yaml"
    lines.say(
        f"Written by `{command}`. Beside each key stands what was seen in the data; change what is wrong.",
        plan.about,
        *plan.notes,
    )
    writes = isinstance(plan.problem.outputs, NextToken) and not plan.problem.game
    last = f"generate {said} --prompt TEXT" if writes else f"predict {said} --input FILE"
    for step in (f"train {said}", f"evaluate {said}", last):
        lines.lines.append(f"#     llmtool {step}")
    lines.put(0, "run", f"runs/{name_of(path)}", "where everything that is made goes")


def _data(lines: Draft, sight: Sight, plan: Plan) -> None:
    lines.put(0, "data")
    lines.put(1, "source")
    for key, value in sight.source.items():
        why = sight.why.get(key, "")
        if key == "path" and not isinstance(value, str):
            lines.put(2, "path", None, why)
            for split, name in value.items():
                lines.put(3, split, name)
            continue
        lines.put(2, key, value, why)
    if "header" in sight.why and "header" not in sight.source and sight.form in ("csv", "tsv"):
        lines.lines += _comments(f"header: {sight.why['header']}", 4)
    if "beside" in sight.why:
        lines.lines.append(f"    # {sight.why['beside']}")
    if plan.clean:
        lines.put(1, "clean")
        for step, why in plan.clean:
            lines.item(2, step, why)
    lines.put(1, "split", plan.split, plan.split_why)
    lines.put(1, "encode")
    for key, value, why in plan.encode:
        if isinstance(value, dict) and key == "ignore":
            lines.put(2, "ignore", None, why)
            for name, reason in value.items():
                lines.item(3, name, reason)
        else:
            lines.put(2, key, value, why)
    if sight.bad > DataConfig.model_fields["max_bad"].default / 2 * sight.looked:
        share = sight.bad / sight.looked
        most = next(most for most in (0.02, 0.05, 0.1, 0.2, 0.5, 1) if most >= min(1, 1.5 * share))
        lines.put(
            1,
            "max_bad",
            most,
            f"{sight.bad:,} of {sight.looked:,} rows that were looked at cannot be used; prepare says why",
        )
    if plan.task:
        lines.put(0, "task", plan.task, plan.task_why)


def _model(lines: Draft, choice: Choice, others: list[Choice]) -> None:
    more = "".join(f"; {other.family}: {other.against}" for other in others[:2])
    lines.put(0, "model")
    lines.put(1, "family", choice.family, choice.why)
    lines.lines += _comments(f"against it: {choice.against}")
    if more:
        lines.lines += _comments(f"not taken{more}")
    for key, value in choice.model.items():
        lines.put(1, key, value)
    lines.lines += _comments("`model: auto` would leave all of this to llmtool")


def _comments(text: str, blanks: int = 2) -> list[str]:
    begin = " " * blanks + "# "
    return textwrap.wrap(
        text, WIDTH - 2, initial_indent=begin, subsequent_indent=begin, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _train(lines: Draft, plan: Plan, choice: Choice, costs: dict[str, Any]) -> None:
    epochs = choice.train["budget"]["epochs"]
    total = costs["epoch_seconds"] * epochs
    why = f"about {seconds(costs['epoch_seconds'])} each here, {seconds(total)} in all"
    lines.put(0, "train")
    lines.put(1, "budget", choice.train["budget"], f"{why}; `llmtool train --rehearse` measures it")
    for key, value in choice.train.items():
        if key != "budget":
            lines.put(1, key, value, SAID.get(key, ""))
    if plan.select:
        lines.put(1, "select", plan.select[0], plan.select[1])


def _evaluate(lines: Draft, plan: Plan) -> None:
    """What `evaluate` does beside the scores of the test split; baselines it fits by itself."""
    if plan.samples:
        lines.put(0, "evaluate")
        lines.put(1, "samples", plan.samples, "what the model writes after the beginning of a text")
