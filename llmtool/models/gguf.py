"""Decoders as GGUF files, llama.cpp's format: names, sizes and layouts of each architecture on one page.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what the keys mean to an architecture is learned from
https://github.com/ggml-org/llama.cpp. Files are written and tensors named by its own package, `gguf`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from llmtool.core.errors import ConfigError
from llmtool.models import pretrained
from llmtool.models.causal import Transformer

FILE = "model.gguf"
Kind = Literal["fp32", "fp16", "bf16", "q8_0"]
BLOCK = 32  # numbers that share a scale in q8_0
# our kinds -> the package's names: of a tensor, and of a file
TYPES = {
    "fp32": ("F32", "ALL_F32"),
    "fp16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}


@dataclass(frozen=True)
class Layout:
    """How llama.cpp has an architecture.

    name: there. interleaved: rotary positions turn neighbours (0, 1), (2, 3) ... of a head instead of its two
    halves, so that the rows of queries and keys change places. turned: names of weights that are stored (in,
    out). offset: norms scale by 1 + weight, and the file has the sum.
    """

    name: str
    interleaved: bool = False
    turned: re.Pattern[str] = re.compile(r"(?!)")
    offset: bool = False


LAYOUTS = {
    "llama": Layout("llama", interleaved=True),
    "qwen3": Layout("qwen3"),
    "gpt2": Layout("gpt2", turned=re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")),
}


class Words(Protocol):
    """What is said of the tokenizer: data.gguf_vocabulary.Vocabulary."""

    kind: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    ends: list[int]
    begin: int | None
    add_begin: bool
    merges: list[str]
    scores: list[float]
    unknown: int | None
    padding: int | None
    blank_before: bool
    template: str | None


def layout_of(model: nn.Module) -> Layout:
    """ConfigError for a model that llmtool writes no GGUF of."""
    kind = model.config.architecture if isinstance(model, Transformer) else type(model).__name__.lower()
    if kind not in LAYOUTS:
        raise ConfigError(f"--to gguf: no form of {kind} (there is one of {', '.join(LAYOUTS)})")
    return LAYOUTS[kind]


def write(
    model: nn.Module, path: Path, words: Words, kind: Kind, name: str, more: dict[str, str]
) -> dict[str, str]:
    """Write the model and its tokenizer to `path`; returns tensor -> its type in the file.

    kind: of the matrices; vectors are fp32, and matrices whose rows are no multiple of 32 fp16 where q8_0 is
    asked for. name: of the model, for people. more: further keys, such as the hash of the weights.
    """
    layout = layout_of(model)
    assert isinstance(model, Transformer)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            "--to gguf: gguf: not installed; it needs the packages of an extra: pip install 'llmtool[export]'"
        )
    import gguf

    writer = gguf.GGUFWriter(None, layout.name)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[TYPES[kind][1]])
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, model)
    _add_words(writer, words)
    for key, value in more.items():
        writer.add_string(key, value)
    types = {}
    for stored, tensor in tensors_of(model):
        named = _type(stored, tensor, kind)
        exact = pretrained.as_dtype(stored, tensor, {"F16": torch.float16}.get(named, torch.float32))
        wanted = gguf.GGMLQuantizationType[named]
        writer.add_tensor(stored, gguf.quants.quantize(exact.numpy(), wanted), raw_dtype=wanted)
        types[stored] = named
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def tensors_of(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The tensors under llama.cpp's names and in its layouts, float32, as torch has shapes."""
    import gguf

    layout, config = layout_of(model), model.config
    named = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(named[layout.name], config.depth)
    for name, tensor in pretrained.file_tensors(model).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"{name} has no name in {layout.name}"
        tensor = tensor.to(torch.float32)
        if layout.turned.search(name):
            tensor = tensor.T.contiguous()
        if layout.offset and name.endswith("norm.weight"):
            tensor = tensor + 1
        if layout.interleaved and (which := re.search(r"\.([qk])_proj\.", name)):
            heads = config.heads if which[1] == "q" else config.key_value_heads
            tensor = interleave(tensor, heads)
        yield stored, tensor


def interleave(tensor: Tensor, heads: int) -> Tensor:
    """(heads * E, ...) rows of queries or keys: the two halves of each head become neighbours."""
    halves = tensor.unflatten(0, (heads, 2, -1))  # (H * E, ...) -> (H, 2, E/2, ...)
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def _type(name: str, tensor: Tensor, kind: Kind) -> str:
    if tensor.ndim == 1 or name.startswith("position_embd"):
        return "F32"  # llama.cpp adds them to fp32 numbers
    if kind == "q8_0" and tensor.shape[-1] % BLOCK:
        return "F16"
    return TYPES[kind][0]


def _add_sizes(writer: Any, model: Transformer) -> None:
    config = model.config
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_vocab_size(model.inputs.vocabulary)
    if config.architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_dimension_count(config.head_width)
    assert config.rope_theta is not None
    writer.add_rope_freq_base(config.rope_theta)


def _add_words(writer: Any, words: Words) -> None:
    """The tokenizer; what it leaves open must be said too, for llama.cpp would assume other models' ids."""
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.scores:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.blank_before)
    else:
        # an empty list has no type of its own
        writer.add_key_value(
            "tokenizer.ggml.merges", words.merges, _array_type(), sub_type=_string_type()
        )
    end = words.ends[0]
    writer.add_bos_token_id(end if words.begin is None else words.begin)
    writer.add_eos_token_id(end)
    if len(words.ends) > 1:
        writer.add_eot_token_id(words.ends[1])
    if words.unknown is not None:
        writer.add_unk_token_id(words.unknown)
    if words.padding is not None:
        writer.add_pad_token_id(words.padding)
    writer.add_add_bos_token(words.add_begin)
    writer.add_add_eos_token(False)
    if words.template is not None:
        writer.add_chat_template(words.template)


def _array_type() -> Any:
    import gguf

    return gguf.GGUFValueType.ARRAY


def _string_type() -> Any:
    import gguf

    return gguf.GGUFValueType.STRING
