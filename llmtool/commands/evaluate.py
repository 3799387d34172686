"""llmtool evaluate: a model's figures on validation and test data, and whether they reach what is asked."""

from __future__ import annotations

from typing import Any

from llmtool.commands import Options, session
from llmtool.core import console, files
from llmtool.core.errors import ConfigError, RequirementError
from llmtool.core.run import Run
from llmtool.data.store import Dataset
from llmtool.evaluation import report, requirements
from llmtool.experiment import Loaded
from llmtool.stages import assemble, score
from llmtool.stages.assemble import Start


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json."""
    with session.command(options, "evaluate") as loaded:
        dataset = session.prepared(loaded, options)
        start = assemble.from_checkpoint(session.model_to_score(loaded, dataset))
        inputs = {"dataset": dataset.fingerprint, "weights": start.hash}
        key = session.key(loaded, (*session.COMPUTE, "evaluate"), inputs)
        with session.stage(loaded, "evaluate", key, options) as run:
            if run.fresh:
                console.show(report.show(files.read_json(run.directory / "report.json")))
            else:
                _evaluate(run, loaded, dataset, start)
    return run.result


def _evaluate(run: Run, loaded: Loaded, dataset: Dataset, start: Start) -> None:
    config = loaded.experiment.evaluate
    assembled = assemble.as_scored(loaded.experiment, dataset, start)
    splits = score.splits_to_score(config, dataset)
    tallies = score.score(assembled, splits, config.batch)
    metrics = {split: tally.metrics() for split, tally in tallies.items()}
    undefined = {split: tally.undefined for split, tally in tallies.items()}
    outcomes = requirements.check(config.require, metrics, undefined)
    document = report.report(
        tallies,
        **score.model_and_data(assembled, str(start.directory), start.hash),
        rows={split: dataset.split(split).rows for split in splits},
        outcomes=outcomes,
        samples=score.samples(assembled, config.samples) if config.samples else [],
    )
    files.write_json(run.directory / "report.json", document)
    report.write_predictions(run.directory / "predictions.csv", tallies, score.origin(dataset, splits))
    run.finish(metrics=document["metrics"], requirements=document["requirements"], model=document["model"])
    console.show(report.show(document))
    if unknown := [outcome for outcome in outcomes if outcome.unknown]:
        raise ConfigError(f"evaluate.require: {unknown[0]}")
    if unmet := requirements.unmet(outcomes):
        raise RequirementError(unmet)
