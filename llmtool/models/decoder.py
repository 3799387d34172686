"""Llama and its relatives: rotary positions, RMSNorm, SwiGLU; names and orientations are Hugging Face's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.contracts import OutputSpec, Tokens
from llmtool.models.cache import Cache, Sight
from llmtool.models.causal import Transformer, initialise
from llmtool.models.layers import Linear, Mask, OffsetRMSNorm, RMSNorm, attend, cut, rotate
from llmtool.models.plan import Fused, Plan
from llmtool.models.relatives import RELATIVES
from llmtool.models.rope import ScaledRotary

if TYPE_CHECKING:
    from llmtool.models.transformer import TransformerConfig

Turn = tuple[Tensor, Tensor] | None  # cosines and sines; None: positions do not turn


def _norm(config: TransformerConfig, width: int) -> RMSNorm:
    kind = OffsetRMSNorm if RELATIVES[config.architecture].gemma else RMSNorm
    return kind(width, config.norm_epsilon)


class DecoderAttention(nn.Module):
    """Each token gathers from earlier ones what its query finds in their keys, turned by their positions."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        relative = RELATIVES[config.architecture]
        self.index, self.head_width, self.normalised = index, config.head_width, relative.query_norm
        self.scale = None if config.query_scale is None else config.query_scale**-0.5
        self.soft_cap = config.attention_soft_cap
        queries, keys = config.heads * config.head_width, config.key_value_heads * config.head_width
        self.sizes, self.fused = (queries, keys, keys), relative.fused
        bias = config.attention_bias or relative.query_bias
        if relative.fused:
            self.qkv_proj = Linear(config.width, sum(self.sizes), bias=bias)
        else:
            self.q_proj = Linear(config.width, queries, bias=bias)
            self.k_proj = Linear(config.width, keys, bias=bias)
            self.v_proj = Linear(config.width, keys, bias=bias)
        self.o_proj = Linear(queries, config.width, bias=config.attention_bias)
        if relative.query_norm is not None:
            whole = relative.query_norm == "all"
            self.q_norm = _norm(config, queries if whole else config.head_width)
            self.k_norm = _norm(config, keys if whole else config.head_width)

    def forward(self, x: Tensor, angles: Turn, mask: Mask, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            cut(self.qkv_proj(x), self.sizes)
            if self.fused
            else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        if self.normalised == "all":
            query, key = self.q_norm(query), self.k_norm(key)
        split = (-1, self.head_width)
        query, key, value = query.unflatten(2, split), key.unflatten(2, split), value.unflatten(2, split)
        if self.normalised == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, T, E)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        gathered = attend(query, key, value, mask, 0.0, scale=self.scale, soft_cap=self.soft_cap)
        return self.o_proj(gathered)


class DecoderFeedForward(nn.Module):
    """A linear layer gated by another (SwiGLU, GeGLU), then one back to the width, on each token alone."""

    # https://arxiv.org/abs/2002.05202; Gemma's is GeGLU

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        relative = RELATIVES[config.architecture]
        self.fused, self.gelu = relative.fused, relative.gemma
        if relative.fused:
            self.gate_up_proj = Linear(config.width, 2 * config.feed_forward, bias=config.mlp_bias)
        else:
            self.gate_proj = Linear(config.width, config.feed_forward, bias=config.mlp_bias)
            self.up_proj = Linear(config.width, config.feed_forward, bias=config.mlp_bias)
        self.down_proj = Linear(config.feed_forward, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, up = (
            self.gate_up_proj(x).chunk(2, dim=2) if self.fused else (self.gate_proj(x), self.up_proj(x))
        )
        return self.down_proj((F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)) * up)


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each added to the token's vector; norms before both."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.width)
        self.self_attn = DecoderAttention(config, index)
        self.post_attention_layernorm = _norm(config, config.width)
        self.mlp = DecoderFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Turn, mask: Mask, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class PostNormBlock(nn.Module):
    """Attention, then feed-forward, each added to the token's vector; norms after both, maybe before too."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        both = RELATIVES[config.architecture].norms == "both"
        self.input_layernorm = _norm(config, config.width) if both else nn.Identity()
        self.self_attn = DecoderAttention(config, index)
        self.post_attention_layernorm = _norm(config, config.width)
        self.pre_feedforward_layernorm = _norm(config, config.width) if both else nn.Identity()
        self.mlp = DecoderFeedForward(config)
        self.post_feedforward_layernorm = _norm(config, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Turn, mask: Mask, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        found = self.self_attn(self.input_layernorm(x), angles, mask, cache)
        x = x + self.dropout(self.post_attention_layernorm(found))
        made = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.dropout(self.post_feedforward_layernorm(made))


class DecoderBody(nn.Module):
    """Everything between the ids and the output layer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        assert config.rope_theta is not None
        relative = RELATIVES[config.architecture]
        kind = DecoderBlock if relative.norms == "before" else PostNormBlock
        self.scale = math.sqrt(config.width) if relative.gemma else None
        self.window = config.window
        self.windowed = [each == "sliding_attention" for each in config.layer_types]
        self.unrotated = set(config.unrotated)
        self.embed_tokens = nn.Embedding(vocabulary, config.width)
        width, context = config.rotary_width, config.context
        self.rotary = ScaledRotary(width, context, config.rope_theta, config.rope_scaling)
        self.rotary_window: ScaledRotary | None = None
        if config.rope_theta_window is not None:
            self.rotary_window = ScaledRotary(width, context, config.rope_theta_window, None)
        self.layers = nn.ModuleList(kind(config, index) for index in range(config.depth))
        self.norm = _norm(config, config.width)

    def forward(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        everything = near = self.rotary.at(sight, cache), sight.visible
        if self.window is not None and any(self.windowed):
            angles = everything[0] if self.rotary_window is None else self.rotary_window.at(sight, cache)
            near = angles, sight.window(self.window)
        x = self.embed_tokens(inputs)
        if self.scale is not None:
            x = x * self.scale
        for index, layer in enumerate(self.layers):
            angles, mask = near if self.windowed[index] else everything
            x = layer(x, None if index in self.unrotated else angles, mask, cache)
        return self.norm(x)


class Decoder(Transformer):
    """Llama or one of its relatives: rotary positions, RMSNorm, gated feed-forward."""

    def __init__(self, config: TransformerConfig, inputs: Tokens, outputs: OutputSpec) -> None:
        super().__init__(config, inputs)
        self.model = DecoderBody(config, inputs.vocabulary)
        self.give_head(outputs)
        initialise(self, residual=("o_proj", "down_proj"))
        self.tie()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.model.layers)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The table of ids."""
        return [self.model.embed_tokens]

    @property
    def plan(self) -> Plan:
        """How its layers are split among ranks."""
        heads, shared = self.config.heads, self.config.key_value_heads
        whole = RELATIVES[self.config.architecture].query_norm == "all"
        return {
            "model.embed_tokens": "vocabulary",
            "model.layers.*.self_attn": "entry",
            "model.layers.*.self_attn.[qkv]_proj": "columns",
            "model.layers.*.self_attn.qkv_proj": Fused((heads, shared, shared)),
            "model.layers.*.self_attn.[qk]_norm": "normalised" if whole else "each",
            "model.layers.*.self_attn.o_proj": "rows",
            "model.layers.*.mlp": "entry",
            "model.layers.*.mlp.gate_proj": "columns",
            "model.layers.*.mlp.up_proj": "columns",
            "model.layers.*.mlp.gate_up_proj": Fused((1, 1)),
            "model.layers.*.mlp.down_proj": "rows",
            "lm_head": "gathered",
        }

    @property
    def turns_anew(self) -> int | None:
        """The original context of longrope."""
        return None if self.model.rotary.far is None else self.model.rotary.original

    def body(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D): everything before the output layer."""
        return self.model(inputs, sight, cache)

    @property
    def output(self) -> tuple[nn.Module | None, float | None]:
        """The output layer, and what its scores are kept below."""
        return self.lm_head, self.config.logit_soft_cap

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): the score of every token as the next one, below a cap where there is one."""
        scores, cap = self.lm_head(hidden), self.config.logit_soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)
