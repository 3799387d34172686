"""One training step run on tensors without data: what each operation does, and the most memory at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmtool.models.activations import tensors_in
from llmtool.models.attention import by_kernel
from llmtool.models.layers import CPUNorm

Kind = Literal["matrix", "convolution", "attention", "curve", "noise", "sum", "lookup", "plain"]

MATRIX = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_scaled_mm")
NOISE = ("native_dropout", "bernoulli", "bernoulli_", "rand", "rand_like", "randn", "uniform_", "normal_")
CURVES = (  # an exponential, a root or the like for each number
    "gelu", "gelu_backward", "silu", "silu_backward", "exp", "log", "tanh", "tanh_backward", "sigmoid", "erf",
    "sigmoid_backward", "_softmax", "_safe_softmax", "_log_softmax", "_log_softmax_backward_data",
    "_softmax_backward_data", "softplus", "mish", "cos", "sin", "elu", "elu_backward",
)  # fmt: skip
LOOKUPS = ("embedding", "embedding_dense_backward", "index_select", "index_add_", "index_put_", "gather",
           "index", "scatter_add_", "_embedding_bag")  # fmt: skip
SUMS = ("sum", "mean", "native_layer_norm", "native_layer_norm_backward", "native_batch_norm",
        "native_batch_norm_backward", "cudnn_batch_norm", "var_mean", "_fused_rms_norm",
        "_fused_rms_norm_backward", "native_group_norm", "native_group_norm_backward")  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One call of a kernel.

    flops: of matrix products and attention. moved: bytes read and written. numbers: of the largest tensor;
    of attention pairs of tokens, over all heads. itemsize: bytes of a number of the result.
    """

    name: str
    kind: Kind
    flops: int
    moved: int
    numbers: int
    part: Literal["forward", "backward", "update"]
    itemsize: int = 4


@dataclass
class Trace:
    """A step of one micro-batch and the update after it.

    peak: most bytes at one moment beside weights and state; of these gradients, saved (what the forward pass
    left for the backward pass) and the rest. state: bytes that the update keeps between steps.
    """

    operations: list[Operation] = field(default_factory=list)
    peak: int = 0
    forward: int = 0  # the most without a backward pass: what scoring needs
    saved: int = 0
    state: int = 0

    def flops(self, part: str | None = None) -> int:
        """Of all operations, or of one part of the step."""
        return sum(each.flops for each in self.operations if part in (None, each.part))


Loss = Callable[[nn.Module], Tensor]
Update = Callable[[nn.Module], Callable[[], None]]


def trace(
    model: nn.Module,
    loss: Loss,
    update: Update | None = None,
    accumulate: bool = False,
    device: str = "cpu",
) -> Trace:
    """Run one step of `model`, whose tensors have no data (meta tensors, or fake ones).

    loss: makes inputs, runs the model, returns the loss. update: builds the optimizer (what it allocates is
    `state`) and returns what makes one step. accumulate: the gradients of earlier micro-batches are there.
    """
    recorder = _Recorder(model)
    result = recorder.result
    with recorder, _kernels(recorder, device):
        step = None if update is None else update(model)
        result.state = recorder.now
        result.operations.clear()  # of making the state, which is no part of a step
        if accumulate:
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        recorder.most = recorder.now
        value = loss(model)
        result.forward = recorder.most - result.state
        result.saved = recorder.now - result.state - (_gradients(model) if accumulate else 0)
        if value.requires_grad:
            recorder.part = "backward"
            value.backward()
        del value
        recorder.part = "update"
        if step is not None:
            with torch.no_grad():
                step()
    result.peak = recorder.most - result.state
    for parameter in model.parameters():
        parameter.grad = None
    return result


def _gradients(model: nn.Module) -> int:
    return sum(p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None)


class _Recorder(TorchDispatchMode):
    """Notes every operation, and every storage from its first use to its end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.result = Trace()
        self.part: Literal["forward", "backward", "update"] = "forward"
        self.now = self.most = 0
        self._live = {_storage(t)._cdata: 0 for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            results = function(*args, **(kwargs or {}))
        except (NotImplementedError, RuntimeError):  # torch's fused SGD is not for tensors without data
            if function._schema.returns:
                raise
            results = None  # it works in place
        taken, made = list(tensors_in(args)), list(tensors_in(results))
        own = {_storage(tensor)._cdata for tensor in taken}
        name = function.overloadpacket.__name__
        view = not function._schema.is_mutable and all(_storage(tensor)._cdata in own for tensor in made)
        for tensor in made:
            self._seen(tensor)
        if not view and not name.startswith(("empty", "new_empty")):
            self._note(name, args, taken, made)
        return results

    def _note(self, name: str, args: Any, taken: list[Tensor], made: list[Tensor]) -> None:
        sizes = [_size(tensor) for tensor in [*taken, *made]]
        numbers = max((tensor.numel() for tensor in [*taken, *made]), default=0)
        flops, kind = _flops(name, args, made), _kind(name)
        moved = sum(sizes)
        if kind == "lookup":  # rows of a table, not all of it
            moved = 2 * sum(_size(tensor) for tensor in made)
        if kind == "attention":
            query, key = args[1:3] if "backward" in name else args[:2]
            numbers = query.shape[:-1].numel() * key.shape[-2]
        itemsize = made[0].element_size() if made else 4
        self.result.operations.append(Operation(name, kind, flops, moved, numbers, self.part, itemsize))

    def attention(self, flops: int, tensors: list[Tensor]) -> None:
        """A fused attention kernel; tensors: query, key and what else it reads and writes."""
        moved = sum(_size(tensor) for tensor in tensors)
        numbers = tensors[0].shape[:-1].numel() * tensors[1].shape[-2]  # pairs of tokens
        itemsize = tensors[0].element_size()
        operation = Operation("attention", "attention", flops, moved, numbers, self.part, itemsize)
        self.result.operations.append(operation)

    def _seen(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        key, size = storage._cdata, storage.nbytes()
        if key not in self._live:
            self._live[key] = size
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._live.pop(key)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded one is as large as what it repeats."""
    return min(tensor.numel() * tensor.element_size(), _storage(tensor).nbytes())


def _kind(name: str) -> Kind:
    if name in MATRIX:
        return "matrix"
    if "convolution" in name:
        return "convolution"
    if "scaled_dot_product" in name:
        return "attention"
    for kind, names in (("noise", NOISE), ("curve", CURVES), ("lookup", LOOKUPS), ("sum", SUMS)):
        if name in names:
            return kind  # type: ignore[return-value]
    return "plain"


def _flops(name: str, args: Any, made: list[Tensor]) -> int:
    """FLOPs of matrix products, convolutions and attention, by their shapes; 0 of all else."""
    if name in MATRIX:
        tensors = [each for each in args if isinstance(each, Tensor)]
        left = tensors[1] if name in ("addmm", "addmm_", "baddbmm") else tensors[0]
        return 2 * made[0].numel() * left.shape[-1]
    if name == "convolution_backward":
        gradient, _, weight = args[0], args[1], args[2]
        return sum(args[-1][:2]) * 2 * gradient.numel() * math.prod(weight.shape[1:])
    if "convolution" in name:
        return 2 * made[0].numel() * math.prod(args[1].shape[1:])
    if "scaled_dot_product" in name:
        backward = "backward" in name  # whose first argument is the gradient
        query, key, value = args[1:4] if backward else args[:3]
        return _attention_flops(query, key, value, 5 if backward else 2)
    return 0


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, products: int) -> int:
    """Of so many products of a T x S square with a head's width."""
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return products * pairs * (query.shape[-1] + value.shape[-1])


# --- attention ------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps and returns: no T x T square."""

    @staticmethod
    def forward(
        ctx: Any, recorder: _Recorder, cpu: bool, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, width).transpose(1, 2)  # (B, H, T, D)
        if cpu:  # in the query's own order of memory
            output = torch.empty_like(query)
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.recorder = recorder
        recorder.attention(_attention_flops(query, key, value, 2), [query, key, value, output])
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, output, _ = ctx.saved_tensors
        made = [t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (query, key, value)]
        flops = _attention_flops(query, key, value, 5)
        ctx.recorder.attention(flops, [query, key, value, output, gradient, *made])
        return None, None, *made


@contextmanager
def _kernels(recorder: _Recorder, device: str) -> Iterator[None]:
    """Meta tensors know attention written out; within, they have the fused kernel that devices have. So too
    the norm of a CPU."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = dict(kwargs or {})
            if function is F.scaled_dot_product_attention and args and args[0].is_meta:
                names = ("query", "key", "value", "attn_mask", "dropout_p")
                named = dict(zip(names, args, strict=False)) | named
                if device != "cpu" or not named.get("dropout_p"):  # a CPU's has no dropout
                    query, key, value = named["query"], named["key"], named["value"]
                    return _Attention.apply(recorder, device == "cpu", query, key, value)
            on_cpu = function is F.rms_norm and device == "cpu" and args[0].is_meta
            if on_cpu and args[0].dtype == named["weight"].dtype == torch.float32:
                return CPUNorm.apply(args[0], named["weight"], named["eps"])
            return function(*args, **(kwargs or {}))

    with Mode(), nullcontext() if device == "cpu" else by_kernel():
        yield
