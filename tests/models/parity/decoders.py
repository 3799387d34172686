"""Decoder-only transformers in the parity table: logits of every next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmtool.models import pretrained
from llmtool.models.cache import Cache
from tests.models.parity.pair import Family, Pair, largest

VOCABULARY, CONTEXT = 61, 24
LENGTHS = (24, 13, 10)  # of the rows that are filled up
DOCUMENTS = (10, 5, 9)  # in one row


def ids() -> Tensor:
    """(3, 24) ids, the same each time."""
    return torch.randint(VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def plain(pair: Pair) -> float:
    """Whole rows."""
    return largest(pair.ours(ids()), pair.theirs(ids()).logits)


def _padded(pair: Pair, real: Tensor) -> float:
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    theirs = pair.theirs(ids(), attention_mask=real, position_ids=positions).logits
    kept = real.bool()
    return largest(pair.ours(ids(), real.int())[kept], theirs[kept])


@torch.no_grad()
def padded_right(pair: Pair) -> float:
    """Rows of different lengths, filled up at their ends."""
    return _padded(pair, torch.tensor([[1] * n + [0] * (CONTEXT - n) for n in LENGTHS]))


@torch.no_grad()
def padded_left(pair: Pair) -> float:
    """Rows of different lengths, filled up at their beginnings."""
    return _padded(pair, torch.tensor([[0] * (CONTEXT - n) + [1] * n for n in LENGTHS]))


@torch.no_grad()
def packed(pair: Pair) -> float:
    """Several documents in one row of ours, each alone in theirs."""
    row = ids()[:1]
    segments = torch.tensor([[number + 1 for number, n in enumerate(DOCUMENTS) for _ in range(n)]])
    alone = [pair.theirs(part).logits for part in row.split(DOCUMENTS, dim=1)]
    return largest(pair.ours(row, segments), torch.cat(alone, dim=1))


@torch.no_grad()
def cached(pair: Pair) -> float:
    """Prompts filled up on the left, then a token at a time; theirs sees each whole row alone."""
    inputs, prompt = ids(), CONTEXT - 5
    segments = torch.tensor([[0] * (CONTEXT - n) + [1] * n for n in LENGTHS])[:, :prompt]
    cache = Cache(rows=3, capacity=CONTEXT)
    parts = [pair.ours(inputs[:, :prompt], segments, cache)]
    parts += [pair.ours(inputs[:, i : i + 1], cache=cache) for i in range(prompt, CONTEXT)]
    ours = torch.cat(parts, dim=1)
    return max(
        largest(ours[row : row + 1, -n:], pair.theirs(inputs[row : row + 1, -n:]).logits)
        for row, n in enumerate(LENGTHS)
    )


@torch.no_grad()
def saved(pair: Pair) -> float:
    """What we save of it, loaded by transformers."""
    import transformers

    directory = pair.directory / "ours"
    directory.mkdir(exist_ok=True)
    pretrained.save(pair.ours, directory)
    auto = transformers.AutoModelForCausalLM
    again, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return largest(again.eval()(ids()).logits, pair.theirs(ids()).logits)


CASES = {
    "plain": plain,
    "padded right": padded_right,
    "padded left": padded_left,
    "packed": packed,
    "cached": cached,
    "saved": saved,
}


def _family(name: str, model_type: str, **keys: Any) -> Family:
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # the defaults are beyond our 61
    config = {"model_type": model_type, "vocab_size": VOCABULARY, **sizes, **special, **keys}
    return Family(name, config, "AutoModelForCausalLM", CASES)


def _rope(kind: str, theta: float = 10_000.0, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **keys}}


GPT2_SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 32, "vocab_size": VOCABULARY}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"sliding_window": 5}
ORIGINAL = {"original_max_position_embeddings": 16}
FACTORS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]}  # of 6 turned numbers a head
DECODERS = (
    Family("gpt2", {"model_type": "gpt2", **GPT2_SIZES}, "AutoModelForCausalLM", CASES),
    Family(
        "gpt2, untied",
        {"model_type": "gpt2", **GPT2_SIZES, "tie_word_embeddings": False, "n_inner": 48},
        "AutoModelForCausalLM",
        CASES,
    ),
    _family("llama", "llama"),
    _family("llama, tied, biases, wide heads", "llama", tie_word_embeddings=True, attention_bias=True,
            mlp_bias=True, head_dim=12),
    _family("llama, linear", "llama", **_rope("linear", factor=2.0)),
    _family("llama, dynamic", "llama", **_rope("dynamic", factor=2.0)),
    _family("llama, llama3", "llama", **_rope("llama3", 100.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, **ORIGINAL)),
    _family("llama, yarn", "llama", **_rope("yarn", 100.0, factor=4.0, beta_fast=4.0, **ORIGINAL)),
    _family("llama, longrope", "llama", **_rope("longrope", short_factor=[1.0, 1.1, 1.3, 2.0], factor=4.0,
            long_factor=[1.5, 2.5, 4.0, 8.0], original_max_position_embeddings=4)),
    _family("mistral", "mistral", sliding_window=None),
    _family("mistral, window", "mistral", **WINDOW, head_dim=12),
    _family("qwen2", "qwen2", tie_word_embeddings=True),
    _family("qwen2, window, yarn", "qwen2", use_sliding_window=True, max_window_layers=1, **WINDOW,
            **_rope("yarn", 100.0, factor=4.0, mscale=1.0, mscale_all_dim=0.5, truncate=False, **ORIGINAL)),
    _family("qwen3", "qwen3", head_dim=12),
    _family("qwen3, window, biases", "qwen3", head_dim=8, attention_bias=True, use_sliding_window=True,
            **WINDOW, layer_types=["full_attention", "sliding_attention", "full_attention"]),
    _family("gemma2", "gemma2", head_dim=12, query_pre_attn_scalar=20, **WINDOW),
    _family("gemma2, low caps", "gemma2", head_dim=8, query_pre_attn_scalar=8, attention_bias=True,
            attn_logit_softcapping=0.5, final_logit_softcapping=1.0, **WINDOW),
    _family("gemma3_text", "gemma3_text", head_dim=12, query_pre_attn_scalar=20, num_hidden_layers=7,
            **WINDOW),
    _family("gemma3_text, linear", "gemma3_text", head_dim=8, **WINDOW, layer_types=["sliding_attention",
            "full_attention", "sliding_attention"], rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
    _family("phi3", "phi3"),
    _family("phi3, window, part of a head", "phi3", **WINDOW,
            **_rope("default", partial_rotary_factor=0.75)),
    _family("phi3, longrope, short", "phi3", original_max_position_embeddings=32,
            **_rope("longrope", partial_rotary_factor=0.75, **FACTORS)),
    _family("phi3, longrope, long", "phi3", original_max_position_embeddings=4,
            **_rope("longrope", partial_rotary_factor=0.75, **FACTORS)),
    _family("olmo2", "olmo2", attention_bias=True),
    _family("smollm3", "smollm3", num_hidden_layers=5),
    _family("smollm3, window", "smollm3", no_rope_layers=[0, 1, 0], use_sliding_window=True, **WINDOW),
)  # fmt: skip
