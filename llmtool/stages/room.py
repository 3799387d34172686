"""Whether a training step fits into a device's memory, and with how many blocks recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from llmtool.core.console import bytes_
from llmtool.core.devices import memory_bytes
from llmtool.core.errors import MemoryLimitError
from llmtool.data.packing import is_packed
from llmtool.models.accounting import Memory, OptimizerName, memory, saved
from llmtool.models.activations import Activations
from llmtool.models.layers import statistics
from llmtool.models.recompute import learning_blocks
from llmtool.models.shards import Cut, cut_of, outline
from llmtool.stages.assemble import Assembled
from llmtool.training import TrainConfig
from llmtool.training.average import moving

FAR = 1.25  # times what a device has: an account is nearer to the truth than that
BYTES_PER_FLOP = 1.0  # of activations at the most: each number kept is of a product of a dozen or more


class Room(Protocol):
    """What a step needs beside what the device has."""

    blocks: int  # how many can be recomputed
    device_bytes: int | None  # None: not known
    norms: bool  # whether the model's norms are over the rows that go through at once

    def needs(self, rows: int, recomputed: int) -> Memory:
        """Of a step with so many rows at once, with so many blocks recomputed."""


def fewest_recomputed(room: Room, rows: int) -> int:
    """The fewest blocks with which so many rows at once fit; all where nothing does."""
    if room.device_bytes is None or not room.blocks:
        return 0
    fits = (at for at in range(room.blocks) if room.needs(rows, at).fits(room.device_bytes))
    return next(fits, room.blocks)


class ModelRoom:
    """What a step of a model needs; counted once for a number of rows, and only where it is near to what the
    device has.

    how: precision, kind of device ("cpu", "cuda"), and whether a mask keeps documents of a row apart.
    flops_per_row: forward and backward; None: not known, no activation is counted. device_bytes:
    None: not known. cut: how ranks share the model, which is then its outline.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerName,
        averaged: bool,
        how: tuple[str, str, bool],
        flops_per_row: float | None,
        device_bytes: int | None,
        cut: Cut | None = None,
    ) -> None:
        self.model, self.optimizer, self.how = model, optimizer, how
        self.average = average_bytes(model) if averaged else 0
        self.flops_per_row = flops_per_row or 0.0
        self.blocks = len(learning_blocks(model))
        self.norms = bool(statistics(model))
        self.device_bytes = device_bytes
        self.cut = cut
        self._kept: dict[int, Activations] = {}

    def needs(self, rows: int, recomputed: int) -> Memory:
        """Of a step with so many rows at once, with so many blocks recomputed."""
        if rows not in self._kept:
            most = self._with(int(BYTES_PER_FLOP * self.flops_per_row * rows))
            if most.fits(self.device_bytes or 0):
                return most
            self._kept[rows] = saved(self.model, rows, tokens_of(self.model), *self.how)
        return self._with(self._kept[rows].bytes(recomputed))

    def _with(self, activations: int) -> Memory:
        found = memory(self.model, self.optimizer, activations, self.how[1])
        found = replace(found, optimizer=found.optimizer + self.average)
        return found if self.cut is None else self.cut.share(found)


def room_of(assembled: Assembled, config: TrainConfig, flops_per_row: float | None) -> ModelRoom:
    """Of an assembled model on its device."""
    model: Any = outline(assembled.model)
    mixed = packed(assembled.dataset.card, tokens_of(model))
    how = (assembled.precision.name, assembled.device.type, mixed)
    averaged, there = config.ema is not None, memory_bytes(assembled.device)
    cut = cut_of(assembled.model)
    return ModelRoom(model, config.optimizer.name, averaged, how, flops_per_row, there, cut)


def refuse_what_never_fits(room: Room, config: TrainConfig, section: str) -> None:
    """MemoryLimitError where a training is far too large for the device, with the fewest rows at once and
    every block recomputed: what is near to it is tried."""
    there, rows, again = room.device_bytes, config.micro_batch, config.activation_checkpointing
    assert isinstance(rows, int)
    assert isinstance(again, int)
    if there is None or room.needs(rows, again).fits(there):
        return
    fewest = 2 if room.norms and rows > 1 else 1
    needed = room.needs(fewest, room.blocks)
    if needed.total > FAR * there:
        raise MemoryLimitError(
            f"{section} needs about {bytes_(needed.total)} of memory even with {fewest} "
            f"row{'s' if fewest > 1 else ''} at once, and the device has {bytes_(there)}: a smaller model or "
            "shorter context is needed; `llmtool describe` lists what would fit"
        )


def average_bytes(model: nn.Module) -> int:
    """Of the averaged copy that `ema` keeps."""
    return sum(each.nbytes for each in moving(model).values())


def tokens_of(model: Any) -> int:
    """Tokens of a row: of texts that have a target the most that are kept, else the context; 1 of a table."""
    length: int | None = getattr(getattr(model, "inputs", None), "length", None)
    return length or int(getattr(model, "context", 1))


def packed(card: dict[str, Any] | None, tokens: int) -> bool:
    """Whether rows of so many tokens can hold several documents, or padding, which a mask keeps apart."""
    if card is None or card["encoding"] == "text":
        return card is not None
    if card["encoding"] == "moves":
        return is_packed(card, "train", tokens)
    return card["splits"].get("train", {}).get("documents", 1) > 1
