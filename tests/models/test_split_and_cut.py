"""Four ranks that split each matrix among two and cut the parts among two (tensor parallelism and FSDP)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from llmtool.core.contracts import Batch, NextToken, Tokens
from llmtool.models.tensor_parallel import split
from llmtool.models.transformer import TransformerConfig
from llmtool.tasks.language import LanguageTask
from tests.two import run_ranks


def beside_one_process() -> dict[str, Any]:
    """How far loss and gradients of two steps' rows are from those of one process."""
    torch.manual_seed(0)
    config = TransformerConfig(
        depth=2, heads=4, key_value_heads=2, width=32, context=16, tie_embeddings=False
    )
    alone = config.build(Tokens(61), NextToken(61)).train()
    model, task = copy.deepcopy(alone), LanguageTask()
    draw = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randint(61, (4, 16), generator=draw) for _ in range(2))
    expected = task.loss(alone, Batch(inputs, targets)).total
    expected.backward()
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("data", "context", "tensor"))
    rows = mesh["data", "context"]._flatten("rows")
    split(model, mesh)
    beside = {parameter for parameter in model.parameters() if parameter.ndim < 2}
    for block in [*model.blocks, model]:
        fully_shard(block, mesh=rows, ignored_params=beside)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    mine = slice(2 * rows.get_local_rank(), 2 * rows.get_local_rank() + 2)
    total = task.loss(model, Batch(inputs[mine], targets[mine])).total
    total.backward()
    found = total.detach().clone()
    dist.all_reduce(found, group=rows.get_group())
    far = {"loss": float((found - expected.detach()).abs() / expected.detach())}
    for (name, parameter), wanted in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert isinstance(parameter, DTensor), name
        assert isinstance(parameter.grad, DTensor), name
        gradient = parameter.grad.full_tensor()
        if parameter.ndim < 2:  # FSDP leaves vectors to training/together.py
            dist.all_reduce(gradient, group=rows.get_group())
        assert wanted.grad is not None
        far[name] = float((gradient - wanted.grad).abs().max() / wanted.grad.abs().max())
    return far | {"held": sum(p.to_local().numel() for p in model.parameters())}


def test_loss_and_gradients_are_those_of_one_process() -> None:
    for far in run_ranks(beside_one_process, 4):
        held = far.pop("held")
        assert max(far.values()) < 1e-5, far
        assert held < 8_000  # of 27,072
