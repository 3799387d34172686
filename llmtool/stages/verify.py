"""Proofs on a run's own model and data: same bits after a kill, same gradients however rows are split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from llmtool.core import files
from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import LlmtoolError
from llmtool.evaluation.loop import eval_mode
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import STATE
from llmtool.stages.saving import LOOP

LOOKED = 64  # batches in which packed rows are looked for
# Of loss and gradient (its norm), relative. Sums of float32 in another order differ by some roundings of
# 6e-8; products of lower precision are rounded anew for each part: four roundings (2**-11 each, bf16 2**-9);
# eight bits round one number to 2**-4, and a product's sum of many to less.
TOLERANCE = {"fp32": 1e-6, "tf32": 2e-3, "fp16": 2e-3, "bf16": 8e-3, "fp8": 6e-2}


@dataclass(frozen=True)
class Compared:
    """Two sets of named tensors, or of rows, bit by bit. first: where they differ first; empty: nowhere."""

    what: str
    count: int
    bytes: int
    hashes: tuple[str, str]
    first: str = ""
    largest: float | None = None  # difference there

    @property
    def equal(self) -> bool:
        """Whether all bits are the same."""
        return self.hashes[0] == self.hashes[1]


def compare_trainings(straight: Path, resumed: Path) -> list[Compared]:
    """Weights, optimizer state, the loop's state and the rows of metrics (without times) of two trainings.

    straight, resumed: stage directories with `last` and metrics.jsonl.
    """
    pair = (straight / "last", resumed / "last")
    weights, state = (
        tuple({} if inner is None else _tensors(directory, inner) for directory in pair)
        for inner in (False, True)
    )
    rows = [_rows(directory / "metrics.jsonl") for directory in (straight, resumed)]
    loops = [files.read_json(directory / STATE / LOOP) for directory in pair]
    for loop in loops:
        loop.pop("time")
    return [
        _compare("weights", *weights),
        _compare("optimizer state", *state),
        _compare_text("state of the loop", [loops[0]], [loops[1]]),
        _compare_text("rows of metrics", *rows),
    ]


def _tensors(directory: Path, state: bool) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's model (or of its training state) by file and name."""
    found: dict[str, Tensor] = {}
    for path in sorted(directory.rglob("*.safetensors")):
        name = path.relative_to(directory).as_posix()
        if name.startswith(f"{STATE}/") == state:
            tensors = safetensors.torch.load_file(path)
            found |= {f"{name}: {key}": tensors[key] for key in sorted(tensors)}
    return found


def _rows(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in files.read_lines(path)]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def _compare(what: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> Compared:
    first, largest = "", None
    for name in [*one, *(name for name in other if name not in one)]:
        a, b = one.get(name), other.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            first = f"{name} is not in both"
            break
        if not torch.equal(_bits(a), _bits(b)):
            first, largest = name, (a.double() - b.double()).abs().max().item()
            break
    size = sum(tensor.numel() * tensor.element_size() for tensor in one.values())
    return Compared(what, len(one), size, (_hash(one), _hash(other)), first, largest)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(_bits(tensor).numpy().data)
    return f"xxh3:{digest.hexdigest()}"


def _compare_text(what: str, one: list[Any], other: list[Any]) -> Compared:
    texts = [[files.json_bytes(row) for row in rows] for rows in (one, other)]
    at = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    first = "" if texts[0] == texts[1] else f"row {at + 1}"
    hashes = tuple(files.hash_bytes(b"".join(rows)) for rows in texts)
    return Compared(what, len(one), sum(map(len, texts[0])), (hashes[0], hashes[1]), first)


# --- invariance ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of passing the same rows through the model, beside the first way."""

    name: str
    rows: int  # at once
    loss: float  # per target
    loss_difference: float  # relative
    gradient_difference: float  # norm of the difference, relative to the gradient's norm
    worst: str  # parameter that differs most, relative to its own norm
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether both differences are within the tolerance (one that is not a number is not)."""
        return self.loss_difference <= self.tolerance and self.gradient_difference <= self.tolerance


def micro_batches(assembled: Assembled, batch: int, most: int) -> list[Way]:
    """Loss and gradient of the first `batch` training rows, in one part, in halves, ... in single rows.

    most: rows that may go through the model at once; larger parts are left out. Dropout is off: its chances
    belong to a micro-batch by design.
    """
    rows = assembled.batches("train")
    tolerance = TOLERANCE[assembled.precision.name]
    reference, found = None, []
    for size in halves(batch, most):
        gradient = _gradient(assembled, (rows.batch(start, size) for start in range(0, batch, size)))
        reference = reference or gradient
        found.append(_beside(f"{batch // size} of {size} rows", size, reference, gradient, tolerance))
    return found


def halves(batch: int, most: int) -> list[int]:
    """A batch, its half, its quarter, ..., as far as they are whole, and 1; none is above `most`."""
    sizes = [batch >> power for power in range(batch.bit_length()) if batch % (1 << power) == 0]
    return [size for size in dict.fromkeys([*sizes, 1]) if size <= most]


def packing(assembled: Assembled, batch: int) -> list[Way]:
    """Loss and gradient of training rows in which documents follow each other, beside the same documents each
    in a row of its own. Empty where the rows hold one document each.
    """
    rows = assembled.batches("train")
    batches = (rows.batch(start, batch) for start in range(0, LOOKED * batch, batch))
    packed = next(
        (each for each in batches if each.segments is not None and int(each.segments.max()) > 1), None
    )
    if packed is None:
        return []
    assert packed.segments is not None
    alone = unpacked(packed)
    reference = _gradient(assembled, [packed])
    tolerance = TOLERANCE[assembled.precision.name]
    name = f"{len(packed)} rows of {len(alone)} documents"
    size = len(packed)
    parts = (alone.each(itemgetter(slice(start, start + size))) for start in range(0, len(alone), size))
    return [
        _beside(f"packed: {name}", len(packed), reference, reference, tolerance),
        _beside("one document a row", len(packed), reference, _gradient(assembled, parts), tolerance),
    ]


def unpacked(packed: Batch) -> Batch:
    """The documents of packed rows, each from the start of a row of its own; the rest of it is padding."""
    assert packed.segments is not None
    counts = packed.segments.amax(dim=1).tolist()
    documents = [
        (row, packed.segments[row] == n) for row, count in enumerate(counts) for n in range(1, count + 1)
    ]

    def alone(tensor: Tensor, blank: int = 0) -> Tensor:
        """(B, T, ...) -> (D, T, ...)."""
        found = tensor.new_full((len(documents), *tensor.shape[1:]), blank)
        for at, (row, there) in enumerate(documents):
            found[at, : int(there.sum())] = tensor[row][there]
        return found

    return Batch(
        alone(packed.inputs),
        alone(packed.targets, IGNORE),
        alone(packed.segments).clamp(max=1),
        allowed=None if packed.allowed is None else alone(packed.allowed),
    )


Gradient = tuple[float, dict[str, Tensor]]  # loss per target; gradient per target, by parameter


def _gradient(assembled: Assembled, parts: Iterable[Batch]) -> Gradient:
    model, device = assembled.model, assembled.device
    model.zero_grad(set_to_none=True)
    total = count = 0.0
    with eval_mode(model):
        for part in parts:
            with assembled.precision.autocast(device):
                loss = assembled.task.loss(model, part.to(device))
            loss.total.backward()
            total, count = total + loss.total.item(), count + loss.count.item()
    if not count:
        raise LlmtoolError("these rows have no target that is scored: nothing to compare")
    gradients = {
        name: parameter.grad.detach().double() / count
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return total / count, gradients


def _beside(name: str, rows: int, reference: Gradient, found: Gradient, tolerance: float) -> Way:
    one, other = reference[1], found[1]
    apart = {key: (one[key] - other[key]).norm().item() for key in one}
    own = {key: one[key].norm().item() for key in one}
    whole = sum(value**2 for value in own.values()) ** 0.5
    difference = sum(value**2 for value in apart.values()) ** 0.5 / whole if whole else 0.0
    worst = max(apart, key=lambda key: apart[key] / own[key] if own[key] else 0.0, default="")
    loss = abs(found[0] - reference[0]) / abs(reference[0]) if reference[0] else abs(found[0])
    return Way(name, rows, found[0], loss, difference, worst if apart.get(worst) else "", tolerance)
