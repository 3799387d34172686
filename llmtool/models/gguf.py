"""Decoders as GGUF files, llama.cpp's format: names, sizes and layouts of each architecture on one page.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what the keys mean to an architecture is learned
from https://github.com/ggml-org/llama.cpp. Its own package, `gguf`, names tensors and writes files. That
llama.cpp computes the same: scripts/benchmarks/gguf_check.py.
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
from llmtool.models.rope import LinearScaling, Llama3Scaling, LongScaling, YarnScaling
from llmtool.models.transformer import TransformerConfig

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
    out). offset: norms scale by 1 + weight, and the file has the sum. full_every: blocks with a window are
    all but each one of this number; 0: llama.cpp has no windows there. biases: keys that it has biases for.
    scaling: kinds of rotary scaling that it has. head: whether an output layer must be there, tied or not.
    """

    name: str
    interleaved: bool = False
    turned: re.Pattern[str] = re.compile(r"(?!)")
    offset: bool = False
    full_every: int = 0
    biases: tuple[str, ...] = ()
    scaling: tuple[str, ...] = ("linear", "dynamic", "yarn")
    head: bool = False


PLAIN = ("linear", "dynamic", "yarn")
LAYOUTS = {
    "llama": Layout(
        "llama", interleaved=True, biases=("attention_bias", "mlp_bias"), scaling=(*PLAIN, "llama3")
    ),
    "mistral": Layout("llama", interleaved=True),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "gemma2": Layout("gemma2", offset=True, full_every=2, scaling=()),
    "gemma3_text": Layout("gemma3", offset=True, full_every=6, scaling=("linear", "dynamic")),
    "phi3": Layout("phi3", scaling=("longrope",)),
    "olmo2": Layout("olmo2", head=True),
    "smollm3": Layout("smollm3", interleaved=True),
    "gpt2": Layout("gpt2", turned=re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")),
}
# blocks of the one whose queries llama.cpp scales by width / heads in place of the head's width
LARGEST = {"gemma2": 46, "gemma3_text": 62}


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
    """ConfigError for a model that llama.cpp would compute otherwise, or that there is no form of."""
    kind = model.config.architecture if isinstance(model, Transformer) else type(model).__name__.lower()
    if not isinstance(model, Transformer) or kind not in LAYOUTS:
        raise ConfigError(f"--to gguf: no form of {kind} (there is one of {', '.join(LAYOUTS)})")
    if not model.writes:
        raise ConfigError("--to gguf: this model gives classes or values of texts, and writes none")
    layout, config = LAYOUTS[kind], model.config
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key) and key not in layout.biases:
            raise _refused(kind, key)
    if config.rope_scaling is not None and config.rope_scaling.kind not in layout.scaling:
        raise _refused(kind, f"rope_scaling of the kind {config.rope_scaling.kind}")
    if isinstance(config.rope_scaling, YarnScaling):
        plain = YarnScaling(factor=config.rope_scaling.factor)
        if config.rope_scaling.model_copy(update={"original_context": None}) != plain:
            raise _refused(kind, "rope_scaling of the kind yarn with other numbers than the factor")
    if config.unrotated != (list(range(3, config.depth, 4)) if kind == "smollm3" else []):
        raise _refused(kind, f"unrotated: {config.unrotated}")
    if layout.offset:
        _refuse_gemma(model, kind, layout)
    return layout


def _refused(kind: str, what: str) -> ConfigError:
    return ConfigError(f"--to gguf: llama.cpp's {kind} has no {what}")


def _refuse_gemma(model: Transformer, kind: str, layout: Layout) -> None:
    config = model.config
    every = layout.full_every
    usual = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(config.depth)]
    if config.window is not None and config.window < config.context and config.layer_types != usual:
        raise _refused(kind, f"blocks with a window but all that are not each {every}th")
    wanted = config.width // config.heads if config.depth == LARGEST[kind] else config.head_width
    if config.query_scale != wanted:
        raise _refused(kind, f"query_scale but {wanted} here (this model's is {config.query_scale})")
    caps = (config.attention_soft_cap, config.logit_soft_cap)
    if kind == "gemma2" and (None in caps or not config.tie_embeddings):
        raise _refused(kind, "models without soft caps, or with an output layer of its own")
    if kind == "gemma3_text" and caps[0] is not None:
        raise _refused(kind, "attention_soft_cap")


def context_of(model: Transformer) -> int:
    """The longest text that llama.cpp computes as this model: no longer than a window it does not know."""
    config = model.config
    windows = LAYOUTS[config.architecture].full_every or "sliding_attention" not in config.layer_types
    return config.context if windows else min(config.context, config.window or config.context)


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
    _add_sizes(writer, model, layout)
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
        if layout.head and stored == "token_embd.weight" and config.tie_embeddings:
            yield "output.weight", tensor
    for stored, tensor in _factors(config) if config.rope_theta is not None else ():
        yield stored, tensor.to(torch.float32)


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


def _add_sizes(writer: Any, model: Transformer, layout: Layout) -> None:
    config = model.config
    writer.add_context_length(context_of(model))
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
    if config.attention_soft_cap is not None:
        writer.add_attn_logit_softcapping(config.attention_soft_cap)
    if config.logit_soft_cap is not None:
        writer.add_final_logit_softcapping(config.logit_soft_cap)
    if layout.full_every:
        writer.add_sliding_window(config.window or config.context)
    elif config.architecture == "phi3":
        writer.add_sliding_window(config.window or 0)  # 0: none; without the key it takes an older model's
    _add_rotary(writer, config)


def _add_rotary(writer: Any, config: TransformerConfig) -> None:
    import gguf

    scaling = config.rope_scaling
    assert config.rope_theta is not None
    writer.add_rope_dimension_count(config.rotary_width)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_theta_window is not None:
        writer.add_rope_freq_base_swa(config.rope_theta_window)
    if isinstance(scaling, LinearScaling | YarnScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType[scaling.kind.upper()])
        writer.add_rope_scaling_factor(scaling.factor)
    if isinstance(scaling, YarnScaling):
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context or config.context)
    if config.architecture == "phi3":
        original = scaling.original_context if isinstance(scaling, LongScaling) else None
        writer.add_rope_scaling_orig_ctx_len(original or config.context)
    if isinstance(scaling, LongScaling):
        frequency = torch.ones(config.rotary_width // 2)
        writer.add_rope_scaling_attn_factors(scaling.apply(frequency, config.rope_theta, config.context)[1])


def _factors(config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    """What each rotary angle is divided by, where the kind of scaling says so for each, (E/2)."""
    scaling, half = config.rope_scaling, config.rotary_width // 2
    if isinstance(scaling, Llama3Scaling):
        assert config.rope_theta is not None
        plain = 1.0 / config.rope_theta ** (torch.arange(half, dtype=torch.float64) / half)
        yield "rope_freqs.weight", plain / scaling.apply(plain, config.rope_theta, config.context)[0]
    if isinstance(scaling, LongScaling):
        yield "rope_factors_long.weight", torch.tensor(scaling.long_factor)
        yield "rope_factors_short.weight", torch.tensor(scaling.short_factor)


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
        # no list is empty in this format; two NULs make no token and stay two
        writer.add_token_merges(words.merges or ["\u0100 \u0100"])
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
