"""Checkpoint directories: which one a path means, what it says of its data and task, and the model in it.

Ours have a card (`llmtool.json`) and a manifest. A Hugging Face model directory that others made has neither:
what it takes and gives is read from its config.json, and its tokenizer is the one in its tokenizer.json. An
adapter that PEFT wrote takes and gives what the model under it does.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from llmtool.core import checkpoint, files, hub
from llmtool.core.contracts import NextToken, OutputSpec
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.files import HashFile
from llmtool.core.lineage import Chain, extend, read
from llmtool.core.urls import shown
from llmtool.data import remote, tokenizers
from llmtool.data.store import without_places
from llmtool.models import adapters, lora, peft_files, pretrained, quantised
from llmtool.models.forms import huggingface
from llmtool.stages import foreign
from llmtool.tasks import TaskConfig

STATE = "state"  # the part of a checkpoint that only training reads
WHOLE = "start"  # in a run that adapts an adapter again: what that makes with its base, merged
CARD_FILE = "llmtool.json"  # what a checkpoint says of its data and task, beside the model's own files
TASKS: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself.

    task: as its section of a file; None: the model has no head yet. card: of the data it learned from
    (encoding, inputs, targets, encoder). dataset: path and fingerprint of that data; None: not known. base:
    path and hash of the model under an adapter. made_from: the chains of what it was made from. reading: how
    its data was read and cleaned (data.Reading); None: not known.
    """

    task: dict[str, Any] | None
    card: dict[str, Any]
    dataset: dict[str, str] | None
    base: dict[str, str] | None = None
    made_from: tuple[Chain, ...] = ()
    reading: dict[str, Any] | None = None


@dataclass
class Start:
    """A model read from a checkpoint, with what that checkpoint says of its data and its task."""

    directory: Path
    model: nn.Module
    card: dict[str, Any]
    task: TaskConfig | None  # None: the model has no head yet
    dataset: dict[str, str] | None  # path and fingerprint of the data it learned from, where that is known
    hash: str  # of what makes the model
    lineage: Chain
    base: Path | None  # the model under an adapter, which is merged into it here

    @property
    def outputs(self) -> OutputSpec | None:
        """What comes out of the model; None where it has no head yet."""
        return None if self.task is None else self.task.outputs(self.card["targets"])

    @property
    def places(self) -> list[Path]:
        """Where the files lie that go with the weights: beside them, and for what an adapter of others lacks
        there, beside the model under it. Ours have all of theirs."""
        return [self.directory, *([self.base] if self.base is not None and self.dataset is None else [])]

    @property
    def tokenizer(self) -> Path:
        """The directory of its tokenizer's files; its own where there are none."""
        return next((place for place in self.places if (place / tokenizers.FILE).is_file()), self.directory)


def find_checkpoint(path: str) -> Path:
    """The checkpoint directory that a run (what it fine-tuned, else what it trained), a stage of a run, a
    checkpoint directory, a Hugging Face model directory or a name on the hub (hf://owner/name@revision)
    stands for."""
    if remote.is_url(path) and not path.startswith(hub.SCHEME):
        raise ConfigError(f"{shown(path)}: models are read from this machine, or from the hub ({hub.FORM})")
    there = hub.local(path)
    for candidate in (there / place for place in checkpoint.PLACES):
        if (candidate / CARD_FILE).is_file():
            found = candidate.resolve()
            return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    if foreign.is_foreign(there):
        return there
    raise ConfigError(
        f"{path}: no checkpoint here (no {CARD_FILE} in it, in best/, finetune/best/ or "
        f"train/best/, and no {pretrained.CONFIG_FILE} of a Hugging Face model)"
    )


def _base(directory: Path, path: str) -> Path:
    """Where the model under an adapter lies: it may have been moved with the adapter, and a relative name is
    looked for in every directory above the adapter too; one from the hub is fetched again."""
    own = directory.resolve()
    places = [Path(path), own.parent.parent / WHOLE, *(each / path for each in own.parents)]
    found = next((place for place in places if place.is_dir()), None)
    return found or hub.local(hub.named(Path(path)))


def is_checkpoint(path: Path) -> bool:
    """Whether this very directory is a checkpoint, ours or another's."""
    return (path / CARD_FILE).is_file() or foreign.is_foreign(path)


def about_checkpoint(directory: Path) -> About:
    """What a checkpoint's card says, or what is read from another's configuration."""
    if not (directory / CARD_FILE).is_file() and foreign.is_foreign(directory):
        with foreign.unusable():
            base = foreign.base_of(directory)
            if base is None:
                return About(*foreign.task_and_card(directory), None)
        beneath = about_checkpoint(base)
        if beneath.base is not None:
            raise ConfigError(f"{directory}: an adapter of {base}, which is an adapter itself")
        place = {"path": str(base), "hash": fingerprint(base)}
        with foreign.unusable():
            encoder = {**beneath.card["encoder"], **foreign.speech(directory)}
        return About(beneath.task, {**beneath.card, "encoder": encoder}, None, place, (lineage(base),))
    path = directory / CARD_FILE
    about = files.read_json(path)
    if not isinstance(about, dict):
        raise LlmtoolError(f"{path}: not the card of a checkpoint")
    parts: list[Any] = [about.get(key) for key in ("task", "card", "dataset", "base")]
    task, card, dataset, base = parts
    if not all(isinstance(part, dict) for part in (task, card, dataset, base or {})):
        raise LlmtoolError(f"{path}: not the card of a checkpoint")
    try:
        found = tuple(map(read, about.get("made_from") or ()))
        if not found:  # of one that is silent, its dataset
            found = (extend("dataset", str(dataset["path"]), str(dataset["fingerprint"])),)
    except (ValueError, KeyError, TypeError) as error:
        raise LlmtoolError(f"{path}: {error}") from None
    if base is not None:
        base["path"] = str(_base(directory, str(base.get("path"))))
    return About(task, card, dataset, base, found, about.get("reading"))


def fingerprint(directory: Path) -> str:
    """One hash of what makes the model: its files, by the hashes in the manifest, and what its card says they
    mean. How it was trained, from what, where anything lies and how long it took are not in it: the same
    weights from another run are the same start."""
    if not (directory / CARD_FILE).is_file():
        return _others(directory)
    own = {
        name: value
        for name, value in sorted(checkpoint.hashes(directory).items())
        if not name.startswith(f"{STATE}/") and name not in (CARD_FILE, peft_files.ADAPTER_CONFIG)
    }
    about = about_checkpoint(directory)
    card = about.card
    if isinstance(encoder := card.get("encoder"), dict):
        card = {**card, "encoder": without_places(encoder)}
    parts: list[Any] = [own, about.task, card]
    if about.base is not None:
        form = files.read_json(directory / peft_files.ADAPTER_CONFIG)
        if not isinstance(form, dict):
            raise LlmtoolError(f"{directory / peft_files.ADAPTER_CONFIG}: not the form of an adapter")
        form.pop("revision", None)  # says where the base lies, as the name does
        parts += [about.base.get("hash"), {**form, "base_model_name_or_path": None}]
        parts += [about.base[key] for key in ("quantise", "double", "pooling") if key in about.base]
    return files.hash_bytes(files.json_bytes(parts))


def made_from(directory: Path) -> tuple[Chain, ...]:
    """The chains of what a checkpoint was made from; of another's model nothing is known."""
    return about_checkpoint(directory).made_from


def lineage(directory: Path) -> Chain:
    """The chain of a checkpoint: the data it learned from, what it was started from, and itself."""
    return extend("checkpoint", str(directory), fingerprint(directory), *made_from(directory))


def verify(directory: Path, hash_file: HashFile | None = None) -> str:
    """The fingerprint of a checkpoint, once every file is checked against its manifest; of an adapter, those
    of its base too. Raises LlmtoolError where one is missing or changed."""
    if not (directory / CARD_FILE).is_file():
        return _others(directory, hash_file)
    checkpoint.verify(directory, hash_file)
    if (base := about_checkpoint(directory).base) is not None:
        _check_base(directory, base, hash_file)
    return fingerprint(directory)


def from_checkpoint(path: str, hash_file: HashFile | None = None) -> Start:
    """The model of a checkpoint, every file checked against its manifest; an adapter is merged into its base.

    Raises ConfigError where there is none, or none of others that can be used; LlmtoolError where a file of
    ours is missing or changed.
    """
    directory = find_checkpoint(path)
    verify(directory, hash_file)
    about = about_checkpoint(directory)
    with contextlib.nullcontext() if about.dataset else foreign.unusable():
        task, model = _model(directory, about)
    chain = lineage(directory)
    base = None if about.base is None else Path(about.base["path"])
    return Start(directory, model, about.card, task, about.dataset, chain[-1].content, chain, base)


def _model(directory: Path, about: About) -> tuple[TaskConfig | None, nn.Module]:
    """Its task, and the model with its weights."""
    try:
        task = None if about.task is None else TASKS.validate_python(about.task)
        with huggingface.through((about.base or {}).get("through")):
            model = pretrained.load(directory if about.base is None else Path(about.base["path"]))
        if about.base is not None:
            if about.base.get("quantise"):  # as it was trained, so that it scores as it did
                quantised.quantise(model, bool(about.base["double"]), torch.device("cpu"))
            if task is not None:
                inputs = about.card["inputs"]
                _expect_head(model, task.outputs(about.card["targets"]), inputs.get("features", 0))
            if about.base.get("pooling"):
                adapters.pool_by(model, about.base["pooling"])
            peft_files.load_adapter(model, directory)
            lora.merge(model)
            pretrained.take_generation(model, directory)
    except (ValueError, KeyError, TypeError) as error:
        raise LlmtoolError(f"{directory / CARD_FILE}: not a card of this version ({error})") from None
    return task, model


def _expect_head(model: Any, outputs: OutputSpec, features: int) -> None:
    """Room in the base for a head that is the adapter's. features: of a table, beside a text."""
    if features and features != model.inputs.features:
        adapters.read_beside(model, features, seed=0)
    if model.outputs is None:
        model.outputs = outputs
    elif isinstance(model.outputs, NextToken) and not isinstance(outputs, NextToken):
        adapters.replace_head(model, outputs, seed=0)


def _others(directory: Path, hash_file: HashFile | None = None) -> str:
    """The fingerprint of what others made: of its files, and of those of the model under an adapter."""
    own = foreign.fingerprint(directory, hash_file)
    if (base := foreign.base_of(directory)) is None:
        return own
    return files.hash_bytes(files.json_bytes([own, verify(base, hash_file)]))


def _check_base(directory: Path, base: dict[str, str], hash_file: HashFile | None) -> None:
    if not isinstance(base.get("path"), str):
        raise LlmtoolError(f"{directory / CARD_FILE}: not the card of a checkpoint")
    path = Path(base["path"])
    if not path.is_dir():
        where = "" if path.is_absolute() else ": neither here nor in a directory above the adapter"
        raise LlmtoolError(f"{directory} is an adapter of {path}, which is not there any more{where}")
    if verify(path, hash_file) != base.get("hash"):
        raise LlmtoolError(f"{directory} is an adapter of {path}, which has changed since")
