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
import torch.nn.functional as F

from llmtool.core.contracts import NextToken, Tokens
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
SECONDS = 2.0
ROUNDS = 5


def in_turn(works: dict[bool, Callable[[], Any]], rounds: int, budget: float, most: int) -> dict[str, Any]:
    """Milliseconds of both, round by round, and their ratios. most: tokens of a row."""

    def by(written_out: bool) -> None:
        attention.MOST = most**2 if written_out else 0

    times = common.in_turn(works, by, rounds, budget)
    return {
        "kernel": common.spread(times[False]),
        "products": common.spread(times[True]),
        "ratio": common.ratios(times[True], times[False]),
    }


def square(rows: int, heads: int, tokens: int, width: int) -> Callable[[], Any]:
    """Causal attention, forward and backward."""
    three = [torch.randn(rows, heads, tokens, width, dtype=torch.bfloat16) for _ in range(3)]
    gradient = torch.randn_like(three[0])
    three = [each.requires_grad_() for each in three]
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool).tril()  # as of packed rows
    return lambda: torch.autograd.grad(attention.attention(*three, mask), three, gradient)


def step(depth: int, heads: int, width: int, tokens: int, rows: int, vocabulary: int) -> Callable[[], Any]:
    """A training step under autocast."""
    torch.manual_seed(0)
    config = TransformerConfig(depth=depth, heads=heads, width=width, context=tokens)
    model = config.build(Tokens(vocabulary, tokens), NextToken(vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs, targets = torch.randint(0, vocabulary, (2, rows, tokens))

    @torch.compile
    def loss() -> torch.Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            made = loss()
        made.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def main() -> None:
    """Measure all of it in turn."""
    options = common.parser(__doc__).parse_args()
    rounds, budget = (1, 0.0) if options.short else (ROUNDS, SECONDS)
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "most": attention.MOST}
    figures["attention"], figures["steps"] = {}, {}
    for shape in SHAPES:
        work = square(*shape)
        name = " x ".join(map(str, shape))
        figures["attention"][name] = in_turn({False: work, True: work}, rounds, budget / 4, shape[2])
    for name, setting in STEPS.items():
        works = {written_out: step(*setting) for written_out in (False, True)}
        figures["steps"][name] = in_turn(works, rounds, budget, setting[3])
    rows = [
        [f"{kind}: {name}", *(f"{found[which]['mean']:.2f}" for which in ("kernel", "products", "ratio"))]
        for kind in ("attention", "steps")
        for name, found in figures[kind].items()
    ]
    common.table("milliseconds", ["", "the kernel", "products", "ratio"], rows)
    common.save(options, "short_attention", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
