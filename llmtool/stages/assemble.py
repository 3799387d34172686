"""Puts dataset, model and task together: from an experiment, or from a checkpoint directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from llmtool.core import checkpoint, files, seeds
from llmtool.core.contracts import OutputSpec, Task, Tokens
from llmtool.core.devices import Precision, resolve_device, resolve_precision, set_determinism
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.files import HashFile
from llmtool.core.lineage import Chain, document, extend, read
from llmtool.data.batches import Batches, open_batches
from llmtool.data.decoding import decoded_batch
from llmtool.data.store import Dataset, without_places
from llmtool.evaluation import requirements
from llmtool.experiment import Experiment
from llmtool.models import adapters, pretrained
from llmtool.tasks import TaskConfig, default_task

STATE = "state"  # the part of a checkpoint that only training reads
CARD_FILE = "llmtool.json"  # what a checkpoint says of its data and task, beside the model's own files
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TASKS: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)


@dataclass
class Start:
    """A model read from a checkpoint, with what that checkpoint says of its data and its task."""

    directory: Path
    model: nn.Module
    card: dict[str, Any]  # of the data it learned from: encoding, inputs, targets, encoder
    task: TaskConfig
    dataset: dict[str, str]  # path and fingerprint of that data
    hash: str  # of what makes the model
    lineage: Chain
    is_adapter: bool

    @property
    def outputs(self) -> OutputSpec:
        return self.task.outputs(self.card["targets"])


@dataclass
class Assembled:
    """Everything that training and scoring need.

    targets: what the model's outputs mean. They are the dataset's, but for a regression that was started from
    another model, whose head goes on speaking in the units of its own mean and scale.
    adapter, base: how a start is being adapted, and where the weights under a LoRA adapter lie.
    made_from: the chains of what the model learns from: its dataset, and the start where there is one.
    """

    model: nn.Module
    task_config: TaskConfig
    task: Task
    dataset: Dataset
    targets: dict[str, Any]
    seed: int
    device: torch.device
    precision: Precision
    made_from: tuple[Chain, ...] = ()
    adapter: adapters.AdapterMethod | None = None
    base: Path | None = None

    def batches(self, split: str) -> Batches:
        """The rows of a split; language models see windows as long as their context."""
        return open_batches(self.dataset, split, self.seed, context=getattr(self.model, "context", None))

    def decoded(self, start: int, count: int) -> list[dict[str, Any]]:
        """Rows start to start + count of the training order as a person knows them."""
        return decoded_batch(self.dataset, "train", self.batches("train"), start, count)

    def save(self, directory: Path) -> None:
        """Write the model (or its adapter), the tokenizer and our card of it into `directory`."""
        base = None
        if self.base is not None:
            assert isinstance(self.adapter, adapters.LoRAConfig)
            adapters.save_adapter(self.model, directory, self.adapter, base=str(self.base))
            base = {"path": str(self.base), "hash": fingerprint(self.base)}
        else:
            pretrained.save(self.model, directory)
        for name in TOKENIZER_FILES:
            if (self.dataset.directory / name).is_file():
                files.write_bytes(directory / name, (self.dataset.directory / name).read_bytes())
        card = {key: self.dataset.card[key] for key in ("encoding", "inputs", "encoder")}
        about = {
            "format": 1,
            "task": self.task_config.model_dump(mode="json", by_alias=True),
            "dataset": {"path": str(self.dataset.directory), "fingerprint": self.dataset.fingerprint},
            "base": base,
            "card": card | {"targets": self.targets},
            "made_from": [document(chain) for chain in self.made_from],
        }
        files.write_json(directory / CARD_FILE, about)

    def restore(self, directory: Path) -> None:
        """Take over, in place, the weights that `save` wrote into `directory`."""
        if self.base is not None:
            adapters.load_adapter(self.model, directory)
        else:
            self.model.load_state_dict(pretrained.load(directory).state_dict())

    def goes_on_from(self, directory: Path) -> None:
        """Take over the weights of an earlier session; where it learned from other data (`--resume` after a
        change), what is saved from now on was made from that too."""
        self.restore(directory)
        before = made_from(directory)
        if before[: len(self.made_from)] == self.made_from:
            self.made_from = before
        else:
            self.made_from = (*self.made_from, lineage(directory))


def from_experiment(experiment: Experiment, dataset: Dataset) -> Assembled:
    """A new model for a prepared dataset, initialised from the experiment's seed."""
    assert experiment.model is not None
    refuse_unknown_figures(experiment, dataset)
    task_config = experiment.task or default_task(dataset.targets)
    outputs = task_config.outputs(dataset.targets)
    seeds.seed_torch(experiment.seed, "initialise")
    model = experiment.model.build(dataset.inputs, outputs)
    return _assembled(experiment, dataset, model, task_config, dataset.targets, (dataset.lineage,))


def from_start(experiment: Experiment, dataset: Dataset, start: Start) -> tuple[Assembled, str | None]:
    """The model of `start` with the experiment's data and task.

    Returns the assembly and, where the data has other classes, a sentence on the head that was replaced.
    Raises ConfigError when the data was encoded otherwise than the model learned it.
    """
    refuse_other_encoding(dataset, start)
    refuse_unknown_figures(experiment, dataset)
    usual = default_task(dataset.targets)
    task_config = experiment.task or (start.task if start.task.kind == usual.kind else usual)
    outputs, targets, said = task_config.outputs(dataset.targets), dataset.targets, None
    if outputs != start.outputs or targets.get("names") != start.card["targets"].get("names"):
        adapters.replace_head(start.model, outputs, experiment.seed)
        said = f"the head is new: {_spoken(start.card['targets'])} became {_spoken(targets)}"
    elif targets["kind"] == "values":
        targets = start.card["targets"]
    before = (start.lineage, dataset.lineage)
    return _assembled(experiment, dataset, start.model, task_config, targets, before), said


def adapt(assembled: Assembled, start: Start, method: adapters.AdapterMethod) -> None:
    """Apply a fine-tuning method to the start's model, in place."""
    if isinstance(method, adapters.LoRAConfig):
        if start.is_adapter:
            raise ConfigError(
                f"{start.directory} is an adapter itself; start from its merged model (method.merge: true)"
            )
        assembled.base = start.directory
    assembled.adapter = method
    method.apply(assembled.model, assembled.seed)


def as_scored(experiment: Experiment, dataset: Dataset, start: Start) -> Assembled:
    """The model of a checkpoint with its own task, to be scored on a dataset of the same encoding.

    Raises ConfigError when the dataset's targets are not those that the model gives.
    """
    refuse_other_encoding(dataset, start)
    targets = start.card["targets"]
    if dataset.targets["kind"] != targets["kind"] or dataset.targets.get("names") != targets.get("names"):
        raise ConfigError(
            f"{start.directory} gives {_spoken(targets)}; {dataset.directory} has {_spoken(dataset.targets)}"
        )
    return _assembled(experiment, dataset, start.model, start.task, targets, ())


def save_merged(assembled: Assembled, parent: Path) -> Path:
    """Merge the adapter into its base, in place, and write the whole model to `parent/merged`."""
    adapters.merge(assembled.model)
    assembled.base = assembled.adapter = None
    return checkpoint.save(parent, "merged", assembled.save)


def on(assembled: Assembled, dataset: Dataset) -> Assembled:
    """The same model and task on another dataset of the same encoding and targets."""
    return replace(assembled, dataset=dataset)


def _assembled(
    experiment: Experiment,
    dataset: Dataset,
    model: nn.Module,
    task_config: TaskConfig,
    targets: dict[str, Any],
    before: tuple[Chain, ...],
) -> Assembled:
    device = resolve_device(experiment.device)
    precision = resolve_precision(experiment.precision, device)
    precision.apply()
    set_determinism(experiment.deterministic)
    task = task_config.build({**dataset.card, "targets": targets})
    return Assembled(
        model.to(device), task_config, task, dataset, targets, experiment.seed, device, precision, before
    )


def refuse_unknown_figures(experiment: Experiment, dataset: Dataset) -> None:
    """ConfigError where `evaluate` asks for a figure that no model of this data can have."""
    asked = experiment.evaluate
    requirements.refuse_unknown(asked.require, asked.metric, dataset.targets["kind"])


def refuse_other_encoding(dataset: Dataset, start: Start) -> None:
    """ConfigError unless the dataset's rows mean to this model what its own training rows meant."""
    if dataset.card["encoding"] != start.card["encoding"]:
        raise ConfigError(
            f"{start.directory} takes {start.card['encoding']}; "
            f"this file's data is encoded as {dataset.card['encoding']}"
        )
    if _of_inputs(dataset.card["encoder"]) != _of_inputs(start.card["encoder"]):
        what = "tokenizer" if isinstance(dataset.inputs, Tokens) else "encoder (columns, scaling, categories)"
        raise ConfigError(
            f"the data was prepared with another {what} than {start.directory} learned with; "
            f"set data.encode.like: {start.dataset['path']}"
        )


def _of_inputs(encoder: dict[str, Any]) -> dict[str, Any]:
    """An encoder's state without what concerns the target, whose classes may be other ones."""
    state = without_places(encoder)
    return {key: value for key, value in state.items() if key not in ("target", "fitted_target")}


def _spoken(targets: dict[str, Any]) -> str:
    names = [str(name) for name in targets.get("names", [])]
    listed = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    return f"{len(names) or ''} {targets['kind'].replace('_', ' ')}{listed}".strip()


# --- checkpoints ---


def find_checkpoint(path: str) -> Path:
    """The checkpoint directory that a run, a stage of a run or a checkpoint directory stands for."""
    for candidate in (Path(path), Path(path) / "best", Path(path) / "train" / "best"):
        if (candidate / CARD_FILE).is_file():
            found = candidate.resolve()
            return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    raise ConfigError(f"{path}: no checkpoint here (no {CARD_FILE} in it, in best/ or in train/best/)")


def fingerprint(directory: Path) -> str:
    """One hash of what makes the model: its files, by the hashes in the manifest, and what its card says they
    mean. How it was trained, from what, where anything lies and how long it took are not in it: the same
    weights from another run are the same start."""
    own = {
        name: value
        for name, value in sorted(checkpoint.hashes(directory).items())
        if not name.startswith(f"{STATE}/") and name not in (CARD_FILE, adapters.ADAPTER_CONFIG)
    }
    task, card, _, base = about_checkpoint(directory)
    if isinstance(encoder := card.get("encoder"), dict):
        card = {**card, "encoder": without_places(encoder)}
    parts = [own, task, card]
    if base is not None:
        form = files.read_json(directory / adapters.ADAPTER_CONFIG)
        if not isinstance(form, dict):
            raise LlmtoolError(f"{directory / adapters.ADAPTER_CONFIG}: not the form of an adapter")
        parts += [base.get("hash"), {**form, "base_model_name_or_path": None}]
    return files.hash_bytes(files.json_bytes(parts))


def made_from(directory: Path) -> tuple[Chain, ...]:
    """The chains of what a checkpoint was made from, by its card; of one that is silent, its dataset."""
    about = files.read_json(directory / CARD_FILE)
    _, _, dataset, _ = about_checkpoint(directory)
    try:
        if found := about.get("made_from"):
            return tuple(map(read, found))
        return (extend("dataset", str(dataset["path"]), str(dataset["fingerprint"])),)
    except (ValueError, KeyError, TypeError) as error:
        raise LlmtoolError(f"{directory / CARD_FILE}: {error}") from None


def lineage(directory: Path) -> Chain:
    """The chain of a checkpoint: the data it learned from, what it was started from, and itself."""
    return extend("checkpoint", str(directory), fingerprint(directory), *made_from(directory))


def verify(directory: Path, hash_file: HashFile | None = None) -> str:
    """The fingerprint of a checkpoint, once every file is checked against its manifest; of an adapter, those
    of its base too. Raises LlmtoolError where one is missing or changed."""
    checkpoint.verify(directory, hash_file)
    base = about_checkpoint(directory)[3]
    if base is not None:
        _check_base(directory, base, hash_file)
    return fingerprint(directory)


def from_checkpoint(path: str, hash_file: HashFile | None = None) -> Start:
    """The model of a checkpoint, every file checked against its manifest; an adapter is merged into its base.

    Raises ConfigError where there is none, LlmtoolError where a file is missing or changed.
    """
    directory = find_checkpoint(path)
    verify(directory, hash_file)
    task, card, dataset, base = about_checkpoint(directory)
    try:
        config = TASKS.validate_python(task)
        model = pretrained.load(directory if base is None else Path(base["path"]))
        if base is not None:
            adapters.load_adapter(model, directory)
            adapters.merge(model)
    except (ValueError, KeyError, TypeError) as error:
        raise LlmtoolError(f"{directory / CARD_FILE}: not a card of this version ({error})") from None
    chain = lineage(directory)
    return Start(
        directory, model, card, config, dataset, chain[-1].content, chain, is_adapter=base is not None
    )


def about_checkpoint(directory: Path) -> tuple[Any, ...]:
    """What its card says: task, card and place of the data, and the base of an adapter (None for a model)."""
    about = files.read_json(directory / CARD_FILE)
    parts = [about.get(key) for key in ("task", "card", "dataset", "base")] if isinstance(about, dict) else []
    if not parts or not all(isinstance(part, dict) for part in [*parts[:3], parts[3] or {}]):
        raise LlmtoolError(f"{directory / CARD_FILE}: not the card of a checkpoint")
    return tuple(parts)


def _check_base(directory: Path, base: dict[str, str], hash_file: HashFile | None) -> None:
    if not isinstance(base.get("path"), str):
        raise LlmtoolError(f"{directory / CARD_FILE}: not the card of a checkpoint")
    path = Path(base["path"])
    if not path.is_dir():
        raise LlmtoolError(f"{directory} is an adapter of {path}, which is not there any more")
    checkpoint.verify(path, hash_file)
    if fingerprint(path) != base.get("hash"):
        raise LlmtoolError(f"{directory} is an adapter of {path}, which has changed since")
