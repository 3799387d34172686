"""GPT-2's modules: learned positions, LayerNorm, GELU; names and orientations are Hugging Face's."""

# https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.contracts import OutputSpec, Tokens
from llmtool.models.cache import Cache, Sight
from llmtool.models.causal import Transformer, initialise
from llmtool.models.layers import Conv1D, Mask, attend
from llmtool.models.plan import Fused, Plan

if TYPE_CHECKING:
    from llmtool.models.transformer import TransformerConfig


class GPT2Attention(nn.Module):
    """Each token gathers from earlier ones what its query finds in their keys."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index, self.head_width, self.dropout = index, config.head_width, config.dropout
        self.c_attn = Conv1D(config.width, 3 * config.width)
        self.c_proj = Conv1D(config.width, config.width)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Mask, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            part.unflatten(2, (-1, self.head_width)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)
            for part in self.c_attn(x).chunk(3, dim=2)
        )
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        gathered = attend(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(gathered))


class GPT2FeedForward(nn.Module):
    """Two linear layers with GELU between, on each token alone."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.width, config.feed_forward)
        self.c_proj = Conv1D(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class GPT2Block(nn.Module):
    """Attention, then feed-forward, each added to the token's vector."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attn = GPT2Attention(config, index)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = GPT2FeedForward(config)

    def forward(self, x: Tensor, mask: Mask, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT2Body(nn.Module):
    """Everything between the ids and the output layer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(GPT2Block(config, index) for index in range(config.depth))
        self.ln_f = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        positions = sight.positions
        if positions is None:
            positions = torch.arange(sight.start, sight.start + sight.tokens, device=inputs.device)
        x = self.drop(self.wte(inputs) + self.wpe(positions))
        for block in self.h:
            x = block(x, sight.visible, cache)
        return self.ln_f(x)


class GPT2(Transformer):
    """GPT-2: learned positions, LayerNorm, GELU."""

    def __init__(self, config: TransformerConfig, inputs: Tokens, outputs: OutputSpec) -> None:
        super().__init__(config, inputs)
        self.transformer = GPT2Body(config, inputs.vocabulary)
        self.give_head(outputs)
        initialise(self, residual=("c_proj",))
        self.tie()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.transformer.h)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The tables of ids and of positions."""
        return [self.transformer.wte, self.transformer.wpe]

    @property
    def plan(self) -> Plan:
        """How its layers are split among ranks."""
        return {
            "transformer.wte": "vocabulary",
            "transformer.h.*.attn": "entry",
            "transformer.h.*.attn.c_attn": Fused((1, 1, 1)),
            "transformer.h.*.attn.c_proj": "rows",
            "transformer.h.*.mlp": "entry",
            "transformer.h.*.mlp.c_fc": "columns",
            "transformer.h.*.mlp.c_proj": "rows",
            "lm_head": "gathered",
        }

    def body(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D): everything before the output layer."""
        return self.transformer(inputs, sight, cache)

    @property
    def drops_attention(self) -> bool:
        """In training with dropout."""
        return self.training and self.config.dropout > 0
