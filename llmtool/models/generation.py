"""Continues a sequence of tokens, one sampled token at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from llmtool.models.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    ids: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    stop: Collection[int] = (),
    until: Callable[[list[int]], bool] | None = None,
) -> list[int]:
    """`ids` (at least one) and up to `tokens` more; the last is one of `stop` where the model came to it.

    temperature 0 takes the likeliest token; `top_k` samples among the k likeliest only. What is longer than
    the context slides out of sight. The same seed gives the same tokens; torch's global stream is left
    alone. Raises FloatingPointError for a model whose outputs are not finite.
    """
    assert len(ids) > 0, "a model of the next token needs one to begin with"
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    result = list(ids)
    was_training = model.training
    model.eval()
    try:
        for _ in range(tokens):
            window = torch.tensor([result[-model.context :]], device=device)  # (1, T)
            logits = model.logits(model.hidden(window)[:, -1]).float()  # (1, V)
            if not logits.isfinite().all():
                raise FloatingPointError("the model's outputs are not finite")
            result.append(_choose(logits, temperature, top_k, generator))
            if result[-1] in stop or (until and until(result[len(ids) :])):
                break
    finally:
        model.train(was_training)
    return result


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    # the largest is 0 after this: a small temperature cannot overflow
    scaled = (logits - logits.max()) / temperature
    return int(torch.multinomial(scaled.softmax(dim=-1), 1, generator=generator))
