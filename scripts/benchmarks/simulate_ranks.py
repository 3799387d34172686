"""One rank of many, and none of the others: what it holds and what it sends in a training step.

    python scripts/benchmarks/simulate_ranks.py --save      Llama 3.1 70B on 512 ranks (minutes on a CPU)

It is llmtool's own code that runs: the decoder split by models/tensor_parallel.py, its rows shared by
models/context_parallel.py, cut by models/shards.py (FSDP), the loss of models/chunked.py. torch's
fake process group takes every collective and sends nothing, and tensors are fake ones, which have shapes and
no numbers. Held bytes, and those of every kind of collective, are counted in that step and compared with the
closed forms of rank_forms.py: a difference of one byte ends the script with an error. As blocks are alike,
four of them are traced, and three: what the fourth brings, all the others bring (--blocks 80: all are).

Attention is counted as the fused kernel of a GPU, which keeps no square of tokens. Saved activations are
those of a step that is not compiled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from unittest.mock import patch

import common
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_forms import MODELS, Layout, Message, Sizes, held, merged, messages, whole
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import llmtool.models.causal
import llmtool.models.layers
from llmtool.core.contracts import NextToken, Tokens
from llmtool.core.devices import Precision
from llmtool.core.shards import local
from llmtool.models.activations import Activations, count_saved
from llmtool.models.causal import Transformer
from llmtool.models.chunked import output_of
from llmtool.models.context_parallel import share_context
from llmtool.models.layers import hidden_matrices
from llmtool.models.recompute import recompute
from llmtool.models.shards import cut, entered
from llmtool.models.tensor_parallel import split
from llmtool.models.transformer import TransformerConfig
from llmtool.training.optimizers import AdamWConfig

LAYOUTS = {  # of 512 ranks, one row at once; the long row is that of the end of Llama 3's training
    "70 B: fsdp 512": Layout(512, 1, 1, rows=1, tokens=8192),
    "70 B: fsdp 64, tensor 8": Layout(64, 1, 8, rows=1, tokens=8192),
    "70 B: fsdp 32 x context 2, tensor 8": Layout(32, 2, 8, rows=1, tokens=8192),
    "70 B: fsdp 4 x context 16, tensor 8": Layout(4, 16, 8, rows=1, tokens=131_072),
    "8 B: fsdp 512": Layout(512, 1, 1, rows=1, tokens=8192),
}


@dataclass
class Counted:
    """A traced step; saved: activations, by how many blocks are recomputed."""

    messages: list[Message] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    saved: Activations = field(default_factory=Activations)


@contextmanager
def pretended(layout: Layout) -> Iterator[DeviceMesh]:
    """The mesh of a layout as its rank 0 sees it, whose other ranks do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.ranks)
    try:
        shape = (layout.data, layout.context, layout.tensor)
        yield init_device_mesh("cpu", shape, mesh_dim_names=("data", "context", "tensor"))
    finally:
        dist.destroy_process_group()


class Watch(TorchDispatchMode):
    """Notes every collective: what it does, over which group, with how many bytes."""

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()
        self.groups, self.seen = groups, list[Message]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # until it has become operations on local tensors
        results = function(*args, **(kwargs or {}))
        if function.namespace in ("c10d", "_c10d_functional") and "wait_tensor" not in str(function):
            self.seen.append(self._message(function._schema.name.split("::")[1], args, results))
        return results

    def _message(self, name: str, args: Any, results: Any) -> Message:
        if name == "_allgather_base_":
            kind, group, tensor = "all-gather", args[2], args[0]
        elif name == "_reduce_scatter_base_":
            kind, group, tensor = "reduce-scatter", args[2], args[1]
        elif name == "allreduce_":
            (tensor,) = args[0]
            kind, group = "all-reduce", args[1]
        elif name == "alltoall_base_":
            kind, group, tensor = "all-to-all", args[2], args[1]
        elif name == "all_gather_into_tensor":
            kind, group, tensor = "all-gather", args[2], results
        elif name == "reduce_scatter_tensor":
            kind, group, tensor = "reduce-scatter", args[3], args[0]
        elif name == "all_reduce":
            kind, group, tensor = "all-reduce", args[2], args[0]
        else:
            raise AssertionError(f"{name}: a collective that nobody counts yet")
        if not isinstance(group, str):
            group = dist.ProcessGroup.unbox(group).group_name
        ranks = dist.get_world_size(dist.distributed_c10d._resolve_process_group(group))
        payload = tensor.numel() * tensor.element_size()
        return Message(kind, self.groups.get(group, group), ranks, 1, payload)


class _Fused(torch.autograd.Function):
    """What a GPU's attention kernel makes and keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, width = query.shape
        output = query.new_empty(rows, tokens, heads, width).transpose(1, 2)  # (B, H, T, E)
        ctx.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def attention_of_a_gpu() -> Iterator[None]:
    """Within it attention is that kernel, with masks of blocks. A mode of torch would end before backward."""

    def by_blocks(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
        found: Tensor = _Fused.apply(query, key, value)
        return found.transpose(1, 2).flatten(2)

    def causal(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
        return _Fused.apply(query, key, value)  # type: ignore[no-any-return]

    with ExitStack() as stack:
        stack.enter_context(patch.object(llmtool.models.causal, "usable", lambda device: True))
        stack.enter_context(patch.object(llmtool.models.layers, "attend_by_blocks", by_blocks))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", causal))
        yield


def simulate(sizes: Sizes, layout: Layout) -> dict[bool, Counted]:
    """Two steps of rank 0: as it is, and (True) with all blocks recomputed.

    Counted are what is held after the backward pass, what was sent, and what the first forward pass saved.
    """
    found = {}
    with pretended(layout) as mesh:
        rows = mesh["data", "context"]._flatten("rows")  # those that compute other tokens
        groups = {mesh["tensor"].get_group().group_name: "tensor"}
        groups |= {mesh["context"].get_group().group_name: "context", rows.get_group().group_name: "rows"}
        with torch.device("meta"):
            model = _model(sizes, layout)
        split(model, mesh)
        share_context(model, mesh)
        cut(model, torch.device("meta"), Precision("bf16", torch.bfloat16), mesh=rows)
        with FakeTensorMode(), attention_of_a_gpu():
            _on_cpu(model)
            for recomputed in (False, True):
                recompute(model, sizes.depth if recomputed else 0)
                found[recomputed] = counted = Counted()
                with Watch(groups) as watch:
                    _step(model, layout, rows.get_group(), mesh, None if recomputed else counted)
                counted.messages = merged(watch.seen)
                counted.held = _held(model)
                for parameter in model.parameters():
                    parameter.grad = None
            found[False].held |= _states(model)
    return found


def _model(sizes: Sizes, layout: Layout) -> Transformer:
    config = TransformerConfig(
        depth=sizes.depth,
        width=sizes.width,
        heads=sizes.heads,
        key_value_heads=sizes.key_value_heads,
        feed_forward=sizes.feed_forward,
        context=layout.tokens,
        tie_embeddings=False,
        rope_theta=500_000.0,
    )
    return config.build(Tokens(sizes.vocabulary), NextToken(sizes.vocabulary)).train()


def _on_cpu(model: nn.Module) -> None:
    """Parameters and buffers of a model on the meta device become fake ones of a CPU, parts of wholes too."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            here = parameter._local_tensor if isinstance(parameter, DTensor) else parameter
            value: Tensor = torch.empty(here.shape)
            if isinstance(parameter, DTensor):
                where = parameter.device_mesh, parameter.placements
                shape = {"shape": parameter.shape, "stride": parameter.stride()}
                value = DTensor.from_local(value, *where, run_check=False, **shape)
            module._parameters[name] = nn.Parameter(value)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _step(
    model: Transformer, layout: Layout, group: Any, mesh: DeviceMesh, into: Counted | None = None
) -> None:
    """One micro-batch and what belongs to it (training/loop.py, training/together.py), but for the update."""
    inputs = torch.zeros(layout.rows, layout.tokens // layout.context, dtype=torch.int64)
    targets = torch.zeros(inputs.numel(), dtype=torch.int64)

    def loss() -> Tensor:
        output = output_of(model, inputs.numel(), "cuda")
        assert output is not None, "a vocabulary and rows that are large enough for logits in chunks"
        hidden = model.hidden(inputs).flatten(0, 1)
        return output.cross_entropy(hidden, targets, seen=True)

    def both() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            total: Tensor = entered(model)(loss)
        total.backward()

    if into is None:
        both()
    else:
        into.saved = count_saved(model, both)
        output = output_of(model, inputs.numel(), "cuda")
        into.saved.chunk = 0 if output is None else output.chunk_bytes(True)
    vectors = [local(p.grad).flatten() for p in model.parameters() if p.ndim < 2]
    dist.all_reduce(torch.cat(vectors), group=group)
    dist.all_reduce(torch.zeros(2, dtype=torch.float64), group=group)  # loss, count
    square = torch.zeros((), dtype=torch.float64)
    for each in (group, mesh["tensor"].get_group()):  # of the norm of all gradients
        dist.all_reduce(square, group=each)


def _held(model: nn.Module) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "weights": _bytes([*parameters, *model.buffers()]),
        "gradients": _bytes([p.grad for p in parameters if p.grad is not None]),
    }


def _states(model: Transformer) -> dict[str, int]:
    """Bytes of the optimizers' states: AdamW's; and by models/layers.py which matrices are Muon's."""
    state = [
        each for part in AdamWConfig(name="adamw").build(model).parts.values() for each in part.state.values()
    ]
    inner = hidden_matrices(model)
    muon = [(1 if id(p) in inner else 2) * _bytes([p]) for p in model.parameters()]
    return {"adamw": _bytes([t for each in state for t in each.values()]), "muon": sum(muon)}


def _bytes(tensors: list[Tensor]) -> int:
    return sum(local(each).numel() * each.element_size() for each in tensors)


# --- comparing and showing ---------------------------------------------------------------------------------


def differences(sizes: Sizes, layout: Layout, recomputed: bool, counted: Counted) -> list[str]:
    """Where what was counted is not what the closed forms say."""
    wrong = []
    expected = held(sizes, layout)
    for name, size in counted.held.items():
        if size != expected[name]:
            wrong.append(f"{name}: {size:,} bytes counted, {expected[name]:,} by the form")
    forms = {(each.kind, each.group): each for each in messages(sizes, layout, recomputed)}
    seen = {(each.kind, each.group): each for each in counted.messages if each.ranks > 1}
    for key in sorted(forms.keys() | seen.keys()):
        if forms.get(key) != seen.get(key):
            wrong.append(f"{' over '.join(key)}: {seen.get(key)} counted, {forms.get(key)} by the form")
    return wrong


def of_layout(sizes: Sizes, layout: Layout, blocks: int) -> dict[str, Any]:
    """Both steps of a layout, without and with all blocks recomputed. SystemExit where a form is wrong.

    blocks: how many are traced, and one fewer: what one more brings, all others bring too.
    """
    began = time.perf_counter()
    saved: dict[int, dict[str, int]] = {}
    for depth in (blocks - 1, blocks):
        traced = replace(sizes, depth=depth)
        counted = simulate(traced, layout)
        for recomputed, one in counted.items():
            if wrong := differences(traced, layout, recomputed, one):
                raise SystemExit("\n".join([str(layout), *wrong]))
        there = counted[False].saved
        saved[depth] = {"plain": there.bytes(), "recomputed": there.bytes(depth)}
    more = {kind: size - saved[blocks - 1][kind] for kind, size in saved[blocks].items()}
    forms = {"plain": messages(sizes, layout, False), "recomputed": messages(sizes, layout, True)}
    return {
        "sizes": asdict(sizes),
        "layout": asdict(layout),
        "traced": blocks,
        "held": held(sizes, layout),
        "whole": whole(sizes, layout),
        "saved": {kind: size + (sizes.depth - blocks) * more[kind] for kind, size in saved[blocks].items()},
        "messages": {
            name: [asdict(each) | {"sent": each.sent} for each in those] for name, those in forms.items()
        },
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Simulate, compare, show, save."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--blocks", type=int, default=4, help="how many of a model's blocks are traced")
    options = parser.parse_args()
    runs = {name: (MODELS[name.split(":")[0]], layout) for name, layout in LAYOUTS.items()}
    if options.short:
        runs = {"small": (Sizes(4, 256, 8, 4, 512, 8192), Layout(2, 2, 2, rows=1, tokens=16_384))}
    found = {name: of_layout(*run, options.blocks) for name, run in runs.items()}
    names = ["weights", "gradients", "adamw", "muon"]
    memory = [
        (name, *(f"{one['held'].get(key, 0) / 1e9:.2f}" for key in names), f"{one['whole'] / 1e9:.2f}",
         *(f"{size / 1e9:.2f}" for size in one["saved"].values()))
        for name, one in found.items()
    ]  # fmt: skip
    columns = ["layout", *names, "whole at once", "saved", "saved, recomputed"]
    common.table("GB of one rank", columns, memory)
    sends = [
        (
            name,
            step,
            f"{each['kind']}, {each['group']} ({each['ranks']})",
            each["calls"],
            f"{each['sent'] / 1e9:.3f}",
        )
        for name, one in found.items()
        for step, those in one["messages"].items()
        for each in those
    ]
    common.table("sent by one rank in a step", ["layout", "step", "collective", "calls", "GB"], sends)
    common.save(options, "simulate_ranks", found, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    sys.exit(main())
