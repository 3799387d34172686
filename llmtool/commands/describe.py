"""llmtool describe: structure, cost and fit of a model, before or after there is data or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.commands import Options, keys, session
from llmtool.core import console, files
from llmtool.core.errors import ConfigError
from llmtool.core.run import Run
from llmtool.stages import assemble, subject
from llmtool.stages import describe as stage
from llmtool.stages.describe import Subject


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json, or of a checkpoint's description."""
    if Path(options.config).is_dir():
        if options.overrides:
            raise ConfigError("--set changes a configuration file; a checkpoint is described as it is")
        description = stage.describe(subject.of_checkpoint(assemble.find_checkpoint(options.config)))
        console.show(stage.show(description))
        return {"description": description}
    with session.command(options, "describe") as loaded:
        card = session.card_if_prepared(loaded)
        start, experiment = None, loaded.experiment
        if experiment.model is None and experiment.finetune:
            start = Path(session.model_to_start(loaded))
        with session.stage(loaded, "describe", keys.describe(loaded, card, start), options) as run:
            if not run.fresh:
                made = subject.of_checkpoint(start) if start else subject.of_experiment(experiment, card)
                _describe(run, made)
            console.show(stage.show(files.read_json(run.directory / "describe.json")))
    return run.result


def _describe(run: Run, what: Subject) -> None:
    description = stage.describe(what)
    files.write_json(run.directory / "describe.json", description)
    files.write_text(run.directory / "model_card.md", stage.model_card(description))
    run.finish(parameters=description["parameters"], memory=description["memory"])
