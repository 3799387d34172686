"""Puts dataset, model and task together: from an experiment, or from a checkpoint directory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtool.core import checkpoint, files, ranks, seeds
from llmtool.core.config import Section
from llmtool.core.contracts import Images, NextToken, OutputSpec, Task, Tokens
from llmtool.core.devices import (
    Precision,
    memory_bytes,
    resolve_device,
    resolve_precision,
    set_up,
)
from llmtool.core.errors import ConfigError
from llmtool.core.lineage import Chain, document
from llmtool.core.shards import in_parts
from llmtool.data import special_tokens, templates, tokenizers
from llmtool.data.batches import Batches, open_batches
from llmtool.data.decoding import decoded_batch
from llmtool.data.games.moves import parts_of
from llmtool.data.store import Dataset, without_places
from llmtool.evaluation import requirements
from llmtool.experiment import Experiment
from llmtool.models import adapters, lora, peft_files, pretrained
from llmtool.models.causal import Transformer, relate
from llmtool.models.forms import huggingface
from llmtool.stages import by_part
from llmtool.stages.checkpoints import CARD_FILE, Start, fingerprint, lineage, made_from
from llmtool.stages.likeness import refuse_other_pictures, say_how_prepared
from llmtool.stages.parting import is_cut
from llmtool.tasks import TaskConfig, default_task
from llmtool.tasks.language import GamesTask

TOKENIZER_FILES = (tokenizers.FILE, special_tokens.CONFIG, templates.FILE)


@dataclass
class Assembled:
    """Everything that training and scoring need.

    targets: what the model's outputs mean. They are the dataset's, but for a regression that was started from
    another model, whose head goes on speaking in the units of its own mean and scale.
    adapter, base: how a start is being adapted, and where the weights under a LoRA adapter lie.
    made_from: the chains of what the model learns from: its dataset, and the start where there is one.
    speech: chat template, special and stop tokens of a start, where the data has no conversations of its own.
    mixture: the weight of each part of the data in the training order; None: every row once an epoch.
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
    speech: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, float] | None = None

    @property
    def rates(self) -> dict[str, float]:
        """Parameters whose learning rate is so many times the optimizer's."""
        return self.adapter.rates(self.model) if isinstance(self.adapter, adapters.LoRAConfig) else {}

    def batches(self, split: str) -> Batches:
        """The rows of a split; language models see windows as long as their context."""
        context = getattr(self.model, "context", None)
        legality = self.task.legality if isinstance(self.task, GamesTask) and self.task.rules else None
        return open_batches(self.dataset, split, self.seed, context, self.mixture, legality)

    def decoded(self, start: int, count: int) -> list[dict[str, Any]]:
        """Rows start to start + count of the training order as a person knows them."""
        return decoded_batch(self.dataset, "train", self.batches("train"), start, count)

    def save(self, directory: Path) -> None:
        """Write the model (or its adapter), the tokenizer and our card of it into `directory`."""
        if self.base is not None:
            self._save_adapter(directory)
        else:
            pretrained.save(self.model, directory)
        self._save_card(directory)

    def save_together(self, directory: Path) -> list[Path]:
        """The same of a model that ranks hold in parts, by all of them; returns the files of weights that
        this one wrote. Raises ranks.RankFailedError."""
        own: list[Path] = []
        if self.base is not None:
            ranks.agreeing(lambda: self._save_adapter(directory))
        else:
            own = pretrained.save_together(self.model, directory)
        ranks.agreeing(lambda: self._save_card(directory) if ranks.here().first else None)
        return own

    def _save_adapter(self, directory: Path) -> None:
        assert isinstance(self.adapter, adapters.LoRAConfig)
        peft_files.save_adapter(self.model, directory, self.adapter, base=str(self.base))

    def _save_card(self, directory: Path) -> None:
        base = None
        if self.base is not None:
            assert isinstance(self.adapter, adapters.LoRAConfig)
            base = {"path": str(self.base), "hash": fingerprint(self.base)}
            base |= self.adapter.base_form() | huggingface.about(self.model) | self._pools()
        for name in TOKENIZER_FILES:
            if (self.dataset.directory / name).is_file():
                files.write_bytes(directory / name, (self.dataset.directory / name).read_bytes())
        if self.speech:
            files.write_bytes(directory / templates.FILE, self.speech["template"]["text"].encode())
        card = {key: self.dataset.card[key] for key in ("encoding", "inputs", "encoder")}
        card["encoder"] = {**card["encoder"], **self.speech}
        about = {
            "format": 1,
            "task": self.task_config.model_dump(mode="json", by_alias=True),
            "dataset": {"path": str(self.dataset.directory), "fingerprint": self.dataset.fingerprint},
            "base": base,
            "card": card | {"targets": self.targets},
            "reading": self.dataset.card.get("reading"),
            "made_from": [document(chain) for chain in self.made_from],
        }
        files.write_json(directory / CARD_FILE, about)

    def _pools(self) -> dict[str, str]:
        """What the base's own file may say otherwise."""
        config: Any = getattr(self.model, "config", None)
        texts = isinstance(self.dataset.inputs, Tokens) and self.targets["kind"] != "next_token"
        return {"pooling": config.pooling} if texts else {}

    def restore(self, directory: Path) -> None:
        """Take over, in place, the weights that `save` wrote into `directory`, and their thresholds."""
        if self.base is not None:
            peft_files.load_adapter(self.model, directory)
        elif in_parts(self.model):
            pretrained.restore(self.model, directory)
        else:
            self.model.load_state_dict(pretrained.load(directory).state_dict())
        task: Any = self.task
        if getattr(task, "tunes", False):
            self.targets = files.read_json(directory / CARD_FILE)["card"]["targets"]
            task.thresholds = self.targets.get("thresholds", task.thresholds)

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
    assert isinstance(experiment.model, Section), "session.with_model comes first"
    refuse_unknown_figures(experiment, dataset)
    task_config = experiment.task or default_task(dataset.targets)
    outputs = task_config.outputs(dataset.targets)
    seeds.seed_torch(experiment.seed, "initialise")
    model = new_model(experiment.model, outputs, dataset)
    train, there = experiment.train, memory_bytes(resolve_device(experiment.device))
    # what ranks cut among them goes to the device block by block
    stays = train is not None and is_cut(model, train, experiment.parallel, there)
    before = (dataset.lineage,)
    made = _assembled(experiment, dataset, model, task_config, dataset.targets, before, stays)
    made.mixture = train.mixture if train else None
    return made


def new_model(config: Any, outputs: OutputSpec, dataset: Dataset) -> nn.Module:
    """A model for this data with new weights, from torch's global stream."""
    model: nn.Module = config.build(dataset.inputs, outputs)
    if "game" in dataset.targets and isinstance(model, Transformer):
        relate(model, parts_of(dataset.targets["game"]))
    return model


def from_start(experiment: Experiment, dataset: Dataset, start: Start) -> tuple[Assembled, str | None]:
    """The model of `start` with the experiment's data and task.

    Returns the assembly and, where the data has other classes, a sentence on the head that was replaced.
    Raises ConfigError when the data was encoded otherwise than the model learned it.
    """
    refuse_other_encoding(dataset, start)
    refuse_unknown_figures(experiment, dataset)
    task_config = experiment.task or default_task(dataset.targets)
    if experiment.task is None and start.task is not None and start.task.kind == task_config.kind:
        task_config = start.task
    outputs, targets, said = task_config.outputs(dataset.targets), dataset.targets, None
    if isinstance(outputs, NextToken) and isinstance(start.outputs, NextToken):
        pass  # its vocabulary is the model's, or a part of it
    elif outputs != start.outputs or targets.get("names") != start.card["targets"].get("names"):
        adapters.replace_head(start.model, outputs, experiment.seed)
        was = _spoken(start.card["targets"])
        said = f"the head is new: {was} became {_spoken(targets)}"
        if start.task is None:
            said = f"the head is new, the model had none: {_spoken(targets)}"
    elif targets["kind"] == "values":
        targets = start.card["targets"]
    model: Any = start.model
    if isinstance(dataset.inputs, Tokens) and dataset.inputs.features and not model.inputs.features:
        adapters.read_beside(model, dataset.inputs.features, experiment.seed)
        said = f"{said}; " if said else ""
        said += "the columns beside the text are new to the head"
    if experiment.finetune is not None and experiment.finetune.pooling is not None:
        adapters.pool_by(start.model, experiment.finetune.pooling)
    before = (start.lineage, dataset.lineage)
    made = _assembled(experiment, dataset, start.model, task_config, targets, before)
    made.mixture = experiment.finetune.mixture if experiment.finetune else None
    spoken = start.card["encoder"]
    if targets["kind"] == "next_token" and "template" in spoken and "template" not in dataset.card["encoder"]:
        made.speech = {key: spoken[key] for key in ("template", "special", "stop") if key in spoken}
    return made, said


def adapt(
    assembled: Assembled, start: Start, method: adapters.AdapterMethod, base: Path | None = None
) -> None:
    """Apply a fine-tuning method to the start's model, in place. base: as `export.whole` gives it."""
    if isinstance(method, adapters.LoRAConfig):
        assembled.base = base or start.directory
    assembled.adapter = method
    method.apply(assembled.model, assembled.seed)


def quantise(experiment: Experiment, start: Start, method: adapters.AdapterMethod) -> str | None:
    """Where the method asks for it, put the start's frozen layers into four bits, in place, before the model
    goes to the device. Returns a sentence that says so."""
    if not isinstance(method, adapters.LoRAConfig) or method.quantise == "none":
        return None
    method.quantise_base(start.model, resolve_device(experiment.device))
    return (
        "the frozen linear layers are kept in four bits: the scores before training are those of the model "
        "rounded so"
    )


def as_scored(experiment: Experiment, dataset: Dataset, start: Start) -> Assembled:
    """The model of a checkpoint with its own task, to be scored on a dataset of the same encoding.

    Raises ConfigError when the dataset's targets are not those that the model gives.
    """
    refuse_other_encoding(dataset, start)
    if start.task is None:
        raise ConfigError(f"{start.directory} has no head for a task yet: `llmtool finetune` gives it one")
    if dataset.card["encoder"].get("features") and not start.card["encoder"].get("features"):
        raise ConfigError(
            f"{start.directory} reads texts alone; the data has columns beside them (data.encode.features)"
        )
    targets = start.card["targets"]
    if dataset.targets["kind"] != targets["kind"] or dataset.targets.get("names") != targets.get("names"):
        raise ConfigError(
            f"{start.directory} gives {_spoken(targets)}; {dataset.directory} has {_spoken(dataset.targets)}"
        )
    return _assembled(experiment, dataset, start.model, start.task, targets, ())


def save_merged(assembled: Assembled, parent: Path) -> Path:
    """Merge the adapter into its base, in place, and write the whole model to `parent/merged`."""
    lora.merge(assembled.model)
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
    stays: bool = False,
) -> Assembled:
    _refuse_long_texts(dataset, model)
    say_to_others(model, {**dataset.card, "targets": targets})
    device = resolve_device(experiment.device)
    precision = resolve_precision(experiment.precision, device)
    set_up(device, precision, experiment.deterministic)
    task = task_config.build({**dataset.card, "targets": targets})
    model = model if stays else model.to(device)
    return Assembled(model, task_config, task, dataset, targets, experiment.seed, device, precision, before)


def say_to_others(model: nn.Module, card: dict[str, Any]) -> None:
    """Have the saved model's own files say what others' tools ask of it: the names of its classes, how its
    pictures are made, which tokens begin, end and pad its texts. card: of the data, with what comes out."""
    targets = card["targets"]
    if "labels" in vars(model):  # of families whose files name the classes
        vars(model)["labels"] = [str(name) for name in targets["names"]]
    if card["inputs"]["kind"] == "images":
        say_how_prepared(model, card)
    if targets["kind"] == "next_token":
        _say_where_texts_end(model, card["encoder"])
    elif isinstance(model, Transformer):  # others' classifiers read the last token that is not this one
        pretrained.carry(model, pad_token_id=card["encoder"]["tokenizer"].get("end"))


def _say_where_texts_end(model: nn.Module, encoder: dict[str, Any]) -> None:
    """Have the saved model's config.json name the tokens that begin and end a text, unless it came with
    others, and those that end a turn of its chats, so that others' tools stop there too: a base model's end
    token is another one than its new template's."""
    tokenizer = encoder.get("tokenizer", {})
    pretrained.carry(model, bos_token_id=tokenizer.get("begin"), eos_token_id=tokenizer.get("end"))
    if stop := encoder.get("stop"):
        carried = vars(model)["carried"]
        known = carried.get("eos_token_id", [])
        both = dict.fromkeys([*stop, *(known if isinstance(known, list) else [known])])
        carried["eos_token_id"] = [token for token in both if token is not None]


def refuse_unknown_figures(experiment: Experiment, dataset: Dataset) -> None:
    """ConfigError where `evaluate` asks for a figure that no model of this data can have."""
    asked = experiment.evaluate
    kind = dataset.targets["kind"]
    if asked.probe and "game" not in dataset.targets:
        raise ConfigError("evaluate.probe: is for models of games (data.encode.as: moves)")
    if asked.suites and kind in ("classes", "labels", "values"):
        raise ConfigError("evaluate.suites: are for language models; this model writes no text")
    if (dataset.targets.get("transform") or {}).get("kind") == "log":
        kind = "log_values"
    suites = {suite.name: suite.kind for suite in asked.suites}
    figures = "games" if "game" in dataset.targets else kind
    requirements.refuse_unknown(asked.require, asked.metric, figures, suites, by_part.parts_of(dataset.card))


def refuse_other_encoding(dataset: Dataset, start: Start) -> None:
    """ConfigError unless the dataset's rows mean to this model what its own training rows meant."""
    if dataset.card["inputs"]["kind"] != start.card["inputs"]["kind"]:
        raise ConfigError(
            f"{start.directory} takes {start.card['encoding']}; "
            f"this file's data is encoded as {dataset.card['encoding']}"
        )
    if isinstance(dataset.inputs, Images):
        refuse_other_pictures(dataset, start)
    elif isinstance(dataset.inputs, Tokens):
        _refuse_other_tokenizer(dataset, start)
    elif _of_inputs(dataset.card["encoder"]) != _of_inputs(start.card["encoder"]):
        assert start.dataset is not None
        raise ConfigError(
            "the data was prepared with another encoder (columns, scaling, categories) than "
            f"{start.directory} learned with; set data.encode.like: {start.dataset['path']}"
        )


def _refuse_other_tokenizer(dataset: Dataset, start: Start) -> None:
    """ConfigError unless the same text has the same ids; which texts there are is the data's own affair."""
    ours, theirs = dataset.card["encoder"]["tokenizer"], start.card["encoder"]["tokenizer"]
    same = theirs is None or ours["hash"] == theirs["hash"]
    if not same and not tokenizers.reads_alike(dataset.directory, start.tokenizer):
        use = f"tokenizer: {{kind: file, path: {start.tokenizer}}}"
        if start.dataset is not None and start.card["encoding"] == dataset.card["encoding"]:
            use = f"like: {start.dataset['path']}"
        raise ConfigError(
            f"the data was prepared with another tokenizer than {start.directory} learned with; "
            f"set data.encode.{use}"
        )
    mine, its = (card["encoder"].get("template") for card in (dataset.card, start.card))
    if mine and its and mine["hash"] != its["hash"]:
        raise ConfigError(
            f"the data was rendered with the chat template {mine['name']} ({mine['hash']}), and "
            f"{start.directory} speaks another, {its['name']} ({its['hash']}): set "
            f"data.encode.{_same_template(start)}"
        )
    own, known = (card["encoder"].get("features") for card in (dataset.card, start.card))
    if known and (not own or _of_inputs(own) != _of_inputs(known)):
        raise ConfigError(
            f"{start.directory} reads other columns of a table beside the text than this data has; set "
            f"data.encode.like: {start.dataset and start.dataset['path']}"
        )
    vocabulary, most = dataset.card["inputs"]["vocabulary"], start.card["inputs"]["vocabulary"]
    if vocabulary > most:
        raise ConfigError(
            f"the data's tokenizer has {vocabulary:,} tokens and {start.directory} knows {most:,}: "
            "it is not the tokenizer of this model"
        )


def _same_template(start: Start) -> str:
    """How data is prepared with the template of the start."""
    if start.dataset is not None:
        return f"like: {start.directory}"
    return f"tokenizer: {{kind: file, path: {start.tokenizer}}} and template: auto"


def _of_inputs(encoder: dict[str, Any]) -> dict[str, Any]:
    """An encoder's state without what concerns the target, whose classes may be other ones."""
    state = without_places(encoder)
    return {key: value for key, value in state.items() if key not in ("target", "fitted_target")}


def _refuse_long_texts(dataset: Dataset, model: nn.Module) -> None:
    """ConfigError where rows of labelled texts are longer than the model can take."""
    length, context = getattr(dataset.inputs, "length", None), getattr(model, "context", None)
    if length is not None and context is not None and length > context:
        raise ConfigError(
            f"data.encode.length: texts have up to {length:,} tokens, the model takes {context:,} at most"
        )


def _spoken(targets: dict[str, Any]) -> str:
    names = [str(name) for name in targets.get("names", [])]
    listed = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
    return f"{len(names) or ''} {targets['kind'].replace('_', ' ')}{listed}".strip()
