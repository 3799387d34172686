"""The whole YAML language on one page: the sections of a file, and how a file is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from llmtool.core import config
from llmtool.core.config import Document, Section
from llmtool.core.contracts import Images
from llmtool.core.errors import ConfigError
from llmtool.core.urls import without_secrets
from llmtool.data import DataConfig
from llmtool.evaluation import EvaluateConfig
from llmtool.models import ModelConfig
from llmtool.models.adapters import AdapterMethod, FullConfig
from llmtool.models.choice import FAMILIES
from llmtool.tasks import TaskConfig
from llmtool.training import TrainConfig
from llmtool.training.parallel import Devices, ParallelConfig, asked

Model = Annotated[
    Annotated[ModelConfig, Tag("section")] | Annotated[Literal["auto"], Tag("word")],
    Discriminator(lambda given: "word" if isinstance(given, str) else "section"),
]


class FinetuneConfig(TrainConfig):
    """Adapt an existing model to this file's data: `train`'s keys, a start and a method."""

    start: str = Field(
        description="the model to start from: a run (what it fine-tuned, else what it trained; this run: "
        "what it trained), a stage of a run, a checkpoint directory, a model in Hugging Face's layout, or "
        "hf://owner/name@commit"
    )
    through: Literal["transformers"] | None = Field(
        default=None,
        description="run the start by transformers' own code: for language models that are not known here; "
        "needs the extra `huggingface`",
    )
    method: AdapterMethod = Field(
        default=FullConfig(kind="full"), description="which weights are trained, and how"
    )

    pooling: Literal["cls", "last", "mean"] | None = Field(
        default=None,
        description="what stands for a text, where its class or a number is learned: the vector of its first "
        "token (of encoders) or of its last (of decoders), or the mean of all; default: what the start says",
    )

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if getattr(self.method, "lora_plus_ratio", 1.0) != 1.0 and self.optimizer.name == "muon":
            raise ValueError(
                "method.lora_plus_ratio: muon makes every update of one size, at one learning rate: "
                "use adamw or sgd"
            )
        return self


def with_recipe(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A `train` section: what it does not say is as the recipe has it; of an optimizer only where it is the
    same one."""
    train = {**recipe, **given}
    usual, own = recipe.get("optimizer", {}), given.get("optimizer")
    if isinstance(own, dict) and own.get("name") == usual.get("name"):
        train["optimizer"] = {**usual, **own}
    return train


class Experiment(Section):
    """One file is one experiment: every command reads its sections and checks them all."""

    run: str = Field(
        default="", description="directory of the run's results; default: runs/<name of this file>"
    )
    seed: int = Field(default=0, ge=0, description="every random choice follows from this number")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA when there is one")
    devices: Devices = Field(
        default="auto",
        description="processes that train together on this machine: a number, cpu:n or cuda:n; auto: one for "
        "each visible GPU, and one where there is none",
    )
    parallel: ParallelConfig = Field(
        default=ParallelConfig(), description="how the processes of a training share the work"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8"] = Field(
        default="auto",
        description="of the matrix products; auto: bf16 on CUDA, fp32 on a CPU; fp8: bf16, but eight bits "
        "for the linear layers inside the blocks while they are trained (GPUs of Ada, Hopper and later)",
    )
    deterministic: bool = Field(
        default=False, description="bit-identical runs on CUDA too (slower); a CPU run always is"
    )
    data: DataConfig = Field(description="where the rows come from and what becomes of them")
    model: Model | None = Field(
        default=None,
        description="the model family and its sizes; auto, or without this key: what suits the prepared data",
    )
    task: TaskConfig | None = Field(
        default=None, description="what is learned; default: what the target suggests"
    )
    train: TrainConfig | None = Field(default=None, description="training from the start")
    finetune: FinetuneConfig | None = Field(default=None, description="adapting an existing model")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="scores, and what they must reach")

    @property
    def start(self) -> str:
        """What `finetune` starts from; of this very run that is what it trained, not what this made of it."""
        assert self.finetune is not None
        given = Path(self.finetune.start)
        return str(given / "train") if given.resolve() == Path(self.run).resolve() else self.finetune.start

    @model_validator(mode="before")
    @classmethod
    def _a_family_stands_in_a_section(cls, data: Any) -> Any:
        model = data.get("model") if isinstance(data, dict) else None
        if isinstance(model, str) and model != "auto":
            family = model if model in FAMILIES else "..."
            raise ValueError(
                f"model: expected auto, or a section: {{family: {family}}} (got {model!r}; families: "
                f"{', '.join(FAMILIES)})"
            )
        return data

    @model_validator(mode="before")
    @classmethod
    def _trained_as_the_family_is(cls, data: Any) -> Any:
        """What `train` does not say is as the family's own recipe has it, where it has one."""
        if not isinstance(data, dict) or not isinstance(data.get("train"), dict):
            return data
        model = data.get("model")
        family = FAMILIES.get(str(model.get("family"))) if isinstance(model, dict) else None
        recipe = getattr(family, "recipe", None)
        if recipe is None:
            return data
        return {**data, "train": with_recipe(recipe, data["train"])}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        inputs = self.data.encode.gives
        if isinstance(self.model, Section) and inputs not in self.model.accepts:
            takes = " or ".join(spec.__name__.lower() for spec in self.model.accepts)
            gives = f"data.encode gives {inputs.__name__.lower()}"
            raise ValueError(f"model.family: {self.model.family!r} takes {takes}; {gives}")
        for name, section in (("train", self.train), ("finetune", self.finetune)):
            if section is not None and section.mixture is not None:
                _refuse_other_parts(name, section.mixture, getattr(self.data.source, "parts", {}))
            if section is not None and section.augment.active and inputs is not Images:
                gives = f"data.encode gives {inputs.__name__.lower()}"
                raise ValueError(f"{name}.augment: changes pictures; {gives}")
        kind, _ = asked(self.devices)
        if kind and self.device not in ("auto", kind):
            raise ValueError(f"devices: {self.devices} is not on the device of this file ({self.device})")
        return self


def _refuse_other_parts(section: str, mixture: Mapping[str, float], parts: Mapping[str, Any]) -> None:
    """ValueError unless the mixture names just the parts of the data."""
    if not parts:
        raise ValueError(f"{section}.mixture: mixes the parts of a mixture (data.source.format: mixture)")
    for name in mixture:
        if name not in parts:
            known = f"{config.suggest(name, list(parts))} (parts: {', '.join(parts)})"
            raise ValueError(f"{section}.mixture.{name}: data.source.parts has no {name!r}{known}")
    if missing := [name for name in parts if name not in mixture]:
        raise ValueError(f"{section}.mixture: no weight for the part {missing[0]} (0 leaves a part out)")


@dataclass(frozen=True)
class Loaded:
    """A checked experiment and the document it came from (for the places in later messages)."""

    experiment: Experiment
    document: Document

    def slice(self, *keys: str) -> dict[str, Any]:
        """These sections and keys (`train.batch`) as plain data, with all defaults of a section; a key that
        the file's form of a section does not have is left out."""
        wanted: dict[str, Any] = {}
        for key in keys:
            place = wanted
            *sections, last = key.split(".")
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = True
        return self.experiment.model_dump(mode="json", by_alias=True, include=wanted)

    def locate(self, message: str, section: str) -> str:
        """The message, which begins with a key, with that key's place in the file in front.

        section: the one that a key without its section (`select.metric`) belongs to. A message that begins
        otherwise stays as it is.
        """
        match = re.match(r"([a-z_]+(?:\.[\w-]+)*)(:?) ", message)
        if match is None:
            return message
        key, marks = match[1], self.document.marks
        path = self.document.path(key)
        if (section, path[0]) in marks:
            path = self.document.path(f"{section}.{key}")
        elif path[:1] not in marks or not (match[2] or "." in key):
            return message
        return f"{self.document.place(path)}: {'.'.join(map(str, path))}{message[len(key) :]}"

    def need(self, section: str, command: str) -> None:
        """ConfigError unless the section is there."""
        if getattr(self.experiment, section) is None:
            raise ConfigError(f"{self.document.name}: `llmtool {command}` needs the section `{section}:`")


def load(path: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read and check a whole file; ConfigErrors lists everything that is wrong with it."""
    experiment, document = config.load(path, overrides, Experiment)
    if not experiment.run:
        if config.is_piped(path):
            raise ConfigError(f"{path}: no file whose name the run could have: say where it goes with `run:`")
        experiment = experiment.model_copy(update={"run": f"runs/{Path(path).stem}"})
    return Loaded(experiment, document)


def run_of(path: str, overrides: Sequence[str] = ()) -> str | None:
    """The run that a file with errors belongs to; None where not even that can be read."""
    try:
        data = config.read(path, overrides).data
    except ConfigError:
        return None
    run = data.get("run")
    if run and isinstance(run, str):
        return run
    return None if config.is_piped(path) else f"runs/{Path(path).stem}"


def resolved(experiment: Experiment) -> str:
    """The experiment as YAML that gives it again, with every default written out that may stand there."""
    return yaml.dump(_written_out(experiment), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(value: Any) -> str:
    """Plain data as YAML on one line, as this language reads it: `on` needs no quotes here."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*( [\w./-]+)*", value):
        return value if isinstance(config.scalar(value), str) else f"'{value}'"
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """PyYAML writes as YAML 1.1 is read; text that YAML 1.2 takes for a number (`1e5`, `08`) needs quotes."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(config.scalar(text), str)
    except ValueError:  # a number too long to be one
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def _written_out(value: Any) -> Any:
    """Plain data of a section with its defaults, but for those that exclude a key which was given: `scale:
    standard` has bins it does not read, and is refused with them."""
    if isinstance(value, list | tuple):
        return [_written_out(item) for item in value]
    if isinstance(value, dict):
        return {key: _written_out(item) for key, item in value.items()}
    if not isinstance(value, Section):
        return without_secrets(value) if isinstance(value, str) else value
    names = {name: field.alias or name for name, field in type(value).model_fields.items()}
    whole = {written: _written_out(getattr(value, name)) for name, written in names.items()}
    if _loads(type(value), whole):
        return whole
    kept = {names[name] for name in value.model_fields_set}
    for written in whole:
        if written not in kept and _loads(
            type(value), {key: whole[key] for key in whole if key in kept | {written}}
        ):
            kept.add(written)
    return {key: whole[key] for key in whole if key in kept}


def _loads(section: type[Section], data: dict[str, Any]) -> bool:
    try:
        section.model_validate(data)
    except ValidationError:
        return False
    return True
