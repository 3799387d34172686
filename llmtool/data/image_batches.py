"""Batches of pictures: bytes out of the store, or decoded ahead of time where it holds files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from llmtool.core.contracts import Batch
from llmtool.core.errors import DataError
from llmtool.data import pictures
from llmtool.data.layout import Order, name_of, named_rows
from llmtool.data.pictures import BadPicture, Recipe
from llmtool.data.store import Split

AHEAD = 2  # batches that are decoded while one is scored


class ImageBatches:
    """Pictures of one size: inputs (B, c, h, w) uint8, targets (B,) int64 or (B, n) float32.

    The store has them as (rows, c, h, w), the shape that models take: beside (rows, h, w, c) they are read as
    fast or faster from a memory map (7.2 and 2.5 GB/s of 32 x 32, 3.1 and 2.3 GB/s of 224 x 224, rows by
    chance, one thread), and neither order makes a residual net on a CPU faster by more than a tenth. Or it
    has their files, which threads decode, those of the next batches ahead of their time.
    card: the dataset's, whose inputs have mean and std of each channel in units of a byte.
    """

    tokens_per_row = 1
    scored: np.ndarray | None = None

    def __init__(self, split: Split, card: Mapping[str, Any], seed: int) -> None:
        self.rows = split.rows
        self._split, self._order = split, Order(split.rows, seed)
        self._targets = np.asarray(split.arrays["targets"])
        mean, deviation = card["inputs"]["mean"], card["inputs"]["std"]
        self.scale = (torch.tensor(mean).float(), torch.tensor(deviation).float())  # (c,) each
        self._images = split.arrays.get("images")
        self._files = None if self._images is not None else _Files(split, card["encoder"])

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order."""
        return self._gather(self.chosen(start, count))

    def expect(self, coming: Sequence[tuple[int, int]]) -> None:
        """Begin to decode what `batch` will be asked for: starts and counts, the next one first."""
        if self._files is not None:
            self._files.begin([self.chosen(start, count) for start, count in coming])

    def where(self, start: int, count: int) -> list[str]:
        """`photos/cat/7.jpg (row 17 of train)`, rows counted from 1."""
        return named_rows(self._split, self.chosen(start, count))

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """The rows as they stand; the last batch holds what is left."""
        starts = range(first * size, self.rows, every * size)
        parts = [np.arange(start, min(start + size, self.rows)) for start in starts]
        for at, rows in enumerate(parts):
            if self._files is not None:
                self._files.begin(parts[at : at + 1 + AHEAD])
            yield self._gather(rows)

    def chosen(self, start: int, count: int) -> np.ndarray:
        """(count,) numbers of those rows in the split."""
        if self.rows == 0:
            raise DataError(f"{self._split.name} has no rows to train on")
        parts = [chosen for _, chosen in self._order.rows(start, count)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """(n, c, h, w) uint8 of these rows of the split."""
        if self._images is not None:
            return np.asarray(self._images[rows])
        assert self._files is not None
        return self._files.of(rows)

    def _gather(self, rows: np.ndarray) -> Batch:
        images = torch.from_numpy(self.pictures(rows))
        return Batch(images, torch.from_numpy(self._targets[rows]), scale=self.scale)


class _Files:
    """Pictures that the store holds as files, decoded when they are asked for or a little before."""

    def __init__(self, split: Split, encoder: Mapping[str, Any]) -> None:
        self._split = split
        self._bytes, self._ends = split.arrays["encoded"], split.arrays["encoded_ends"]
        self._recipe, self._most = Recipe(**encoder["recipe"]), int(encoder["rows"]["max_pixels"])
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[bytes, list[Future[np.ndarray]]] = {}  # by the rows of a batch

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(n, c, h, w) uint8 of these rows."""
        if rows.tobytes() not in self._begun:
            self.begin([rows])
        return np.concatenate([future.result() for future in self._begun.pop(rows.tobytes())])

    def begin(self, parts: Sequence[np.ndarray]) -> None:
        """Decode these, the first first; what else was begun is forgotten."""
        wanted = {part.tobytes(): part for part in parts}
        for key, futures in list(self._begun.items()):
            if key not in wanted:
                for future in futures:
                    future.cancel()
                del self._begun[key]
        for key, part in wanted.items():
            if key not in self._begun:
                pieces = np.array_split(part, min(len(part), 4 * pictures.workers()))
                self._begun[key] = [self._threads.submit(self._decode, piece) for piece in pieces]

    @property
    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(pictures.workers(), thread_name_prefix="pictures")
        return self._pool

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._one(row) for row in rows.tolist()])

    def _one(self, row: int) -> np.ndarray:
        begin = int(self._ends[row - 1]) if row else 0
        data = self._bytes[begin : int(self._ends[row])].tobytes()
        try:
            return pictures.decode(data, self._recipe, self._most).values
        except BadPicture as error:  # prepare has decoded it: the store has been damaged since
            raise DataError(f"{name_of(self._split, row)} in the store: {error}; prepare it again") from None
