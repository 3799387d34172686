"""What tells Llama's relatives from it and from one another, on one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = Literal[
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"
]
WINDOWS = frozenset({"window", "layer_types"})
GEMMA = WINDOWS | {"attention_bias", "head_width", "attention_soft_cap", "logit_soft_cap", "query_scale"}


@dataclass(frozen=True)
class Relative:
    """One architecture; the defaults are Llama's.

    keys: those of the configuration that this one has and others may not. norms: where a block has them,
    before its two parts, after them, or both. query_norm: whether queries and keys are normalised, each head
    by itself or all heads at once. query_bias: biases on queries, keys and values only. fused: one matrix for
    queries, keys and values and one for the feed-forward part's first two. gemma: norms scale by 1 + weight,
    embeddings are scaled by the width's root, GELU instead of SiLU. full_every: of blocks with a window,
    each one of this number sees everything; 0: none does.
    """

    keys: frozenset[str] = frozenset()
    norms: Literal["before", "after", "both"] = "before"
    query_norm: Literal["head", "all"] | None = None
    query_bias: bool = False
    fused: bool = False
    gemma: bool = False
    full_every: int = 0
    epsilon: float = 1e-6
    theta: float = 10_000.0


RELATIVES: dict[str, Relative] = {
    # https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783
    "llama": Relative(keys=frozenset({"attention_bias", "mlp_bias", "head_width"})),
    # https://arxiv.org/abs/2310.06825
    "mistral": Relative(keys=frozenset({"window", "head_width"})),
    # https://arxiv.org/abs/2412.15115
    "qwen2": Relative(keys=WINDOWS, query_bias=True),
    # https://arxiv.org/abs/2505.09388
    "qwen3": Relative(keys=WINDOWS | {"attention_bias", "head_width"}, query_norm="head"),
    # https://arxiv.org/abs/2408.00118
    "gemma2": Relative(keys=GEMMA, norms="both", gemma=True, full_every=2),
    # https://arxiv.org/abs/2503.19786
    "gemma3_text": Relative(
        keys=GEMMA | {"rope_theta_window"},
        norms="both",
        query_norm="head",
        gemma=True,
        full_every=6,
        theta=1_000_000.0,
    ),
    # https://arxiv.org/abs/2404.14219
    "phi3": Relative(keys=frozenset({"window", "rotary_share"}), fused=True, epsilon=1e-5),
    # https://arxiv.org/abs/2501.00656
    "olmo2": Relative(keys=frozenset({"attention_bias"}), norms="after", query_norm="all", epsilon=1e-5),
    # https://huggingface.co/blog/smollm3
    "smollm3": Relative(keys=WINDOWS | {"attention_bias", "mlp_bias", "unrotated"}, theta=2_000_000.0),
}
