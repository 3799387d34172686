"""What a forward pass keeps for its backward pass, found by watching one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llmtool.models.recompute import learning_blocks


@dataclass
class Activations:
    """The storages that a forward pass saves for its backward pass, and where in the model: id -> bytes.

    before, after: what is saved outside the blocks, up to the last one and beyond it. blocks: what is saved
    in each of the model's `learning_blocks`. inputs: what goes into each of them.
    """

    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)
    blocks: list[dict[int, int]] = field(default_factory=list)
    inputs: list[dict[int, int]] = field(default_factory=list)
    chunk: int = 0  # bytes that live for a moment at the end of the forward pass, of logits in chunks

    def bytes(self, recomputed: int = 0) -> int:
        """The most that is held at once where so many blocks, from the first on, are recomputed.

        That is at the end of the forward pass; or while the last of these blocks is made again, when all that
        came after it is free.
        """
        recomputed = min(recomputed, len(self.blocks))
        entered, kept = self.inputs[:recomputed], self.blocks[recomputed:]
        most = _union(self.before, *entered, *kept, self.after) + self.chunk
        if recomputed:
            most = max(most, _union(self.before, *entered, self.blocks[recomputed - 1]))
        return most


def count_saved(model: nn.Module, run: Any) -> Activations:
    """The storages that `run()` saves for its backward pass, those of `model` itself excepted, by block.

    model: without recomputed blocks, whose inside nobody sees. Ranks may hold it in parts (FSDP), of which
    those of a block are whole when it begins.
    """
    own = _storages(model)
    kept: dict[int, Tensor] = {}  # alive, so that no storage's address is given out again
    found = Activations()
    place = found.before

    def note(tensor: Tensor, where: dict[int, int]) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, tensor)
            where[storage._cdata] = storage.nbytes()

    def pack(tensor: Tensor) -> Tensor:
        note(tensor, place)
        return tensor

    def enter(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal place
        own.update(_storages(module if found.blocks else model))
        found.before |= found.after  # of what lies between blocks, too
        found.after, place = {}, {}
        found.blocks.append(place)
        found.inputs.append({})
        for tensor in tensors_in([inputs, keywords]):
            note(tensor, found.inputs[-1])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal place
        place = found.after

    hooks = []
    for block in learning_blocks(model):
        hooks += [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        ]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    for hook in hooks:
        hook.remove()
    return found


def tensors_in(given: Any) -> Iterator[Tensor]:
    """Every tensor in lists, tuples and dictionaries of arguments."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for each in given:
            yield from tensors_in(each)
    elif isinstance(given, dict):
        yield from tensors_in(list(given.values()))


def _storages(model: nn.Module) -> set[int]:
    """Of parameters and buffers, and of the parts of them that this rank holds (DTensors)."""
    tensors = [*model.parameters(), *model.buffers()]
    return {getattr(t, "_local_tensor", t).untyped_storage()._cdata for t in tensors}


def _union(*parts: dict[int, int]) -> int:
    """Bytes of the storages that are in any of them."""
    return sum({storage: size for part in parts for storage, size in part.items()}.values())
