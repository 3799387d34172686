"""A model cut into parts, one for each rank (FSDP): whole only a block at a time, while that is computed."""

# https://arxiv.org/abs/2304.11277; ZeRO's third stage, https://arxiv.org/abs/1910.02054

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from llmtool.core.devices import Precision
from llmtool.core.shards import orders_of, unsorted, whole
from llmtool.models.accounting import Memory, copy_on
from llmtool.models.layers import Conv1D
from llmtool.models.lora import LoRALinear

Value = TypeVar("Value")
UNSUMMED = 1 / 8  # share of a device's memory that gradients may take up which wait whole for the last part
CAST = (nn.Linear, Conv1D, nn.Conv2d)  # layers whose matrices autocast rounds before they are used


class Root(nn.Module):
    """Runs whatever needs a model that lies in parts: what is not in blocks is whole meanwhile."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """What `work(*arguments)` gives."""
        return work(*arguments)


@dataclass
class Cut:
    """A model of which each rank holds a part.

    root: the module that every use of the model goes through.
    outline: the model before it was cut, on the meta device.
    beside: the trained ones of the parameters that are not cut: vectors, which are few numbers, and which
        autocast computes with in float32.
    unsummed: whether gradients are summed over the ranks once a step, with its last micro-batch; until then
        each rank keeps them whole, in as much memory as the trained weights take.
    offload: whether a rank's part lies in the host's memory.
    among: how many ranks the model is cut among.
    whole: bytes of what is whole on a rank at once: all that is not in blocks, and two blocks.
    """

    root: nn.Module
    outline: nn.Module
    beside: list[nn.Parameter]
    unsummed: bool
    offload: bool
    among: int
    whole: int

    def share(self, all_of_it: Memory) -> Memory:
        """What one rank needs of it; the activations are its own already."""
        waits = all_of_it.gradients if self.unsummed else min(self.whole, all_of_it.gradients)
        if self.offload:
            return replace(all_of_it, weights=self.whole, gradients=waits, optimizer=0)
        return replace(
            all_of_it,
            weights=all_of_it.weights // self.among + self.whole,
            gradients=all_of_it.gradients // self.among + waits,
            optimizer=all_of_it.optimizer // self.among,
        )

    def sums(self, now: bool) -> None:
        """Whether the next backward pass adds its gradients up over the ranks."""
        self.root.set_requires_gradient_sync(now or not self.unsummed)  # type: ignore[operator]

    def rest(self) -> None:
        """Let go of all that is whole."""
        for module in self.root.modules():
            if callable(reshard := getattr(module, "reshard", None)):
                reshard()


def cut(
    model: nn.Module,
    device: torch.device,
    precision: Precision,
    offload: bool = False,
    memory: int | None = None,
    mesh: Any = None,
    before: Cut | None = None,
) -> Cut:
    """Cut a model, in place, among the ranks of a mesh (None: all); from now on it is run by `entered`.

    Gradients are summed and not averaged. offload: parts lie in the host's memory, and so does what the
    optimizer keeps of them. memory: the device's, in bytes. mesh: a DeviceMesh of one dimension. before: how
    its matrices are cut already (models.tensor_parallel), by other ranks than those of the mesh.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy
    from torch.distributed.fsdp import fully_shard as share

    mesh = mesh or init_device_mesh(device.type, (dist.get_world_size(),))
    outline, root = copy_on(model, "meta") if before is None else before.outline, Root(model)
    split = 1 if before is None else before.among
    beside = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    for tensor in [*beside, *model.buffers()]:
        tensor.data = tensor.data.to(device)
    how: dict[str, Any] = {"mesh": mesh, "ignored_params": set(beside)}
    how["offload_policy"] = CPUOffloadPolicy(device.type == "cuda") if offload else OffloadPolicy()
    for block in getattr(model, "blocks", ()):
        policy = MixedPrecisionPolicy()
        if may_round(block, precision):
            # what autocast would make of each matrix, but made before it is sent, in half the bytes, and
            # let go of with the block: autocast keeps what it has rounded until the backward pass
            policy = MixedPrecisionPolicy(precision.dtype, torch.float32, cast_forward_inputs=False)
        share(block, mp_policy=policy, **how)
    share(root, **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum that multiplies first
    trained = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trained //= split
    blocks = [_bytes(block) for block in getattr(outline, "blocks", ())]
    at_once = _bytes(outline) - sum(blocks) + 2 * max(blocks, default=0)
    those, unsummed = [p for p in beside if p.requires_grad], trained <= (memory or 0) * UNSUMMED
    made = Cut(root, outline, those, unsummed, offload, split * mesh.size(), at_once // split)
    vars(model)["cut"] = made
    return made


def cut_of(model: nn.Module) -> Cut | None:
    """How a model is cut; None where it is whole."""
    return vars(model).get("cut")


def outline(model: nn.Module) -> nn.Module:
    """The model, or its like without values where it is cut: for what only looks at it."""
    made = cut_of(model)
    return model if made is None else made.outline


def entered(model: nn.Module) -> Callable[..., Any]:
    """What calls a function that uses the model: entered(model)(function, *arguments)."""
    made = cut_of(model)
    return _plainly if made is None else made.root


def scored(model: nn.Module, work: Callable[..., Value], *arguments: Any) -> Value:
    """What `work` finds without gradients; a model in parts is in parts again afterwards."""
    found: Value = entered(model)(work, *arguments)
    if (made := cut_of(model)) is not None:
        made.root.reshard()  # type: ignore[operator]  # FSDP keeps what is not in blocks for a backward pass
    return found


@torch.no_grad()
def mend(model: nn.Module, device: torch.device, keep: bool) -> nn.Module:
    """The model whole again, on `device`, at ranks that keep it; all must ask. Others have the old one."""
    made = cut_of(model)
    if made is None:
        return model
    made.rest()
    mended = copy_on(made.outline, str(device)) if keep else model
    orders = orders_of(model)
    into = dict(mended.named_parameters()) | dict(mended.named_buffers())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        value = whole(tensor)
        if name in orders:
            value = unsorted(value, orders[name])
        if keep:
            into[name].copy_(value)
    return mended


def may_round(block: nn.Module, precision: Precision) -> bool:
    """Whether a block computes the same from matrices that are rounded to the precision of its products.

    So it does where autocast rounds them all before they are used; a layer of eight bits scales what is not
    rounded, and DoRA measures it.
    """
    if precision.dtype is None or precision.eight:
        return False
    if any(isinstance(m, LoRALinear) and m.lora_magnitude_vector is not None for m in block.modules()):
        return False
    return all(
        isinstance(module, CAST)
        for module in block.modules()
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    )


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _plainly(work: Callable[..., Value], *arguments: Any) -> Value:
    return work(*arguments)
