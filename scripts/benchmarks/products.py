"""Float32 products on a CPU: oneDNN's (llmtool.core.products) beside those PyTorch takes (MKL's), in turn.

    python scripts/benchmarks/products.py --save

Of a layer with its gradients at some sizes, of Muon's steps, and of whole training steps (AdamW) of the two
settings of peers/. A ratio is oneDNN's time over the other's. Where PyTorch's are kept (another processor),
both are measured all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F

from llmtool.core import products
from llmtool.core.contracts import NextToken, Tokens
from llmtool.models.transformer import TransformerConfig
from llmtool.training.muon import orthogonalize

LAYERS = [  # rows, inputs, outputs
    (32, 64, 64),
    (512, 128, 128),
    (768, 128, 512),
    (2048, 384, 1536),
    (2048, 1536, 384),
    (16, 1024, 1024),
]
STACKS = [(16, 128, 128), (4, 128, 512), (6, 384, 1536)]
SETTINGS = {  # depth, heads, width, context, batch
    "4 layers, width 128": (4, 4, 128, 64, 12),
    "6 layers, width 384": (6, 6, 384, 256, 8),
}
SECONDS = 2.0  # of a round of short work
ROUNDS = 5


def in_turn(works: dict[bool, Callable[[], Any]], rounds: int, budget: float) -> dict[str, Any]:
    """Milliseconds of both, round by round, and their ratios."""

    def by(onednn: bool) -> None:
        products.HERE = onednn

    times = common.in_turn(works, by, rounds, budget)
    return {
        "torch": common.spread(times[False]),
        "onednn": common.spread(times[True]),
        "ratio": common.ratios(times[True], times[False]),
    }


def layer(rows: int, inputs: int, outputs: int) -> Callable[[], Any]:
    """A linear layer, forward and backward."""
    x, weight = (
        torch.randn(rows, inputs, requires_grad=True),
        torch.randn(outputs, inputs, requires_grad=True),
    )
    bias, gradient = torch.randn(outputs, requires_grad=True), torch.randn(rows, outputs)
    return lambda: torch.autograd.grad(products.linear(x, weight, bias), (x, weight, bias), gradient)


def step(depth: int, heads: int, width: int, context: int, batch: int, compiled: bool) -> Callable[[], Any]:
    """A training step of GPT-2's architecture on characters."""
    torch.manual_seed(0)
    config = TransformerConfig(architecture="gpt2", depth=depth, heads=heads, width=width, context=context)
    model = config.build(Tokens(67, context), NextToken(67))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows, targets = torch.randint(0, 67, (2, batch, context))

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(rows).flatten(0, 1), targets.flatten())

    forward = torch.compile(loss) if compiled else loss

    def work() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def main() -> None:
    """Measure all of it in turn."""
    options = common.parser(__doc__).parse_args()
    rounds, budget = (1, 0.0) if options.short else (ROUNDS, SECONDS)
    figures: dict[str, Any] = {"chosen_here": products.HERE, "threads": torch.get_num_threads()}
    for name, of_stack in (("layers", False), ("muon", True)):
        figures[name] = {}
        for shape in STACKS if of_stack else LAYERS:
            matrices = torch.randn(shape)
            work = (lambda m=matrices: orthogonalize(m.clone(), 5)) if of_stack else layer(*shape)
            found = in_turn({False: work, True: work}, rounds, budget / 4)
            figures[name][" x ".join(map(str, shape))] = found
    figures["steps"] = {}
    for name, setting in SETTINGS.items():
        for compiled in (False, True):
            works = {onednn: step(*setting, compiled) for onednn in (False, True)}
            found = in_turn(works, rounds, budget)
            figures["steps"][f"{name}{', compiled' if compiled else ''}"] = found
    rows = [
        [f"{kind}: {name}", *(f"{found[which]['mean']:.2f}" for which in ("torch", "onednn", "ratio"))]
        for kind in ("layers", "muon", "steps")
        for name, found in figures[kind].items()
    ]
    common.table("milliseconds", ["", "PyTorch's", "oneDNN's", "ratio"], rows)
    common.save(options, "products", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
