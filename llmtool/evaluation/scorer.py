"""What a language model gives to texts: likelihoods of continuations, of whole texts, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from llmtool.core.errors import ConfigError, MemoryLimitError
from llmtool.data.prompts import PromptTokenizer
from llmtool.evaluation.loop import eval_mode
from llmtool.evaluation.writer import Order, Writer, ends
from llmtool.models.causal import Transformer

TOKENS = {"cpu": 2**12, "cuda": 2**16}  # of one batch, padding included
LOGIT_BYTES = {"cpu": 2**27, "cuda": 2**31}  # what the float32 logits of one batch may take up

Ids = list[int]
Pair = tuple[Ids, Ids]  # a context of at least one token, and the continuation that is scored
Tick = Callable[[int], None]


def _quiet(count: int) -> None:
    """Nobody watches."""


@dataclass
class Scorer:
    """A language model and the tokenizer it learned with.

    chat: the ids after which a chat model answers a user's turn; None: texts are given as they are. stops:
    tokens that end its answers, beside those that end any text. cut: how many contexts were longer than the
    model's and lost their beginning.
    """

    model: Transformer
    tokenizer: PromptTokenizer
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    chat: Callable[[str], Ids] | None = None
    stops: frozenset[int] = frozenset()
    cut: int = 0

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """The tokens of contexts and of the continuations after them, as lm-evaluation-harness splits them.

        Both are encoded together and again the context alone: what comes after as many tokens is the
        continuation. Blanks that end a context belong to the continuation. An empty context becomes the
        token that begins a text. Of a chat model the continuation is an answer: encoded by itself, without
        the blank in front.
        """
        if self.chat is not None:
            answers = self.tokenizer.encode([part.removeprefix(" ") for _, part in texts], special=False)
            turns = {context: self.chat(context) for context in {context for context, _ in texts}}
            return [(turns[context], ids) for (context, _), ids in zip(texts, answers, strict=True)]
        wholes, contexts = [], []
        for context, continuation in texts:
            kept = context.rstrip()
            wholes.append(kept + context[len(kept) :] + continuation)
            contexts.append(kept)
        whole, alone = self.tokenizer.encode(wholes), self.tokenizer.encode(contexts)
        found = []
        for (context, continuation), both, before in zip(texts, whole, alone, strict=True):
            if context:
                found.append((before, both[len(before) :]) if before else ([self.tokenizer.prefix], both))
            else:
                (ids,) = self.tokenizer.encode([continuation], special=False)
                prefix = self.tokenizer.prefix
                found.append((ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids))
        return found

    def likelihoods(self, pairs: Sequence[Pair], tick: Tick = _quiet) -> tuple[np.ndarray, np.ndarray]:
        """(n,) log-likelihood in nats of each continuation, and (n,) whether greedy choice would give it.

        What is longer than the model's context loses its beginning, and is counted in `cut`. An empty
        continuation is certain: 0. tick: told of every pair that is done.
        """
        longest = self.model.context + 1
        rows = []
        for context, continuation in pairs:
            assert context, "a model of the next token needs one to begin with"
            whole = context + continuation
            self.cut += len(whole) > longest
            rows.append((whole[-longest:], min(len(continuation), longest - 1)))
        nats, greedy = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
        order = sorted((at for at, (_, n) in enumerate(rows) if n), key=lambda at: -len(rows[at][0]))
        tick(len(rows) - len(order))
        with eval_mode(self.model), torch.no_grad(), self.autocast():
            for batch in self._batches(order, rows):
                found = self._scored([rows[at] for at in batch])
                nats[batch], greedy[batch] = found
                tick(len(batch))
        return nats, greedy

    def rolling(self, text: str) -> list[Pair]:
        """The windows in which every token of a text is predicted once, for `likelihoods`.

        As lm-evaluation-harness lays them: windows of the model's context follow each other, the first after
        the token that begins a text, and each of the others sees of what came before it the last token only.
        The last window alone reaches back, so that it is as long as the rest. Empty for an empty text.
        """
        (ids,) = self.tokenizer.encode([text])
        length, found, done = self.model.context, [], 0
        while done < len(ids):
            end = min(done + length, len(ids))
            before = [self.tokenizer.prefix] if done == 0 else ids[max(0, end - length - 1) : done]
            found.append((before, ids[done:end]))
            done = end
        return found

    def write(
        self, prompts: Sequence[str], tokens: int, stop: Sequence[str], tick: Tick = _quiet
    ) -> list[str]:
        """What the model writes after each prompt by greedy choice, up to the first text of `stop`, a token
        that ends texts, or `tokens` tokens. A prompt that leaves no room for them loses its beginning.

        ConfigError where the model's context has no room for a prompt beside so many tokens.
        """
        room = self.model.context - tokens
        if room < 1:
            raise ConfigError(
                f"`tokens: {tokens}` leave no room for a prompt: the model's context is {self.model.context}"
            )
        found = [self.chat(one) for one in prompts] if self.chat else self.tokenizer.encode(prompts)
        self.cut += sum(len(ids) > room for ids in found)
        cut = [ids[-room:] or [self.tokenizer.prefix] for ids in found]
        ends_ = ends(self.model, self.tokenizer) | self.stops
        writer = Writer(self.model, self.tokenizer, ends_, self.device, self.autocast)
        order = Order(tokens, stop=tuple(stop))
        return [made.text for made in writer.write(cut, order, done=tick, alone=True)]

    def _batches(self, order: Sequence[int], rows: Sequence[tuple[Ids, int]]) -> Iterator[list[int]]:
        """Rows of about one length together, the longest first."""
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        vocabulary = self.model.inputs.vocabulary
        batch: list[int] = []
        scored = 0
        for at in order:
            longest = len(rows[batch[0]][0]) if batch else 0
            logits = 4 * vocabulary * (scored + rows[at][1])
            if batch and (longest * (len(batch) + 1) > TOKENS[kind] or logits > LOGIT_BYTES[kind]):
                yield batch
                batch, scored = [], 0
            batch.append(at)
            scored += rows[at][1]
        if batch:
            yield batch

    def _scored(self, rows: Sequence[tuple[Ids, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Of rows (tokens, how many of the last are scored): (n,) nats, and (n,) whether all are the first
        choice. Rows are padded behind, where a causal model does not look."""
        length = max(len(ids) for ids, _ in rows) - 1
        inputs = torch.zeros(len(rows), length, dtype=torch.int64)
        for at, (ids, _) in enumerate(rows):
            inputs[at, : len(ids) - 1] = torch.tensor(ids[:-1])
        counts = [count for _, count in rows]
        row = np.repeat(np.arange(len(rows)), counts)
        place = np.concatenate([np.arange(len(ids) - 1 - n, len(ids) - 1) for ids, n in rows])
        targets = torch.tensor([i for ids, n in rows for i in ids[-n:]], device=self.device)  # (S,)
        try:
            hidden = self.model.hidden(inputs.to(self.device))[torch.from_numpy(row), torch.from_numpy(place)]
            logits = self.model.logits(hidden).float()  # (S, V)
            chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
            first = logits.argmax(dim=-1) == targets
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise MemoryLimitError(f"one text of {length:,} tokens does not fit") from None
            torch.cuda.empty_cache()
            half = len(rows) // 2
            parts = [self._scored(part) for part in (rows[:half], rows[half:])]
            return cast(
                tuple[np.ndarray, np.ndarray],
                tuple(np.concatenate(each) for each in zip(*parts, strict=True)),
            )
        edges = np.concatenate([[0], np.cumsum(counts)])[:-1]
        nats = np.add.reduceat(chosen.double().cpu().numpy(), edges)
        return nats, np.logical_and.reduceat(first.cpu().numpy(), edges)
