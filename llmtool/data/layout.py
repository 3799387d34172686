"""What batches of every kind of data share: the order of rows, their places in the source, their layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from llmtool.core import seeds
from llmtool.core.contracts import IGNORE, Batch
from llmtool.data.store import NAME_ENDS, Split

Row = TypeVar("Row")
Made = TypeVar("Made")
Windows = list[tuple[int, int]]  # of one row: where each begins in the stream, and its length in targets


class Recent(Generic[Made]):
    """What a function makes of numbers; the last `most` are kept, whichever threads ask for them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[int, Made] = {}

    def of(self, number: int, make: Callable[[int], Made]) -> Made:
        """make(number), or what it has made before."""
        kept = self._kept  # another thread may put another in its place meanwhile
        if number not in kept:
            self._kept = kept = {**dict(list(kept.items())[1 - self._most :]), number: make(number)}
        return kept[number]


class Order:
    """The permutation of each epoch; the last ones used are kept."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._permutations: Recent[np.ndarray] = Recent(2)

    def rows(self, start: int, count: int) -> list[tuple[int, np.ndarray]]:
        """(epoch, row numbers) for each epoch that rows start to start + count of the endless order touch."""
        assert min(start, count) >= 0, f"rows {start} to {start + count} are no rows of training"
        parts = []
        while True:
            epoch, at = divmod(start, self._rows)
            taken = min(count, self._rows - at)
            parts.append((epoch, self._permutations.of(epoch, self._permutation)[at : at + taken]))
            start, count = start + taken, count - taken
            if count == 0:
                return parts

    def _permutation(self, epoch: int) -> np.ndarray:
        return seeds.generator(self._seed, "order", epoch).permutation(self._rows)


def place_of(split: Split, row: int) -> str:
    """`adult.csv:1234`, or of a picture the name of its file, when the split knows where its rows came from,
    else ""."""
    if NAME_ENDS in split.arrays:
        return name_of(split, row)
    origin = split.arrays.get("origin")
    if origin is None or row >= len(origin):
        return ""
    file, line = map(int, origin[row])
    name = Path(split.sources[file]).name if file < len(split.sources) else f"file {file + 1}"
    return f"{name}:{line}"


def name_of(split: Split, row: int) -> str:
    """The name of a picture, as its source has it."""
    ends = split.arrays[NAME_ENDS]
    begin = int(ends[row - 1]) if row else 0
    return bytes(split.arrays["names"][begin : int(ends[row])]).decode("utf-8", "replace")


def named_rows(split: Split, rows: np.ndarray) -> list[str]:
    """`news.csv:1234 (row 17 of train)` for each of these rows, counted from 1."""
    names = []
    for row in map(int, rows):
        place, name = place_of(split, row), f"row {row + 1} of {split.name}"
        names.append(f"{place} ({name})" if place else name)
    return names


def dealt(rows: Iterable[Row], size: int, first: int = 0, every: int = 1) -> Iterator[list[Row]]:
    """Rows, `size` at once (the last ones fewer): of these groups first, first + every and so on, from 0."""
    rows = iter(rows)
    for number in count():
        if not (group := list(islice(rows, size))):
            return
        if number >= first and (number - first) % every == 0:
            yield group


def lay_out(
    tokens: np.ndarray,
    rows: list[Windows],
    width: int,
    edges: np.ndarray,
    packed: bool,
    trained: np.ndarray | None = None,
) -> Batch:
    """Rows of windows as a batch; what is left of a row is padding: token 0, segment 0, target IGNORE.

    edges: of the stream's units, for `units`. packed: whether rows can hold several documents, which segments
    keep apart. trained: (n,) of each token of the stream whether it is a target; None: all are.
    """
    shape = (len(rows), width)
    units = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    inputs = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORE, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int32)
    for i, row in enumerate(rows):
        at = 0
        units[i, : len(row)] = np.searchsorted(edges, [start for start, _ in row], side="right") - 1
        for number, (start, length) in enumerate(row, start=1):
            following = tokens[start + 1 : start + length + 1]
            if trained is not None:
                learned = trained[start + 1 : start + length + 1] > 0
                following = np.where(learned, following.astype(np.int64), IGNORE)
            inputs[i, at : at + length] = tokens[start : start + length]
            targets[i, at : at + length] = following
            segments[i, at : at + length] = number
            at += length
    found = torch.from_numpy(segments) if packed else None
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), found, torch.from_numpy(units))
