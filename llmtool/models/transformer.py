"""The decoder-only transformer's configuration: GPT-2, or Llama and its relatives.

Module and parameter names are those of Hugging Face's GPT2LMHeadModel, LlamaForCausalLM and so on: their
`state_dict()` is a Hugging Face checkpoint and the other way round.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llmtool.core.config import DERIVED, Section
from llmtool.core.contracts import Classes, InputSpec, NextToken, OutputSpec, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models.causal import Transformer
from llmtool.models.decoder import Decoder
from llmtool.models.gpt2 import GPT2
from llmtool.models.relatives import ARCHITECTURES, RELATIVES
from llmtool.models.rope import LongScaling, Scaling

MAX_ROTARY = 2**28  # numbers in the rotary tables
LayerType = Literal["full_attention", "sliding_attention"]


class TransformerConfig(Section):
    """A decoder-only transformer: every token is predicted from those before it."""

    family: Literal["transformer"] = Field(
        default="transformer", description="a decoder-only transformer for tokens"
    )
    architecture: ARCHITECTURES = Field(
        default="llama",
        description="gpt2: learned positions, LayerNorm, GELU; llama: rotary positions, RMSNorm, SwiGLU; "
        "the others are llama with, mistral: a window; qwen2: biases; qwen3: normalised queries and keys; "
        "gemma2 and gemma3_text: four norms, GELU, windows between; phi3: fused matrices; "
        "olmo2: norms after; smollm3: some blocks without positions",
    )
    depth: int = Field(default=4, gt=0, le=512, description="number of blocks")
    heads: int = Field(
        default=4, gt=0, le=1024, description="attention heads in a block; they divide the width"
    )
    width: int = Field(default=128, gt=0, le=65_536, description="size of a token's vector")
    context: int = Field(default=128, gt=0, le=1_048_576, description="the most tokens it sees at once")
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
        description="width inside a block's feed-forward part; default: 8/3 x width up to a multiple of 32, "
        "for gpt2 4 x width",
    )
    norm_epsilon: float = Field(
        default=DERIVED,
        gt=0,
        lt=1,
        description="added to the variance in norms; default: 1e-6, for gpt2, phi3 and olmo2 1e-5",
    )
    tie_embeddings: bool = Field(default=True, description="the output layer shares the embedding's weights")
    rope_theta: float | None = Field(
        default=None,
        gt=1,
        le=1e12,
        description="base of the rotary angles, not for gpt2; default: 10000, gemma3_text 1e6, smollm3 2e6",
    )
    rope_scaling: Scaling | None = Field(
        default=None, description="how rotary angles are stretched over longer texts, not for gpt2"
    )
    window: int | None = Field(
        default=None,
        gt=0,
        le=1_048_576,
        description="how many of the newest tokens a block with sliding attention sees; default: no such",
    )
    layer_types: list[LayerType] = Field(
        default=DERIVED,
        max_length=512,
        description="which blocks see everything and which the window only; default with a window: all only "
        "the window, but gemma2's every second block and gemma3_text's every sixth see everything",
    )
    rope_theta_window: float | None = Field(
        default=None,
        gt=1,
        le=1e12,
        description="base of the angles in blocks with a window, gemma3_text only; default: 10000",
    )
    rotary_share: float = Field(
        default=1.0, gt=0, le=1, description="share of a head that positions turn, phi3 only"
    )
    unrotated: list[Annotated[int, Field(ge=0, lt=512)]] = Field(
        default=DERIVED,
        max_length=512,
        description="blocks, counted from 0, without positions, smollm3 only; default: every fourth",
    )
    attention_bias: bool = Field(
        default=False, description="biases in attention: llama, qwen3, gemma2, gemma3_text, olmo2, smollm3"
    )
    mlp_bias: bool = Field(default=False, description="biases in the feed-forward part: llama, smollm3")
    attention_soft_cap: float | None = Field(
        default=None, gt=0, le=1e6, description="scores of attention stay below this, gemma2 and gemma3_text"
    )
    logit_soft_cap: float | None = Field(
        default=None, gt=0, le=1e6, description="logits stay below this, gemma2 and gemma3_text"
    )
    pooling: Literal["last", "mean"] = Field(
        default="last",
        description="for classes or values of texts: what stands for the text, the vector of its last token, "
        "which has seen all of it, or the mean of all tokens' vectors",
    )
    query_scale: int | None = Field(
        default=None,
        gt=0,
        le=1_048_576,
        description="scores are divided by this number's root, gemma2 and gemma3_text; default: head_width",
    )

    accepts: ClassVar[tuple[type, ...]] = (Tokens,)
    gives: ClassVar[tuple[type, ...]] = (NextToken, Classes, Values)
    suits: ClassVar[str] = (
        "text and other token sequences, where the next token follows from those before it; it wants many "
        "tokens: about 20 for each parameter when trained from the start, far fewer when fine-tuned; one "
        "that has learned to write texts of a kind then learns their classes from fewer labels"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        for name, value in self._derived().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for everybody but the one who makes it
        self._refuse_keys_of_others()
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}"
            )
        if self.architecture != "gpt2":
            self._refuse_rotary()
            self._refuse_layers()
        if self.architecture not in ("gpt2", "mistral", "qwen3") and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def _derived(self) -> dict[str, Any]:
        relative = RELATIVES.get(self.architecture)
        smollm3 = self.architecture == "smollm3"
        return {
            "key_value_heads": self.heads,
            "head_width": self.width // self.heads,
            "feed_forward": math.ceil(self.width * 8 / 3 / 32) * 32 if relative else 4 * self.width,
            "norm_epsilon": relative.epsilon if relative else 1e-5,
            "rope_theta": relative.theta if relative else None,
            "rope_theta_window": 10_000.0 if self.architecture == "gemma3_text" else None,
            "layer_types": [self._layer_type(index) for index in range(self.depth)],
            "unrotated": list(range(3, self.depth, 4)) if smollm3 else [],
            "query_scale": (self.head_width or self.width // self.heads)
            if relative and relative.gemma
            else None,
        }

    def _layer_type(self, index: int) -> LayerType:
        relative = RELATIVES.get(self.architecture)
        every = relative.full_every if relative else 0
        full = self.window is None or (every > 0 and (index + 1) % every == 0)
        return "full_attention" if full else "sliding_attention"

    def _refuse_keys_of_others(self) -> None:
        """ValueError where a key is set that this architecture has not."""
        name = self.architecture
        if name == "gpt2":
            if self.rope_theta is not None or self.rope_scaling is not None:
                raise ValueError("gpt2 has learned positions and no rope_theta or rope_scaling")
            if self.key_value_heads != self.heads:
                raise ValueError("gpt2 has as many key_value_heads as heads (the others may have fewer)")
        known = RELATIVES[name].keys if name in RELATIVES else frozenset()
        if "head_width" not in known and self.head_width * self.heads != self.width:
            raise ValueError(f"{name}'s head_width is width / heads ({_who('head_width')} may have another)")
        plain = {key: type(self).model_fields[key].default for key in SPECIAL}
        plain |= {"layer_types": [self._layer_type(index) for index in range(self.depth)], "unrotated": []}
        for key, value in plain.items():
            if key not in known and getattr(self, key) != value:
                raise ValueError(f"{name} has no {key} (that is for {_who(key)})")

    def _refuse_rotary(self) -> None:
        turned = self.rotary_width
        if turned % 2 or not turned:
            raise ValueError(f"rotary positions turn pairs: the head width {turned} must be even")
        tables = 1 + isinstance(self.rope_scaling, LongScaling) + (self.rope_theta_window is not None)
        if tables * self.context * turned > MAX_ROTARY:
            raise ValueError(
                f"context {self.context} x head width {self.head_width} needs rotary tables above 1 GiB"
            )
        if self.architecture == "phi3" and not isinstance(self.rope_scaling, LongScaling | None):
            raise ValueError("phi3's rope_scaling is longrope, and no other kind")
        if isinstance(self.rope_scaling, LongScaling):
            for key in ("short_factor", "long_factor"):
                factors = getattr(self.rope_scaling, key)
                if len(factors) != turned // 2 or min(factors) <= 0:
                    raise ValueError(f"rope_scaling.{key} needs {turned // 2} factors above 0")

    def _refuse_layers(self) -> None:
        if len(self.layer_types) != self.depth:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for a depth of {self.depth}")
        if self.window is None and "sliding_attention" in self.layer_types:
            raise ValueError("layer_types has sliding_attention, which needs a window")
        if any(index >= self.depth for index in self.unrotated):
            raise ValueError(f"unrotated has blocks beyond a depth of {self.depth}, counted from 0")

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers positions turn."""
        return int(self.head_width * self.rotary_share)

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> Transformer:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Tokens):
            raise ConfigError(f"model.family transformer takes tokens, not {type(inputs).__name__.lower()}")
        if inputs.features:
            raise ConfigError(
                "model.family transformer reads texts alone; with data.encode.features beside them: encoder"
            )
        if isinstance(outputs, NextToken) and outputs.vocabulary != inputs.vocabulary:
            raise ConfigError("model.family transformer predicts the next token of its own vocabulary only")
        if inputs.length is not None and inputs.length > self.context:
            raise ConfigError(
                f"model.context {self.context} is shorter than the data's rows of {inputs.length} tokens"
            )
        return GPT2(self, inputs, outputs) if self.architecture == "gpt2" else Decoder(self, inputs, outputs)


# keys that some architectures have and others have not
SPECIAL = sorted({key for relative in RELATIVES.values() for key in relative.keys} - {"head_width"})


def _who(key: str) -> str:
    return ", ".join(name for name, relative in RELATIVES.items() if key in relative.keys)
