"""Models on disk: config.json and model.safetensors, in Hugging Face's form where the family has one.

What is read was perhaps written by others: nothing in it is run, sizes are limited and compared with the
file's own header before memory is taken, and every tensor must be the one that the configuration announces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmtool.core import files
from llmtool.core.config import suggest
from llmtool.core.contracts import Classes, Features, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models.layers import Rotary
from llmtool.models.mlp import MLP, MLPConfig
from llmtool.models.transformer import Transformer, TransformerConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MAX_JSON = 10_000_000  # bytes
MAX_WIDTH = 2**31 - 1  # of features, classes and vocabularies
DTYPES = {"F32", "F16", "BF16"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

MLP_TYPE = "llmtool_mlp"
MODEL_TYPES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
OUTPUTS: dict[str, type[Classes] | type[Values]] = {"classes": Classes, "values": Values}

# Hugging Face's key -> ours, for what a configuration must say
GPT2_SIZES = {"n_layer": "depth", "n_head": "heads", "n_embd": "width", "n_positions": "context"}
LLAMA_SIZES = {
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_size": "width",
    "max_position_embeddings": "context",
    "intermediate_size": "feed_forward",
}
# Hugging Face's key -> ours, for what it may leave out or have as null: then our default holds
GPT2_OPTIONS = {"n_inner": "feed_forward", "layer_norm_epsilon": "norm_epsilon", "resid_pdrop": "dropout"}
LLAMA_OPTIONS = {
    "num_key_value_heads": "key_value_heads",
    "head_dim": "head_width",
    "rms_norm_eps": "norm_epsilon",
    "residual_dropout": "dropout",  # ours: transformers keeps it and does not know it
}
# Hugging Face's key -> the values that our modules implement; the first is theirs when the key is left out
GPT2_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
LLAMA_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
}
# buffers that old checkpoints of GPT-2 and Llama contain and that are computed nowadays
COMPUTED = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


def save(model: nn.Module, directory: Path) -> None:
    """Write config.json and model.safetensors into `directory`; a shared output layer is written once."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model).items()}
    assert not any(".lora_A." in name for name in tensors), (
        "merge an adapter, or save it with adapters.save_adapter"
    )
    config = _mlp_form(model) if isinstance(model, MLP) else _hugging_face_form(model)
    files.write_json(directory / CONFIG_FILE, config)
    files.write_bytes(directory / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))


def load(directory: Path) -> nn.Module:
    """The model of a directory, in float32 on the CPU. ConfigError or LlmtoolError name file and problem."""
    model = skeleton(directory)
    path = directory / WEIGHTS_FILE
    _refuse_other_formats(directory, path)
    wanted = {name: tuple(tensor.shape) for name, tensor in _state(model).items()}
    tensors = read_tensors(path, wanted, _copies(model))
    model.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(model, Transformer):
        model.tie()
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # an assigned tensor brings its own flag along
    for module in model.modules():
        if isinstance(module, Rotary):
            module.fill(torch.device("cpu"))
    return model


def skeleton(directory: Path) -> nn.Module:
    """The model of a directory on the meta device: shapes and structure, no weights."""
    path = directory / CONFIG_FILE
    data = read_json(path)
    kind = data.get("model_type")
    known = [*MODEL_TYPES, MLP_TYPE]
    if kind not in known:
        raise ConfigError(
            f"{path}: model_type {kind!r} is not known{suggest(kind, known)} (known: {', '.join(known)})"
        )
    try:
        with torch.device("meta"), NoValues():
            return _mlp_from(data, path) if kind == MLP_TYPE else _transformer_from(data, path)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first.get("ctx", {}).get("error", first["msg"])
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{reason}") from None


class NoValues(TorchFunctionMode):
    """Leaves out what only sets values: on the meta device there are none, and trying to draw normal ones
    imports torch's compiler (1 s)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each of its functions."""
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


# --- configurations -------------------------------------------------------------------------------------


def _mlp_form(model: MLP) -> dict[str, Any]:
    kind = next(name for name, spec in OUTPUTS.items() if isinstance(model.outputs, spec))
    return {
        "model_type": MLP_TYPE,
        "architectures": ["MLP"],
        "inputs": {"kind": "features", "width": model.inputs.width},
        "outputs": {"kind": kind, "n": model.head.out_features},
        "model": model.config.model_dump(mode="json", by_alias=True),
    }


def _mlp_from(data: dict[str, Any], path: Path) -> nn.Module:
    inputs, outputs = (data[key] if isinstance(data.get(key), dict) else {} for key in ("inputs", "outputs"))
    spec = OUTPUTS.get(str(outputs.get("kind")))
    if inputs.get("kind") != "features" or spec is None:
        raise ConfigError(f"{path}: inputs must be features and outputs classes or values")
    width, n = _count(inputs, "width", path), _count(outputs, "n", path)
    return MLPConfig.model_validate(data.get("model")).build(Features(width), spec(n))


def _hugging_face_form(model: nn.Module) -> dict[str, Any]:
    assert isinstance(model, Transformer)
    config = model.config
    gpt2 = config.architecture == "gpt2"
    keys = {**GPT2_SIZES, **GPT2_OPTIONS} if gpt2 else {**LLAMA_SIZES, **LLAMA_OPTIONS}
    form: dict[str, Any] = {
        "model_type": config.architecture,
        "architectures": [MODEL_TYPES[config.architecture]],
    }
    form |= {"vocab_size": model.inputs.vocabulary} | {
        key: getattr(config, ours) for key, ours in keys.items()
    }
    form |= {
        key: values[0]
        for key, values in (GPT2_FIXED if gpt2 else LLAMA_FIXED).items()
        if values[0] is not None
    }
    if gpt2:
        form |= {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout}
    else:  # transformers 5 reads the first, those before it the second
        form |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
        form |= {"rope_theta": config.rope_theta, "attention_dropout": 0.0}
    if config.architecture == "qwen3":
        del form["mlp_bias"]
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}  # theirs would be other models' ids
    return form | ends | {"tie_word_embeddings": config.tie_embeddings, "dtype": "float32"}


def _transformer_from(data: dict[str, Any], path: Path) -> nn.Module:
    architecture = data["model_type"]
    gpt2 = architecture == "gpt2"
    _refuse_unknown_parts(data, GPT2_FIXED if gpt2 else LLAMA_FIXED, path)
    values: dict[str, Any] = {"family": "transformer", "architecture": architecture}
    for key, ours in (GPT2_SIZES if gpt2 else LLAMA_SIZES).items():
        values[ours] = _count(data, key, path)
    for key, ours in (GPT2_OPTIONS if gpt2 else LLAMA_OPTIONS).items():
        if data.get(key) is not None:
            values[ours] = data[key]
    values["tie_embeddings"] = data.get("tie_word_embeddings", gpt2)
    if not gpt2:
        values["rope_theta"] = float(_rope_theta(data, path))
    vocabulary = _count(data, "vocab_size", path)
    return TransformerConfig.model_validate(values).build(Tokens(vocabulary), NextToken(vocabulary))


def _refuse_unknown_parts(data: dict[str, Any], fixed: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    for key in ("quantization_config", "auto_map"):
        if data.get(key):
            raise ConfigError(
                f"{path}: {key} is not supported; only plain weights of known architectures are read"
            )
    named = data.get("architectures") or [MODEL_TYPES[data["model_type"]]]
    if named != [MODEL_TYPES[data["model_type"]]]:
        wanted = MODEL_TYPES[data["model_type"]]
        raise ConfigError(
            f"{path}: architectures is {named!r}; only {wanted} is read for {data['model_type']}"
        )
    for key, values in fixed.items():
        if data.get(key, values[0]) not in values:
            raise ConfigError(f"{path}: {key}: {data[key]!r} is not supported (only {values[0]!r})")
    if any(kind != "full_attention" for kind in data.get("layer_types") or []):
        raise ConfigError(f"{path}: layer_types: only full_attention is supported")


def _rope_theta(data: dict[str, Any], path: Path) -> float:
    rope = data.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ConfigError(f"{path}: rope_parameters: only the default rotary positions are supported")
    theta = rope.get("rope_theta", data.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise ConfigError(f"{path}: rope_theta: expected a number (got {theta!r})")
    return theta


def _count(data: dict[str, Any], key: str, path: Path) -> int:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_WIDTH:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a far larger number"
        raise ConfigError(f"{path}: {key}: expected a whole number from 1 to {MAX_WIDTH} (got {shown})")
    return value


# --- reading what others wrote ---------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; LlmtoolError when it is missing, too large, or something else."""
    if path.is_file() and path.stat().st_size > MAX_JSON:
        raise LlmtoolError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_JSON:,} are read")
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise LlmtoolError(f"{path}: expected a mapping")
    return data


def read_tensors(
    path: Path, wanted: Mapping[str, tuple[int, ...]], copies: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Exactly the tensors `wanted` (name -> shape) of a safetensors file, as float32, or else LlmtoolError.

    copies: tensors that may be in the file too, if they are equal to another one (name -> that one's name).
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = {_name(name, wanted): name for name in file.keys() if not COMPUTED.search(name)}  # noqa: SIM118
            extra = {name: stored.pop(name) for name in copies or {} if name in stored}
            _refuse_other_names(path, set(stored), set(wanted))
            for name, key in stored.items():  # shapes and types first: they cost no memory
                _refuse_other_tensor(path, key, file.get_slice(key), tuple(wanted[name]))
            tensors = {
                name: file.get_tensor(key).to(torch.float32, copy=True) for name, key in stored.items()
            }
            for name, key in extra.items():
                if not torch.equal(file.get_tensor(key).to(torch.float32), tensors[(copies or {})[name]]):
                    raise LlmtoolError(
                        f"{path}: {key} differs from the embedding that {CONFIG_FILE} ties it to"
                    )
    except safetensors.SafetensorError as error:
        raise LlmtoolError(f"{path}: not a whole safetensors file ({error})") from None
    except OSError as error:
        raise LlmtoolError(f"{path}: {error.strerror or error}") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise LlmtoolError(f"{path}: {name} contains NaN or infinity")
    return tensors


def _name(stored: str, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Our name of a tensor; OpenAI's own GPT-2 files leave out the first part."""
    longer = f"transformer.{stored}"
    return longer if longer in wanted and stored not in wanted else stored


def _refuse_other_names(path: Path, names: set[str], wanted: set[str]) -> None:
    for problem, them in (("lacks", sorted(wanted - names)), ("has the unexpected", sorted(names - wanted))):
        if them:
            more = f" and {len(them) - 3} more" if len(them) > 3 else ""
            raise LlmtoolError(f"{path}: {problem} {', '.join(them[:3])}{more}")


def _refuse_other_tensor(path: Path, key: str, header: Any, shape: tuple[int, ...]) -> None:
    if tuple(header.get_shape()) != shape:
        raise LlmtoolError(
            f"{path}: {key} has the shape {tuple(header.get_shape())}; {CONFIG_FILE} says {shape}"
        )
    if header.get_dtype() not in DTYPES:
        raise LlmtoolError(f"{path}: {key} is {header.get_dtype()}; expected {', '.join(sorted(DTYPES))}")


def _refuse_other_formats(directory: Path, path: Path) -> None:
    if path.is_file():
        return
    if (directory / f"{WEIGHTS_FILE}.index.json").is_file():
        raise LlmtoolError(
            f"{directory}: weights in several files are not supported; save them as one {WEIGHTS_FILE}"
        )
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise LlmtoolError(
            f"{directory / pickles[0]}: a pickle can run code and is not read; convert it to {WEIGHTS_FILE}"
        )
    raise LlmtoolError(f"{path}: no such file")


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that is stored, a shared one once."""
    state = dict(model.state_dict())
    for copy in _copies(model):
        del state[copy]
    return state


def _copies(model: nn.Module) -> dict[str, str]:
    if not isinstance(model, Transformer) or not model.config.tie_embeddings:
        return {}
    table = model.embeddings[0]
    name = next(name for name, module in model.named_modules() if module is table)
    return {f"{model.head_name}.weight": f"{name}.weight"}
