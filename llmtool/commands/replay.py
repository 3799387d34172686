"""`--replay`: a step whose update was refused, made again from what was kept of it."""

from __future__ import annotations

from typing import Any

from llmtool import experiment
from llmtool.commands import Options, session, shown
from llmtool.core import console
from llmtool.core.errors import ConfigError
from llmtool.stages import replay

LAYERS = 8  # parameters shown
ABOUT = ("row", "at", "loss", "after")  # what a row's entry says beside its contents
WIDEST = 300  # characters of a row's contents that are shown


def run(options: Options, command: str, bundle: str) -> dict[str, Any]:
    """Make the step of `bundle` (a directory in <stage>/divergence) again; returns what --json prints."""
    if options.force or options.resume:
        raise ConfigError("--replay writes nothing: --force and --resume mean nothing beside it")
    loaded = experiment.load(options.config, options.overrides)
    loaded.need(command, command)
    with session.located(loaded, command):
        dataset = session.prepared(loaded, options)
        assembled = session.assembled(loaded, command, dataset)
        config = getattr(loaded.experiment, command)
        with console.progress(None, "step") as display:
            progress, flops = shown.TrainingDisplay(display, ""), session.flops_of(assembled)
            found = replay.again(assembled, config, bundle, progress, flops)
    _show(found)
    return {"replay": found}


def _show(found: dict[str, Any]) -> None:
    then, now, update = found["then"], found["now"], found["update"]
    console.say(f"then: {found['says']}")
    lines = [
        [name, _number(then[key]), _number(now[key]), "the same" if then[key] == now[key] else "differs"]
        for name, key in (("loss", "loss"), ("gradient norm", "norm"))
    ]
    console.table([f"step {found['step']}", "then", "now", ""], lines)
    layers = list(found["layers"].items())
    console.table(["gradient norm of", ""], [[name, _number(norm)] for name, norm in layers[:LAYERS]])
    if len(layers) > LAYERS:
        console.say(f"and {len(layers) - LAYERS} more with less")
    after = [_number(row["after"]) if update else "-" for row in found["rows"]]
    rows = [[row["row"], _number(row["loss"])] for row in found["rows"]]
    console.table(
        ["worst rows", "loss", "after the update"], [[*a, b] for a, b in zip(rows, after, strict=True)]
    )
    top = found["rows"][0]
    said = ", ".join(f"{key}: {value}" for key, value in top.items() if key not in ABOUT)
    console.say(f"{top['row']} holds {said[:WIDEST]}{'...' if len(said) > WIDEST else ''}")
    if update is None:
        console.say("the gradient is not finite: there is no update to try")
    else:
        figures = [_number(update[key]) for key in ("before", "after")]
        console.say(
            f"mean loss of these rows, without dropout: {figures[0]}; after this update: {figures[1]}"
        )


def _number(value: float | None) -> str:
    return "not finite" if value is None else console.number(value)
