"""How ranks share a training's model (parallel.data) and the tokens of its rows (parallel.context)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from llmtool.core import ranks
from llmtool.core.contracts import Batch
from llmtool.core.devices import memory_bytes
from llmtool.core.errors import ConfigError
from llmtool.models import context_parallel
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


def share_tokens(assembled: Assembled, parallel: ParallelConfig, tokens: int) -> Any:
    """The mesh (data, context) of ranks that are to share the tokens of a row, and the model made to; None
    where each has all of them. tokens: of a row. ConfigError where the model or the rows do not allow it."""
    size = ranks.here().size
    replicas = parallel.replicas(size)
    if parallel.tensor > 1:
        raise ConfigError(
            "parallel.tensor: training does not cut matrices among ranks yet (models.tensor_parallel can; "
            "checkpoints and Muon have to learn it): parallel.data: fsdp shares their memory"
        )
    if parallel.context == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh  # imports for seconds

    context_parallel.refuse_uneven(tokens, parallel.context)
    shape = (replicas, parallel.context)
    mesh = init_device_mesh(assembled.device.type, shape, mesh_dim_names=("data", "context"))
    context_parallel.share_context(assembled.model, mesh)
    return mesh


def own_tokens(batch: Batch, model: nn.Module, mesh: Any) -> Batch:
    """What of a batch this rank computes; in eval mode, in which it shares nothing, all of it."""
    return batch if mesh is None or not model.training else context_parallel.cut(batch, mesh)
