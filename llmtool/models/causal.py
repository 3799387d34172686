"""What every decoder-only transformer has, whatever its modules are called: the next token, or a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from llmtool.core.contracts import Classes, NextToken, OutputSpec, Tokens, Values
from llmtool.models.cache import Cache, Sight, look
from llmtool.models.flex import usable
from llmtool.models.headed import per_text, pool
from llmtool.models.layers import Conv1D, Linear

if TYPE_CHECKING:
    from llmtool.models.context_parallel import Shared
    from llmtool.models.transformer import TransformerConfig

OWN = 0.4  # the part of a token's first vector that it has for itself, where relatives share the rest


class Transformer(nn.Module):
    """A decoder-only transformer: ids to the logits of the next one, or to the classes or values of a text.

    lm_head: scores the next token. score: in its place, of a model for classes or values; labels and
    head_is_new are of such a model, as in models.headed.
    """

    head_name: str = "lm_head"
    caches: ClassVar[bool] = True  # whether `hidden` takes a cache
    lm_head: nn.Linear
    score: nn.Linear
    labels: list[str] | None
    head_is_new: bool = False
    # what ranks that have parts of a row share, as models.context_parallel sets it
    shared: Shared | None = None

    def __init__(self, config: TransformerConfig, inputs: Tokens) -> None:
        super().__init__()
        self.config, self.inputs, self.context = config, inputs, config.context
        self.outputs: OutputSpec = NextToken(inputs.vocabulary)

    def give_head(self, outputs: OutputSpec) -> None:
        """Make the output layer for `outputs`, with torch's usual weights; an older one goes."""
        device = self.embeddings[0].get_parameter("weight").device
        if isinstance(outputs, Classes | Values):
            if self.head_name in self._modules:
                del self._modules[self.head_name]
            self.score = Linear(self.config.width, outputs.n, bias=False, device=device)
            self.head_name, self.labels = "score", None
        else:
            self.lm_head = Linear(self.config.width, self.inputs.vocabulary, bias=False, device=device)
        self.outputs = outputs

    @property
    def writes(self) -> bool:
        """Whether it gives the next token, and not classes or values."""
        return isinstance(self.outputs, NextToken)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, from the input on."""
        raise NotImplementedError

    @property
    def embeddings(self) -> list[nn.Module]:
        """The tables that turn ids (and learned positions) into vectors; that of the ids first."""
        raise NotImplementedError

    def body(self, inputs: Tensor, sight: Sight, cache: Cache | None) -> Tensor:
        """(B, T) ids -> (B, T, D): everything before the output layer."""
        raise NotImplementedError

    @property
    def turns_anew(self) -> int | None:
        """Tokens beyond which all of a row's keys are turned another way (longrope); None: never."""
        return None

    @property
    def drops_attention(self) -> bool:
        """Whether it now leaves out parts of what attention finds."""
        return False

    def hidden(self, inputs: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T) ids -> (B, T, D), what `logits` reads. segments, cache: as forward's."""
        by_blocks = usable(inputs.device) and not self.drops_attention
        if self.shared is not None and self.training and cache is None:
            assert self.shared.ranks * inputs.shape[1] <= self.context, "more tokens than the context"
            return self.body(inputs, self.shared.look(inputs, segments, by_blocks), self.shared)
        before = 0 if cache is None else cache.length
        assert before + inputs.shape[1] <= self.context, "more tokens than the context"
        capped = self.config.attention_soft_cap is not None
        x = self.body(inputs, look(inputs, segments, cache, by_blocks, capped), cache)
        if cache is not None:
            cache.length += inputs.shape[1]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): the scores of every token as the next one."""
        return self.lm_head(hidden)

    @property
    def output(self) -> tuple[nn.Module | None, float | None]:
        """The layer whose outputs `logits` is, and what they are kept below; no layer where it is not so."""
        return self.lm_head, None

    def flops(self, tokens: int) -> int:
        """FLOPs of one row of `tokens` tokens, forward and backward."""
        c = self.config
        queries, pairs = c.heads * c.head_width, c.key_value_heads * c.head_width
        feed_forward = (2 if c.architecture == "gpt2" else 3) * c.width * c.feed_forward
        matrices = c.width * (2 * queries + 2 * pairs) + feed_forward
        attention = 4 * tokens * tokens * queries  # scores and their weighted sum
        forward = c.depth * (2 * tokens * matrices + attention)
        if isinstance(self.outputs, Classes | Values):
            return 3 * (forward + 2 * c.width * self.outputs.n)
        return 3 * (forward + 2 * tokens * c.width * self.inputs.vocabulary)

    @property
    def token_bytes(self) -> int:
        """Bytes that are kept of each token while texts are written: its keys and values."""
        return 2 * self.config.depth * self.config.key_value_heads * self.config.head_width * 4

    def forward(self, inputs: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits, or (B, C) classes or values.

        segments: (B, T) document numbers, 0 at padding (on either side); a token sees its own document only,
        and positions start again with each. cache: what the rows have seen before; then `inputs` are the
        next tokens, and `segments` says no more than where there is padding on the left (see Cache).
        """
        if not self.writes:
            return self.score(per_text(self.vectors, inputs, segments))
        return self.logits(self.hidden(inputs, segments, cache))

    def vectors(self, inputs: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, D), what stands for each row; padding on its right is seen by no token before."""
        return self.pooled(self.hidden(inputs), segments)

    def pooled(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, D), what stands for the text. segments: (B, T), 0 where a row is padded."""
        return pool(hidden, segments, self.config.pooling)

    def tie(self) -> None:
        """Let the output layer share the embedding's weights, where the configuration says so."""
        if self.config.tie_embeddings and self.writes:
            self.lm_head.weight = self.embeddings[0].get_parameter("weight")

    def untie(self) -> None:
        """Give the output layer weights of its own, equal to the embedding's for now."""
        self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().clone())
        self.config = self.config.model_copy(update={"tie_embeddings": False})


def _deviation(model: Transformer) -> float:
    # "small init", https://arxiv.org/abs/1910.05895: GPT-2's 0.02 at a width of 1000, more at smaller ones
    return math.sqrt(2 / (5 * model.config.width))


def initialise(model: Transformer, residual: tuple[str, ...]) -> None:
    """Normal weights; those into the residual stream smaller, as 2 x depth of them add up (GPT-2, 2.3)."""
    deviation = _deviation(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            scale = 1 / math.sqrt(2 * model.config.depth) if name.endswith(residual) else 1.0
            nn.init.normal_(module.weight, std=deviation * scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def relate(model: Transformer, parts: Sequence[Sequence[str]]) -> None:
    """Let tokens that share parts begin with vectors that are alike: what is learned of one holds for the
    others until it has been seen often enough to differ.

    parts: of each token. A vector becomes the sum of one for each part and its own, as large as before; that
    of a token without parts stays as it is.
    """
    names = list(dict.fromkeys(name for some in parts for name in some))
    number = {name: at for at, name in enumerate(names)}
    share = torch.zeros(len(parts), len(names))
    for row, some in zip(share, parts, strict=True):
        row[[number[name] for name in some]] = math.sqrt((1 - OWN**2) / max(1, len(some)))
    own = torch.where(share.any(dim=1), OWN, 1.0)
    tables = [model.embeddings[0]]
    if model.writes and not model.config.tie_embeddings:
        tables.append(model.lm_head)
    deviation = _deviation(model)
    with torch.no_grad():
        for table in tables:
            weight = table.get_parameter("weight")
            vectors = deviation * torch.randn(len(names), weight.shape[1])
            weight.copy_(own.unsqueeze(1) * weight + share @ vectors)
