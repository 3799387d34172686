"""llmtool describe: structure, cost and fit of a model; what a run was made from; what differs in two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from llmtool.commands import Options, keys, session
from llmtool.core import console, files, hardware, hub, lineage
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.hardware import Device
from llmtool.core.lineage import Chain
from llmtool.core.run import Run
from llmtool.data import store
from llmtool.evaluation import differences
from llmtool.experiment import Loaded
from llmtool.stages import bill, checkpoints, spent, subject
from llmtool.stages import describe as stage
from llmtool.stages import lineage as made
from llmtool.stages import report as stage_report
from llmtool.stages.describe import Subject
from llmtool.stages.model_card import model_card


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json, or what was found of one or two directories."""
    if options.others or session.is_directory(options.config):
        return _directories(options)
    with session.command(options, "describe") as loaded:
        devices, asked = _asked(options)
        card = session.card_if_prepared(loaded)
        start, experiment = None, loaded.experiment
        choice = None
        if experiment.model is None and experiment.finetune and experiment.train is None:
            start = Path(session.model_to_start(loaded))
        elif card is not None:
            loaded, choice = session.with_model(loaded, card)
        with session.stage(loaded, "describe", keys.describe(loaded, card, start, asked), options) as run:
            if not run.fresh:
                why = choice.why if choice else ""
                described = (
                    subject.of_checkpoint(start)
                    if start
                    else subject.of_experiment(loaded.experiment, card, why)
                )
                before = [store.lineage(card, run.root / "prepare")] if card else []
                before += [checkpoints.lineage(start)] if start else []
                cost = _bill(loaded, described, devices, options, card)
                if cost is not None and start is None:  # one and the same step in both accounts of memory
                    described = replace(described, rows=cost["here"]["micro_batch"])
                _describe(run, described, before, cost)
            last = spent.last(run.root)  # of trainings that came after: no part of what describe writes
            _show_description(files.read_json(run.directory / "describe.json"), last)
            if "all" in options.on:
                bill.table(devices)
    return run.result | ({"last": last} if last else {})


def _asked(options: Options) -> tuple[list[Device], dict[str, Any]]:
    """The devices that are known, and what the prediction is asked for and compared with."""
    devices = hardware.read(options.devices) if options.devices else hardware.TABLE
    hardware.find(list(options.on), devices)
    asked: dict[str, Any] = {}
    if options.on or options.devices:
        asked = {
            "on": options.on,
            "devices": files.hash_file(Path(options.devices)) if options.devices else None,
        }
    return devices, asked


def _bill(
    loaded: Loaded, what: Subject, devices: list[Device], options: Options, card: dict[str, Any] | None
) -> dict[str, Any] | None:
    experiment = loaded.experiment
    wanted = list(options.on)
    if not wanted and options.devices:  # a user's own file: its devices
        wanted = [each.name for each in devices if each not in hardware.TABLE and each.name != hardware.HERE]
    if card is not None and experiment.train is None:
        what = replace(what, card=card)  # what is learned from, not what the start learned from
    fit = experiment.train or experiment.finetune
    return bill.bill(what, fit, experiment.device, experiment.precision, devices, wanted)


def _show_description(description: dict[str, Any], last: dict[str, dict[str, Any]]) -> None:
    console.show(stage.show(description))
    if cost := description.get("cost"):
        console.show(bill.show(cost))
    for line in bill.last_lines(last):
        console.say(line)


def _describe(run: Run, what: Subject, before: list[Chain], cost: dict[str, Any] | None) -> None:
    description = stage.describe(what) | {"cost": cost}
    files.write_json(run.directory / "describe.json", description)
    files.write_text(run.directory / "model_card.md", model_card(description))
    model = {key: description[key] for key in ("family", "config", "parameters")}
    content = files.hash_bytes(files.json_bytes(model))
    run.finish(
        parameters=description["parameters"],
        memory=description["memory"],
        cost=cost,
        lineage=lineage.document(lineage.extend("model", str(run.directory), content, *before)),
    )


# --- a run, a stage of one, a checkpoint; or two runs ---------------------------------------------------


def _directories(options: Options) -> dict[str, Any]:
    paths = [options.config, *options.others]
    if len(paths) > 2:
        raise ConfigError(f"describe takes one CONFIG.YAML, or one or two runs; these are {len(paths)}")
    for path in paths:
        if not session.is_directory(path):
            what = "is a file" if Path(path).is_file() else "no such directory"
            raise ConfigError(f"{path}: {what}; describe takes one CONFIG.YAML, or one or two runs")
    if options.on or options.devices:
        raise ConfigError("--on and --devices are for a CONFIG.YAML, which says how the model is trained")
    if options.overrides:
        raise ConfigError("--set changes a configuration file; a directory is described as it is")
    if options.force:
        raise ConfigError("--force runs a stage again; a directory is described as it is")
    return _differences(paths) if options.others else _directory(paths[0])


def _directory(path: str) -> dict[str, Any]:
    """What lies in a directory, what it was made from, and whether all of that is still as it was."""
    root = None
    if path.startswith(hub.SCHEME):
        path = str(checkpoints.find_checkpoint(path))
    try:
        if checkpoints.is_checkpoint(Path(path)):
            found = _of_checkpoint(path)
        else:
            root, name = made.root_of(path)
            found = made.of_run(root, name)
    except ConfigError:
        if not (Path(path) / "best").exists():
            raise
        found = _of_checkpoint(path)  # the directory of a stage, copied away from its run
    description = _description(found, strict=root is None)
    now = made.check(found.chain, root)
    rows = [
        {**row, "where": link.where, "now": link.state, "says": link.says}
        for row, link in zip(made.rows(found.chain), now, strict=True)
    ]
    _show(found, rows)
    return {
        "description": description,
        "lineage": {"hash": found.end, "links": rows},
        "notes": found.notes,
        "warnings": found.warnings,
    }


def _of_checkpoint(path: str) -> made.Found:
    """A checkpoint directory alone."""
    directory = checkpoints.find_checkpoint(path)
    found = made.Found(model=directory)
    try:
        found.chain = checkpoints.lineage(directory)
        found.end = found.chain[-1].hash
    except LlmtoolError as error:
        found.notes.append(f"lineage: {error}")
    return found


def _description(found: made.Found, strict: bool) -> dict[str, Any] | None:
    """Of the model, shown; None where there is none, or (of a run) where it cannot be read."""
    if found.model is None:
        return None
    try:
        description = stage.describe(subject.of_checkpoint(checkpoints.find_checkpoint(str(found.model))))
    except LlmtoolError as error:
        if strict:
            raise
        found.notes.append(f"the model is not described: {error}")
        return None
    console.show(stage.show(description))
    return description


def _show(found: made.Found, rows: list[dict[str, Any]]) -> None:
    if rows:
        cells = [
            [
                str(row["number"]),
                row["what"],
                lineage.short(row["hash"]),
                _numbers(row["of"]),
                row["where"],
                row["now"],
            ]
            for row in rows
        ]
        console.table(["", "what", "hash", "from", "where", "now"], cells, "lineage")
        console.say("a hash covers its link and all that it was made from")
    for row in rows:
        if row["now"] != made.OK:
            console.say(f"{row['number']} {row['what']}: {row['says']}")
    for note in found.notes:
        console.say(f"note: {note}")
    warn(found.warnings)


def warn(warnings: list[str]) -> None:
    """What must not be overlooked, among the results."""
    for line in warnings:
        console.show(Text.assemble(("careful: ", "bold red"), console.clean(line)))


def _numbers(numbers: list[int]) -> str:
    """1 2 3 5 as "1-3 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _differences(paths: list[str]) -> dict[str, Any]:
    """What differs between two runs, from the keys of their files to their figures."""
    roots = [made.root_of(path)[0] for path in paths]
    if roots[0].resolve() == roots[1].resolve():
        raise ConfigError(f"{paths[0]} and {paths[1]} are the same run")
    found = [stage_report.collect(root) for root in roots]
    differs = differences.differences(found)
    figures, weights = differences.figures(found), differences.weights(found)
    warnings = [line for one in found for line in one["warnings"]]
    known = (
        None
        if warnings or "-" in weights
        else weights[0] == weights[1] and all(row[-1] == "=" for row in figures)
    )
    says = differences.explanation(differs, known)
    names = [str(root) for root in roots]
    console.say(f"{names[0]} and {names[1]}: {says}")
    for section, rows in differs.items():
        if rows:
            console.say("")
            console.table([section, *names], [[name, *values] for name, values in rows.items()])
    console.say("")
    table = [["weights", *weights, "=" if weights[0] == weights[1] else ""], *figures]
    console.table(["result", *names, "difference"], table)
    paired = stage_report.differences(roots)
    for line in ["", *paired]:
        console.say(line)
    warn(warnings)
    return {
        "runs": names,
        "says": says,
        "differs": differs,
        "weights": dict(zip(names, weights, strict=True)),
        "metrics": _metrics(found),
        "paired": paired,
        "warnings": warnings,
    }


def _metrics(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures that both runs have."""
    (mine, _), (theirs, _) = (differences.measured(one) for one in found)
    pairs: Mapping[tuple[str, str], Any] = {
        (split, name): value for split, values in mine.items() for name, value in (values or {}).items()
    }
    return [
        {"split": split, "name": name, "values": [pairs[split, name], value]}
        for split, values in theirs.items()
        for name, value in (values or {}).items()
        if (split, name) in pairs
    ]
