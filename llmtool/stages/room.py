"""Whether a training step fits into a device's memory, and with how many blocks recomputed."""

from __future__ import annotations

from typing import Any, Protocol

from llmtool.core.devices import memory_bytes
from llmtool.data.packing import is_packed
from llmtool.models.accounting import Memory, memory, saved
from llmtool.models.activations import Activations
from llmtool.models.recompute import learning_blocks
from llmtool.stages.assemble import Assembled
from llmtool.training import TrainConfig

BYTES_PER_FLOP = 1.0  # of activations at the most: each number kept is of a product of a dozen or more


class Room(Protocol):
    """What a step needs beside what the device has."""

    blocks: int  # how many can be recomputed
    device_bytes: int | None  # None: not known

    def needs(self, rows: int, recomputed: int) -> Memory:
        """Of a step with so many rows at once, with so many blocks recomputed."""


def fewest_recomputed(room: Room, rows: int) -> int:
    """The fewest blocks with which so many rows at once fit; all where nothing does."""
    if room.device_bytes is None or not room.blocks:
        return 0
    fits = (at for at in range(room.blocks) if room.needs(rows, at).fits(room.device_bytes))
    return next(fits, room.blocks)


class ModelRoom:
    """What a step of an assembled model needs; counted once for a number of rows, and only where it is near
    to what the device has. flops_per_row: forward and backward."""

    def __init__(self, assembled: Assembled, config: TrainConfig, flops_per_row: float | None) -> None:
        self.assembled, self.optimizer = assembled, config.optimizer.name
        self.flops_per_row = flops_per_row or 0.0
        self.blocks = len(learning_blocks(assembled.model))
        self.device_bytes: int | None = memory_bytes(assembled.device)
        self._kept: dict[int, Activations] = {}

    def needs(self, rows: int, recomputed: int) -> Memory:
        """Of a step with so many rows at once, with so many blocks recomputed."""
        part = self.assembled
        if rows not in self._kept:
            most = memory(part.model, self.optimizer, int(BYTES_PER_FLOP * self.flops_per_row * rows))
            if most.fits(self.device_bytes or 0):
                return most
            tokens, precision = tokens_of(part.model), part.precision.name
            mixed = packed(part.dataset.card, tokens)
            self._kept[rows] = saved(part.model, rows, tokens, precision, part.device.type, mixed)
        return memory(part.model, self.optimizer, self._kept[rows].bytes(recomputed))


def tokens_of(model: Any) -> int:
    """Tokens of a row: of texts that have a target the most that are kept, else the context; 1 of a table."""
    length: int | None = getattr(model.inputs, "length", None)
    return length or int(getattr(model, "context", 1))


def packed(card: dict[str, Any] | None, tokens: int) -> bool:
    """Whether rows of so many tokens can hold several documents, or padding, which a mask keeps apart."""
    if card is None or card["encoding"] == "text":
        return card is not None
    if card["encoding"] == "moves":
        return is_packed(card, "train", tokens)
    return card["splits"].get("train", {}).get("documents", 1) > 1
