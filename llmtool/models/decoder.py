"""Llama and its relatives: rotary positions, RMSNorm, SwiGLU; names and orientations are Hugging Face's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.contracts import Tokens
from llmtool.models.cache import Cache, Sight
from llmtool.models.causal import Transformer, initialise
from llmtool.models.layers import RMSNorm, Rotary, attend, rotate

if TYPE_CHECKING:
    from llmtool.models.transformer import TransformerConfig


class DecoderAttention(nn.Module):
    """Each token gathers from earlier ones what its query finds in their keys, turned by their positions."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index, self.head_width = index, config.head_width
        queries, keys = config.heads * config.head_width, config.key_value_heads * config.head_width
        self.q_proj = nn.Linear(config.width, queries, bias=False)
        self.k_proj = nn.Linear(config.width, keys, bias=False)
        self.v_proj = nn.Linear(config.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.width, bias=False)
        normalised = config.architecture == "qwen3"
        self.q_norm = RMSNorm(config.head_width, config.norm_epsilon) if normalised else nn.Identity()
        self.k_norm = RMSNorm(config.head_width, config.norm_epsilon) if normalised else nn.Identity()

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        split = (-1, self.head_width)
        query = self.q_norm(self.q_proj(x).unflatten(2, split)).transpose(1, 2)  # (B, H, T, E)
        key = self.k_norm(self.k_proj(x).unflatten(2, split)).transpose(1, 2)  # (B, K, T, E)
        value = self.v_proj(x).unflatten(2, split).transpose(1, 2)  # (B, K, T, E)
        query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        return self.o_proj(attend(query, key, value, mask, dropout=0.0))


class DecoderFeedForward(nn.Module):
    """SwiGLU: a linear layer gated by another, then a third back to the width, on each token alone."""

    # https://arxiv.org/abs/2002.05202

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.feed_forward, bias=False)
        self.up_proj = nn.Linear(config.width, config.feed_forward, bias=False)
        self.down_proj = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderBlock(nn.Module):
    """Attention, then feed-forward, each added to the token's vector."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = DecoderAttention(config, index)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = DecoderFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class DecoderBody(nn.Module):
    """Everything between the ids and the output layer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        assert config.rope_theta is not None
        self.embed_tokens = nn.Embedding(vocabulary, config.width)
        self.rotary = Rotary(config.head_width, config.context, config.rope_theta)
        self.layers = nn.ModuleList(DecoderBlock(config, index) for index in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def forward(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        angles = self.rotary(sight.tokens, sight.positions, sight.start)
        x = self.embed_tokens(inputs)
        for layer in self.layers:
            x = layer(x, angles, sight.visible, cache)
        return self.norm(x)


class Decoder(Transformer):
    """Llama, and Qwen3 with its normalised queries and keys: rotary positions, RMSNorm, SwiGLU."""

    def __init__(self, config: TransformerConfig, inputs: Tokens) -> None:
        super().__init__(config, inputs)
        self.model = DecoderBody(config, inputs.vocabulary)
        self.lm_head = nn.Linear(config.width, inputs.vocabulary, bias=False)
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

    def body(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D): everything before the output layer."""
        return self.model(inputs, sight, cache)
