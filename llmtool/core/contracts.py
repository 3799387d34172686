"""The few types that every room speaks: what goes in, what comes out, a batch, a loss, a tally, a task.

Shape legend, used in comments everywhere:
    B rows of a batch   T tokens of a row   V vocabulary   C classes   F features (width of a table row)
    D width of the model   H heads   K key/value heads   E width of one head (D / H)
    K also chunks of a text, members of an ensemble   S keys of a query, or as said   A tokens of moves
    c channels, h height, w width of a picture   P patches (and other tokens) of a picture
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

if TYPE_CHECKING:  # prepare's processes have no use for torch, which takes them a second and a half to import
    import torch
    from torch import Tensor, nn

IGNORE = -100  # a target with this value is never scored (the field's convention, torch's ignore_index)


@dataclass(frozen=True)
class Features:
    """A row of `width` float32 numbers.

    columns: how many of them, one after another, each column of the table (of dates, each of its parts)
        became; () where that is not known.
    """

    width: int
    columns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Images:
    """A picture of `channels` planes of `height` x `width` float32 numbers, standardised: what a model sees.

    A batch brings them as bytes, which `Batch.to` standardises on the device.
    """

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Tokens:
    """Token ids below `vocabulary`; rows of `length` tokens, or of any length when None.

    features: how many numbers of a table stand beside each row.
    """

    vocabulary: int
    length: int | None = None
    features: int = 0


@dataclass(frozen=True)
class Classes:
    """One of `n` classes a row: logits (B, n)."""

    n: int


@dataclass(frozen=True)
class Labels(Classes):
    """Any of `n` labels a row, a logit each as of classes: (B, n)."""


@dataclass(frozen=True)
class Values:
    """`n` real numbers a row: (B, n)."""

    n: int


@dataclass(frozen=True)
class NextToken:
    """The next token at every position: logits (B, T, vocabulary)."""

    vocabulary: int


InputSpec = Features | Images | Tokens
OutputSpec = Classes | Labels | Values | NextToken


@dataclass
class Batch:
    """Rows that go through the model together.

    inputs: (B, F) or (B, c, h, w) float32, or (B, T) int64 token ids; (B, K, T) of texts that are one row in
        K chunks, whose segments are (B, K, T); pictures before `to`: (B, c, h, w) uint8.
    targets: (B,) int64 classes, (B, n) uint8 labels, (B, n) float32 values, or (B, T) int64 next
        tokens, IGNORE where unscored.
    segments: (B, T) int32 document of each token, from 1 in its row; 0 is padding. None: one document.
    units: (B, S) int64, on the host, when text is scored: the unit of the split (data.batches.unit_edges)
        that each of the row's S segments belongs to, -1 where a row has fewer.
    scale: mean and deviation of each channel, (c,) float32 each, in units of a byte (0 to 255), of pictures
        that are bytes still; None for all other batches.
    mixed: of pictures that are two in one, the (B,) targets of the others and the (B,) float32 share of each
        row that is its own.
    features: (B, F) float32, of texts with columns of a table beside them.
    allowed: (B, T, A) bool, of games whose rules are taught: which of the first A tokens may follow; none
        where the target is IGNORE.
    """

    inputs: Tensor
    targets: Tensor
    segments: Tensor | None = None
    units: Tensor | None = None
    scale: tuple[Tensor, Tensor] | None = None
    mixed: tuple[Tensor, Tensor] | None = None
    features: Tensor | None = None
    allowed: Tensor | None = None

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        """What a model is called with."""
        plain = (self.inputs, self.segments)
        return plain if self.features is None else (*plain, self.features)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with `change` made of every tensor but the units."""
        changed = lambda t: None if t is None else change(t)  # noqa: E731
        scale, mixed = (
            (change(pair[0]), change(pair[1])) if pair else None for pair in (self.scale, self.mixed)
        )
        inputs, targets = change(self.inputs), change(self.targets)
        segments, features, allowed = map(changed, (self.segments, self.features, self.allowed))
        return Batch(inputs, targets, segments, self.units, scale, mixed, features, allowed)

    def pinned(self) -> Batch:
        """The same in page-locked memory, from which `to` copies without waiting."""
        return self.each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, ready for a model."""
        return self.on(device).ready()

    def on(self, device: torch.device) -> Batch:
        """The same on `device`, pictures as bytes still; pinned memory is copied without waiting."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def ready(self, change: Callable[[Batch], Batch] | None = None) -> Batch:
        """As a model takes it.

        change: what is done to pictures while they are bytes, before they are standardised (augmentation); it
        may give back floats of 0 to 255, and other targets. Batches of other kinds do not go through it.
        """
        if self.scale is None:
            return self
        return (self if change is None else change(self)).standardised()

    def tensors(self) -> list[Tensor]:
        """All that it has on its device."""
        several = [*(self.scale or ()), *(self.mixed or ())]
        found = [self.inputs, self.targets, self.segments, self.features, self.allowed, *several]
        return [tensor for tensor in found if tensor is not None]

    def standardised(self) -> Batch:
        """Pictures as float32, each channel less its mean, over its deviation; others as they are."""
        if self.scale is None:
            return self
        mean, deviation = (part.view(-1, 1, 1) for part in self.scale)  # (c, 1, 1)
        return replace(self, inputs=(self.inputs.float() - mean).div_(deviation), scale=None)

    def __len__(self) -> int:
        return self.inputs.shape[0]


@dataclass
class Loss:
    """A sum and what it is a sum over, never a mean: means of uneven parts do not average.

    total: scalar tensor with gradient. count: scalar tensor, the targets scored (or their summed weights).
    """

    total: Tensor
    count: Tensor


class Tally(Protocol):
    """Evidence gathered while scoring; it adds over batches, and figures are taken once at the end."""

    def add(self, other: Self) -> None:
        """Take in the evidence of another batch."""

    def to_host(self) -> None:
        """Bring all evidence to the host's memory; the device is waited for."""

    def metrics(self) -> dict[str, float]:
        """Named figures; a figure the data leaves undefined is absent, with its reason in `undefined`."""

    @property
    def undefined(self) -> dict[str, str]:
        """Metrics this data leaves undefined: name -> reason."""

    def details(self) -> dict[str, Any]:
        """JSON-ready detail behind the figures: per-class table, confusion matrix; may be empty."""

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns of predictions.csv, a line for each unit, from which the tally can be had again."""

    @property
    def units(self) -> int:
        """What is drawn when these figures' uncertainty is asked for: rows, or documents of a text."""

    @property
    def width(self) -> int:
        """Rankings that `resampled` takes: how much longer than a sum over the units it takes, about."""

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        """Every figure with unit i counted weights[b, i] times: name -> (B,) float64, NaN where undefined.

        weights: (B, units) whole numbers. only: the figure wanted, if others need not be taken.
        """

    def take(self, units: np.ndarray) -> Self:
        """The evidence of these units alone; units: their numbers, or a bool for each."""


class Task(Protocol):
    """What is learned and how it is judged. It neither prepares data nor builds the model."""

    metric: str  # the figure that selects the best checkpoint unless the user names another
    mode: str  # "min" or "max"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The training loss of a batch, as a sum with its count."""

    def measure(self, model: nn.Module, batch: Batch) -> Tally:
        """The evidence of a batch; called under no_grad with the model in eval mode."""
