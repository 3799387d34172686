"""llmtool train: a new model on the run's data, prepared first where need be."""

from __future__ import annotations

from typing import Any

from llmtool.commands import Options, keys, launching, profiled, session
from llmtool.core import console, ranks
from llmtool.core.run import Run
from llmtool.data.store import Dataset
from llmtool.evaluation import report
from llmtool.experiment import Loaded
from llmtool.models.choice import Choice
from llmtool.models.shards import cut_of
from llmtool.stages import assemble, score


def run(options: Options) -> dict[str, Any]:
    """Run the command, on as many devices as there are; returns the content of result.json."""
    return launching.run(_run, options, "train")


def _run(options: Options) -> dict[str, Any]:
    with session.command(options, "train") as loaded:
        dataset = session.prepared(loaded, options)
        launching.same_data(dataset)
        loaded, choice = session.with_model(loaded, dataset.card)
        key = keys.fit(loaded, "train", {"dataset": dataset.fingerprint})
        with session.stage(loaded, "train", key, options, resumable=True) as run:
            if not run.fresh:
                _train(run, loaded, dataset, options, choice)
            else:
                profiled.stands(options, run)
    return run.result


def _train(run: Run, loaded: Loaded, dataset: Dataset, options: Options, choice: Choice | None) -> None:
    chosen = session.say_choice(choice)
    config = loaded.experiment.train
    assert config is not None
    assembled = assemble.from_experiment(loaded.experiment, dataset)
    result = session.fit(run, loaded, assembled, config, options)
    if not ranks.here().first and cut_of(assembled.model) is None:
        return
    assembled.restore(result.best)
    splits = [split for split in ("validation",) if split in dataset.splits]
    tallies = score.score(assembled, splits)  # of a model in parts by all ranks, which each see every row
    if not ranks.here().first:
        return
    metrics = {split: tally.metrics() for split, tally in tallies.items()}
    seen = {"seen": result.seen} if result.seen else {}
    session.finish_fit(run, loaded, assembled, result, metrics, **chosen, **seen)
    rows = {split: dataset.split(split).rows for split in splits}
    if splits:
        console.show(report.metrics_table(metrics, rows))
    session.say_fit(result)
    profiled.say(result.profile)
