"""Batches of pictures: bytes out of the store's memory map, which are standardised on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from llmtool.core.contracts import Batch
from llmtool.core.errors import DataError
from llmtool.data.layout import Order, named_rows
from llmtool.data.store import Split


class ImageBatches:
    """Pictures of one size: inputs (B, c, h, w) uint8, targets (B,) int64 or (B, n) float32.

    The store has them as (rows, c, h, w), the shape that models take: beside (rows, h, w, c) they are read as
    fast or faster from a memory map (7.2 and 2.5 GB/s of 32 x 32, 3.1 and 2.3 GB/s of 224 x 224, rows by
    chance, one thread), and neither order makes a residual net on a CPU faster by more than a tenth.
    inputs: the card's, with mean and std of each channel in units of a byte.
    """

    tokens_per_row = 1
    scored: np.ndarray | None = None

    def __init__(self, split: Split, inputs: Mapping[str, Any], seed: int) -> None:
        self.rows = split.rows
        self._split, self._order = split, Order(split.rows, seed)
        self._images = split.arrays["images"]
        self._targets = np.asarray(split.arrays["targets"])
        self.scale = (torch.tensor(inputs["mean"]).float(), torch.tensor(inputs["std"]).float())  # (c,) each

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order."""
        return self._gather(self.chosen(start, count))

    def where(self, start: int, count: int) -> list[str]:
        """`photos/cat/7.jpg (row 17 of train)`, rows counted from 1."""
        return named_rows(self._split, self.chosen(start, count))

    def in_order(self, size: int) -> Iterator[Batch]:
        """The rows as they stand; the last batch holds what is left."""
        for start in range(0, self.rows, size):
            yield self._gather(np.arange(start, min(start + size, self.rows)))

    def chosen(self, start: int, count: int) -> np.ndarray:
        """(count,) numbers of those rows in the split."""
        if self.rows == 0:
            raise DataError(f"{self._split.name} has no rows to train on")
        parts = [chosen for _, chosen in self._order.rows(start, count)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _gather(self, rows: np.ndarray) -> Batch:
        images = torch.from_numpy(np.asarray(self._images[rows]))  # (B, c, h, w)
        return Batch(images, torch.from_numpy(self._targets[rows]), scale=self.scale)
