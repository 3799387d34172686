"""Whether the ranks of a training cut its model among them (parallel.data), and that done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from llmtool.core import ranks
from llmtool.core.devices import memory_bytes
from llmtool.models.accounting import memory
from llmtool.models.shards import Cut, cut, cut_of
from llmtool.training import TrainConfig
from llmtool.training.average import moving
from llmtool.training.parallel import ParallelConfig

if TYPE_CHECKING:
    from llmtool.stages.assemble import Assembled

ROOM = 0.8  # share of a device that weights, gradients and optimizer may take up, beside what a step keeps


def is_cut(model: nn.Module, config: TrainConfig, parallel: ParallelConfig, device_bytes: int) -> bool:
    """Whether several ranks train the model in parts: as asked, or where it does not fit a device whole."""
    if ranks.here().size == 1 or parallel.data == "ddp":
        return False
    if parallel.data == "fsdp" or parallel.offload:
        return True
    needed = memory(model, config.optimizer.name, 0).total
    needed += sum(each.nbytes for each in moving(model).values()) if config.ema else 0
    return needed > ROOM * device_bytes


def part(
    assembled: Assembled, config: TrainConfig, parallel: ParallelConfig, note: Callable[[str], None]
) -> Cut | None:
    """Cut the model of an assembly, in place, where it is to be; how it was cut, or None."""
    if (before := cut_of(assembled.model)) is not None:
        return before
    there = memory_bytes(assembled.device)
    if not is_cut(assembled.model, config, parallel, there):
        if parallel.offload:
            note("parallel.offload: one rank alone keeps its weights on the device")
        return None
    made = cut(assembled.model, assembled.device, assembled.precision, parallel.offload, there)
    among = ranks.here().size
    note(f"the model is cut into {among} parts, one for each rank (parallel.data: {parallel.data})")
    return made
