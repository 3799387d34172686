"""What a language model gives to texts: likelihoods of continuations, of whole texts, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtool.core.devices import within_memory
from llmtool.core.errors import ConfigError, MemoryLimitError
from llmtool.data.prompts import PromptTokenizer
from llmtool.evaluation.loop import eval_mode
from llmtool.evaluation.writer import Order, Writer, ends
from llmtool.models.cache import Cache
from llmtool.models.causal import Transformer

# Of one batch, padding included: what a CPU's caches hold is scored faster, measured.
TOKENS = {"cpu": 2**12, "cuda": 2**16}
LOGIT_BYTES = {"cpu": 2**27, "cuda": 2**31}  # what the float32 logits of one batch may take up

Ids = list[int]
Pair = tuple[Ids, Ids]  # a context of at least one token, and the continuation that is scored
Row = tuple[Ids, int]  # tokens, and how many of the last are scored
Found = tuple[np.ndarray, np.ndarray]  # (n,) nats, and (n,) whether each token is the first choice
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

    def likelihoods(self, pairs: Sequence[Pair], tick: Tick = _quiet) -> Found:
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
        shared = self._with_one_context(pairs)
        apart = {at for group in shared for at in group}
        order = [at for at, (_, n) in enumerate(rows) if n and at not in apart]
        order.sort(key=lambda at: -len(rows[at][0]))
        tick(len(rows) - len(order) - len(apart))
        with eval_mode(self.model), torch.no_grad(), self.autocast():
            for groups in self._together(shared, pairs):
                batch = [at for group in groups for at in group]
                found = within_memory(self._scored_after, groups, pairs)
                if found is None:
                    found = self._scored([rows[at] for at in batch])  # in ever smaller parts
                nats[batch], greedy[batch] = found
                tick(len(batch))
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

    def _with_one_context(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """The numbers of pairs that stand one after the other with the same context: several choices. Those
        that the model cannot see whole are left out, and empty ones."""
        found: list[list[int]] = []
        longest = sum(max((len(pair[part]) for pair in pairs), default=0) for part in (0, 1))
        turns_anew = self.model.turns_anew  # what is kept of a context is then of no use
        if not self.model.caches or (turns_anew is not None and longest > turns_anew):
            return found
        for _, same in groupby(range(len(pairs)), key=lambda at: pairs[at][0]):
            group = list(same)
            longest = max(len(pairs[at][1]) for at in group)
            whole = len(pairs[group[0]][0]) + longest <= self.model.context
            if len(group) > 1 and whole and all(pairs[at][1] for at in group):
                found.append(group)
        return found

    def _together(self, groups: list[list[int]], pairs: Sequence[Pair]) -> Iterator[list[list[int]]]:
        """Groups with contexts of about one length, the longest first, which fit the model side by side."""
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        batch: list[list[int]] = []
        longest = count = scored = 0
        for group in sorted(groups, key=lambda group: -len(pairs[group[0]][0])):
            context = len(pairs[(batch or [group])[0][0]][0])
            new = [len(pairs[at][1]) for at in group]
            most, rows = max([longest, *new]), count + len(group)
            logits = 4 * self.model.inputs.vocabulary * (scored + sum(new))
            tokens = (len(batch) + 1) * context + rows * most
            if batch and (
                tokens > TOKENS[kind] or logits > LOGIT_BYTES[kind] or context + most > self.model.context
            ):
                yield batch
                batch, longest, count, scored = [], 0, 0, 0
            batch.append(group)
            longest, count, scored = max([longest, *new]), count + len(group), scored + sum(new)
        if batch:
            yield batch

    def _scored_after(self, groups: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> Found:
        """As `_scored`, of pairs in groups of one context, which goes through the model once for all of a
        group. Contexts are padded in front, continuations behind."""
        contexts = [pairs[group[0]][0] for group in groups]
        rows = [pairs[at][1] for group in groups for at in group]
        before, after = max(map(len, contexts)), max(map(len, rows))
        inputs = torch.zeros(len(contexts), before, dtype=torch.int64)
        segments = torch.zeros(len(contexts), before, dtype=torch.int32)
        for at, ids in enumerate(contexts):
            inputs[at, before - len(ids) :] = torch.tensor(ids)
            segments[at, before - len(ids) :] = 1
        following = torch.zeros(len(rows), after, dtype=torch.int64)
        for at, ids in enumerate(rows):
            following[at, : len(ids)] = torch.tensor(ids)
        owner = torch.tensor([at for at, group in enumerate(groups) for _ in group], device=self.device)
        cache = Cache(len(contexts), before + after)
        filled = None if bool(segments.all()) else segments.to(self.device)
        hidden = self.model.hidden(inputs.to(self.device), filled, cache)[:, -1:][owner]  # (R, 1, D)
        following = following.to(self.device)
        if after > 1:
            cache.select(owner)
            more = self.model.hidden(following[:, :-1], cache=cache)
            hidden = torch.cat([hidden, more], dim=1)  # (R, T, D)
        counts = torch.tensor([len(ids) for ids in rows])
        scored = torch.arange(after) < counts[:, None]  # (R, T)
        targets = following[scored.to(self.device)]  # (S,)
        logits = self.model.logits(hidden[scored.to(self.device)]).float()  # (S, V)
        chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        return _by_row(chosen, logits.argmax(dim=-1) == targets, counts.tolist())

    def _scored(self, rows: Sequence[Row]) -> Found:
        """Of rows (tokens, how many of the last are scored): (n,) nats, and (n,) whether all are the first
        choice; in as many parts as memory asks for."""
        found = within_memory(self._at_once, rows)
        if found is not None:
            return found
        if len(rows) == 1:
            raise MemoryLimitError(f"one text of {len(rows[0][0]) - 1:,} tokens does not fit")
        half = len(rows) // 2
        (nats, greedy), (more, others) = self._scored(rows[:half]), self._scored(rows[half:])
        return np.concatenate([nats, more]), np.concatenate([greedy, others])

    def _at_once(self, rows: Sequence[Row]) -> Found:
        """The same in one batch. Rows are padded behind, where a causal model does not look."""
        length = max(len(ids) for ids, _ in rows) - 1
        inputs = torch.zeros(len(rows), length, dtype=torch.int64)
        for at, (ids, _) in enumerate(rows):
            inputs[at, : len(ids) - 1] = torch.tensor(ids[:-1])
        counts = [count for _, count in rows]
        row = np.repeat(np.arange(len(rows)), counts)
        place = np.concatenate([np.arange(len(ids) - 1 - n, len(ids) - 1) for ids, n in rows])
        targets = torch.tensor([i for ids, n in rows for i in ids[-n:]], device=self.device)  # (S,)
        hidden = self.model.hidden(inputs.to(self.device))[torch.from_numpy(row), torch.from_numpy(place)]
        logits = self.model.logits(hidden).float()  # (S, V)
        chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        return _by_row(chosen, logits.argmax(dim=-1) == targets, counts)


def _by_row(chosen: Tensor, first: Tensor, counts: Sequence[int]) -> Found:
    """Of (S,) tokens, counts[i] of each row: the (n,) sums, and (n,) whether all are the first choice."""
    edges = np.concatenate([[0], np.cumsum(counts)])[:-1]
    nats = np.add.reduceat(chosen.double().cpu().numpy(), edges)
    return nats, np.logical_and.reduceat(first.cpu().numpy(), edges)
