"""How ranks share a training: its model (parallel.data, parallel.tensor), the tokens of a row (context)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from llmtool.core import ranks
from llmtool.core.contracts import Batch
from llmtool.core.devices import memory_bytes
from llmtool.core.errors import ConfigError
from llmtool.core.shards import orders_of
from llmtool.models import context_parallel
from llmtool.models.accounting import copy_on, memory
from llmtool.models.shards import Cut, Root, cut, cut_of
from llmtool.training import TrainConfig
from llmtool.training.average import moving
from llmtool.training.parallel import ParallelConfig

if TYPE_CHECKING:
    from llmtool.stages.assemble import Assembled

ROOM = 0.8  # share of a device that weights, gradients and optimizer may take up, beside what a step keeps


def is_cut(model: nn.Module, config: TrainConfig, parallel: ParallelConfig, device_bytes: int) -> bool:
    """Whether ranks that share a batch's rows train the model in parts by FSDP: as asked, or where it (of
    those that cut its blocks' matrices, parallel.tensor, their part) does not fit a device."""
    if ranks.here().size == parallel.tensor or parallel.data == "ddp":
        return False
    if parallel.data == "fsdp" or parallel.offload:
        return True
    needed = memory(model, config.optimizer.name, 0, "cuda").live
    needed += sum(each.nbytes for each in moving(model).values()) if config.ema else 0
    return needed > ROOM * device_bytes * parallel.tensor


def part(
    assembled: Assembled,
    config: TrainConfig,
    parallel: ParallelConfig,
    mesh: Any,
    note: Callable[[str], None],
) -> Cut | None:
    """Cut the model of an assembly, in place, where it is to be; how it was cut, or None.

    mesh: what `arrange` gave.
    """
    before, there = cut_of(assembled.model), memory_bytes(assembled.device)
    if before is not None and not isinstance(before.root, Whole):
        return before
    if not is_cut(assembled.model, config, parallel, there):
        if parallel.offload:
            note("parallel.offload: one rank alone keeps its weights on the device")
        return before
    rows = None if mesh is None else mesh["data", "context"]._flatten("summed")
    how = assembled.device, assembled.precision, parallel.offload, there
    made = cut(assembled.model, *how, rows, before)
    note(f"the model is cut into {made.among} parts, one for each rank (parallel.data: {parallel.data})")
    return made


def arrange(assembled: Assembled, parallel: ParallelConfig, tokens: int) -> Any:
    """The mesh (data, context, tensor) of ranks that share more than the rows of a batch, and the model made
    to; None where they share rows alone. tokens: of a row.

    Raises ConfigError where the model, the rows or the number of ranks do not allow it.
    """
    size = ranks.here().size
    replicas = parallel.replicas(size)
    if parallel.context == parallel.tensor == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh  # imports for seconds

    shape = (replicas, parallel.context, parallel.tensor)
    mesh = init_device_mesh(assembled.device.type, shape, mesh_dim_names=("data", "context", "tensor"))
    if parallel.tensor > 1:
        _split(assembled.model, parallel, mesh)
    context_parallel.share_context(assembled.model, mesh)
    context_parallel.refuse_uneven(tokens, parallel.context)
    return mesh


def _split(model: nn.Module, parallel: ParallelConfig, mesh: Any) -> None:
    """Cut the matrices of a model among the ranks of the mesh's dimension "tensor", in place."""
    from llmtool.models.tensor_parallel import split  # imports for seconds

    outline = copy_on(model, "meta")
    split(model, mesh)
    if any(".lora_B." in name for name in orders_of(model)):
        raise ConfigError(
            "parallel.tensor: more than 1 does not go with finetune.method.kind: lora on layers that keep "
            "several matrices in one (gpt2, phi3, modernbert): parallel.data: fsdp shares their memory too"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vars(model)["cut"] = Cut(Whole(model), outline, trained, False, False, parallel.tensor, 0)


class Whole(Root):
    """In the place of FSDP's root, where nothing has to be made whole before it is used."""

    def set_requires_gradient_sync(self, now: bool) -> None:
        """Gradients of the parts are summed by training.together."""

    def reshard(self) -> None:
        """There is nothing to let go of."""


def summed_over(mesh: Any) -> Any:
    """The group of ranks whose losses and gradients are added: data x context; None where that is all."""
    if mesh is None or mesh["tensor"].size() == 1:
        return None
    return mesh["data", "context"]._flatten("summed").get_group()


def own_tokens(batch: Batch, model: nn.Module, mesh: Any) -> Batch:
    """What of a batch this rank computes; in eval mode, in which it shares nothing, all of it."""
    return batch if mesh is None or not model.training else context_parallel.cut(batch, mesh)
