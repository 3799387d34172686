"""Attention of a CPU in bfloat16: PyTorch's kernel beside llmtool.models.attention's products, in turn.

    python scripts/benchmarks/short_attention.py --save

Forward and backward, of squares up to and beyond the longest that are written out; and whole training steps
(AdamW, compiled) of models as some stories have them. A ratio is the products' time over the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import torch
import ways

from llmtool.models import attention
from llmtool.models.transformer import TransformerConfig

SHAPES = [  # rows, heads, tokens, width of a head
    (64, 4, 60, 32),
    (32, 12, 128, 32),
    (32, 8, 160, 32),
    (16, 12, 256, 32),
    (12, 6, 256, 64),
    (8, 8, 384, 64),
    (8, 8, 512, 64),
]
STEPS = {  # depth, heads, width, tokens, rows, vocabulary
    "othello": (6, 4, 128, 60, 64, 61),
    "chess": (6, 8, 256, 160, 32, 1969),
    "shakespeare_long": (5, 4, 256, 256, 32, 65),
}
WAYS = {"kernel": "the kernel", "products": "products"}


def choosing(tokens: int) -> Callable[[str], None]:
    """Says whether rows of so many tokens are written out."""

    def choose(way: str) -> None:
        attention.MOST = tokens**2 if way == "products" else 0

    return choose


def square(rows: int, heads: int, tokens: int, width: int) -> Callable[[], Any]:
    """Causal attention, forward and backward."""
    three = [torch.randn(rows, heads, tokens, width, dtype=torch.bfloat16) for _ in range(3)]
    gradient = torch.randn_like(three[0])
    three = [each.requires_grad_() for each in three]
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool).tril()  # as of packed rows
    return lambda: torch.autograd.grad(attention.attention(*three, mask), three, gradient)


def main() -> None:
    """Measure all of it in turn."""
    options = common.parser(__doc__).parse_args()
    rounds, budget = ways.effort(options)
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "most": attention.MOST}
    figures["attention"], figures["steps"] = {}, {}
    for shape in SHAPES:
        works = dict.fromkeys(WAYS, square(*shape))
        found = ways.in_turn(works, choosing(shape[2]), rounds, budget / 4)
        figures["attention"][" x ".join(map(str, shape))] = found
    for name, (depth, heads, width, tokens, batch, vocabulary) in STEPS.items():
        config = TransformerConfig(depth=depth, heads=heads, width=width, context=tokens)
        works = {way: ways.step(config, vocabulary, batch, True, torch.bfloat16) for way in WAYS}
        figures["steps"][name] = ways.in_turn(works, choosing(tokens), rounds, budget)
    ways.show(figures, ("attention", "steps"), WAYS)
    common.save(options, "short_attention", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
