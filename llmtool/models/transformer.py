"""The decoder-only transformer's configuration: GPT-2, or Llama and its relatives.

Module and parameter names are those of Hugging Face's GPT2LMHeadModel, LlamaForCausalLM and so on: their
`state_dict()` is a Hugging Face checkpoint and the other way round.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.config import Section
from llmtool.core.contracts import InputSpec, NextToken, OutputSpec, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.causal import Transformer
from llmtool.models.decoder import Decoder
from llmtool.models.gpt2 import GPT2

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
        return GPT2(self, inputs) if self.architecture == "gpt2" else Decoder(self, inputs)
