"""llmtool evaluate: a model's figures on validation and test data, and whether they reach what is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtool.commands import Options, keys, session
from llmtool.core import console, files
from llmtool.core.contracts import Tally
from llmtool.core.errors import RequirementError
from llmtool.core.freshness import Hashes
from llmtool.core.run import Run, hashes_of
from llmtool.data.store import Dataset
from llmtool.evaluation import EvaluateConfig, answers, compare, html_explain, report, requirements
from llmtool.evaluation.compare import Saved
from llmtool.experiment import Loaded
from llmtool.stages import assemble, checkpoints, explain, judge, lineage, probe, score, suites
from llmtool.stages import report as stage_report
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import Start


def run(options: Options) -> dict[str, Any]:
    """Run the command; returns the content of result.json."""
    with session.command(options, "evaluate") as loaded:
        dataset = session.prepared(loaded, options)
        hashes = hashes_of(loaded.experiment.run, "evaluate")
        model, other = session.model_to_score(loaded, dataset), session.compared(loaded)
        weights = checkpoints.verify(Path(model), hashes.hash)
        key = keys.evaluate(loaded, dataset, weights, other, hashes.hash)
        stands = Run.judge(loaded.experiment.run, "evaluate", key, hashes).fresh and not options.force
        with session.named("evaluate.compare"):  # before the work that stands is moved aside
            saved = compare.saved(str(other)) if other and not stands else None
        with session.stage(loaded, "evaluate", key, options, hashes=hashes) as run:
            if run.fresh:
                console.show(report.show(files.read_json(run.directory / "report.json")))
            else:
                start = checkpoints.from_checkpoint(model, hashes.hash)
                _evaluate(run, loaded, dataset, start, saved, hashes, again=options.force)
    return run.result


def _evaluate(
    run: Run, loaded: Loaded, dataset: Dataset, start: Start, other: Saved | None, hashes: Hashes, again: bool
) -> None:
    config, began = loaded.experiment.evaluate, time.monotonic()
    assemble.refuse_unknown_figures(loaded.experiment, dataset)
    assembled = assemble.as_scored(loaded.experiment, dataset, start)
    splits = score.splits_to_score(config, dataset)
    explain.refuse(assembled, config, splits)
    cache = run.root / judge.CACHE
    tallies, recalled = score.score_or_recall(
        assembled, splits, config, weights=start.hash, cache=cache / "model", again=again
    )
    if recalled:
        rows = " and ".join(recalled)
        console.note(f"evaluate: these weights scored {rows} before, which stands (--force scores again)")
    answered = session.asked(
        loaded, assembled, start, weights=start.hash, cache=cache / "suites", hashes=hashes, again=again
    )
    evidence = judge.judge(assembled, tallies, config, other=other, cache=cache / "baselines")
    seconds = evidence.pop("seconds")
    evidence["suites"] = suites.write(run.directory, answered, assembled.seed, other)
    evidence["probe"] = probe.probe(assembled, config.probe)
    outcomes = _outcomes(config, tallies, evidence)
    said = _explained(run.directory, assembled, tallies, config)
    document = report.report(
        tallies,
        model={"path": str(start.directory), "hash": start.hash},
        dataset={"path": str(dataset.directory), "fingerprint": dataset.fingerprint},
        rows={split: dataset.split(split).rows for split in splits},
        outcomes=outcomes,
        samples=score.samples(assembled, config.samples) if config.samples else [],
        evidence=evidence,
    )
    report.write_predictions(run.directory / compare.PREDICTIONS, tallies, score.origin(dataset, splits))
    document |= lineage.of_evaluation(
        run.directory, tallies, document["metrics"], start.lineage, dataset.lineage, document["suites"]
    )
    files.write_json(run.directory / compare.REPORT, document)
    run.finish(
        metrics=document["metrics"],
        fingerprints=run.key["inputs"]
        | {"weights": start.hash, "predictions": document["predictions"]["values"]},
        lineage=document["lineage"],
        intervals=document["intervals"],
        requirements=document["requirements"],
        against=document["against"],
        comparison=document["comparison"],
        suites=document["suites"],
        suite_seconds={name: round(one.seconds, 3) for name, one in answered.items() if not one.recalled},
        model=document["model"],
        baseline_seconds=seconds,
    )
    console.show(report.show(document))
    for line in said:
        console.say(line)
    console.say(f"report: {stage_report.write(run.root, 'evaluate', time.monotonic() - began)}")
    if unmet := requirements.unmet(outcomes):
        raise RequirementError(unmet)


def _explained(
    directory: Path, assembled: Assembled, tallies: Mapping[str, Tally], config: EvaluateConfig
) -> list[str]:
    """Write why the model said so, where that is asked for; what of it a person reads at once."""
    if config.explain is None:
        return []
    found = explain.explain(assembled, tallies, config)
    files.write_json(directory / explain.FILE, found)
    return html_explain.lines(found)


def _outcomes(
    config: EvaluateConfig, tallies: Mapping[str, Tally], evidence: Mapping[str, Any]
) -> list[requirements.Outcome]:
    metrics = {split: tally.metrics() for split, tally in tallies.items()}
    undefined = {split: tally.undefined for split, tally in tallies.items()}
    figures, reasons = requirements.with_bounds(metrics, undefined, evidence)
    of_suites = answers.required(evidence["suites"])
    figures, reasons = figures | of_suites[0], reasons | of_suites[1]
    return requirements.check(config.require, figures, reasons, evidence["against"], evidence["no_against"])
