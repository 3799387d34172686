"""What a model costs, found by running it on tensors without data: parameters, shapes, FLOPs, bytes."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llmtool.core.contracts import Features, Images, InputSpec, Labels, NextToken, OutputSpec, Tokens, Values
from llmtool.models.activations import Activations, count_saved
from llmtool.models.chunked import output_of
from llmtool.models.encoder import Attention, ModernAttention
from llmtool.models.fake import fake_tensors
from llmtool.models.gpt2 import GPT2Attention
from llmtool.models.huggingface import Through
from llmtool.models.layers import DropPath, hidden_matrices, stacks
from llmtool.models.recompute import recompute
from llmtool.models.tracing import Trace, Update, trace
from llmtool.models.vit import Attention as PatchAttention

OptimizerName = Literal["adamw", "sgd", "muon"]
# bytes: weights, gradients and optimizer state are float32; autocast makes smaller copies as it goes
FLOAT = 4

# of each byte that lives at once: on a CPU freed pieces, into which nothing new fits, stay with the process
HELD = {"cpu": 1.37}

LOWER = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}

NAMES = {  # what a part does, by its name in the model; otherwise its class says it
    "table": "looks up a vector for each n-gram",
    "body": "the hidden layers, one after another",
    "head": "turns the last hidden values into the outputs",
    "lm_head": "scores every token of the vocabulary as the next one",
    "wte": "looks up a vector for each token",
    "wpe": "looks up a vector for each position",
    "embed_tokens": "looks up a vector for each token",
    "c_attn": "makes queries, keys and values",
    "qkv_proj": "makes queries, keys and values",
    "gate_up_proj": "widens each vector, and decides how much of it passes",
    "q_proj": "makes queries: what each head looks for",
    "k_proj": "makes keys: what each token offers to be found by",
    "v_proj": "makes values: what a token passes on when found",
    "o_proj": "mixes the heads back into the token's vector",
    "c_fc": "widens each vector",
    "gate_proj": "decides how much of the widened vector passes",
    "up_proj": "widens each vector",
    "down_proj": "brings it back to the width",
    "query": "makes queries: what each head looks for",
    "key": "makes keys: what each token (or patch) offers to be found by",
    "value": "makes values: what a token (or patch) passes on when found",
    "query_key_value": "makes queries, keys and values",
    "widen": "widens each vector",
    "narrow": "brings it back to the width",
    "output": "mixes what came before it into its outputs",
    "q_norm": "keeps queries at one length",
    "k_norm": "keeps keys at one length",
    "gate": "decides how much of the widened vector passes",
    "projection": "turns the pixels of each patch into a vector",
    "from_class": "turns the class token's vector into the outputs",
    "from_distillation": "turns the distillation token's vector into the outputs",
    "stem": "the first convolution: from colours to the first channels",
    "pool": "keeps the largest of each 3 x 3 pixels, on half as many a side",
    "stages": "the stages, each on half as many pixels a side",
    "embedding": "turns the features of each column into a few numbers",
    "all": "a weighted sum of its inputs for each output, of all members, each with factors of its own",
    "lora_A": "the update's way down to its rank",
    "lora_B": "the update's way back up",
}
CLASSES = {
    "Linear": "a weighted sum of its inputs for each output",
    "Embedding": "looks up a vector for each id",
    "LayerNorm": "shifts and scales each vector to mean 0 and variance 1, then by learned amounts",
    "Conv2d": "a weighted sum of the pixels around each one, for each output channel",
    "Dropout": "sets a random share of values to zero in training, against overfitting",
    "Sequential": "its parts, one after another",
    "ModuleList": "its parts, one after another",
    "ReLU": "keeps what is positive",
    "GELU": "keeps what is positive, softly",
    "SiLU": "keeps what is positive, softly",
}


@dataclass
class Component:
    """A part of the model: where it is, what it does, what it costs."""

    name: str
    kind: str  # class
    does: str  # one line
    parameters: int
    trainable: int
    shape: (
        list[int] | None
    )  # of its output for the batch that was accounted for; None where it has no own forward
    flops: int  # forward, per row
    parts: list[Component] = field(default_factory=list)


@dataclass
class Memory:
    """Bytes that training needs at once, but for the device's own workspace and temporary results.

    held: how much a process holds for each byte of them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    held: float = 1.0

    @property
    def live(self) -> int:
        """Of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def allocator(self) -> int:
        """What the process holds beside."""
        return round((self.held - 1) * self.live)

    @property
    def total(self) -> int:
        """All of it."""
        return self.live + self.allocator

    def fits(self, device_bytes: int, reserve: float = 0.1) -> bool:
        """Whether it fits with a share in reserve for what is not counted."""
        return self.total <= device_bytes * (1 - reserve)


@dataclass
class Accounting:
    """The whole account of a model at a batch size, precision and optimizer. FLOPs are those of one row.

    A multiplication and an addition are two FLOPs; only matrix products and attention are counted.
    Attention is counted over the whole T x T square, though kernels may skip the half that causality hides.
    """

    tree: Component
    parameters: int
    trainable: int
    rows: int
    tokens: int  # per row; 1 for features and pictures
    flops_forward: int
    flops_backward: int
    flops_again: int  # of blocks that are recomputed for the backward pass
    memory: Memory
    kept: Activations  # for a choice of other blocks
    updating: int  # bytes of the optimizer's work, when the activations are gone

    def needs(self, blocks: int) -> Memory:
        """The memory where so many blocks are recomputed."""
        return replace(self.memory, activations=max(self.kept.bytes(blocks), self.updating))


def account(
    model: nn.Module,
    rows: int,
    tokens: int = 1,
    precision: str = "fp32",
    optimizer: OptimizerName = "adamw",
    device: str = "cpu",
    packed: bool = False,
    recomputed: int = 0,
) -> Accounting:
    """The account of training `model` on `rows` rows of `tokens` tokens at once.

    model: on any device; it is not touched. rows: those of one forward (a micro-batch). device: "cpu" or
    "cuda", which keep different things. packed: rows hold several documents, kept apart by a mask.
    recomputed: how many blocks are (models.recompute).
    """
    shapes, by_module, forward, backward = _flops(model, rows, tokens)
    kept = saved(model, rows, tokens, precision, device, packed)
    least = memory(model, optimizer, 0, device)
    found = Accounting(
        tree=_component(model, type(model).__name__, type(model).__name__, shapes, by_module),
        parameters=count_parameters(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        rows=rows,
        tokens=tokens,
        flops_forward=forward,
        flops_backward=backward,
        flops_again=0,
        memory=replace(least, activations=max(kept.bytes(), least.activations)),
        kept=kept,
        updating=least.activations,
    )
    return recomputing(found, model, recomputed) if recomputed else found


def recomputing(found: Accounting, model: nn.Module, recomputed: int) -> Accounting:
    """The account of the same step with so many blocks recomputed; found: that of `model` without any."""
    backward = _flops(model, found.rows, found.tokens, recomputed)[3]
    return replace(found, flops_again=backward - found.flops_backward, memory=found.needs(recomputed))


def memory(model: nn.Module, optimizer: OptimizerName, activations: int, device: str) -> Memory:
    """What training `model` needs at once beside so many bytes of activations, which are gone when the
    optimizer does its work."""
    if optimizer == "muon":
        activations = max(activations, _updating(model))
    return Memory(
        weights=weight_bytes(model),
        gradients=_bytes([p for p in model.parameters() if p.requires_grad]),
        optimizer=_optimizer_bytes(model, optimizer),
        activations=activations,
        held=HELD.get(device, 1.0),
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return _bytes([*model.parameters(), *model.buffers()])


def count_parameters(model: nn.Module) -> int:
    """Numbers of a model, those that are packed into four bits (models.quantised) too."""
    packed = sum(getattr(module, "hidden_parameters", 0) for module in model.modules())
    return sum(p.numel() for p in model.parameters()) + packed


def _optimizer_bytes(model: nn.Module, optimizer: OptimizerName) -> int:
    """AdamW keeps two moments of each number, SGD and Muon one momentum; beside Muon is AdamW."""
    single = hidden_matrices(model) if optimizer == "muon" else set()
    return sum(
        FLOAT * p.numel() * (1 if optimizer == "sgd" or id(p) in single else 2)
        for p in model.parameters()
        if p.requires_grad
    )


def _updating(model: nn.Module) -> int:
    """Bytes that Muon works in, of float32: matrices of one stack, what comes of them, three products."""
    inner = hidden_matrices(model)
    found = stacks(p for p in model.parameters() if p.requires_grad and id(p) in inner)
    most = [
        2 * len(one) * one[0].numel() + 3 * len(one) * min(len(one[0]), one[0][0].numel()) ** 2
        for one in found
    ]
    return FLOAT * max(most, default=0)


def _bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# --- running without data --------------------------------------------------------------------------------


def copy_on(model: nn.Module, device: str, recomputed: int = 0) -> nn.Module:
    """The same model with empty tensors on `device`; sharing stays sharing, and no weight is copied.

    recomputed: how many of its blocks are, whatever holds for the model itself.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    made = copy.deepcopy(model, memo).train()
    recompute(made, recomputed)
    return made


def _inputs(spec: InputSpec, rows: int, tokens: int, device: str) -> Tensor:
    if isinstance(spec, Features):
        return torch.zeros(rows, spec.width, device=device)
    if isinstance(spec, Images):
        return torch.zeros(rows, spec.channels, spec.height, spec.width, device=device)
    return torch.zeros(rows, tokens, dtype=torch.int64, device=device)


def _beside(spec: InputSpec, rows: int, device: str) -> tuple[Tensor, ...]:
    """The table's columns beside a text, if there are."""
    features = spec.features if isinstance(spec, Tokens) else 0
    return (torch.zeros(rows, features, device=device),) if features else ()


def _loss(spec: OutputSpec, outputs: Tensor) -> Tensor:
    """A loss of the usual kind for these outputs; the task's own may keep a little more or less."""
    if isinstance(spec, Values):
        return F.mse_loss(outputs.float(), torch.zeros_like(outputs, dtype=torch.float32), reduction="sum")
    if isinstance(spec, Labels):
        zeros = torch.zeros_like(outputs, dtype=torch.float32)
        return F.binary_cross_entropy_with_logits(outputs.float(), zeros, reduction="sum")
    flat = outputs.flatten(0, 1) if isinstance(spec, NextToken) else outputs
    target = torch.zeros(flat.shape[0], dtype=torch.int64, device=flat.device)
    return F.cross_entropy(flat.float(), target, reduction="sum")


def _summed(
    model: nn.Module,
    place: str,
    rows: int,
    tokens: int,
    lower: torch.dtype | None,
    device: str,
    packed: bool,
    seen: bool = False,
) -> Tensor:
    """The loss of a step on inputs without data at `place`, as `device` would find it.

    lower: what products are in under autocast. seen: logits in chunks are made in the open (models.chunked).
    """
    spec: Any = model
    inputs, beside = _inputs(spec.inputs, rows, tokens, place), _beside(spec.inputs, rows, place)
    masked = packed and not isinstance(model, Through)  # which lays documents out by their numbers
    segments = torch.ones(rows, tokens, dtype=torch.int32, device=place) if masked else None
    output = output_of(model, rows * tokens, _kind(device))
    with torch.autocast("cpu", dtype=lower or torch.bfloat16, enabled=lower is not None):
        if output is None:
            return _loss(spec.outputs, spec(inputs, segments, *beside))
        targets = torch.zeros(inputs.numel(), dtype=torch.int64, device=place)
        hidden = spec.hidden(inputs, segments).flatten(0, 1)
        if not torch.is_grad_enabled():
            return output.judged(hidden, targets)[0].sum()
        return output.cross_entropy(hidden, targets, seen)


def _kind(device: str) -> str:
    return "cuda" if device.startswith("cuda") else "cpu"


def _flops(
    model: nn.Module, rows: int, tokens: int, recomputed: int = 0
) -> tuple[dict[str, list[int]], dict[str, int], int, int]:
    """Output shapes and forward FLOPs of a row by module name, and FLOPs of a row forward and backward."""
    if isinstance(model, Through):  # whose masks ask for values, which meta tensors have not
        with fake_tensors():
            return _flops_on("cpu", copy_on(model, "cpu", recomputed), rows, tokens)
    return _flops_on("meta", copy_on(model, "meta", recomputed), rows, tokens)


def _flops_on(
    device: str, model: nn.Module, rows: int, tokens: int
) -> tuple[dict[str, list[int]], dict[str, int], int, int]:
    shapes: dict[str, list[int]] = {}
    flops: dict[str, int] = {}
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    begun: dict[str, int] = {}

    def before(name: str) -> Any:
        return lambda module, inputs: begun.__setitem__(name, counter.get_total_flops())

    def after(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            flops[name] = flops.get(name, 0) + counter.get_total_flops() - begun[name]
            if isinstance(output, Tensor):
                shapes[name] = [rows, *output.shape[1:]]

        return note

    for name, module in model.named_modules():
        module.register_forward_pre_hook(before(name))
        module.register_forward_hook(after(name))
    spec: Any = model
    with counter:
        inputs, beside = _inputs(spec.inputs, 1, tokens, device), _beside(spec.inputs, 1, device)
        loss = _loss(spec.outputs, model(inputs, None, *beside) if beside else model(inputs))
        forward = counter.get_total_flops()
        if loss.requires_grad:
            loss.backward()
    return shapes, flops, forward, counter.get_total_flops() - forward


def _convolution_backward(outputs: Any, inputs: Any, weight: Any, *rest: Any, out_shape: Any = None) -> int:
    """FLOPs of a convolution's two gradients from its shapes; torch's own count forgets groups."""
    wanted = rest[-1][:2]  # of the inputs, of the weight
    return sum(wanted) * 2 * math.prod(outputs) * math.prod(weight[1:])


def saved(
    model: nn.Module,
    rows: int,
    tokens: int,
    precision: str = "fp32",
    device: str = "cpu",
    packed: bool = False,
) -> Activations:
    """What the forward pass keeps for the backward pass, parameters excepted, each storage once.

    Counted on fake tensors, which choose the kernels that a CPU would. A CUDA device's attention keeps no T
    x T square even with dropout, so attention's dropout is left out there.
    """
    lower = LOWER.get(precision)
    with fake_tensors():
        model = copy_on(model, "cpu")
        if device.startswith("cuda"):
            _without_attention_dropout(model)
        kept = count_saved(model, lambda: _summed(model, "cpu", rows, tokens, lower, device, packed))
        output = output_of(model, rows * tokens, _kind(device))
        kept.chunk = 0 if output is None else output.chunk_bytes(lower is not None)
        return kept


def step(
    model: nn.Module,
    rows: int,
    tokens: int = 1,
    precision: str = "fp32",
    device: str = "cpu",
    packed: bool = False,
    update: Update | None = None,
    accumulate: bool = False,
    scored: bool = False,
    recomputed: int = 0,
) -> Trace:
    """One training step on tensors without data, operation by operation; scored: only a forward pass.

    update, accumulate: as models.tracing. recomputed: how many blocks are. Where numbers of two precisions
    meet, or blocks are recomputed, tensors are fake ones of a CPU, which know what autocast does and whose
    attention is the same in both passes; else meta tensors, which are quick.
    """
    lower = LOWER.get(precision)
    fake = lower is not None or isinstance(model, Through) or recomputed > 0
    with fake_tensors() if fake else nullcontext():
        place = "cpu" if fake else "meta"
        copied = copy_on(model, place, recomputed)
        if device.startswith("cuda") and fake:
            _without_attention_dropout(copied)

        def loss(model: nn.Module) -> Tensor:
            return _summed(model, place, rows, tokens, lower, device, packed, seen=True)

        with torch.set_grad_enabled(not scored):
            return trace(copied, loss, update, accumulate, device)


def _without_attention_dropout(model: nn.Module) -> None:
    """A CUDA device's attention keeps no T x T square even with dropout; that of a CPU would."""
    for module in model.modules():
        if isinstance(module, GPT2Attention | Attention | ModernAttention | PatchAttention):
            module.dropout = 0.0


# --- the tree ------------------------------------------------------------------------------------------


def _component(
    module: nn.Module,
    name: str,
    path: str,
    shapes: dict[str, list[int]],
    flops: dict[str, int],
    key: str = "",
) -> Component:
    parts = [
        _component(child, child_name, path, shapes, flops, f"{key}.{child_name}" if key else child_name)
        for child_name, child in module.named_children()
        if not _does_nothing(child)
    ]
    own_flops = flops[key] if key in flops else sum(part.flops for part in parts)
    return Component(
        name=name,
        kind=type(module).__name__,
        does=_does(module, name),
        parameters=count_parameters(module),
        trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        shape=shapes.get(key),
        flops=own_flops,
        parts=parts,
    )


def _does_nothing(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Identity)
        or (isinstance(module, nn.Dropout) and module.p == 0)
        or (isinstance(module, DropPath) and module.share == 0)
    )


def _does(module: nn.Module, name: str) -> str:
    kind = type(module)
    if name in NAMES:
        return NAMES[name]
    if kind.__name__ in CLASSES:
        return CLASSES[kind.__name__]
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")
