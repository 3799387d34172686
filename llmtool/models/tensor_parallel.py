"""Tensor parallelism: each rank has a part of the heads, of the inner widths and of the vocabulary.

As in Megatron-LM, https://arxiv.org/abs/1909.08053: of each pair of linear layers the first is split by its
outputs, the second by its inputs, and the ranks' results are summed after it. Parameters are DTensors on the
mesh's dimension "tensor", those that are not split too (replicated): optimizers, norms of gradients, FSDP and
checkpoints see one kind. What modules compute with are their local parts, in ordinary products: torch's own
ColwiseParallel and RowwiseParallel know neither GPT-2's layers nor several matrices in one nor updates of
LoRA, and send every operation through DTensor's Python.

What a rank sends and receives in a step, in bytes: N ranks, B rows of T tokens that they go through together,
width D, L blocks, vocabulary V, s bytes a number in the model's products, 4 in float32:

    blocks      8 (N - 1) / N * L * B T D s      attention and feed-forward: a sum forward, one backward each
    recomputed  2 (N - 1) / N * B T D s          more for each block made again (4 where dropout is)
    embedding   2 (N - 1) / N * B T D s          a sum forward
    output      (N - 1) / N * B T (V + 2 D) s    logits gathered; the gradient of their input summed
    or          2 (N - 1) / N * B T (12 + 4 D)   where the loss is made in chunks (models.chunked)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from llmtool.core.errors import ConfigError
from llmtool.core.shards import Order
from llmtool.models.collectives import Part, copied, joined, summed
from llmtool.models.fp8 import FP8Conv1D, FP8Linear
from llmtool.models.layers import Conv1D, RMSNorm
from llmtool.models.lora import LoRALinear
from llmtool.models.plan import Fused, How, Plan
from llmtool.models.quantised import NF4Linear

FAMILIES = ("encoder", "mlp", "transformer", "vit")  # those whose models have a plan

# what becomes of one module: beside what a plan says, halves of it for the parts of a LoRALinear
Step = How | Literal["same", "partial", "sum", "join"]


def split(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each rank of the mesh's dimension "tensor" its part of the model's weights, in place.

    The weights, the same on all ranks before (one seed), stay those of one process; so do outputs and
    gradients, on every rank. Before FSDP, after LoRA and whatever else replaces modules. Dropout draws the
    same on all ranks where they work alike; in heads and inner widths each part draws as if it were all.
    ConfigError where heads or widths do not divide, for families without a plan, and for what knows no parts.
    """
    mesh = mesh["tensor"]
    if mesh.size() == 1:
        return
    plan: Plan | None = getattr(model, "plan", None)
    if plan is None:
        family = getattr(getattr(model, "config", None), "family", type(model).__name__)
        raise ConfigError(
            f"parallel.tensor: there is no plan for model.family {family} ({', '.join(FAMILIES)} have one): "
            "set parallel.tensor: 1"
        )
    _refuse_uneven(model, mesh.size())
    steps: dict[str, Step] = {}
    order: dict[str, Order] = {}
    for name, module in model.named_modules():
        found = [how for pattern, how in plan.items() if fnmatchcase(name, pattern)]
        if not found:
            continue
        _refuse(module)
        how: How = "columns" if isinstance(found[0], Fused) else found[0]
        steps |= _of_update(name, how) if isinstance(module, LoRALinear) else {name: how}
        if isinstance(found[0], Fused):
            _sort(name, module, found[0], mesh.size(), order)
    for name, module in model.named_modules():
        if name not in steps and any(each is not None for each in module._parameters.values()):
            steps[name] = "same"
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    parallelize_module(model, mesh, {name: Style(step, made) for name, step in steps.items()})
    model.split_order = order  # type: ignore[assignment]


def _refuse_uneven(model: nn.Module, ranks: int) -> None:
    config: Any = model.config
    for key in ("heads", "key_value_heads", "feed_forward"):
        size = getattr(config, "inner" if key == "feed_forward" and hasattr(config, "inner") else key, None)
        if size is not None and size % ranks:
            raise ConfigError(f"parallel.tensor: {ranks} does not divide model.{key} {size}")


def _refuse(module: nn.Module) -> None:
    if isinstance(module, FP8Linear | FP8Conv1D):
        raise ConfigError("parallel.tensor: more than 1 does not go with precision: fp8")
    if isinstance(module, LoRALinear) and module.lora_magnitude_vector is not None:
        raise ConfigError("parallel.tensor: more than 1 does not go with finetune.method.dora")
    if isinstance(module, NF4Linear) or isinstance(getattr(module, "base", None), NF4Linear):
        raise ConfigError("parallel.tensor: more than 1 does not go with finetune.method.quantise")


def _of_update(name: str, how: How) -> dict[str, Step]:
    """The same of a layer with an update of low rank beside it."""
    base, a, b = f"{name}.base", f"{name}.lora_A", f"{name}.lora_B"
    if how == "rows":
        return {name: "sum", base: "partial", a: "partial", b: "each"}
    found: dict[str, Step] = {base: "columns", a: "each", b: "columns"}
    return found | {name: "join"} if how == "gathered" else found


def _sort(name: str, module: nn.Module, fused: Fused, ranks: int, order: dict[str, Order]) -> None:
    """Put first what is the first rank's of each of a layer's matrices, and so on; noted in `order`."""
    layers = {name: module}
    if isinstance(module, LoRALinear):
        layers = {f"{name}.base": module.base, f"{name}.lora_B": module.lora_B}
    for place, layer in layers.items():
        for key, parameter in layer.named_parameters(recurse=False):
            dim = 1 if isinstance(layer, Conv1D) and key == "weight" else 0
            unit = parameter.shape[dim] // sum(fused.shares)
            whole = torch.arange(parameter.shape[dim]).split([unit * share for share in fused.shares])
            places = torch.cat([each.chunk(ranks)[rank] for rank in range(ranks) for each in whole])
            order[f"{place}.{key}"] = dim, places
            parameter.data = parameter.data.index_select(dim, places.to(parameter.device))


@dataclass
class Style(ParallelStyle):
    """Gives a module this rank's part of its weights, and a class of its own that computes with that.

    made: what became of parameters, by the ids of what they were: modules that shared one go on sharing.
    """

    step: Step
    made: dict[int, tuple[nn.Parameter, nn.Parameter]]

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group, ranks = device_mesh.get_group().group_name, device_mesh.size()
        kind, rank = type(module), device_mesh.get_local_rank()
        body: dict[str, Any] = {"__module__": kind.__module__}
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            module._parameters[name] = self._moved(
                parameter, device_mesh, _dimension(self.step, module, name)
            )
            bias_of_sum = self.step in ("rows", "partial") and name == "bias"
            summed_gradient = self.step == "each" or bias_of_sum
            body[name] = _local(name, group if summed_gradient else None, ranks if bias_of_sum else 1)
        if self.step == "vocabulary":
            assert isinstance(module, nn.Embedding)
            body["forward"] = _embedding(Part(group, ranks, rank, module.num_embeddings))
        elif self.step == "normalised":
            body["forward"] = _norm(group, ranks)
        elif self.step == "entry":
            body["forward"] = _around(kind, lambda x: copied(x, group), lambda x: x)
        elif self.step in ("rows", "sum"):
            body["forward"] = _around(kind, lambda x: x, lambda x: summed(x, group))
        elif self.step in ("gathered", "join"):
            layer: Any = getattr(module, "base", module)
            part = Part(group, ranks, rank, layer.out_features)
            body["part"] = part  # read by models.chunked
            body["forward"] = _around(kind, lambda x: copied(x, group), lambda x: joined(x, part))
        module.__class__ = type(kind.__name__, (kind,), body)
        return module

    def _moved(self, old: nn.Parameter, mesh: DeviceMesh, dim: int | None) -> nn.Parameter:
        if id(old) in self.made:
            return self.made[id(old)][1]
        size, ranks = 1 if dim is None else old.shape[dim], mesh.size()
        if dim is not None and -(-size // ranks) * (ranks - 1) >= size:
            raise ConfigError(f"parallel.tensor: {ranks} ranks cannot share {size} outputs of a layer")
        value: Tensor = old.detach()
        if dim is not None:  # a view would keep the whole in memory
            value = value.chunk(ranks, dim)[mesh.get_local_rank()].clone()
        placement: Placement = Replicate() if dim is None else Shard(dim)
        value = DTensor.from_local(
            value, mesh, [placement], run_check=False, shape=old.shape, stride=old.stride()
        )
        self.made[id(old)] = old, nn.Parameter(value, requires_grad=old.requires_grad)
        return self.made[id(old)][1]


def _dimension(step: Step, module: nn.Module, name: str) -> int | None:
    """By which dimension a parameter is split; None: it is whole."""
    turned = isinstance(module, Conv1D) and name == "weight"  # stored (in, out)
    if step in ("columns", "gathered", "vocabulary", "normalised"):
        return 1 if turned else 0
    if step in ("rows", "partial") and name == "weight":
        return 0 if turned else 1
    return None


def _local(name: str, group: str | None, ranks: int) -> property:
    """What `module.weight` is to whoever computes with it: this rank's part.

    While FSDP has cut that part among other ranks too, it is the parameter: nobody computes with it then.
    group: where the gradient is the sum of the ranks'. ranks: of a bias, which the sum has from each of them.
    """

    def read(module: nn.Module) -> Tensor:
        parameter = module._parameters[name]
        assert isinstance(parameter, DTensor)
        if parameter.device_mesh.ndim > 1:
            return parameter
        local = parameter.to_local()
        if group is not None:
            local = copied(local, group)
        return local if ranks == 1 else local / ranks

    return property(read)


def _around(
    kind: type[nn.Module], before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
) -> Callable[..., Tensor]:
    def forward(module: nn.Module, x: Tensor, *others: Any) -> Tensor:
        return after(kind.forward(module, before(x), *others))

    return forward


def _embedding(part: Part) -> Callable[..., Tensor]:
    def forward(module: nn.Embedding, ids: Tensor) -> Tensor:
        weight = module.weight
        places = ids - part.first
        here = (places >= 0) & (places < weight.shape[0])
        found = F.embedding(torch.where(here, places, 0), weight)
        return summed(found * here.unsqueeze(-1), part.group)

    return forward


def _norm(group: str, ranks: int) -> Callable[..., Tensor]:
    def forward(module: RMSNorm, x: Tensor) -> Tensor:
        wide = x.float()
        # every rank's outputs follow from every rank's inputs: a sum forward, and one of gradients
        squares = copied(summed(wide.square().sum(dim=-1, keepdim=True), group), group)
        found = wide * torch.rsqrt(squares / (ranks * x.shape[-1]) + module.epsilon)
        return found.to(x.dtype) * module.weight.to(x.dtype)

    return forward
