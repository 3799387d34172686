"""The bag of n-grams: the fast family for texts, a weight for every run of tokens that training saw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from llmtool.core.config import Section
from llmtool.core.contracts import IGNORE, Batch, Classes, InputSpec, Labels, OutputSpec, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models.headed import Headed
from llmtool.models.layers import Linear

LARGEST = 2**28  # numbers in a table: 1 GiB, and three times as much for what an optimizer keeps
NEW = 1e-3  # deviation of new weights of n-grams: next to nothing, where most are seen a few times only
# Odd constants whose products scatter: the golden ratio's, https://doi.org/10.1137/S0097539792232422, and
# one of splitmix64's, https://prng.di.unimi.it/splitmix64.c; as signed 64-bit numbers, which wrap around.
MULTIPLY, MIX = -7046029254386353131, -4658895280553007687


class BagConfig(Section):
    """Every run of up to so many tokens that a text holds, each with weights of its own, added up."""

    family: Literal["bag"] = Field(
        default="bag", description="a bag of n-grams: fast, for classes or values of texts"
    )
    ngrams: int = Field(
        default=2, ge=1, le=8, description="the longest run of tokens that is looked at as one"
    )
    buckets: int = Field(
        default=2**18,
        ge=16,
        le=2**26,
        description="rows of weights that runs of two and more tokens share, by their hash",
    )
    width: int | None = Field(
        default=None,
        gt=0,
        le=65_536,
        description="size of an n-gram's vector, from whose mean a linear layer reads the outputs; null: an "
        "n-gram has one weight for each output, and no vector",
    )
    weights: Literal["naive_bayes", "plain"] | None = Field(
        default=None,
        description="naive_bayes: the weight of an n-gram counts as many times as the log-ratio of how often "
        "it stands in rows of a class and in others, counted once in the train rows before training; plain: "
        "as it is; default: naive_bayes without a width, plain with one and for numbers",
    )

    accepts: ClassVar[tuple[type, ...]] = (Tokens,)
    gives: ClassVar[tuple[type, ...]] = (Classes, Values)
    suits: ClassVar[str] = (
        "classes of texts from the start, in seconds to minutes on a CPU, of any length; best with "
        "tokenizer: {kind: words}; it sees which words stand together and no further"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weights == "naive_bayes" and self.width is not None:
            raise ValueError("weights: naive_bayes is for weights of outputs; a width makes vectors")
        return self

    def build(self, inputs: InputSpec, outputs: OutputSpec) -> Bag:
        """The module with new weights from torch's global stream; ConfigError for specs of other families."""
        if not isinstance(inputs, Tokens):
            raise ConfigError(f"model.family bag takes tokens, not {type(inputs).__name__.lower()}")
        if not isinstance(outputs, Classes | Values):
            raise ConfigError(
                "model.family bag gives classes or values of texts; language needs model.family: transformer"
            )
        self.refuse(inputs, outputs)
        return Bag(self, inputs, outputs)

    def refuse(self, inputs: Tokens, outputs: Classes | Values) -> None:
        """ConfigError for outputs that this configuration has no weights for, or far too many."""
        if inputs.features:
            raise ConfigError("model.family bag reads texts alone; with data.encode.features: encoder")
        if self.weights == "naive_bayes" and not isinstance(outputs, Classes):
            raise ConfigError("model.weights: naive_bayes counts classes; this target is numbers")
        wide = self.width or outputs.n
        if (rows := rows_of(self, inputs)) * wide > LARGEST:
            hint = "model.buckets" if self.width else f"model.buckets, or a model.width below {wide:,},"
            raise ConfigError(
                f"model: {rows:,} n-grams x {wide:,} {'numbers' if self.width else 'outputs'} are more than "
                f"{LARGEST:,} weights; a smaller {hint} makes them fewer"
            )


def rows_of(config: BagConfig, inputs: Tokens) -> int:
    """Rows of weights: one for each token, and those that longer runs share."""
    return inputs.vocabulary + (config.buckets if config.ngrams > 1 else 0)


class Bag(Headed):
    """A bag of n-grams, https://arxiv.org/abs/1607.01759: which runs a text holds; a run counts once.

    The sum of a text's weights is divided by the root of how many n-grams it has, as if its bag were a vector
    of length 1: long texts do not shout.
    """

    config: BagConfig
    inputs: Tokens

    def __init__(self, config: BagConfig, inputs: Tokens, outputs: Classes | Values) -> None:
        super().__init__(config, inputs, outputs)
        self.rows = rows_of(config, inputs)
        self.table = None if config.width is None else nn.Embedding(self.rows, config.width)
        if self.table is None:
            self.head: nn.Module = Weights(self.rows, outputs.n)
        else:
            nn.init.normal_(self.table.weight, std=0.1)
            self.head = Linear(self.table.embedding_dim, outputs.n)

    @property
    def blocks(self) -> list[nn.Module]:
        """None: a sum has no layers."""
        return []

    @property
    def embeddings(self) -> list[nn.Module]:
        """The table of vectors, where n-grams have some."""
        return [] if self.table is None else [self.table]

    def flops(self, tokens: int) -> int:
        """FLOPs of matrix products, forward and backward: those of the head, for a bag is added up."""
        return 6 * self.head.weight.numel() if isinstance(self.head, nn.Linear) else 0

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, C). segments: (B, T), 0 where a row is padded."""
        rows, there = self.bag(inputs, segments)
        if isinstance(self.head, Weights):
            return _pooled(self.head.of(rows), there) + self.head.bias
        assert self.table is not None
        return self.head(_pooled(self.table(rows), there))

    def bag(self, inputs: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) ids -> (B, L) rows of weights, and (B, L) bool: whether it is one of the text's n-grams.

        A run lies within a segment; one that stands in a text twice is marked once. L is about N x T.
        """
        vocabulary, buckets = self.inputs.vocabulary, self.config.buckets
        segments = torch.ones_like(inputs) if segments is None else segments
        if inputs.ndim == 3:  # texts in chunks, which no run crosses: (B, K, T) -> (B, K * T)
            numbers = torch.arange(1, inputs.shape[1] + 1, device=inputs.device).unsqueeze(1)
            inputs, segments = inputs.flatten(1), (segments * numbers).flatten(1)
        found = [inputs.where(segments != 0, self.rows)]
        code = inputs
        for size in range(2, self.config.ngrams + 1):
            code = code[:, :-1] * MULTIPLY + inputs[:, size - 1 :] + size  # (B, T - size + 1)
            mixed = (code ^ (code >> 31)) * MIX
            row = vocabulary + ((mixed >> 32) & 0x7FFFFFFF) % buckets
            first, last = segments[:, : row.shape[1]], segments[:, size - 1 :]
            found.append(row.where((first == last) & (first != 0), self.rows))
        rows = torch.cat(found, dim=1).sort(dim=1).values  # what is no n-gram comes last
        again = F.pad(rows[:, 1:] == rows[:, :-1], (1, 0))
        return rows.clamp(max=self.rows - 1), (rows < self.rows) & ~again

    @property
    def wants_counts(self) -> bool:
        """Whether the train rows are to be counted before training."""
        return (
            isinstance(self.head, Weights)
            and isinstance(self.outputs, Classes)
            and self.config.weights != "plain"
            and not bool(self.head.counted)
        )

    @torch.no_grad()
    def count(self, batches: Iterable[Batch]) -> None:
        """Set what weights count by, from all train rows: Wang and Manning 2012, https://aclanthology.org/P12-2018.

        Of each class against all others, with 1 added to each count; 0 for n-grams that no row holds.
        """
        assert isinstance(self.head, Weights)
        ratio = self.head.ratio
        inside = torch.zeros(
            ratio.shape, dtype=torch.float64, device=ratio.device
        )  # (R, C) rows that hold it
        whole = torch.zeros_like(inside[:, :1])  # (R, 1)
        for batch in batches:
            rows, there = self.bag(batch.inputs, batch.segments)
            if isinstance(self.outputs, Labels):
                scored, member = torch.ones_like(there[:, 0]), batch.targets.double()  # (B,), (B, C)
            else:
                scored = batch.targets != IGNORE
                member = F.one_hot(batch.targets.clamp(min=0), ratio.shape[1]).double() * scored.unsqueeze(1)
            count = there.sum(dim=1)
            chosen = rows[there]
            inside.index_add_(0, chosen, member.repeat_interleave(count, dim=0))
            whole.index_add_(0, chosen, scored.double().repeat_interleave(count).unsqueeze(1))
        seen = whole > 0
        self.head.ratio.copy_((_share(inside, seen) / _share(whole - inside, seen)).log().where(seen, 0.0))
        self.head.counted.fill_(1)


class Weights(nn.Module):
    """A weight for each n-gram and output, and what it is multiplied with: 1 until rows were counted."""

    ratio: Tensor
    counted: Tensor

    def __init__(self, rows: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("ratio", torch.ones(rows, outputs))
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))
        nn.init.normal_(self.weight, std=NEW)

    def of(self, rows: Tensor) -> Tensor:
        """(B, L) rows -> (B, L, C)."""
        return F.embedding(rows, self.weight) * F.embedding(rows, self.ratio)


def _pooled(values: Tensor, there: Tensor) -> Tensor:
    """(B, L, D) of the n-grams -> (B, D): their sum over the root of how many there are."""
    count = there.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * there.unsqueeze(2)).sum(dim=1) / count.sqrt()


def _share(count: Tensor, seen: Tensor) -> Tensor:
    """(R, C) counts, with 1 added where an n-gram was seen, as shares of each column."""
    smooth = (count + 1) * seen
    return smooth / smooth.sum(dim=0, keepdim=True)
