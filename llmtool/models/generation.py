"""Continues sequences of tokens, several at once, one chosen token at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtool.models.cache import Cache
from llmtool.models.causal import Transformer

Seen = Callable[[int, int], bool]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in this order.

    temperature: what the scores are divided by; 0 takes the likeliest token. top_k: among so many likeliest.
    top_p: among the likeliest that together have this probability. min_p: among those with this share of the
    likeliest one's probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


GREEDY = Sampling()


@dataclass
class _Row:
    """A sequence that goes on. start: where what the model sees of it begins."""

    number: int
    ids: list[int]
    start: int
    chance: torch.Generator

    @property
    def seen(self) -> list[int]:
        return self.ids[self.start :]


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    stop: Collection[int] = (),
    seen: Seen = lambda row, token: False,
) -> list[list[int]]:
    """Up to `tokens` new tokens after each prompt (of at least one), the last one of `stop` where it came.

    seeds: a number for each prompt: its tokens follow from prompt and seed, whatever prompts it stands
    beside; torch's global stream is left alone. seen: told of each new token (number of the prompt, token);
    True ends that prompt's text. What is longer than the model's context slides out of sight: of a prompt,
    all but its last `context` tokens; later, each time that the context is full, its older half. Raises
    FloatingPointError for a model whose outputs are not finite.
    """
    assert all(prompts), "a model of the next token needs one to begin with"
    given = range(len(prompts)) if seeds is None else seeds
    rows = [
        _Row(number, list(ids), max(0, len(ids) - model.context), torch.Generator().manual_seed(seed))
        for number, (ids, seed) in enumerate(zip(prompts, given, strict=True))
    ]
    written: list[list[int]] = [[] for _ in rows]
    was_training = model.training
    model.eval()
    cache: Cache | None = None
    try:
        for left in range(tokens, 0, -1):
            if not rows:
                break
            logits, cache = _next(model, rows, cache, left)
            if not logits.isfinite().all():
                raise FloatingPointError("the model's outputs are not finite")
            going = []
            for at, (row, token) in enumerate(zip(rows, _choose(logits, sampling, rows), strict=True)):
                row.ids.append(token)
                written[row.number].append(token)
                if not (seen(row.number, token) or token in stop):
                    going.append(at)
            if len(going) < len(rows):
                rows = [rows[at] for at in going]
                if cache is not None:
                    cache.select(torch.tensor(going, dtype=torch.int64, device=logits.device))
    finally:
        model.train(was_training)
    return written


def _next(
    model: Transformer, rows: list[_Row], cache: Cache | None, left: int
) -> tuple[Tensor, Cache | None]:
    """(B, V) scores of the token after each row, and what is kept of all before it, if anything is. All is
    read again where nothing more can be kept, and where a row grows beyond `model.turns_anew`."""
    device = next(model.parameters()).device
    turned = any(len(row.ids) - row.start - 1 == model.turns_anew for row in rows)
    if cache is not None and cache.length < cache.capacity and not turned:
        inputs = torch.tensor([row.ids[-1:] for row in rows], device=device)  # (B, 1)
        return model.logits(model.hidden(inputs, cache=cache)[:, -1]).float(), cache
    for row in rows:
        if len(row.ids) - row.start > model.context:
            row.start = len(row.ids) - max(1, model.context // 2)
    longest = max(len(row.seen) for row in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.int64)
    segments = torch.zeros(len(rows), longest, dtype=torch.int32)
    for at, row in enumerate(rows):  # filled up on the left
        inputs[at, longest - len(row.seen) :] = torch.tensor(row.seen)
        segments[at, longest - len(row.seen) :] = 1
    cache = Cache(len(rows), min(model.context, longest + left - 1)) if model.caches else None
    filled = None if bool(segments.all()) else segments.to(device)
    return model.logits(model.hidden(inputs.to(device), filled, cache)[:, -1]).float(), cache


def _choose(logits: Tensor, sampling: Sampling, rows: Sequence[_Row]) -> list[int]:
    """The next token of each row of (B, V) scores."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    if torch.are_deterministic_algorithms_enabled():  # a cumulative sum on CUDA is refused then
        logits = logits.cpu()
    shares = allowed(logits, sampling).cpu().cumsum(dim=-1)  # (B, V)
    draws = torch.stack([torch.rand(1, generator=row.chance, dtype=torch.float64) for row in rows])  # (B, 1)
    # a token with the share 0 has the sum of the one before it, and is never the first above a draw
    found = torch.searchsorted(shares, draws * shares[:, -1:], right=True)[:, 0]
    return found.clamp(max=shares.shape[1] - 1).tolist()


def allowed(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) probabilities, float64, of the tokens that may be chosen from (B, V) scores; 0 for the others.

    The temperature must be above 0. The rows of probabilities need not sum to 1.
    """
    # the largest is 0 after this: a small temperature cannot overflow
    shares = ((logits.double() - logits.double().amax(dim=-1, keepdim=True)) / sampling.temperature).softmax(
        -1
    )
    if sampling.top_k is not None and sampling.top_k < shares.shape[-1]:
        shares = shares.where(shares >= shares.topk(sampling.top_k).values[:, -1:], 0.0)
        shares = shares / shares.sum(dim=-1, keepdim=True)
    if sampling.top_p is not None and sampling.top_p < 1:
        # nucleus sampling, https://arxiv.org/abs/1904.09751
        falling, order = shares.sort(dim=-1, descending=True, stable=True)
        outside = falling.cumsum(dim=-1) - falling >= sampling.top_p
        shares = shares.masked_fill(outside.gather(1, order.argsort(dim=-1)), 0.0)
    if sampling.min_p is not None:
        # https://arxiv.org/abs/2407.01082
        shares = shares.where(shares >= sampling.min_p * shares.amax(dim=-1, keepdim=True), 0.0)
    return shares
