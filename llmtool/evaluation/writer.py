"""Texts that a language model writes after prompts: together, by length, ended by tokens or by texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from llmtool.data.prompts import PromptTokenizer
from llmtool.data.writing import TextStream
from llmtool.models.causal import Transformer
from llmtool.models.generation import GREEDY, Sampling, generate

BYTES = {"cpu": 2**28, "cuda": 2**32}  # of keys, values and scores of the texts that are written together
MOST = 64  # texts written together

Told = Callable[[int, str], None]


@dataclass(frozen=True)
class Order:
    """What is to be written after each prompt: at most so many tokens, up to the first text of `stop`."""

    tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """A text. ended: "stop" by one of its texts, "end" by a token that ends texts, "length" by neither."""

    text: str
    ids: list[int]
    ended: str


def ends(model: Transformer, tokenizer: PromptTokenizer) -> frozenset[int]:
    """The tokens that end a text: what the tokenizer says, and the checkpoint's configuration."""
    named = vars(model).get("carried", {}).get("eos_token_id")
    several = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset([*several, *([] if tokenizer.end is None else [tokenizer.end])])


@dataclass
class Writer:
    """A model, its tokenizer, and the tokens that end its texts."""

    model: Transformer
    tokenizer: PromptTokenizer
    ends: frozenset[int]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        order: Order,
        seeds: Sequence[int] | None = None,
        told: Told = lambda number, text: None,
        done: Callable[[int], None] = lambda count: None,
        alone: bool = False,
    ) -> list[Written]:
        """What comes after each prompt (of at least one token).

        seeds: of each text; the same prompt and seed give the same text, whatever stands beside it. told: of
        the number of a prompt and what was written now, whole characters that begin no stop text. done: of
        how many texts are finished now. alone: decode what is written as a text of its own, as
        lm-evaluation-harness does; else as the prompt's continuation. Raises FloatingPointError for a model
        whose outputs are not finite.
        """
        given = range(len(prompts)) if seeds is None else seeds
        found: dict[int, Written] = {}
        for batch in self._batches(prompts, order.tokens):
            streams = [TextStream(self.tokenizer, order.stop, () if alone else prompts[at]) for at in batch]

            def seen(
                row: int, token: int, streams: list[TextStream] = streams, batch: list[int] = batch
            ) -> bool:
                if token not in self.ends and (new := streams[row].feed(token)):
                    told(batch[row], new)
                return streams[row].stopped

            with self.autocast():
                made = generate(
                    self.model, [prompts[at] for at in batch], order.tokens, order.sampling,
                    [given[at] for at in batch], self.ends, seen,
                )  # fmt: skip
            for at, stream, ids in zip(batch, streams, made, strict=True):
                if rest := stream.finish():
                    told(at, rest)
                ended = "stop" if stream.stopped else "end" if ids and ids[-1] in self.ends else "length"
                found[at] = Written(stream.text, ids, ended)
            done(len(batch))
        return [found[at] for at in range(len(prompts))]

    def _batches(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        """Prompts of about one length together, the longest first."""
        context, vocabulary = self.model.context, self.model.inputs.vocabulary
        slot = self.model.token_bytes
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        batch: list[int] = []
        for at in sorted(range(len(prompts)), key=lambda at: -len(prompts[at])):
            longest = min(context, len(prompts[batch[0] if batch else at]) + tokens)
            row = slot * longest + 24 * vocabulary
            if batch and (len(batch) == MOST or (len(batch) + 1) * row > BYTES[kind]):
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch
