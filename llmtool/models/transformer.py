"""The decoder-only transformer in the forms of GPT-2, Llama and Qwen3: one configuration, two modules.

Module and parameter names are those of Hugging Face's GPT2LMHeadModel, LlamaForCausalLM and
Qwen3ForCausalLM, so that `state_dict()` is a Hugging Face checkpoint and the other way round.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.contracts import InputSpec, NextToken, OutputSpec, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.layers import Conv1D, RMSNorm, Rotary, attend, document_mask, document_positions, rotate

MAX_ROTARY = 2**28  # numbers in the rotary tables
DERIVED: Any = None  # the default of keys that follow from others, until `_resolve` has filled them in


class TransformerConfig(Section):
    """A decoder-only transformer: every token is predicted from those before it."""

    family: Literal["transformer"] = Field(
        default="transformer", description="a decoder-only transformer for tokens"
    )
    architecture: Literal["gpt2", "llama", "qwen3"] = Field(
        default="llama",
        description="gpt2: learned positions, LayerNorm, GELU; llama: rotary positions, RMSNorm, SwiGLU; "
        "qwen3: llama with normalised queries and keys",
    )
    depth: int = Field(default=4, gt=0, le=512, description="number of blocks")
    heads: int = Field(
        default=4, gt=0, le=1024, description="attention heads in a block; they divide the width"
    )
    width: int = Field(default=128, gt=0, le=65_536, description="size of a token's vector")
    context: int = Field(default=128, gt=0, le=262_144, description="the most tokens it sees at once")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of values set to zero in training")
    key_value_heads: int = Field(
        default=DERIVED,
        gt=0,
        le=1024,
        description="heads of keys and values, shared by groups of queries; default: heads",
    )
    head_width: int = Field(
        default=DERIVED, gt=0, le=65_536, description="width of one head; default: width / heads"
    )
    feed_forward: int = Field(
        default=DERIVED,
        gt=0,
        le=1_048_576,
        description="width inside a block's feed-forward part; default: 4 x width, "
        "for llama and qwen3 8/3 x width up to a multiple of 32",
    )
    norm_epsilon: float = Field(
        default=DERIVED,
        gt=0,
        lt=1,
        description="added to the variance in norms; default: 1e-5, for llama and qwen3 1e-6",
    )
    tie_embeddings: bool = Field(default=True, description="the output layer shares the embedding's weights")
    rope_theta: float | None = Field(
        default=None, gt=1, description="base of the rotary angles, llama and qwen3 only; default: 10000"
    )

    accepts: ClassVar[tuple[type, ...]] = (Tokens,)
    gives: ClassVar[tuple[type, ...]] = (NextToken,)
    suits: ClassVar[str] = (
        "text and other token sequences, where the next token follows from those before it; it wants many "
        "tokens: about 20 for each parameter when trained from the start, far fewer when fine-tuned"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        gpt2 = self.architecture == "gpt2"
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        derived = {
            "key_value_heads": self.heads,
            "head_width": self.width // self.heads,
            "feed_forward": 4 * self.width if gpt2 else math.ceil(self.width * 8 / 3 / 32) * 32,
            "norm_epsilon": 1e-5 if gpt2 else 1e-6,
            "rope_theta": None if gpt2 else 10_000.0,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for everybody but the one who makes it
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}"
            )
        if gpt2:
            self._refuse_for_gpt2()
        elif self.head_width % 2:
            raise ValueError(f"rotary positions turn pairs: the head width {self.head_width} must be even")
        elif self.context * self.head_width > MAX_ROTARY:
            raise ValueError(
                f"context {self.context} x head width {self.head_width} needs rotary tables above 1 GiB"
            )
        if self.architecture == "llama" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def _refuse_for_gpt2(self) -> None:
        if self.rope_theta is not None:
            raise ValueError("gpt2 has learned positions and no rope_theta (that is for llama and qwen3)")
        if self.key_value_heads != self.heads:
            raise ValueError("gpt2 has as many key_value_heads as heads (llama and qwen3 may have fewer)")
        if self.head_width * self.heads != self.width:
            raise ValueError("gpt2's head_width is width / heads (llama and qwen3 may have another)")

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> Transformer:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Tokens):
            raise ConfigError(f"model.family transformer takes tokens, not {type(inputs).__name__.lower()}")
        if not isinstance(outputs, NextToken) or outputs.vocabulary != inputs.vocabulary:
            raise ConfigError(
                "model.family transformer predicts the next token of its own vocabulary and nothing else"
            )
        if inputs.length is not None and inputs.length > self.context:
            raise ConfigError(
                f"model.context {self.context} is shorter than the data's rows of {inputs.length} tokens"
            )
        return GPT2(self, inputs) if self.architecture == "gpt2" else Llama(self, inputs)


class Transformer(nn.Module):
    """A decoder-only transformer: ids to the logits of the next one."""

    head_name: ClassVar[str] = "lm_head"
    lm_head: nn.Linear

    def __init__(self, config: TransformerConfig, inputs: Tokens) -> None:
        super().__init__()
        self.config, self.inputs, self.context = config, inputs, config.context
        self.outputs: OutputSpec = NextToken(inputs.vocabulary)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        raise NotImplementedError

    @property
    def embeddings(self) -> list[nn.Module]:
        """The tables that turn ids (and learned positions) into vectors; that of the ids first."""
        raise NotImplementedError

    def hidden(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), what the output layer reads."""
        raise NotImplementedError

    def flops(self, tokens: int) -> int:
        """FLOPs of one row of `tokens` tokens, forward and backward."""
        c = self.config
        queries, pairs = c.heads * c.head_width, c.key_value_heads * c.head_width
        feed_forward = (2 if c.architecture == "gpt2" else 3) * c.width * c.feed_forward
        matrices = c.width * (2 * queries + 2 * pairs) + feed_forward
        attention = 4 * tokens * tokens * queries  # scores and their weighted sum
        forward = c.depth * (2 * tokens * matrices + attention)
        return 3 * (forward + 2 * tokens * c.width * self.inputs.vocabulary)

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits. segments: (B, T) document numbers; a token sees its own only."""
        return self.lm_head(self.hidden(inputs, segments))

    def tie(self) -> None:
        """Let the output layer share the embedding's weights, where the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embeddings[0].get_parameter("weight")

    def untie(self) -> None:
        """Give the output layer weights of its own, equal to the embedding's for now."""
        self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().clone())
        self.config = self.config.model_copy(update={"tie_embeddings": False})


# --- GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf


class GPT2Attention(nn.Module):
    """Each token gathers from earlier ones what its query finds in their keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = Conv1D(config.width, 3 * config.width)
        self.c_proj = Conv1D(config.width, config.width)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)
            for part in self.c_attn(x).chunk(3, dim=2)
        )
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

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = GPT2FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class GPT2Body(nn.Module):
    """Everything between the ids and the output layer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.depth))
        self.ln_f = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, inputs: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        if segments is None:
            mask, positions = None, torch.arange(inputs.shape[1], device=inputs.device)
        else:
            mask, positions = document_mask(segments), document_positions(segments)
        x = self.drop(self.wte(inputs) + self.wpe(positions))
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x)


class GPT2(Transformer):
    """GPT-2: learned positions, LayerNorm, GELU."""

    def __init__(self, config: TransformerConfig, inputs: Tokens) -> None:
        super().__init__(config, inputs)
        self.transformer = GPT2Body(config, inputs.vocabulary)
        self.lm_head = nn.Linear(config.width, inputs.vocabulary, bias=False)
        _initialise(self, residual=("c_proj",))
        self.tie()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.transformer.h)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The tables of ids and of positions."""
        return [self.transformer.wte, self.transformer.wpe]

    def hidden(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), what the output layer reads."""
        assert inputs.shape[1] <= self.context, "more tokens than the context"
        return self.transformer(inputs, segments)


# --- Llama, https://arxiv.org/abs/2302.13971, and Qwen3, https://arxiv.org/abs/2505.09388 ----------


class LlamaAttention(nn.Module):
    """Each token gathers from earlier ones what its query finds in their keys, turned by their positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        queries, keys = config.heads * config.head_width, config.key_value_heads * config.head_width
        self.q_proj = nn.Linear(config.width, queries, bias=False)
        self.k_proj = nn.Linear(config.width, keys, bias=False)
        self.v_proj = nn.Linear(config.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.width, bias=False)
        normalised = config.architecture == "qwen3"
        self.q_norm = RMSNorm(config.head_width, config.norm_epsilon) if normalised else nn.Identity()
        self.k_norm = RMSNorm(config.head_width, config.norm_epsilon) if normalised else nn.Identity()

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        split = (-1, self.head_width)
        query = self.q_norm(self.q_proj(x).unflatten(2, split)).transpose(1, 2)  # (B, H, T, E)
        key = self.k_norm(self.k_proj(x).unflatten(2, split)).transpose(1, 2)  # (B, K, T, E)
        value = self.v_proj(x).unflatten(2, split).transpose(1, 2)  # (B, K, T, E)
        return self.o_proj(attend(rotate(query, angles), rotate(key, angles), value, mask, dropout=0.0))


class LlamaFeedForward(nn.Module):
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


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each added to the token's vector."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = LlamaFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, mask))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class LlamaBody(nn.Module):
    """Everything between the ids and the output layer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        assert config.rope_theta is not None
        self.embed_tokens = nn.Embedding(vocabulary, config.width)
        self.rotary = Rotary(config.head_width, config.context, config.rope_theta)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def forward(self, inputs: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        mask = None if segments is None else document_mask(segments)
        angles = self.rotary(inputs.shape[1], None if segments is None else document_positions(segments))
        x = self.embed_tokens(inputs)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.norm(x)


class Llama(Transformer):
    """Llama, and Qwen3 with its normalised queries and keys: rotary positions, RMSNorm, SwiGLU."""

    def __init__(self, config: TransformerConfig, inputs: Tokens) -> None:
        super().__init__(config, inputs)
        self.model = LlamaBody(config, inputs.vocabulary)
        self.lm_head = nn.Linear(config.width, inputs.vocabulary, bias=False)
        _initialise(self, residual=("o_proj", "down_proj"))
        self.tie()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.model.layers)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The table of ids."""
        return [self.model.embed_tokens]

    def hidden(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), what the output layer reads."""
        assert inputs.shape[1] <= self.context, "more tokens than the context"
        return self.model(inputs, segments)


def _initialise(model: Transformer, residual: tuple[str, ...]) -> None:
    """Normal weights; those into the residual stream smaller, as 2 x depth of them add up (GPT-2, 2.3)."""
    # "small init", https://arxiv.org/abs/1910.05895: GPT-2's 0.02 at a width of 1000, more at smaller ones
    deviation = math.sqrt(2 / (5 * model.config.width))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            scale = 1 / math.sqrt(2 * model.config.depth) if name.endswith(residual) else 1.0
            nn.init.normal_(module.weight, std=deviation * scale)
