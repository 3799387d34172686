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
import ways

from llmtool.core import products
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
WAYS = {"torch": "PyTorch's", "onednn": "oneDNN's"}


def choose(way: str) -> None:
    """Whose products come."""
    products.HERE = way == "onednn"


def layer(rows: int, inputs: int, outputs: int) -> Callable[[], Any]:
    """A linear layer, forward and backward."""
    x, weight = (
        torch.randn(rows, inputs, requires_grad=True),
        torch.randn(outputs, inputs, requires_grad=True),
    )
    bias, gradient = torch.randn(outputs, requires_grad=True), torch.randn(rows, outputs)
    return lambda: torch.autograd.grad(products.linear(x, weight, bias), (x, weight, bias), gradient)


def main() -> None:
    """Measure all of it in turn."""
    options = common.parser(__doc__).parse_args()
    rounds, budget = ways.effort(options)
    figures: dict[str, Any] = {"chosen_here": products.HERE, "threads": torch.get_num_threads()}
    for name, of_stack in (("layers", False), ("muon", True)):
        figures[name] = {}
        for shape in STACKS if of_stack else LAYERS:
            matrices = torch.randn(shape)
            work = (lambda m=matrices: orthogonalize(m.clone(), 5)) if of_stack else layer(*shape)
            found = ways.in_turn(dict.fromkeys(WAYS, work), choose, rounds, budget / 4)
            figures[name][" x ".join(map(str, shape))] = found
    figures["steps"] = {}
    for name, (depth, heads, width, context, batch) in SETTINGS.items():
        config = TransformerConfig(
            architecture="gpt2", depth=depth, heads=heads, width=width, context=context
        )
        for compiled in (False, True):
            works = {way: ways.step(config, 67, batch, compiled) for way in WAYS}
            found = ways.in_turn(works, choose, rounds, budget)
            figures["steps"][f"{name}{', compiled' if compiled else ''}"] = found
    ways.show(figures, ("layers", "muon", "steps"), WAYS)
    common.save(options, "products", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
