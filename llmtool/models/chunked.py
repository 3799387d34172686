"""Output layer and cross entropy in chunks of rows: the logits of a large vocabulary are never all there."""

# Gradients are made beside the loss, as in https://arxiv.org/abs/2410.10989, section 3.2; the operation is
# opaque to torch.compile, which would otherwise move them behind the forward pass and keep all logits for it.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtool.core.contracts import IGNORE
from llmtool.core.products import linear, product
from llmtool.models.causal import Transformer
from llmtool.models.collectives import Part, joined, reduced
from llmtool.models.layers import Linear

LARGE_VOCABULARY = 4096  # smaller ones go through as a whole
LARGE = 2**26  # logits from which chunks pay: of so many the whole path holds about a gigabyte
CHUNK = 2**25  # logits of a chunk
# rows of a chunk at least: each adds to the whole gradient of the weight, V x D numbers to and fro. By the
# rates of a GPU (4 TB/s, 600 TFLOP/s) that is a fifth of the time of its three products at a thousand rows
FEWEST = {"cuda": 1024, "cpu": 128}


@dataclass(frozen=True)
class Output:
    """An output layer: logits are `weight` (V, D) times a vector plus `bias`, kept below `cap`.

    part: where ranks share the vocabulary (models.tensor_parallel), and V is what this one has of it.
    """

    weight: Tensor
    bias: Tensor | None
    cap: float | None
    rows: int  # of a chunk
    part: Part | None = None

    def chunk_bytes(self, low: bool) -> int:
        """What lives beside the results while a chunk is worked on. low: of products in 16 bits."""
        each = (6 if low else 4) + (4 if self.cap is not None else 0)
        return self.rows * self.weight.shape[0] * each + (4 * self.weight.numel() if low else 0)

    def cross_entropy(self, hidden: Tensor, targets: Tensor, seen: bool = False) -> Tensor:
        """(N, D), (N,) -> the sum of the cross entropies of the rows whose target is not IGNORE.

        seen: in its parts and not as one operation, for who watches them.
        """
        kind = _place(hidden)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        grad = torch.is_grad_enabled()
        wanted = [
            grad and each is not None and each.requires_grad for each in (hidden, self.weight, self.bias)
        ]
        part = (None, 0) if self.part is None else (self.part.group, self.part.first)
        given = (hidden, self.weight, self.bias, targets, self.cap, self.rows, dtype, *wanted, *part)
        return (_Seen.apply if seen else torch.ops.llmtool.linear_cross_entropy)(*given)[0]

    def judged(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D), (N,) -> the cross entropy of each row, 0 where it is ignored, and its likeliest token."""
        nats, first = [], []
        for start in range(0, len(hidden), self.rows):
            scores = linear(hidden[start : start + self.rows], self.weight, self.bias)
            logits = _capped(scores, self.cap).float()
            if self.part is not None:
                logits = joined(logits, self.part)
            those = targets[start : start + self.rows]
            nats.append(F.cross_entropy(logits, those, ignore_index=IGNORE, reduction="none"))
            first.append(logits.argmax(dim=-1))
            del scores, logits  # before the next chunk is made
        return torch.cat(nats), torch.cat(first)


def output_of(model: nn.Module, positions: int, device: str = "") -> Output | None:
    """The output layer of a model whose logits of so many positions are to be made in chunks; else None.

    device: "cuda" or "cpu", where it is not that of the weights.
    """
    if not isinstance(model, Transformer) or not model.writes:
        return None
    head, cap = model.output
    part: Part | None = getattr(head, "part", None)
    if type(head) not in (Linear, nn.Linear) and part is None:
        return None
    assert isinstance(head, nn.Linear)
    vocabulary = head.out_features
    if vocabulary < LARGE_VOCABULARY or positions * vocabulary < LARGE:
        return None
    fewest = FEWEST.get(device or head.weight.device.type, FEWEST["cpu"])
    return Output(head.weight, head.bias, cap, max(fewest, CHUNK // head.weight.shape[0]), part)


def _place(tensor: Tensor) -> str:
    """Whose autocast is asked: meta tensors have none."""
    return "cpu" if tensor.is_meta else tensor.device.type


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * torch.tanh(scores / cap)


SCHEMA = (
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, float? cap, SymInt rows, ScalarType dtype, "
    "bool of_hidden, bool of_weight, bool of_bias, str? group, SymInt first) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)


def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float | None,
    rows: int,
    dtype: torch.dtype,
    of_hidden: bool,
    of_weight: bool,
    of_bias: bool,
    group: str | None,
    first: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss, and its gradients: (N, D), (V, D), (V,), each empty where it is not wanted.

    dtype: of the products. The gradients' products in float16 would lose what a scaled loss keeps: they are
    in float32. group: of ranks that share the vocabulary, of which `first` is this one's first; the greatest
    logit, the target's and the sum of a row go round, and at last the gradient of what all of them read.
    """
    found = _empty(
        hidden, weight, bias, targets, cap, rows, dtype, of_hidden, of_weight, of_bias, group, first
    )
    total, to_hidden, to_weight, to_bias = found
    for gradient in (total, to_weight, to_bias):
        gradient.zero_()
    back = torch.float32 if dtype == torch.float16 else dtype
    low = weight.to(dtype)
    of_products = low if back == dtype else weight.to(back)
    offset = None if bias is None else bias.to(dtype)
    with torch.autocast(_place(hidden), enabled=False):
        for start, those, there, here in _chunks(targets, rows, first, len(weight)):
            part = hidden[start : start + rows].to(dtype)
            scores = product(part, low.t(), offset)  # (R, V)
            slope = None if cap is None else 1 - torch.tanh(scores / cap).float().square()
            logits = _capped(scores, cap).float()
            del scores
            share, norm, nats = _judged(logits, those, here, group)
            total += torch.where(there, nats, 0.0).sum()
            if not (of_hidden or of_weight or of_bias):
                del logits, share, slope
                continue
            change = share.div_(norm)
            change.scatter_add_(1, those, -here.float()).masked_fill_(~there, 0.0)
            if slope is not None:
                change.mul_(slope)
            if of_bias:
                to_bias += change.sum(dim=0)
            change = change.to(back)
            if of_hidden:
                to_hidden[start : start + rows] = product(change, of_products)
            if of_weight and back == torch.float32:
                to_weight.addmm_(change.T, part.float())
            elif of_weight:
                to_weight += change.T @ part
            del logits, share, change, slope  # before the next chunk is made
    if group is not None and of_hidden:
        to_hidden.copy_(reduced(to_hidden, group))
    return found


def _judged(logits: Tensor, those: Tensor, here: Tensor, group: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (R, V) less the greatest of their row as powers of e, in their place; the sum of each row and
    its cross entropy, (R, 1) each. those, here: targets, and which are among these logits."""
    most, target = logits.amax(dim=1, keepdim=True), logits.gather(1, those)  # (R, 1)
    if group is not None:
        most, target = reduced(most, group, "max"), reduced(target.where(here, 0.0), group)
    share = logits.sub_(most).exp_()  # in place: where products are in float32, these are the scores
    norm = share.sum(dim=1, keepdim=True)
    if group is not None:
        norm = reduced(norm, group)
    return share, norm, most + norm.log() - target


def _chunks(
    targets: Tensor, rows: int, first: int, size: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Where each chunk starts, its targets among `size` from `first` on (R, 1), which are no IGNORE, and
    which are among them; the others are some number."""
    for start in range(0, len(targets), rows):
        those = targets[start : start + rows, None]
        there, places = those != IGNORE, those - first
        here = there & (places >= 0) & (places < size)
        yield start, places.masked_fill(~here, 0), there, here


_operation = torch.library.custom_op(
    "llmtool::linear_cross_entropy", _compute, mutates_args=(), schema=SCHEMA
)


@_operation.register_fake
def _empty(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results without their values; arguments as _compute's."""
    dtype, of_hidden, of_weight, of_bias = rest[4:8]
    back = torch.float32 if dtype == torch.float16 else dtype
    vocabulary, width = weight.shape
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty((hidden.shape[0] if of_hidden else 0, width), dtype=back),
        hidden.new_empty((vocabulary if of_weight else 0, width), dtype=torch.float32),
        hidden.new_empty((vocabulary if of_bias else 0,), dtype=torch.float32),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.wanted, ctx.dtypes = inputs[7:10], (inputs[0].dtype, inputs[1].dtype, torch.float32)


def _backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
    """What was found beside the loss, times the loss's own gradient (of fp16: its scale)."""
    found = [
        (each * gradient).to(dtype) if wanted and gradient is not None else None
        for each, wanted, dtype in zip(ctx.saved_tensors, ctx.wanted, ctx.dtypes, strict=True)
    ]
    return *found, *[None] * 9


_operation.register_autograd(_backward, setup_context=_keep)


class _Seen(torch.autograd.Function):
    """The same, open to whoever watches operations."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _compute(*given)

    setup_context = staticmethod(_keep)
    backward = staticmethod(_backward)
