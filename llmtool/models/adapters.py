"""Ways to adapt a trained model to new data: which weights are trained, and LoRA in PEFT's file format."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from llmtool.core import files
from llmtool.core.config import Section, suggest
from llmtool.core.contracts import Classes, OutputSpec, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.seeds import derive
from llmtool.models.layers import Conv1D
from llmtool.models.mlp import MLP
from llmtool.models.pretrained import read_json, read_tensors
from llmtool.models.transformer import Transformer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name
MAX_RANK = 4096


class FullConfig(Section):
    """Every weight is trained."""

    kind: Literal["full"] = Field(default="full", description="train every weight")

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Let every weight train."""
        model.requires_grad_(True)


class FreezeConfig(Section):
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


class HeadConfig(Section):
    """Only the output layer is trained."""

    kind: Literal["head"] = Field(default="head", description="train the output layer only")

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Freeze all but the output layer, in place; a tied one gets weights of its own first."""
        if isinstance(model, Transformer) and model.config.tie_embeddings:
            model.untie()
        model.requires_grad_(False)
        _head(model).requires_grad_(True)


class LoRAConfig(Section):
    """Low-rank updates beside frozen linear layers, https://arxiv.org/abs/2106.09685."""

    kind: Literal["lora"] = Field(
        default="lora", description="train small low-rank updates beside frozen weights"
    )
    rank: int = Field(default=8, gt=0, le=MAX_RANK, description="rank of the updates")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the update's inputs set to zero in training"
    )
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        default="all-linear",
        description="names of the linear layers that get updates, such as [q_proj, v_proj]",
    )
    merge: bool = Field(default=False, description="write the model with the updates added in, too")

    def apply(self, model: nn.Module, seed: int = 0) -> None:
        """Put an update beside each target and freeze the rest, but a new head; in place."""
        names = target_names(model, self.targets)
        model.requires_grad_(False)
        if _head_is_new(model):
            _head(model).requires_grad_(True)
        generator = torch.Generator().manual_seed(derive(seed, "lora"))
        for name in names:
            parent, _, leaf = name.rpartition(".")
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear | Conv1D)
            update = LoRALinear(base, self.rank, self.alpha, self.dropout, generator)
            setattr(model.get_submodule(parent), leaf, update)


AdapterMethod = Annotated[FullConfig | FreezeConfig | HeadConfig | LoRAConfig, Field(discriminator="kind")]
METHODS: TypeAdapter[AdapterMethod] = TypeAdapter(AdapterMethod)


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank."""

    def __init__(
        self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.dropout = nn.Dropout(dropout)
        device = base.weight.device
        self.lora_A = nn.utils.skip_init(nn.Linear, base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.utils.skip_init(nn.Linear, rank, base.out_features, bias=False, device=device)
        # as PEFT: A like torch's own linear layers, B zero, so that the start is the base model
        _uniform(self.lora_A.weight, 1 / math.sqrt(base.in_features), generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scale

    def update(self) -> Tensor:
        """What the update adds to the base's weight, in the base's orientation."""
        full = (self.lora_B.weight @ self.lora_A.weight) * self.scale  # (out, in)
        return full.T if isinstance(self.base, Conv1D) else full


def target_names(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Full names of the layers meant by `targets`; "all-linear" is all but the output layer, as in PEFT."""
    head = _parts(model).head_name
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    assert not any(isinstance(module, LoRALinear) for module in model.modules()), "updates are there already"
    if targets == "all-linear":
        return [name for name in linear if name != head]
    chosen = [name for name in linear if any(_matches(name, target) for target in targets)]
    for target in targets:
        if not any(_matches(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"finetune.method.targets: the model has no linear layer {target!r}{suggest(target, known)} "
                f"(it has: {', '.join(known)})"
            )
    if head in chosen:
        raise ConfigError(
            f"finetune.method.targets: the output layer {head!r} is not a target; the others are"
        )
    return chosen


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def replace_head(model: nn.Module, outputs: OutputSpec, seed: int) -> None:
    """Give the model a new output layer for `outputs`, in place; a model of tokens keeps its vocabulary."""
    if isinstance(model, Transformer):
        raise ConfigError(
            "a model of tokens keeps its vocabulary: set data.encode.like to the data it learned from"
        )
    assert isinstance(model, MLP)
    if not isinstance(outputs, Classes | Values):
        raise ConfigError("a model of features gives classes or values, no tokens")
    old = model.head
    head = nn.utils.skip_init(nn.Linear, old.in_features, outputs.n, device=old.weight.device)
    bound = math.sqrt(6 / (old.in_features + outputs.n))  # Glorot and Bengio 2010, as for a new model
    _uniform(head.weight, bound, torch.Generator().manual_seed(derive(seed, "head")))
    nn.init.zeros_(head.bias)
    model.head, model.outputs, model.head_is_new = head, outputs, True


def _uniform(weight: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill from a stream of its own, the same on every device; torch's global stream is left alone."""
    with torch.no_grad():
        fresh = torch.empty(weight.shape, device="cpu").uniform_(-bound, bound, generator=generator)
        weight.copy_(fresh)


def merge(model: nn.Module) -> None:
    """Add every update to its base's weight and put the plain layers back, in place."""
    for name, module in list(_updates(model)):
        parent, _, leaf = name.rpartition(".")
        with torch.no_grad():
            module.base.weight += module.update()
        setattr(model.get_submodule(parent), leaf, module.base)
    model.requires_grad_(True)
    if isinstance(model, MLP):
        model.head_is_new = False


# --- files ------------------------------------------------------------------------------------------


def save_adapter(model: nn.Module, directory: Path, method: LoRAConfig, base: str) -> None:
    """Write the updates (and a new head) of a model that `method` was applied to, in PEFT's format.

    base: the path of the model underneath, for whoever loads the adapter.
    """
    updates = list(_updates(model))
    assert updates, "apply the method first"
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(module, part).weight.detach().cpu().contiguous()
        for name, module in updates
        for part in ("lora_A", "lora_B")
    }
    head = _parts(model).head_name
    whole = [head] if _head_is_new(model) else []
    for name in whole:
        for key, tensor in model.get_submodule(name).state_dict().items():
            tensors[f"{PREFIX}{name}.{key}"] = tensor.detach().cpu().contiguous()
    form = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(model, Transformer) else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": _targets_for_peft(method, [name for name, _ in updates]),
        "modules_to_save": whole or None,
        "fan_in_fan_out": isinstance(updates[0][1].base, Conv1D),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    files.write_json(directory / ADAPTER_CONFIG, form)
    files.write_bytes(directory / ADAPTER_WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))


def load_adapter(model: nn.Module, directory: Path) -> None:
    """Read updates (and a new head) from PEFT's files into `model`, a base or one with updates, in place.

    ConfigError: a kind of adapter that is not read here. LlmtoolError: a broken file.
    """
    path = directory / ADAPTER_CONFIG
    form = read_json(path)
    method, whole = _method_from(form, path), _whole_from(form, model, path)
    weights = directory / ADAPTER_WEIGHTS
    if whole and isinstance(model, MLP):
        n = _stored_rows(weights, f"{PREFIX}{whole[0]}.weight")
        if n != model.head.out_features or not _head_is_new(model):
            replace_head(model, type(model.outputs)(n), seed=0)
    if not list(_updates(model)):
        method.apply(model)
    parameters = {
        f"{PREFIX}{name}.{part}.weight": getattr(module, part).weight
        for name, module in _updates(model)
        for part in ("lora_A", "lora_B")
    }
    for name in whole:
        parameters |= {f"{PREFIX}{name}.{k}": p for k, p in model.get_submodule(name).named_parameters()}
    tensors = read_tensors(weights, {name: tuple(p.shape) for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _targets_for_peft(method: LoRAConfig, names: list[str]) -> list[str]:
    if isinstance(method.targets, list):
        return method.targets
    return sorted({name.rpartition(".")[2] for name in names})


def _method_from(form: dict[str, Any], path: Path) -> LoRAConfig:
    if form.get("peft_type") != "LORA":
        raise ConfigError(f"{path}: peft_type {form.get('peft_type')!r} is not supported (only 'LORA')")
    plain = {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}
    plain |= {
        "layers_to_transform": None,
        "exclude_modules": None,
        "target_parameters": None,
        "lora_bias": False,
    }
    for key, value in plain.items():
        if form.get(key, value) not in (value, None):
            raise ConfigError(f"{path}: {key}: {form[key]!r} is not supported (only {value!r})")
    alpha, targets = form.get("lora_alpha"), form.get("target_modules")
    try:
        return LoRAConfig(
            kind="lora",
            rank=form["r"],
            alpha=float(alpha),  # type: ignore[arg-type]
            dropout=float(form.get("lora_dropout") or 0.0),
            targets=targets,  # type: ignore[arg-type]
        )
    except (ValueError, TypeError, KeyError):
        shown = {key: form.get(key) for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        raise ConfigError(f"{path}: not sizes that can be read: {str(shown)[:200]}") from None


def _whole_from(form: dict[str, Any], model: nn.Module, path: Path) -> list[str]:
    whole = form.get("modules_to_save") or []
    if whole not in ([], [_parts(model).head_name]) or (whole and isinstance(model, Transformer)):
        raise ConfigError(f"{path}: modules_to_save: {str(whole)[:100]} is not supported for this model")
    return whole


def _stored_rows(path: Path, name: str) -> int:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.get_slice(name).get_shape()[0]
    except (safetensors.SafetensorError, OSError, IndexError) as error:
        raise LlmtoolError(f"{path}: {name}: {error}") from None


def _updates(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def _parts(model: nn.Module) -> MLP | Transformer:
    assert isinstance(model, MLP | Transformer)
    return model


def _head_is_new(model: nn.Module) -> bool:
    return isinstance(model, MLP) and model.head_is_new


def _head(model: nn.Module) -> nn.Module:
    return model.get_submodule(_parts(model).head_name)
