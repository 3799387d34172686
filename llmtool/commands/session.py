"""What the commands share: reading the file, opening a stage of the run, making sure the data is prepared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmtool import experiment
from llmtool.commands import Options
from llmtool.core import console, files
from llmtool.core.devices import peak_flops
from llmtool.core.errors import DataError, LlmtoolError
from llmtool.core.run import CODE_CHANGED, Run, code_version, failed_result
from llmtool.data import data_files
from llmtool.data.store import Dataset
from llmtool.experiment import FinetuneConfig, Loaded
from llmtool.experiment import resolved as experiment_yaml
from llmtool.models.accounting import account
from llmtool.stages import prepare as stages
from llmtool.stages.assemble import Assembled, fingerprint
from llmtool.stages.fit import FitResult
from llmtool.stages.fit import fit as stage_fit
from llmtool.training import TrainConfig

COMPUTE = (
    "seed",
    "device",
    "precision",
    "deterministic",
)  # what decides numbers beside a stage's own section


def load(options: Options, command: str, *needs: str) -> Loaded:
    """Read and check the file. A file that is wrong leaves its result.json too, where its run is known."""
    try:
        loaded = experiment.load(options.config, options.overrides)
        for section in needs:
            loaded.need(section, command)
        return loaded
    except LlmtoolError as error:
        if root := experiment.run_of(options.config, options.overrides):
            failed_result(root, command, error)
        raise


def key(loaded: Loaded, sections: tuple[str, ...], inputs: dict[str, str]) -> dict[str, Any]:
    """What a stage's work depends on: these sections, the hashes of its inputs, and our code."""
    return {"config": loaded.slice(*sections), "inputs": inputs, "code": code_version()}


def model_to_score(loaded: Loaded) -> str:
    """Where `evaluate` finds its model: what `of` names, else this run's finetune where there is one, else train."""
    experiment = loaded.experiment
    if experiment.evaluate.of:
        return experiment.evaluate.of
    root = Path(experiment.run)
    tuned = experiment.finetune is not None and (root / "finetune" / "best").exists()
    return str(root / ("finetune" if tuned else "train"))


@contextmanager
def stage(
    loaded: Loaded, name: str, key: dict[str, Any], options: Options, resumable: bool = False
) -> Iterator[Run]:
    """A stage of the run, ready to be written unless it is fresh; says what has changed since it was done.

    Whatever ends it is written to its result.json, which also travels with the error for `--json`.
    """
    run = Run.open(loaded.experiment.run, name, key, force=options.force, resumable=resumable)
    try:
        with run:
            if run.fresh:
                console.say(f"{name}: nothing has changed; {run.directory} stands (--force runs it again)")
            elif run.state == "changed":
                if resumable and options.resume and not options.force:
                    run.keep()
                else:
                    run.start_over()
                for change in run.changes[:10]:
                    console.note(f"{name}: {change}")
            yield run
    except LlmtoolError as error:
        error.result = run.result
        raise


def prepare_key(loaded: Loaded) -> dict[str, Any]:
    """The freshness key of the prepare stage."""
    inputs = {str(path): files.hash_file(path) for path in data_files(loaded.experiment.data)}
    return key(loaded, ("seed", "data"), inputs)


def prepared(loaded: Loaded, options: Options) -> Dataset:
    """The run's dataset, prepared now if it is not there.

    Raises DataError when the one that is there was made from other data or settings.
    """
    wanted = prepare_key(loaded)
    judged = Run.judge(loaded.experiment.run, "prepare", wanted)
    directory = judged.directory
    if judged.state == "changed" and (directory / "card.json").is_file():
        others = [change for change in judged.changes if not change.startswith(CODE_CHANGED)]
        if not others:  # another version made it from the same bytes and settings; the card's format is checked
            return Dataset.open(directory)
        changes = "; ".join(others[:3])
        raise DataError(
            f"{directory} is not the dataset of this file ({changes}): run `llmtool prepare` first"
        )
    if not judged.fresh:
        with stage(loaded, "prepare", wanted, replace(options, force=False)) as run:
            if not run.fresh:
                prepare_into(run, loaded)
    return Dataset.open(directory)


def prepare_into(run: Run, loaded: Loaded) -> stages.PrepareResult:
    """Prepare the dataset into the stage's directory."""
    experiment = loaded.experiment
    with console.progress(None, "row") as display:
        result = stages.prepare(experiment.data, experiment.seed, run.directory, Pace(display))
    run.finish(
        fingerprints={"dataset": result.card["fingerprint"]},
        ledger=result.ledger,
        notes=result.notes,
        config=loaded.slice("data"),
    )
    return result


class Pace:
    """Tells a display how far prepare is, at most once a second."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self.display, self.last = display, time.monotonic()

    def __call__(self, step: str, rows: int) -> None:
        if time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            self.display.update(rows, step=step)


class Watch:
    """Shows a person how training goes: the rows of metrics.jsonl, at most a few a second."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self.display, self.last = display, 0.0

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl; validations are always shown."""
        if "validation" in row:
            figures = {f"validation {name}": value for name, value in list(row["validation"].items())[:3]}
            self.display.update(row["step"], **figures, best="*" if row["best"] else None)
        elif time.monotonic() - self.last > (0.2 if self.display.live else 5):
            self.last = time.monotonic()
            clock = row.get("time", {})
            rate = clock.get("tokens_per_second") or clock.get("rows_per_second")
            self.display.update(
                row["step"], left=clock.get("left"), loss=row["loss"], lr=row["lr"], rate=rate,
                peak=clock.get("peak_share"),
            )  # fmt: skip

    def note(self, text: str) -> None:
        """A sentence a person should read."""
        console.note(text)


def fit(run: Run, loaded: Loaded, assembled: Assembled, config: TrainConfig, options: Options) -> FitResult:
    """Train into the stage's directory, going on from a checkpoint that is there."""
    experiment = loaded.experiment
    section = "finetune" if isinstance(config, FinetuneConfig) else "train"

    def as_yaml(resolved: TrainConfig) -> str:
        return experiment_yaml(experiment.model_copy(update={section: resolved}))

    rows = assembled.batches("train")
    figures = account(assembled.model, 1, rows.tokens_per_row, assembled.precision.name)
    peak, _ = peak_flops(assembled.device, assembled.precision)
    batch = rows.rows if config.batch == "auto" else config.batch
    total = config.budget.total_steps(rows.rows, min(batch, rows.rows), rows.tokens_per_row)
    with console.progress(total if config.batch != "auto" else None, "step") as display:
        return stage_fit(
            assembled,
            config,
            run.directory,
            progress=Watch(display),
            resume=run.state == "unfinished" or options.resume,
            as_yaml=as_yaml,
            flops_per_row=float(figures.flops_forward + figures.flops_backward),
            peak=peak,
        )


def finish_fit(
    run: Run, loaded: Loaded, assembled: Assembled, result: FitResult, metrics: dict[str, Any], **fields: Any
) -> None:
    """What result.json says after training."""
    run.finish(
        metrics=metrics,
        fingerprints={"dataset": assembled.dataset.fingerprint, "weights": fingerprint(result.best)},
        checkpoint=str(result.best),
        steps=result.step,
        reason=result.reason,
        best={"step": result.best_step, "metric": result.metric, "value": result.best_value},
        resumed_from=result.resumed_from,
        throughput=result.throughput,
        training_seconds=result.seconds,
        config=loaded.slice(*COMPUTE, "model", "task") | {"fit": result.config.model_dump(mode="json")},
        notes=result.notes,
        **fields,
    )


def say_fit(result: FitResult) -> None:
    """The end of training in two lines."""
    rate = next((f"{console.count(value)} {name.removesuffix('_per_second')}/s"
                 for name, value in result.throughput.items() if name.endswith("_per_second")), "")  # fmt: skip
    why = "" if result.reason == "budget" else f" (stopped early: {result.reason})"
    console.say(f"{result.step:,} steps in {console.seconds(result.seconds)}{why}  {rate}")
    value = "" if result.best_value is None else f": {result.metric} {console.number(result.best_value)}"
    console.say(f"best checkpoint: {result.best} (step {result.best_step:,}{value})")
