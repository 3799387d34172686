"""What `--profile` tells: where a training step's time went, what waited, and where the trace is."""

from __future__ import annotations

from typing import Any

from llmtool.commands import Options
from llmtool.core import console
from llmtool.core.run import Run

SHOWN = 6  # operators


def stands(options: Options, run: Run) -> None:
    """Says that nothing was recorded where a training that stands is left alone."""
    if options.profile:
        console.note(f"nothing was recorded: {run.directory} stands; --force trains again, with a profile")


def say(found: dict[str, Any] | None) -> None:
    """The figures of training.profile as two tables and a few sentences."""
    if found is None:
        return
    if "missing" in found:
        console.note(found["missing"])
        return
    step, device = found["step_seconds"], found.get("device")
    columns = [f"a step, of {found['steps']} recorded", "ms", "%", *(["device ms"] if device else [])]
    lines = []
    for name, seconds in [*found["parts"].items(), ("whole", step)]:
        own = [] if not device else [1e3 * device["parts"].get(name, device["busy_seconds"])]
        lines.append([name, 1e3 * seconds, 100 * seconds / step, *own])
    console.table(columns, lines)
    of = "kernel" if device else "operator"
    console.table(
        [of, "calls", "ms", "%"],
        [[o["name"], o["calls"], 1e3 * o["seconds"], 100 * o["share"]] for o in found["top"][:SHOWN]],
    )
    waits = found["waits"]
    said = [f"waiting for data {100 * waits['data_seconds'] / step:.1f} %"]
    if device:
        said.append(f"the device idle {100 * device['idle_share']:.1f} %")
        said.append(f"{waits['synchronisations']:.1f} times a step the host waits for it")
    share = found["peak_share"]["others"] or found["peak_share"]["recorded"]
    said += [f"{100 * share:.1f} % of the device's peak"] if share else []
    console.say(f"{', '.join(said)}; recorded steps are slower than others")
    console.say(f"trace: {found['trace']} (for ui.perfetto.dev or chrome://tracing)")
