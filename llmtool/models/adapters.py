"""Ways to adapt a trained model to new data: which weights are trained, and from where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace as replace_fields
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, TypeAdapter, model_validator
from torch import nn

from llmtool.core.config import Section, suggest
from llmtool.core.contracts import Classes, OutputSpec, Values
from llmtool.core.errors import ConfigError
from llmtool.core.seeds import derive
from llmtool.models.bag import NEW, Bag, Weights
from llmtool.models.convnet import ConvNet
from llmtool.models.convnext import ConvNeXt
from llmtool.models.encoder import Encoder, table_of
from llmtool.models.huggingface import Through
from llmtool.models.layers import Linear
from llmtool.models.lora import LoRALinear, fill_uniform, updates
from llmtool.models.mlp import MLP
from llmtool.models.quantised import linear_layers, quantise, replace
from llmtool.models.tabm import Heads, TabM
from llmtool.models.transformer import Transformer
from llmtool.models.vit import ViT

Family = MLP | TabM | Bag | Encoder | ViT | ConvNet | ConvNeXt | Transformer
MAX_RANK = 4096
ONLY_LORA = {
    "quantise": "a weight of four bits is not trained",
    "lora_plus_ratio": "it is the learning rate of an update's second half",
    "dora": "it is a form of low-rank update",
    "rank": "it is the rank of an update",
}


class _Whole(Section):
    """A method that trains whole weights, and says why a key of LoRA does not go with that."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_keys_of_lora(cls, data: Any) -> Any:
        for key, reason in ONLY_LORA.items():
            if isinstance(data, dict) and key in data:
                raise ValueError(f"{key} needs kind: lora ({reason})")
        return data


class FullConfig(_Whole):
    """Every weight is trained."""

    kind: Literal["full"] = Field(default="full", description="train every weight")

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Let every weight train."""
        model.requires_grad_(True)


class FreezeConfig(_Whole):
    """The embeddings and the first blocks stay as they are."""

    kind: Literal["freeze"] = Field(
        default="freeze", description="keep the embeddings and the first blocks as they are"
    )
    blocks: int = Field(
        ge=0, description="how many blocks (layers, for an mlp) stay as they are, from the input on"
    )

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Freeze in place; an output layer tied to the embeddings is frozen with them."""
        blocks = _parts(model).blocks
        if self.blocks > len(blocks):
            raise ConfigError(f"finetune.method.blocks: {self.blocks} of the model's {len(blocks)} blocks")
        model.requires_grad_(True)
        for part in [*_parts(model).embeddings, *blocks[: self.blocks]]:
            part.requires_grad_(False)


class HeadConfig(_Whole):
    """Only the output layer is trained."""

    kind: Literal["head"] = Field(default="head", description="train the output layer only")

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Freeze all but the output layer, in place; a tied one gets weights of its own first."""
        untie(model)
        model.requires_grad_(False)
        head_of(model).requires_grad_(True)


class LoRAConfig(Section):
    """Low-rank updates beside frozen linear layers, https://arxiv.org/abs/2106.09685."""

    kind: Literal["lora"] = Field(
        default="lora", description="train small low-rank updates beside frozen weights"
    )
    rank: int = Field(default=8, gt=0, le=MAX_RANK, description="rank of the updates")
    alpha: float = Field(
        default=16.0, gt=0, description="the update is scaled by alpha / rank, or as `scaling` says"
    )
    scaling: Literal["standard", "rank_stabilised"] = Field(
        default="standard",
        description="rank_stabilised: by alpha / sqrt(rank), so that high ranks learn as fast (rsLoRA)",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the update's inputs set to zero in training"
    )
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        default="all-linear",
        description="names of the linear layers that get updates, such as [q_proj, v_proj]; all-linear: all "
        "but the output layer",
    )
    dora: bool = Field(
        default=False, description="train the length of each row of a changed weight apart (DoRA)"
    )
    init: Literal["default", "pissa"] = Field(
        default="default",
        description="pissa: the update starts as the weight's largest singular directions, and the base is "
        "what they leave (PiSSA); needs a decomposition of each weight at the start",
    )
    lora_plus_ratio: float = Field(
        default=1.0,
        gt=0,
        description="the learning rate of an update's second matrix, B, is so many times the optimizer's "
        "(LoRA+: about 16)",
    )
    quantise: Literal["none", "nf4"] = Field(
        default="none",
        description="nf4: keep the frozen linear layers in four bits (QLoRA); needs the extra `quant`",
    )
    double_quantise: bool = Field(
        default=False, description="keep the scales of the four-bit weights in eight bits, too"
    )
    merge: bool = Field(
        default=False,
        description="write the model with the updates added in, too; of weights in four bits that is what "
        "four bits have kept of them",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.init == "pissa" and self.dora:
            raise ValueError(
                "init: pissa and dora: true each take the base apart in their own way: choose one"
            )
        if self.init == "pissa" and self.quantise != "none":
            raise ValueError(
                "init: pissa takes its start out of the base, and what four bits keep of the rest is another "
                "base: the adapter would fit no model but this one (leave out init or quantise)"
            )
        if self.double_quantise and self.quantise == "none":
            raise ValueError("double_quantise needs quantise: nf4")
        return self

    @property
    def scale(self) -> float:
        """What the product of an update's matrices is multiplied by."""
        if self.scaling == "rank_stabilised":
            return self.alpha / math.sqrt(self.rank)  # rsLoRA, https://arxiv.org/abs/2312.03732
        return self.alpha / self.rank

    def base_form(self) -> dict[str, Any]:
        """What a checkpoint says of the base beside where it is: how many bits are left of it."""
        return {"quantise": self.quantise, "double": self.double_quantise} if self.quantise != "none" else {}

    def quantise_base(self, model: nn.Module, device: torch.device) -> None:
        """Where the method asks for it, put the linear layers on `device` in four bits, in place.

        Before the model goes there as a whole: then no more than one whole weight is there at a time.
        """
        if self.quantise == "nf4":
            quantise(model, self.double_quantise, device)

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Put an update beside each target and freeze the rest, but a new head; in place."""
        names = target_names(model, self.targets)
        self.quantise_base(model, next(model.parameters()).device)
        layers = linear_layers(model)
        model.requires_grad_(False)
        if head_is_new(model):
            head_of(model).requires_grad_(True)
        generator = torch.Generator().manual_seed(derive(seed, "lora"))
        for name in names:
            update = LoRALinear(layers[name], self.rank, self.scale, self.dropout, self.dora)
            if self.init == "pissa":
                update.start_at_principal()
            else:
                update.start_at_random(generator)
            replace(model, name, update)

    def rates(self, model: nn.Module) -> dict[str, float]:
        """Parameters whose learning rate is so many times the optimizer's: LoRA+,
        https://arxiv.org/abs/2402.12354."""
        if self.lora_plus_ratio == 1.0:
            return {}
        return {f"{name}.lora_B.weight": self.lora_plus_ratio for name, _ in updates(model)}


AdapterMethod = Annotated[FullConfig | FreezeConfig | HeadConfig | LoRAConfig, Field(discriminator="kind")]
METHODS: TypeAdapter[AdapterMethod] = TypeAdapter(AdapterMethod)


def target_names(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Full names of the layers meant by `targets`; "all-linear" is all but the output layer, as in PEFT."""
    assert not any(updates(model)), "updates are there already"
    linear = list(linear_layers(model))
    if not linear:
        raise ConfigError(
            "finetune.method.kind: lora updates linear layers, and but for its output layer this model has "
            "none; full, freeze and head are for any model"
        )
    if targets == "all-linear":
        return linear
    chosen: set[str] = set()
    for target in targets:
        if not (found := matching(linear, target)):
            _refuse_target(model, target, linear)
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _refuse_target(model: nn.Module, target: str, linear: list[str]) -> None:
    head = _parts(model).head_name
    if matching([head], target) or target.startswith(f"{head}."):
        raise ConfigError(
            f"finetune.method.targets: the output layer {head!r} is not a target; the others are"
        )
    known = sorted({name.rpartition(".")[2] for name in linear})
    raise ConfigError(
        f"finetune.method.targets: the model has no linear layer {target!r}{suggest(target, known)} "
        f"(it has: {', '.join(known)})"
    )


def matching(names: Iterable[str], target: object) -> list[str]:
    """The full names that a target means: its own, and those that end in it, as in PEFT."""
    return [name for name in names if name == target or name.endswith(f".{target}")]


def replace_head(model: nn.Module, outputs: OutputSpec, seed: int) -> None:
    """Give the model a new output layer for `outputs`, in place; a model of tokens keeps its vocabulary."""
    if isinstance(model, Transformer) and model.writes and not isinstance(outputs, Classes | Values):
        raise ConfigError(
            "a model of tokens keeps its vocabulary: set data.encode.like to the data it learned from"
        )
    if isinstance(model, Through):
        raise ConfigError("a model that transformers runs gives no classes or values of texts")
    assert isinstance(model, Family)
    if not isinstance(outputs, Classes | Values):
        raise ConfigError(f"model.family {model.config.family} gives classes or values, not the next token")
    generator = torch.Generator().manual_seed(derive(seed, "head"))
    if isinstance(model, Transformer):
        model.give_head(outputs)
        model.score = _new_linear(model.score, outputs.n, generator)
    elif isinstance(model, MLP):
        model.head = _new_linear(model.head, outputs.n, generator)
    elif isinstance(model, TabM):
        model.head = _new_heads(model.head, outputs.n, generator)
    elif isinstance(model, Bag):
        model.config.refuse(model.inputs, outputs)
        if isinstance(model.head, nn.Linear):
            model.head = _new_linear(model.head, outputs.n, generator)
        else:
            device = next(model.parameters()).device
            model.head = Weights(model.rows, outputs.n).to(device)
            fill_uniform(model.head.weight, NEW * math.sqrt(3), generator)
    elif isinstance(model, ViT | ConvNet | ConvNeXt):
        device = next(model.parameters()).device
        model.head = _new_linear(Linear(model.features, 1, device=device), outputs.n, generator)
    else:
        if model.outputs is None:  # else the hidden layer before the outputs stays
            model.head.dense = _new_linear(model.head.dense, model.config.width, generator)
            for weight in model.head.norm.parameters():
                nn.init.ones_(weight)
        model.head.output = _new_linear(model.head.output, outputs.n, generator)
    model.outputs, model.labels, model.head_is_new = outputs, None, True


def read_beside(model: nn.Module, features: int, seed: int) -> None:
    """Let the head read so many numbers of a table beside a text, in place: at first they change nothing."""
    if not isinstance(model, Encoder):
        raise ConfigError("data.encode.features: only encoders read columns of a table beside a text")
    model.inputs = replace_fields(model.inputs, features=features)
    model.head.table = table_of(features, model.config.width).to(model.head.output.weight.device)
    generator = torch.Generator().manual_seed(derive(seed, "table"))
    for parameter in model.head.table[0].parameters():
        fill_uniform(parameter, 1 / math.sqrt(features), generator)
    for parameter in model.head.table[2].parameters():
        nn.init.zeros_(parameter)
    model.head_is_new = True


def pool_by(model: nn.Module, pooling: str) -> None:
    """Let another vector stand for the text, in place: what the head reads."""
    assert isinstance(model, Family)
    field = type(model.config).model_fields.get("pooling")
    if field is None or isinstance(model, ConvNet | ConvNeXt | ViT) or getattr(model, "writes", False):
        raise ConfigError(
            "finetune.pooling: is for classes or values of texts; this model has no such choice"
        )
    if pooling not in (choices := get_args(field.annotation)):
        raise ConfigError(
            f"finetune.pooling: {pooling!r} is not for this model (choices: {', '.join(choices)})"
        )
    model.config = model.config.model_copy(update={"pooling": pooling})


def _new_linear(old: nn.Linear, outputs: int, generator: torch.Generator) -> Linear:
    """A layer with new weights in the place of another."""
    made = nn.utils.skip_init(
        Linear, old.in_features, outputs, bias=old.bias is not None, device=old.weight.device
    )
    bound = math.sqrt(6 / (old.in_features + outputs))  # Glorot and Bengio 2010, as for a new model
    fill_uniform(made.weight, bound, generator)
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made


def _new_heads(old: Heads, outputs: int, generator: torch.Generator) -> Heads:
    """The members' heads with new weights, as those of a new model."""
    _, members, inputs = old.weight.shape
    with torch.device("meta"):  # where making one draws nothing from torch's global stream
        made = Heads(members, inputs, outputs)
    made = made.to_empty(device=old.weight.device)
    fill_uniform(made.weight, 1 / math.sqrt(inputs), generator)
    nn.init.zeros_(made.bias)
    return made


def untie(model: nn.Module) -> None:
    """Give an output layer that is tied to the embeddings weights of its own."""
    if isinstance(model, Transformer) and model.writes and model.config.tie_embeddings:
        model.untie()


def _parts(model: nn.Module) -> Family:
    assert isinstance(model, Family)
    return model


def head_is_new(model: nn.Module) -> bool:
    """Whether the output layer was made for this fine-tuning, and is trained and stored with an adapter."""
    return bool(getattr(model, "head_is_new", False))


def head_of(model: nn.Module) -> nn.Module:
    """The output layer."""
    return model.get_submodule(_parts(model).head_name)
