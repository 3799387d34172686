"""llmtool describe: structure, cost and fit of a model, before or after there is data or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.commands import Options, session
from llmtool.core import console, files
from llmtool.core.run import Run
from llmtool.stages import assemble, subject
from llmtool.stages import describe as stage


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json, or of a checkpoint's description."""
    if Path(options.config).is_dir():
        description = stage.describe(subject.of_checkpoint(assemble.find_checkpoint(options.config)))
        console.show(stage.show(description))
        return {"description": description}
    loaded = session.load(options, "describe")
    judged = Run.judge(loaded.experiment.run, "prepare", session.prepare_key(loaded))
    card = files.read_json(judged.directory / "card.json") if judged.fresh else None
    inputs = {"dataset": card["fingerprint"]} if card else {}
    sections = (*session.COMPUTE, "data", "model", "task", "train", "finetune")
    with session.stage(loaded, "describe", session.key(loaded, sections, inputs), options) as run:
        if run.fresh:
            description = files.read_json(run.directory / "describe.json")
        else:
            description = stage.describe(subject.of_experiment(loaded.experiment, card))
            files.write_json(run.directory / "describe.json", description)
            files.write_text(run.directory / "model_card.md", stage.model_card(description))
            run.finish(parameters=description["parameters"], memory=description["memory"])
        console.show(stage.show(description))
    return run.result
