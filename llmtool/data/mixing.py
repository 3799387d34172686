"""The training order of a mixture: which part row g is from, and which row of it, by seed and g alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from llmtool.core import seeds
from llmtool.core.config import suggest
from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.layout import Recent
from llmtool.data.store import TOKENS, Split

BLOCK = 1024  # rows that hold every part's share within one row; more where a share is less than one of them


class MixedOrder:
    """Parts in given shares, spread as evenly as chance allows.

    Blocks of rows hold, all together from the first on, each part's exact share, rounded. Within a block of
    which a part has c rows, its k-th is drawn uniformly from the k-th of c equal stretches, so that every
    stretch of the order has each part's share within a row or two for each part. No state: where a row
    stands and what came before it follow from its number.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        exact = [Fraction(str(weight)) for weight in weights]  # 0.7 is seven tenths
        total = sum(exact)
        self.shares = [weight / total for weight in exact]
        self._edges = [sum(self.shares[:number], Fraction(0)) for number in range(len(exact) + 1)]
        self.block = max(BLOCK, ceil(1 / min(share for share in self.shares if share)))
        self._seed = seed
        self._blocks: Recent[np.ndarray] = Recent(2)

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count,) the part of each row from `start` on, and (parts,) how many rows of each come before."""
        assert min(start, count) >= 0, f"rows {start} to {start + count} are no rows of training"
        before = self.seen(start)
        parts = []
        while count > 0:
            number, at = divmod(start, self.block)
            parts.append(self._blocks.of(number, self._parts)[at : at + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate([np.zeros(0, np.int64), *parts]), before

    def seen(self, rows: int) -> np.ndarray:
        """(parts,) int64 how many of the first `rows` rows each part has."""
        number, at = divmod(rows, self.block)
        if not at:
            return self._begun(number)
        inside = self._blocks.of(number, self._parts)[:at]
        return self._begun(number) + np.bincount(inside, minlength=len(self.shares))

    def _begun(self, block: int) -> np.ndarray:
        """(parts,) rows of each part in the blocks before this one: its share of them, within one."""
        ends = [floor(edge * block * self.block) for edge in self._edges]
        return np.diff(np.array(ends, np.int64))

    def _parts(self, block: int) -> np.ndarray:
        """(block,) the part of each row of a block."""
        counts = self._begun(block + 1) - self._begun(block)
        random = seeds.generator(self._seed, "mixture", block)
        places = np.concatenate([(np.arange(n) + random.random(n)) / n for n in counts if n])
        order = np.argsort(places, kind="stable")
        return np.repeat(np.arange(len(counts)), counts)[order]


class MixedBatches:
    """The parts of a split, each in an endless order of its own, mixed by weight.

    parts: the batches of each; those without a weight are never drawn. whole: of the same split, for reading
    every row once. rows, which is an epoch: as many as the parts with a weight have together; how often each
    part is gone through meanwhile, its share says.
    """

    def __init__(self, parts: Mapping[str, Any], weights: Mapping[str, float], seed: int, whole: Any) -> None:
        self.names, self._parts, self.whole = list(parts), list(parts.values()), whole
        self._order = MixedOrder([weights[name] for name in self.names], seed)
        drawn = [number for number, share in enumerate(self._order.shares) if share]
        for number in drawn:
            if not self._parts[number].rows:
                raise DataError(
                    f"train.mixture: the part {self.names[number]} has no rows to train on (of a text: "
                    "fewer tokens than a row takes); give it more, or the weight 0"
                )
        self.rows = sum(self._parts[number].rows for number in drawn)
        self.scored: np.ndarray | None = whole.scored
        mean = sum(float(self._order.shares[number]) * self._parts[number].tokens_per_row for number in drawn)
        # Rows of one length stay so: graphs are compiled for it. Texts with a target have many.
        self._width = None if self.scored is not None else int(whole.tokens_per_row)
        self.tokens_per_row = max(2, ceil(mean)) if self.scored is not None else int(whole.tokens_per_row)
        self._masked = any(getattr(self._parts[number], "packed", False) for number in drawn)

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the mixed order."""
        found = [
            (places, self._parts[number].batch(first, len(places)))
            for number, places, first in self.each(start, count)
        ]
        return joined([part for _, part in found], [at for at, _ in found], self._width, self._masked)

    def expect(self, coming: Sequence[tuple[int, int]]) -> None:
        """Tell each part what `batch` will ask it for."""
        asked: dict[int, list[tuple[int, int]]] = {}
        for start, count in coming:
            for number, places, first in self.each(start, count):
                asked.setdefault(number, []).append((first, len(places)))
        for number, those in asked.items():
            if hasattr(self._parts[number], "expect"):
                self._parts[number].expect(those)

    def where(self, start: int, count: int) -> list[str]:
        """Names those rows, each as its part does."""
        return self._told(start, count, lambda part, first, n: part.where(first, n))

    def lengths(self, start: int, count: int) -> list[int]:
        """How many tokens of each of those rows are no padding (of conversations and games)."""
        return self._told(start, count, lambda part, first, n: part.lengths(first, n))

    def chosen(self, start: int, count: int) -> np.ndarray:
        """(count,) numbers of those rows in the whole split (of tables and labelled texts)."""
        ends = np.cumsum([0, *(part.rows for part in self._parts)])
        result = np.zeros(count, np.int64)
        for number, places, first in self.each(start, count):
            result[places] = ends[number] + self._parts[number].chosen(first, len(places))
        return result

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every row of the split once, whatever its part."""
        found: Iterator[Batch] = self.whole.in_order(size, first, every)
        return found

    def seen(self, rows: int) -> dict[str, float]:
        """How often each part has been gone through after the first `rows` rows; 0 where nothing is drawn."""
        counts = self._order.seen(rows).tolist()
        each = zip(self.names, self._parts, counts, strict=True)
        return {name: count / part.rows if count else 0.0 for name, part, count in each}

    def each(self, start: int, count: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """Of each part that those rows have: its number, where they stand, the first's place in its order."""
        parts, before = self._order.rows(start, count)
        for number in np.unique(parts).tolist():
            yield number, np.flatnonzero(parts == number), int(before[number])

    def _told(self, start: int, count: int, tell: Callable[[Any, int, int], list[Any]]) -> list[Any]:
        result: list[Any] = [None] * count
        for number, places, first in self.each(start, count):
            said = tell(self._parts[number], first, len(places))
            for place, one in zip(places.tolist(), said, strict=True):
                result[place] = one
        return result


def joined(batches: Sequence[Batch], places: Sequence[np.ndarray], width: int | None, masked: bool) -> Batch:
    """Batches as one; places: where in it the rows of each go. Rows of tokens are padded to `width` (None:
    the longest): token 0, segment 0, target IGNORE. masked: there are segments, needed here or not."""
    order = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
    parts = list(batches)
    if parts[0].inputs.dtype == torch.int64:
        longest = max(part.inputs.shape[1] for part in parts)
        width = longest if width is None else max(width, longest)
        labelled = parts[0].targets.shape != parts[0].inputs.shape
        masked = masked or any(part.segments is not None for part in parts)
        masked = masked or (labelled and any(part.inputs.shape[1] < width for part in parts))
        parts = [_padded(part, width, masked, labelled) for part in parts]
    fields: dict[str, Any] = {}
    for name in ("inputs", "targets", "segments", "features", "allowed"):
        if found := [tensor for part in parts if (tensor := getattr(part, name)) is not None]:
            fields[name] = torch.cat(found)[order]
    return Batch(**fields)


def _padded(batch: Batch, width: int, masked: bool, labelled: bool) -> Batch:
    """Rows (B, T) as (B, width)."""
    missing = (0, width - batch.inputs.shape[1])
    segments = batch.segments
    if masked:
        segments = torch.ones_like(batch.inputs, dtype=torch.int32) if segments is None else segments
        segments = functional.pad(segments, missing)
    targets = batch.targets if labelled else functional.pad(batch.targets, missing, value=IGNORE)
    inputs, allowed = functional.pad(batch.inputs, missing), batch.allowed
    allowed = None if allowed is None else functional.pad(allowed, (0, 0, *missing))
    return replace(batch, inputs=inputs, targets=targets, segments=segments, allowed=allowed)


# --- parts of a split -------------------------------------------------------------------------------------


def counts_of(split: Split) -> dict[str, int]:
    """How many rows (of a stream: documents) each part of a split has, by its name; empty where it has none.

    Where only the beginning of a split is seen, parts end there. DataError where the arrays hold more than
    the card says.
    """
    parts = split.meta.get("parts") or {}
    there = len(split.arrays["documents"]) if "documents" in split.arrays else split.rows
    ends = np.cumsum([0, *(about["rows"] for about in parts.values())])
    if parts and ends[-1] < there:
        raise DataError(f"{split.name}: its parts have {ends[-1]:,} rows of {there:,}; prepare it again")
    counts = np.diff(np.minimum(ends, there)).tolist()
    return dict(zip(parts, counts, strict=True))


def parts_of(split: Split) -> dict[str, Split]:
    """Each part of a split as a split of its own."""
    result, first = {}, 0
    for name, count in counts_of(split).items():
        rows = slice(first, first + count)
        arrays = {key: array[rows] for key, array in split.arrays.items() if key not in TOKENS}
        if "documents" in split.arrays:
            ends = split.arrays["documents"]
            begin = int(ends[first - 1]) if first else 0
            end = int(ends[first + count - 1]) if count else begin
            arrays["documents"] = np.asarray(arrays["documents"], np.int64) - begin
            arrays |= {key: split.arrays[key][begin:end] for key in TOKENS if key in split.arrays}
        meta = {key: value for key, value in split.meta.items() if key != "parts"}
        result[name] = Split(f"{split.name}, part {name}", count, arrays, meta, split.sources)
        first += count
    return result


def refuse_other_parts(mixture: Mapping[str, float], there: Sequence[str]) -> None:
    """ConfigError unless the mixture names just these parts of the data."""
    if not there:
        raise ConfigError("train.mixture: the data has no parts (data.source: {format: mixture, parts: ...})")
    for name in mixture:
        if name not in there:
            known = ", ".join(there)
            raise ConfigError(
                f"train.mixture: the data has no part {name!r}{suggest(name, list(there))} (parts: {known})"
            )
    if missing := [name for name in there if name not in mixture]:
        raise ConfigError(f"train.mixture: no weight for the part {missing[0]!r} (0 leaves a part out)")
