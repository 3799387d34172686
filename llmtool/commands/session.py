"""What the commands share: reading the file, opening a stage of the run, making sure the data is prepared."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmtool import experiment
from llmtool.commands import Options, keys, scratch, shown
from llmtool.core import console, files, hub, lineage, ranks, watch
from llmtool.core.devices import is_out_of_memory, multiplies_bf16, peak_flops, resolve_device
from llmtool.core.environment import other_packages
from llmtool.core.errors import ConfigError, DataError, MemoryLimitError
from llmtool.core.freshness import CODE_CHANGED, Hashes
from llmtool.core.run import UNFINISHED, Run, State, failed_result, hashes_of
from llmtool.core.urls import without_secrets
from llmtool.data import store
from llmtool.data.store import CARD, Dataset
from llmtool.evaluation import compare
from llmtool.experiment import Loaded, with_recipe
from llmtool.experiment import resolved as experiment_yaml
from llmtool.models import adapters
from llmtool.models.accounting import account
from llmtool.models.choice import Choice
from llmtool.models.forms import huggingface
from llmtool.stages import advise, assemble, checkpoints, spent, suites
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import fingerprint
from llmtool.stages.fit import FitResult
from llmtool.stages.fit import fit as stage_fit
from llmtool.stages.lineage import models, root_of
from llmtool.stages.prepare import PrepareResult
from llmtool.stages.prepare import prepare as stage_prepare
from llmtool.stages.settings import section_of
from llmtool.training import TrainConfig
from llmtool.training.profile import NOTHING, Profile

TRAINING = ("train", "finetune")  # the commands that train, each by the section of its name


@contextmanager
def command(options: Options, name: str) -> Iterator[Loaded]:
    """Read and check the file, then do the work of the command; one that trains needs its section.

    Whatever ends it before its own stage is open (a wrong file, no data, no model to start from) is told of
    in the stage's result.json too, where the run is known.
    """
    loaded = None
    try:
        if options.force and options.resume:
            raise ConfigError("--force begins anew and --resume goes on: give one of them")
        loaded = experiment.load(options.config, options.overrides)
        if options.scratch:
            loaded = scratch.derive(loaded, options.scratch)
        if name in TRAINING:
            loaded.need(name, name)
        with located(loaded, name):
            yield loaded
    except BaseException as error:
        if ranks.here().first and getattr(error, "result", {}).get("command") != name:
            root = loaded.experiment.run if loaded else experiment.run_of(options.config, options.overrides)
            if root := options.scratch.run if options.scratch else root:
                failed_result(root, name, error)
        raise


@contextmanager
def located(loaded: Loaded, section: str) -> Iterator[None]:
    """Errors of the block in terms of the file: a ConfigError about a key says where the key stands, and what
    ran out of memory is a MemoryLimitError. Models that are read inside run as `finetune.through` asks."""
    tuned = loaded.experiment.finetune if section in ("finetune", "describe") else None
    try:
        with huggingface.through(tuned.through if tuned else None):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"out of memory; `llmtool describe {loaded.document.name}` shows what the model needs"
        ) from None
    except ConfigError as error:
        error.args = (loaded.locate(str(error), section),)
        raise


NO_BF16 = (
    "precision: bf16: this CPU has no units for it (AMX or AVX512-BF16) and takes many times as long as with "
    "--set precision=fp32"
)


def model_to_start(loaded: Loaded) -> str:
    """The checkpoint that `finetune` starts from."""
    with named("finetune.start"):
        return str(checkpoints.find_checkpoint(loaded.experiment.start))


def model_to_score(loaded: Loaded, dataset: Dataset) -> str:
    """The checkpoint that `evaluate` scores. Says so where that is not finished or not what the file asks for
    any more."""
    stage, found = scored(loaded)
    if stage is None:
        return found
    root = Path(loaded.experiment.run)
    inputs = {"dataset": dataset.fingerprint}
    if stage == "train":
        loaded, _ = with_model(loaded, dataset.card)
    with contextlib.suppress(ConfigError):  # what it was tuned from may be gone: that changes nothing here
        inputs |= {"start": fingerprint(Path(model_to_start(loaded)))} if stage == "finetune" else {}
    for change in Run.judge(root, stage, keys.fit(loaded, stage, inputs)).changes[:5]:
        if not change.startswith((CODE_CHANGED, "start: ")):
            console.note(f"{root / stage}, which is scored as it is: {change}")
    return found


def scored(loaded: Loaded) -> tuple[str | None, str]:
    """Which model `evaluate` means, and its checkpoint: what `of` names (no stage), else this run's finetune
    where there is one, else its train."""
    experiment = loaded.experiment
    if experiment.evaluate.of:
        with named("evaluate.of"):
            return None, str(checkpoints.find_checkpoint(experiment.evaluate.of))
    root = Path(experiment.run)
    tuned = experiment.finetune is not None and (root / "finetune" / "best").exists()
    stage = "finetune" if tuned else "train"
    if not (root / stage / "best").exists():
        raise _untrained(loaded, "in evaluate.of")
    return stage, str(checkpoints.find_checkpoint(str(root / stage)))


def _untrained(loaded: Loaded, how: str) -> ConfigError:
    """The error of a file whose run has no model; how: another one is named."""
    verb = "finetune" if loaded.experiment.finetune and not loaded.experiment.train else "train"
    return ConfigError(
        f"{Path(loaded.experiment.run)} has no trained model yet: "
        f"run `llmtool {verb} {loaded.document.name}` first, or name a model {how}"
    )


def is_directory(path: str) -> bool:
    """Whether a command is given a directory or a name on the hub in place of a configuration file."""
    return Path(path).is_dir() or path.startswith(hub.SCHEME)


def without_file(path: str, overrides: Sequence[str], of: str | None) -> bool:
    """The same, where neither --set nor --of (of: what it names) may stand beside it."""
    if not is_directory(path):
        return False
    if overrides:
        raise ConfigError("--set changes a configuration file; a directory is taken as it is")
    if of is not None:
        raise ConfigError("--of names another model than a file's run; a directory is the model itself")
    return True


def of_directory(path: str) -> tuple[Path | None, str]:
    """The run that a directory (or hf:// name) belongs to, None where it is none, and the model meant."""
    if path.startswith(hub.SCHEME) or checkpoints.is_checkpoint(Path(path)):
        return None, path
    root, of = root_of(path)
    found = models(root)
    if not found or (of is not None and of not in found):
        raise ConfigError(f"{path}: no trained model here")
    return root, str(found[of] if of else next(iter(found.values())))


def model_of(path: str, overrides: Sequence[str], of: str | None) -> tuple[Loaded | None, Path | None, str]:
    """The file at `path`, None where that is no file; the run, None where there is none; and the model that
    is meant: `of`, where --of names one, else the run's last."""
    if without_file(path, overrides, of):
        return None, *of_directory(path)
    loaded = experiment.load(path, overrides)
    own = Path(loaded.experiment.run)
    model = of or next((str(place) for place in models(own).values()), None)
    if model is None:
        raise _untrained(loaded, "with --of")
    return loaded, own, model


def compared(loaded: Loaded) -> Path | None:
    """The evaluation that `evaluate.compare` names."""
    if loaded.experiment.evaluate.compare is None:
        return None
    with named("evaluate.compare"):
        other = compare.find_evaluation(loaded.experiment.evaluate.compare)
        if other.resolve() == (Path(loaded.experiment.run) / "evaluate").resolve():
            raise ConfigError(f"{other} is this run's own evaluation; name another run")
        return other


@contextmanager
def named(key: str) -> Iterator[None]:
    """Puts the key whose value is at fault in front of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        error.args = (f"{key}: {error}",)
        raise


@contextmanager
def stage(
    loaded: Loaded,
    name: str,
    key: keys.Key,
    options: Options,
    *,
    resumable: bool = False,
    hashes: Hashes | None = None,
) -> Iterator[Run]:
    """A stage of the run, ready to be written unless it is fresh; says what has changed since it was done.

    Whatever ends it is written to its result.json, which also travels with the error for `--json`.
    """
    root = loaded.experiment.run
    opened: list[Run] = []

    def by_first() -> State:
        opened.append(Run.open(root, name, key, options.force, resumable, hashes))
        return opened[0].state

    state = ranks.by_first(by_first)
    run = opened[0] if opened else Run.follow(root, name, key, state)
    try:
        with run:
            if run.fresh:
                console.say(f"{name}: nothing has changed; {run.directory} stands (--force runs it again)")
                for made in _elsewhere(loaded, name, run.result.get("versions") or {}):
                    console.note(f"{name} was made {made}; it stands (--force runs it again)")
            elif run.state == "changed" and ranks.here().first:
                if resumable and options.resume:
                    run.keep()
                else:
                    run.start_over()
            for change in run.changes[:10]:
                # what is unfinished says where it goes on from
                if run.state == "changed" or not change.startswith(UNFINISHED):
                    console.note(f"{name}: {change}")
            with located(loaded, name):
                yield run
    except BaseException as error:
        error.__dict__["result"] = run.result
        raise


def _elsewhere(loaded: Loaded, stage: str, versions: dict[str, Any]) -> Iterator[str]:
    """How the place where a stage's numbers were made differs from this one."""
    if others := other_packages(versions):
        yield f"with {', '.join(others)}"
    if stage in ("train", "finetune", "evaluate") and loaded.experiment.device == "auto":
        there, here = ("cuda" if versions.get("gpu") else "cpu"), resolve_device("auto").type
        if there != here:
            yield f"on {there}, and `device: auto` is {here} here"


def prepared(loaded: Loaded, options: Options) -> Dataset:
    """The run's dataset, prepared now if it is not there; every array is as it was written.

    Raises DataError when the one that is there was made from other data or settings, or was damaged.
    """
    aside = options.scratch
    if aside and aside.dataset:
        return Dataset.open(aside.dataset).first(aside.rows)
    dataset = Dataset.open(ranks.by_first(lambda: _prepared(loaded, options)))
    return dataset.first(aside.rows if aside else None)


def _prepared(loaded: Loaded, options: Options) -> Path:
    """Where it is."""
    hashes = hashes_of(loaded.experiment.run, "prepare")
    wanted = keys.prepare(loaded, hashes.hash)
    judged = Run.judge(loaded.experiment.run, "prepare", wanted, hashes)
    directory = judged.directory
    if not _stands(judged) and (directory / CARD).is_file():
        changes = "; ".join(_others(judged)[:3])
        raise DataError(
            f"{directory} is not the dataset of this file ({changes}): "
            f"run `llmtool prepare {loaded.document.name}` first"
        )
    if not _stands(judged):
        with stage(loaded, "prepare", wanted, replace(options, force=False), hashes=hashes) as run:
            if not run.fresh:
                prepare_into(run, loaded, hashes)
    Dataset.open(directory).verify(hashes.hash)
    return directory


def with_model(loaded: Loaded, card: dict[str, Any], share: float = 1.0) -> tuple[Loaded, Choice | None]:
    """The experiment with a model, and, where the file leaves that to us, what was chosen by the card of the
    prepared data. share: the part of the whole data that the card is of.

    The size may follow from the device, and a training that stands is no other one because somebody looks at
    it on another machine: what was chosen for the other kind of device stands too.
    """
    if loaded.experiment.model not in (None, "auto"):
        return loaded, None
    here = resolve_device(loaded.experiment.device).type
    made = []
    for kind in (here, "cpu" if here == "cuda" else "cuda"):
        choice = advise.choose(card, loaded.experiment.task, torch.device(kind), share)
        updates: dict[str, Any] = {"model": choice.config()}
        if (train := loaded.experiment.train) is not None:  # what it does not say goes with the family
            given = train.model_dump(mode="json", by_alias=True, exclude_unset=True)
            updates["train"] = TrainConfig.model_validate(with_recipe(choice.train, given))
        made.append((replace(loaded, experiment=loaded.experiment.model_copy(update=updates)), choice))
    if made[0][1].model != made[1][1].model and loaded.experiment.train:
        key = keys.fit(made[1][0], "train", {"dataset": card["fingerprint"]})
        if Run.judge(loaded.experiment.run, "train", key).state in ("fresh", "unfinished"):
            return made[1]
    return made[0]


def say_choice(choice: Choice | None) -> dict[str, Any]:
    """Tells of a model that was chosen here; what result.json says of it."""
    if choice is None:
        return {}
    settings = {"family": choice.family, **choice.model}
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items())
    console.note(f"model: auto is {{{shown}}}: {choice.why}")
    return {"chosen": {"model": settings, "why": choice.why, "against": choice.against}}


def card_if_prepared(loaded: Loaded) -> dict[str, Any] | None:
    """The card of the run's dataset, where that is prepared from this very data."""
    try:
        wanted = keys.prepare(loaded, hashes_of(loaded.experiment.run, "prepare").hash)
        judged = Run.judge(loaded.experiment.run, "prepare", wanted)
    except DataError as error:  # a model can be described before its data is there
        console.note(str(error))
        return None
    return files.read_json(judged.directory / CARD) if _stands(judged) else None


def _stands(prepared: Run) -> bool:
    """Whether the dataset is that of the file: perhaps another version of llmtool made it from the same bytes
    and settings (the format of its card is checked where it is opened)."""
    made = prepared.state == "changed" and (prepared.directory / CARD).is_file()
    return prepared.fresh or (made and not _others(prepared))


def _others(prepared: Run) -> list[str]:
    return [change for change in prepared.changes if not change.startswith(CODE_CHANGED)]


def prepare_into(run: Run, loaded: Loaded, hashes: Hashes) -> PrepareResult:
    """Prepare the dataset into the stage's directory; `hashes` come to know its arrays."""
    experiment = loaded.experiment
    with console.progress(None, "row") as display:
        sources = dict(run.key["inputs"])
        result = stage_prepare(experiment.data, experiment.seed, run.directory, shown.Pace(display), sources)
    for meta in result.card["splits"].values():
        for array in meta["arrays"].values():
            hashes.written(run.directory / array["file"], array["hash"])
    run.finish(
        fingerprints={"dataset": result.card["fingerprint"]},
        lineage=lineage.document(store.lineage(result.card, run.directory)),
        ledger=result.ledger,
        notes=result.notes,
        config=loaded.slice("data"),
    )
    return result


def asked(
    loaded: Loaded, assembled: Assembled, start: checkpoints.Start, *, weights: str, cache: Path,
    hashes: Hashes, again: bool = False,
) -> dict[str, suites.Answered]:  # fmt: skip
    """What the model answers to the suites of `evaluate`; shows how far it is, says what was recalled."""
    wanted = loaded.experiment.evaluate.suites
    if not wanted:
        return {}
    with console.progress(None, "question") as display:
        pace, done = shown.Pace(display), 0

        def tick(name: str, count: int) -> None:
            nonlocal done
            done += count
            pace(name, done)

        found = suites.ask(
            assembled,
            wanted,
            start,
            weights=weights,
            cache=cache,
            hash_file=hashes.hash,
            again=again,
            tick=tick,
        )
    if recalled := [name for name, one in found.items() if one.recalled]:
        console.note(f"{' and '.join(recalled)}: these weights answered before, which stands")
    return found


def fit(run: Run, loaded: Loaded, assembled: Assembled, config: TrainConfig, options: Options) -> FitResult:
    """Train into the stage's directory, going on from a checkpoint that is there."""
    section = section_of(config)
    rows, flops = assembled.batches("train"), flops_of(assembled)
    batch = rows.rows if config.batch == "auto" else min(config.batch, rows.rows)
    total = config.budget.total_steps(rows.rows, batch, rows.tokens_per_row)
    metric = config.select.metric if config.select else assembled.task.metric
    first, alone = ranks.here().first, ranks.here().size == 1
    profile = Profile(run.directory, assembled.device) if options.profile and first else None
    if assembled.precision.name == "bf16" and not multiplies_bf16(assembled.device.type):
        console.note(NO_BF16)
    kill_at = options.scratch.kill_at if options.scratch else None
    bar = console.progress(total if config.batch != "auto" else None, "step")
    aside = spent.watched(assembled.model, assembled.device)
    with watch.phase("fit"), aside as most, bar as display, profile or NOTHING:
        result = stage_fit(
            assembled,
            config,
            run.directory,
            progress=shown.TrainingDisplay(display, metric, kill_at),
            resume=run.state == "unfinished" or options.resume,
            as_yaml=lambda now: experiment_yaml(loaded.experiment.model_copy(update={section: now})),
            flops_per_row=flops,
            peak=peak_flops(assembled.device, assembled.precision)[0],
            command=None if options.scratch else _as_given(section, options),
            profile=profile,
            parallel=loaded.experiment.parallel,
        )
    if alone and not options.scratch:  # a rehearsal of some steps says nothing of the real run
        run.finish(cost=spent.result(assembled, result.config, most, result.throughput, result.seconds))
    return result


def _as_given(command: str, options: Options) -> str:
    """The command line of this training, for a shell."""
    sets = (word for override in options.overrides for word in ("--set", override))
    return without_secrets(shlex.join(["llmtool", command, options.config, *sets]))


def flops_of(assembled: Assembled) -> float:
    """FLOPs of a row of training, forward and backward."""
    tokens = assembled.batches("train").tokens_per_row
    at_once = min(tokens, getattr(assembled.model, "context", tokens))  # fewer where texts are in chunks
    if assembled.adapter is None or isinstance(assembled.adapter, adapters.FullConfig):
        model: Any = assembled.model  # every family counts itself
        return float(model.flops(at_once)) * tokens / at_once
    # with frozen parts and updates beside them; counting them imports torch's compiler
    figures = account(assembled.model, 1, at_once, assembled.precision.name)
    return float(figures.flops_forward + figures.flops_backward) * tokens / at_once


def assembled(loaded: Loaded, command: str, dataset: Dataset) -> Assembled:
    """What `train` or `finetune` begins with, before its first step."""
    if command == "train":
        return assemble.from_experiment(with_model(loaded, dataset.card)[0].experiment, dataset)
    config = loaded.experiment.finetune
    assert config is not None
    start = checkpoints.from_checkpoint(model_to_start(loaded))
    assemble.quantise(loaded.experiment, start, config.method)
    made, _ = assemble.from_start(loaded.experiment, dataset, start)
    assemble.adapt(made, start, config.method)
    return made


def finish_fit(
    run: Run, loaded: Loaded, assembled: Assembled, result: FitResult, metrics: dict[str, Any], **fields: Any
) -> None:
    """What result.json says after training."""
    reads = [name for name in keys.READS[run.stage] if name != run.stage]
    run.finish(
        metrics=metrics,
        fingerprints={"dataset": assembled.dataset.fingerprint, "weights": fingerprint(result.best)},
        lineage=lineage.document(checkpoints.lineage(checkpoints.find_checkpoint(str(result.best)))),
        checkpoint=str(result.best),
        steps=result.step,
        reason=result.reason,
        best={"step": result.best_step, "metric": result.metric, "value": result.best_value},
        resumed_from=result.resumed_from,
        skipped=result.skipped,
        lowered=result.lowered,
        throughput=result.throughput,
        training_seconds=result.seconds,
        config=loaded.slice(*reads) | {"fit": result.config.model_dump(mode="json")},
        notes=result.notes,
        **fields,
    )


def say_fit(result: FitResult) -> None:
    """The end of training in two lines."""
    rate = next((f"{console.count(value)} {name.removesuffix('_per_second')}/s"
                 for name, value in result.throughput.items()
                 if name.endswith("_per_second")), "")  # fmt: skip
    why = "" if result.reason == "budget" else f" (stopped early: {result.reason})"
    console.say(f"{result.step:,} steps in {console.seconds(result.seconds)}{why}  {rate}")
    value = "" if result.best_value is None else f": {result.metric} {console.number(result.best_value)}"
    console.say(f"best checkpoint: {result.best} (step {result.best_step:,}{value})")
