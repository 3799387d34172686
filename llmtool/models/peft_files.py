"""Adapters on disk, in PEFT's format: what PEFT wrote is read here, and the other way round.

An adapter that began with PiSSA is stored as the plain LoRA of twice its rank that does the same beside the
base as it was before: W + s B A - s B0 A0 = W + s [B, -B0] [A; A0]. So it loads anywhere, and nothing but the
original base is needed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from llmtool.core import files, hub, ranks
from llmtool.core.contracts import Classes
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.shards import put
from llmtool.core.shards import whole as whole_of
from llmtool.models.adapters import LoRAConfig, head_is_new, matching, replace_head, untie
from llmtool.models.encoder import Encoder
from llmtool.models.forms import form_of
from llmtool.models.headed import Headed
from llmtool.models.huggingface import Through
from llmtool.models.layers import Conv1D
from llmtool.models.lora import LoRALinear, updates
from llmtool.models.mlp import MLP
from llmtool.models.pretrained import read_json, read_tensors
from llmtool.models.quantised import NF4Linear, linear_layers
from llmtool.models.tabm import TabM
from llmtool.models.transformer import Transformer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name
PLAIN: dict[str, Any] = {  # keys of PEFT's that change what is computed -> the one value that is read here
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "lora_bias": False,
    "layers_to_transform": None,
    "exclude_modules": None,
    "target_parameters": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
}
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # that leave the base as it is


def save_adapter(model: nn.Module, directory: Path, method: LoRAConfig, base: str) -> None:
    """Write the updates (and a new head) of a model that `method` was applied to, in PEFT's format.

    base: the path of the model underneath, for whoever loads the adapter; one in the cache of the hub's
    library is written by name and commit. Of a model that ranks hold in parts all of them call it, and the
    first writes.
    """
    own = dict(updates(model))
    assert own, "apply the method first"
    tensors = {
        f"{PREFIX}{_theirs(model, name)}.{key}": tensor
        for name, update in own.items()
        for key, tensor in stored(update).items()
    }
    whole = form_of(model).head_modules(model) if head_is_new(model) else []
    if whole:
        tensors |= _whole_tensors(model, [str(model.head_name)])
    doubled = 2 if method.init == "pissa" else 1
    stabilised = method.scaling == "rank_stabilised"
    form = {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        **_place(base),
        "inference_mode": True,
        "r": method.rank * doubled,
        "lora_alpha": method.alpha * (math.sqrt(doubled) if stabilised else doubled),
        "lora_dropout": method.dropout,
        "target_modules": _targets_for_peft(model, method, list(own)),
        "modules_to_save": whole or None,
        "fan_in_fan_out": _stored_in_out(next(iter(own.values()))),
        "bias": "none",
        "use_rslora": stabilised,
        "use_dora": method.dora,
    }
    written = {name: whole_of(tensor).cpu().contiguous() for name, tensor in tensors.items()}
    if not ranks.here().first:
        return
    files.write_json(directory / ADAPTER_CONFIG, form)
    files.write_bytes(directory / ADAPTER_WEIGHTS, safetensors.torch.save(written, {"format": "pt"}))


def _place(base: str) -> dict[str, Any]:
    on_hub = hub.NAME.fullmatch(hub.named(Path(base)))
    if on_hub is None:
        return {"base_model_name_or_path": base}
    return {"base_model_name_or_path": on_hub["name"], "revision": on_hub["revision"]}


def stored(update: LoRALinear) -> dict[str, Tensor]:
    """What is stored of an update, by PEFT's names."""
    a, b = whole_of(update.lora_A.weight), whole_of(update.lora_B.weight)
    if update.start_A is not None and update.start_B is not None:
        a, b = torch.cat((a, update.start_A)), torch.cat((b, -update.start_B), dim=1)
    tensors = {"lora_A.weight": a, "lora_B.weight": b}
    if update.lora_magnitude_vector is not None:
        tensors["lora_magnitude_vector"] = update.lora_magnitude_vector
    return tensors


def load_adapter(model: nn.Module, directory: Path) -> None:
    """Read updates (and layers stored whole) from PEFT's files into `model`, a base or one with updates, in
    place.

    ConfigError: a kind of adapter that is not read here. LlmtoolError: a broken file.
    """
    path = directory / ADAPTER_CONFIG
    form = read_json(path)
    method, whole = _method_from(_in_our_names(form, model), path), _whole_from(form, model, path)
    weights = directory / ADAPTER_WEIGHTS
    if whole and isinstance(model, Headed):
        layer = "head.output" if isinstance(model, Encoder) else "head"
        n = _stored_rows(weights, f"{PREFIX}{_theirs(model, layer)}.weight")
        if model.outputs != type(model.outputs or Classes(n))(n) or not head_is_new(model):
            replace_head(model, type(model.outputs or Classes(n))(n), seed=0)
    elif whole:
        untie(model)
    if not any(updates(model)):
        _only_there(method, model).apply(model)
    own = dict(updates(model))
    shapes = {
        f"{PREFIX}{_theirs(model, name)}.{key}": tuple(tensor.shape)
        for name, update in own.items()
        for key, tensor in stored(update).items()
    }
    parameters = _whole_tensors(model, whole)
    tensors = read_tensors(weights, shapes | {name: tuple(p.shape) for name, p in parameters.items()})
    for name, update in own.items():
        theirs = f"{PREFIX}{_theirs(model, name)}"
        _take_over(update, {key: tensors[f"{theirs}.{key}"] for key in stored(update)})
    with torch.no_grad():
        for name, parameter in parameters.items():
            put(parameter.requires_grad_(True), tensors[name])


@torch.no_grad()
def _take_over(update: LoRALinear, tensors: dict[str, Tensor]) -> None:
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    rank = update.lora_A.out_features
    put(update.lora_A.weight, a[:rank])
    put(update.lora_B.weight, b[:, :rank])
    if update.start_A is not None:
        update.take_out(a[rank:].to(update.start_A.device), -b[:, rank:].to(update.start_A.device))
    if update.lora_magnitude_vector is not None:
        put(update.lora_magnitude_vector, tensors["lora_magnitude_vector"])


def _only_there(method: LoRAConfig, model: nn.Module) -> LoRAConfig:
    """PEFT's lists may name targets of other models too, as long as one of them is there."""
    linear = linear_layers(model)
    there = [name for name in method.targets if matching(linear, name)]
    if method.targets == "all-linear" or not there:
        return method
    return method.model_copy(update={"targets": there})


def _stored_in_out(update: LoRALinear) -> bool:
    base = update.base
    return base.transposed if isinstance(base, NF4Linear) else isinstance(base, Conv1D)


def _renamed(model: nn.Module) -> bool:
    """Whether modules have names of ours, which transformers does not know."""
    return isinstance(model, Through) or not isinstance(model, MLP | TabM | Transformer)


def _theirs(model: nn.Module, name: str) -> str:
    """What transformers, and so PEFT, calls a module of ours."""
    return form_of(model).module_name(model, name)


def _whole_tensors(model: nn.Module, whole: list[str]) -> dict[str, nn.Parameter]:
    """The parameters of modules that are stored whole, by the names in the file."""
    found = {}
    for name in whole:
        for key, parameter in model.get_submodule(name).named_parameters():
            module, _, leaf = f"{name}.{key}".rpartition(".")
            found[f"{PREFIX}{_theirs(model, module)}.{leaf}"] = parameter
    return found


def _in_our_names(form: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The same form with our names of the targets, where transformers has others."""
    targets = form.get("target_modules")
    if not _renamed(model) or not isinstance(targets, list):
        return form
    theirs = {_theirs(model, name): name for name in dict(updates(model)) or linear_layers(model)}
    ours = [theirs[full] for target in targets for full in matching(theirs, target)]
    return form | {"target_modules": ours or targets}


def _task_type(model: nn.Module) -> str | None:
    if isinstance(model, Transformer) and model.writes:
        return "CAUSAL_LM"
    return "SEQ_CLS" if isinstance(model, Encoder | Transformer) else None


def _targets_for_peft(model: nn.Module, method: LoRAConfig, names: list[str]) -> list[str]:
    if _renamed(model):  # in full: the end of a name may be that of a layer in the head too
        return [_theirs(model, name) for name in names]
    if isinstance(method.targets, list):
        return method.targets
    return sorted({name.rpartition(".")[2] for name in names})


def _method_from(form: dict[str, Any], path: Path) -> LoRAConfig:
    if form.get("peft_type") != "LORA":
        raise ConfigError(f"{path}: peft_type {form.get('peft_type')!r} is not supported (only 'LORA')")
    for key, value in PLAIN.items():
        if form.get(key, value) not in (value, None):
            raise ConfigError(f"{path}: {key}: {form[key]!r} is not supported (only {value!r})")
    if (start := form.get("init_lora_weights", True)) not in STARTS:
        raise ConfigError(
            f"{path}: init_lora_weights: {str(start)[:40]!r} changes the base itself; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    alpha, targets = form.get("lora_alpha"), form.get("target_modules")
    try:
        return LoRAConfig(
            kind="lora",
            rank=form["r"],
            alpha=float(alpha),  # type: ignore[arg-type]
            scaling="rank_stabilised" if form.get("use_rslora") else "standard",
            dropout=float(form.get("lora_dropout") or 0.0),
            targets=targets,  # type: ignore[arg-type]
            dora=bool(form.get("use_dora")),
        )
    except (ValueError, TypeError, KeyError):
        shown = {key: form.get(key) for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        raise ConfigError(f"{path}: not sizes that can be read: {str(shown)[:200]}") from None


def _whole_from(form: dict[str, Any], model: nn.Module, path: Path) -> list[str]:
    """Full names of the modules that are stored whole: the output layer, or the table of ids."""
    named = form.get("modules_to_save") or []
    ends = [str(model.head_name)]
    if _renamed(model) and isinstance(named, list):
        parts = set(form_of(model).head_modules(model))
        named = ends if set(named) - {"score"} == parts else named  # PEFT lists it, whatever the model has
    if isinstance(model, Transformer) and not model.writes and isinstance(named, list):
        named = [name for name in named if name != "classifier"]  # PEFT lists both names of such heads
    if isinstance(model, Transformer):
        table = model.embeddings[0]
        ends.append(next(name for name, module in model.named_modules() if module is table))
    whole = [matching(ends, name) for name in named] if isinstance(named, list) else [[]]
    if not all(whole):
        raise ConfigError(f"{path}: modules_to_save: {str(named)[:100]} is not supported for this model")
    return [name for names in whole for name in names]


def _stored_rows(path: Path, name: str) -> int:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.get_slice(name).get_shape()[0]
    except (safetensors.SafetensorError, OSError, IndexError) as error:
        raise LlmtoolError(f"{path}: {name}: {error}") from None
