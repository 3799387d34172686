"""The bidirectional transformer in the forms of BERT, DistilBERT, RoBERTa and ModernBERT: texts to classes.

MiniLM is BERT of another size. Which names Hugging Face's checkpoints have for these modules stands in
models/forms/.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import DERIVED, Section
from llmtool.core.contracts import Classes, InputSpec, OutputSpec, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models.attention import attention
from llmtool.models.headed import Headed, per_text, pool
from llmtool.models.layers import Linear, Rotary, document_positions, rotate
from llmtool.models.plan import Fused, Plan

MAX_ROTARY = 2**28  # numbers in the rotary tables
MODERN = ("window", "global_every", "rope_theta", "local_rope_theta")  # keys that only modernbert reads


class EncoderConfig(Section):
    """A bidirectional transformer: every token sees the whole text; a head reads classes or values off it."""

    family: Literal["encoder"] = Field(
        default="encoder", description="a bidirectional transformer for classes or values of texts"
    )
    architecture: Literal["bert", "distilbert", "roberta", "modernbert"] = Field(
        default="bert",
        description="bert: learned positions, LayerNorm after each part; distilbert: without token types; "
        "roberta: with positions counted from the padding token's id; modernbert: rotary positions, norms "
        "before each part, GeGLU, attention within a window in most blocks",
    )
    depth: int = Field(default=4, gt=0, le=512, description="number of blocks")
    heads: int = Field(
        default=4, gt=0, le=1024, description="attention heads in a block; they divide the width"
    )
    width: int = Field(default=128, gt=0, le=65_536, description="size of a token's vector")
    context: int = Field(default=512, gt=0, le=262_144, description="the most tokens of a text")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of values set to zero in training")
    feed_forward: int = Field(
        default=DERIVED,
        gt=0,
        le=1_048_576,
        description="width inside a block's feed-forward part; default: 4 x width, of modernbert 3/2 of it",
    )
    activation: Literal["gelu", "gelu_tanh", "relu"] = Field(
        default="gelu", description="the non-linearity of the feed-forward part"
    )
    norm_epsilon: float = Field(
        default=DERIVED,
        gt=0,
        lt=1,
        description="added to the variance in norms; default: 1e-12, for roberta and modernbert 1e-5",
    )
    pooling: Literal["cls", "mean"] = Field(
        default="cls",
        description="what stands for the text: its first token's vector, or the mean of all tokens' vectors",
    )
    token_types: int = Field(
        default=DERIVED,
        ge=0,
        le=1024,
        description="kinds of text the embedding tells apart, of which all tokens are the first; default: 2 "
        "for bert, 1 for roberta, 0 (no such table) for the others",
    )
    padding: int = Field(
        default=DERIVED,
        ge=0,
        le=1_000_000,
        description="the padding token's id, roberta counts positions from it; default: 1 for roberta, or 0",
    )
    window: int | None = Field(
        default=None,
        gt=1,
        description="modernbert: tokens that a block with local attention looks at, half on each side; "
        "default: 128",
    )
    global_every: int | None = Field(
        default=None, gt=0, description="modernbert: every so many blocks look at the whole text; default: 3"
    )
    rope_theta: float | None = Field(
        default=None, gt=1, description="modernbert: base of the rotary angles; default: 160000"
    )
    local_rope_theta: float | None = Field(
        default=None, gt=1, description="modernbert: the same in blocks with local attention; default: 10000"
    )

    accepts: ClassVar[tuple[type, ...]] = (Tokens,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "classes or values of texts: a pretrained one is fine-tuned on some hundred labelled texts; trained "
        "from the start it wants many thousands, and TF-IDF with logistic regression is hard to beat"
    )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        modern, roberta = self.architecture == "modernbert", self.architecture == "roberta"
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        derived = {
            "feed_forward": self.width * 3 // 2 if modern else 4 * self.width,
            "norm_epsilon": 1e-5 if modern or roberta else 1e-12,
            "token_types": {"bert": 2, "roberta": 1}.get(self.architecture, 0),
            "padding": 1 if roberta else 0,
        }
        if modern:
            values = (128, 3, 160_000.0, 10_000.0)
            derived |= dict(zip(MODERN, values, strict=True))
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for everybody but the one who makes it
        given = [name for name in MODERN if getattr(self, name) is not None]
        if given and not modern:
            raise ValueError(f"{given[0]} is for architecture: modernbert; {self.architecture} has none")
        if self.token_types and self.architecture in ("distilbert", "modernbert"):
            raise ValueError(f"{self.architecture} has no token_types (bert and roberta have them)")
        if modern and self.width // self.heads % 2:
            raise ValueError(
                f"rotary positions turn pairs: the head width {self.width // self.heads} must be even"
            )
        if modern and self.context * (self.width // self.heads) > MAX_ROTARY:
            raise ValueError(f"context {self.context} needs rotary tables above 1 GiB")
        return self

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> Encoder:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Tokens):
            raise ConfigError(f"model.family encoder takes tokens, not {type(inputs).__name__.lower()}")
        if not isinstance(outputs, Classes | Values):
            raise ConfigError(
                "model.family encoder gives classes or values of texts; language needs model.family: "
                "transformer"
            )
        if inputs.length is not None and inputs.length > self.context:
            raise ConfigError(
                f"model.context {self.context} is shorter than the data's texts of up to {inputs.length} "
                "tokens (data.encode.length)"
            )
        return Encoder(self, inputs, outputs)


class Encoder(Headed):
    """A bidirectional transformer with a head on the pooled vector of the text.

    Where a checkpoint has no head for classes or values, the one here means nothing.
    """

    config: EncoderConfig
    inputs: Tokens

    def __init__(self, config: EncoderConfig, inputs: Tokens, outputs: Classes | Values | None) -> None:
        super().__init__(config, inputs, outputs)
        self.context = config.context
        modern = config.architecture == "modernbert"
        self.embed = Embeddings(config, inputs.vocabulary)
        self.layers = nn.ModuleList(
            ModernBlock(config, at) if modern else Block(config) for at in range(config.depth)
        )
        self.norm = _norm(config) if modern else nn.Identity()
        if modern:
            assert config.rope_theta is not None
            assert config.local_rope_theta is not None
            head_width = config.width // config.heads
            self.rotary = Rotary(head_width, config.context, config.rope_theta)
            self.local_rotary = Rotary(head_width, config.context, config.local_rope_theta)
        self.head = Head(config, outputs.n if outputs is not None else 1, inputs.features)
        _initialise(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        return list(self.layers)

    @property
    def embeddings(self) -> list[nn.Module]:
        """The tables of ids, positions and types, with the norm after them."""
        return [self.embed]

    @property
    def plan(self) -> Plan:
        """How its layers are split among ranks."""
        gated = self.config.architecture == "modernbert"
        return {
            "embed.tokens": "vocabulary",
            "layers.*.attention": "entry",
            "layers.*.attention.query": "columns",
            "layers.*.attention.key": "columns",
            "layers.*.attention.value": "columns",
            "layers.*.attention.query_key_value": Fused((1, 1, 1)),
            "layers.*.attention.output": "rows",
            "layers.*.feed_forward": "entry",
            "layers.*.feed_forward.widen": Fused((1, 1)) if gated else "columns",
            "layers.*.feed_forward.narrow": "rows",
        }

    def flops(self, tokens: int) -> int:
        """FLOPs of one row of `tokens` tokens, forward and backward."""
        c = self.config
        matrices = 4 * c.width**2 + (3 if c.architecture == "modernbert" else 2) * c.width * c.feed_forward
        attention = 4 * tokens * tokens * c.width  # scores and their weighted sum
        head = 2 * c.width * (c.width + self.head.output.out_features)
        return 3 * (c.depth * (2 * tokens * matrices + attention) + head)

    def hidden(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), a vector for each token. segments: (B, T); a token sees its own only."""
        positions = None if segments is None else document_positions(segments)
        return self.body(inputs, positions, None if segments is None else same_document(segments))

    def body(self, inputs: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, T, D). positions: (B, T), None: 0 to T - 1. mask: (B, 1, T, T), what is seen."""
        length = inputs.shape[1]
        assert length <= self.context, "more tokens than the context"
        x = self.embed(inputs, positions)
        if self.config.architecture != "modernbert":
            for block in self.layers:
                x = block(x, mask)
            return x
        assert self.config.window is not None
        near = within(length, self.config.window // 2, inputs.device)
        local = near if mask is None else near & mask
        angles = self.rotary(length, positions), self.local_rotary(length, positions)
        for block in self.layers:
            x = block(x, local, angles[1]) if block.local else block(x, mask, angles[0])
        return self.norm(x)

    def forward(
        self, inputs: Tensor, segments: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids, or (B, K, T) in chunks -> (B, C) logits or values. segments: as ids, 0 at padding.

        features: (B, F), of a table's columns beside the text.
        """
        return self.head(per_text(self.vectors, inputs, segments), features)

    def vectors(self, inputs: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, D), what stands for each row."""
        return self.pooled(self.hidden(inputs, segments), segments)

    def pooled(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, D): the first token that is no padding, or the mean of those that are none."""
        return pool(hidden, segments, self.config.pooling)


def same_document(segments: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T): True where both tokens are of one document (or padding)."""
    return (segments.unsqueeze(2) == segments.unsqueeze(1)).unsqueeze(1)


def within(length: int, distance: int, device: torch.device) -> Tensor:
    """(T, T): True where two tokens are at most `distance` apart."""
    at = torch.arange(length, device=device)
    return (at.unsqueeze(0) - at.unsqueeze(1)).abs() <= distance


def _split(x: Tensor, head_width: int) -> Tensor:
    return x.unflatten(2, (-1, head_width)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """(B, H, T, E) each -> (B, T, D). mask: (B, 1, T, T) or (T, T), True where a query may look."""
    found = attention(query, key, value, mask, dropout=dropout)
    return found.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, D)


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def _norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, config.norm_epsilon, bias=config.architecture != "modernbert")


class Embeddings(nn.Module):
    """Vectors of ids, of their positions and of their types added up, then normalised."""

    def __init__(self, config: EncoderConfig, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.offset = config.padding + 1 if config.architecture == "roberta" else 0
        learned = config.architecture != "modernbert"
        self.positions = nn.Embedding(config.context + self.offset, config.width) if learned else None
        self.types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Tensor, positions: Tensor | None) -> Tensor:
        """(B, T) ids, (B, T) positions (None: 0 to T - 1) -> (B, T, D)."""
        x = self.tokens(inputs)
        if self.positions is not None:
            if positions is None:
                positions = torch.arange(inputs.shape[1], device=inputs.device)
            x = x + self.positions(positions + self.offset)
        if self.types is not None:
            x = x + self.types.weight[0]  # one text a row: all of its tokens are of the first type
        return self.dropout(self.norm(x))


# --- BERT, https://arxiv.org/abs/1810.04805; DistilBERT, https://arxiv.org/abs/1910.01108; RoBERTa,
# https://arxiv.org/abs/1907.11692; MiniLM, https://arxiv.org/abs/2002.10957


class Attention(nn.Module):
    """Each token gathers from all of its text what its query finds in their keys."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_width, self.dropout = config.width // config.heads, config.dropout
        self.query = Linear(config.width, config.width)
        self.key = Linear(config.width, config.width)
        self.value = Linear(config.width, config.width)
        self.output = Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (_split(part(x), self.head_width) for part in (self.query, self.key, self.value))
        return self.output(_attend(query, key, value, mask, self.dropout if self.training else 0.0))


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between, on each token alone."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.widen = Linear(config.width, config.feed_forward)
        self.narrow = Linear(config.feed_forward, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.narrow(_activate(self.widen(x), self.activation))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the token's vector and normalised after it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = _norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


# --- ModernBERT, https://arxiv.org/abs/2412.13663 ---------------------------------------------------


class ModernAttention(nn.Module):
    """Attention with rotary positions; queries, keys and values come from one matrix."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_width, self.dropout = config.width // config.heads, config.dropout
        self.query_key_value = Linear(config.width, 3 * config.width, bias=False)
        self.output = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        parts = self.query_key_value(x).chunk(3, dim=2)  # (B, T, D) each
        query, key, value = (_split(part, self.head_width) for part in parts)
        query, key = rotate(query, angles), rotate(key, angles)
        return self.output(_attend(query, key, value, mask, self.dropout if self.training else 0.0))


class GatedFeedForward(nn.Module):
    """GeGLU: a linear layer gated by another, then a third back to the width, on each token alone."""

    # https://arxiv.org/abs/2002.05202; the first two are one matrix here

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.widen = Linear(config.width, 2 * config.feed_forward, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.narrow = Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        value, gate = self.widen(x).chunk(2, dim=2)  # (B, T, F) each
        return self.narrow(self.dropout(_activate(value, self.activation) * gate))


class ModernBlock(nn.Module):
    """Attention, then feed-forward, each of the normalised vector, added to it."""

    def __init__(self, config: EncoderConfig, at: int) -> None:
        super().__init__()
        assert config.global_every is not None
        self.local = at % config.global_every != 0
        # the first block's input is the embedding's norm already
        self.attention_norm = _norm(config) if at else nn.Identity()
        self.attention = ModernAttention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = GatedFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, angles))
        return x + self.feed_forward(self.feed_forward_norm(x))


# --- heads ------------------------------------------------------------------------------------------


class Head(nn.Module):
    """A hidden layer and the outputs, on the pooled vector, as each architecture has it.

    table: of columns beside the text, two layers whose result is added to that vector: before a linear layer,
    adding is what concatenating is.
    """

    table: nn.Sequential | None

    def __init__(self, config: EncoderConfig, outputs: int, features: int = 0) -> None:
        super().__init__()
        self.architecture = config.architecture
        modern = self.architecture == "modernbert"
        self.dense = Linear(config.width, config.width, bias=not modern)
        self.norm = _norm(config) if modern else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.output = Linear(config.width, outputs)
        self.table = None if not features else table_of(features, config.width)

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, D), and (B, F) of the table's columns -> (B, C)."""
        if self.table is not None:
            assert features is not None, "the table's columns beside the text"
            x = x + self.table(features)
        if self.architecture == "roberta":
            x = self.dropout(x)
        x = self.dense(x)
        if self.architecture in ("bert", "roberta"):
            x = torch.tanh(x)
        else:
            x = F.relu(x) if self.architecture == "distilbert" else F.gelu(x)
        return self.output(self.dropout(self.norm(x)))


def table_of(features: int, width: int) -> nn.Sequential:
    """(B, F) -> (B, D)."""
    return nn.Sequential(Linear(features, width), nn.GELU(), Linear(width, width))


def _initialise(model: Encoder) -> None:
    """Normal weights of "small init", https://arxiv.org/abs/1910.05895; biases zero."""
    deviation = math.sqrt(
        2 / (5 * model.config.width)
    )  # BERT's 0.02 at a width of 1000, more at smaller ones
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
