"""FSDP on one device, where there is nothing to share: what its machinery alone costs of a step.

    python scripts/benchmarks/fsdp_overhead.py --save                  # this CPU, gloo
    python scripts/benchmarks/fsdp_overhead.py --device cuda --save    # one GPU, NCCL, bf16

The same model twice, plain and cut by models.shards.cut among one rank: forward, backward and AdamW of the
same batch, not compiled, some steps of the one and then of the other, in turn. Goal: below 3 %.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(common.ROOT))
from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.devices import PRECISIONS
from llmtool.models.shards import cut, entered
from llmtool.models.transformer import TransformerConfig
from llmtool.training.optimizers import AdamWConfig

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"depth": 6, "heads": 6, "width": 384, "context": 256, "batch": 8, "vocabulary": 8192},
    "cuda": {"depth": 12, "heads": 12, "width": 768, "context": 1024, "batch": 16, "vocabulary": 50304},
}


def stepper(size: dict[str, Any], device: torch.device, parts: bool) -> Callable[[], float]:
    """What makes a training step and gives its seconds."""
    torch.manual_seed(0)
    shape = {key: size[key] for key in ("depth", "heads", "width", "context")}
    precision = PRECISIONS["bf16" if device.type == "cuda" else "fp32"]
    config = TransformerConfig(architecture="gpt2", dropout=0.0, **shape)
    model = config.build(Tokens(size["vocabulary"], None), NextToken(size["vocabulary"])).to(device)
    if parts:
        cut(model, device, precision)
    optimizers = AdamWConfig(name="adamw").build(model)
    rows = torch.randint(size["vocabulary"], (size["batch"], size["context"] + 1), device=device)

    def loss() -> torch.Tensor:
        with precision.autocast(device):
            logits = model(rows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    def step() -> float:
        began = time.perf_counter()
        entered(model)(loss).backward()
        optimizers.step()
        optimizers.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def main() -> None:
    """Measure, show, save."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="of each in a round")
    options = parser.parse_args()
    size = dict(SIZES[options.device])
    if options.short:
        options.rounds, size["depth"] = 2, 1
    store = dist.HashStore()
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    device = torch.device(options.device)
    steps = {name: stepper(size, device, name == "FSDP") for name in ("plain", "FSDP")}
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            found[name].append(statistics.median(step() for _ in range(options.steps)))
    ratio = common.ratios(found["FSDP"], found["plain"])
    rows = [[name, common.show(common.spread([1000 * s for s in each]), 1)] for name, each in found.items()]
    common.table(f"a step on one {options.device}", ["", "ms"], rows)
    print(f"FSDP / plain: {common.show(ratio)} (goal below 1.03)")
    seconds = {name: common.spread(each) for name, each in found.items()}
    figures = {"size": size, "seconds": seconds, "fsdp_over_plain": ratio}
    common.save(options, f"fsdp_overhead_{options.device}", figures, common.versions("llmtool", "torch"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
