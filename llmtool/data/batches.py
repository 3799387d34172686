"""Batches from a prepared split: any rows of the endless training order, and every row once for scoring.

The order is a pure function of (seed, epoch, index): row g of training is row g modulo `rows` of the
permutation of epoch g // rows. A position in the data is one integer: resume, workers, ranks need no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from llmtool.core import seeds
from llmtool.core.contracts import IGNORE, Batch
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import mixing
from llmtool.data.games.legality import Legality
from llmtool.data.image_batches import ImageBatches
from llmtool.data.layout import Order, Recent, Windows, dealt, lay_out, named_rows, place_of
from llmtool.data.packing import ChatBatches
from llmtool.data.store import Dataset, Split

AHEAD = 2**20  # bytes of rows fetched at once
FEW = 20  # documents; a text that has fewer is cut into stretches, for its figures' uncertainty
STRETCHES = 100  # of such a text, about
ALIKE = 32  # rows of about one length that follow each other in training ...
AMONG = 64  # ... found among so many times as many rows drawn by chance
SHORTEST = 64  # tokens of a stretch


class Batches(Protocol):
    """One split as rows that a model trains on."""

    rows: int  # per epoch; for tokens, windows
    tokens_per_row: int  # 1 for features; of labelled texts, their mean
    scored: np.ndarray | None  # (rows,) numbers of the rows in the order of in_order; None: as they stand.
    # Where it is given, rows are of different lengths, and so are batches.

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the endless training order; pure, in any order of calls."""

    def where(self, start: int, count: int) -> list[str]:
        """Names those rows for messages."""

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every row (of tokens: each but the first of a document) once, at most `size` rows a batch.

        first, every: only the batches first, first + every, first + 2 * every and so on; no other is made.
        """


def open_batches(
    dataset: Dataset,
    split: str,
    seed: int,
    context: int | None = None,
    mixture: Mapping[str, float] | None = None,
    legality: Legality | None = None,
) -> Batches:
    """The batches of a split; `context` is the window of a tokens dataset, in tokens.

    mixture: the weight of each part of the data, by which the training order of `train` is mixed; None: every
    row once an epoch. legality: of games, where rows to train on say which moves the rules allow next.
    """
    found = dataset.split(split)
    whole = _batches_of(found, dataset, seed, context, legality=legality)
    if mixture is None or split != "train":
        return whole
    mixing.refuse_other_parts(mixture, list(mixing.counts_of(found)))
    parts = {
        name: _batches_of(part, dataset, seeds.derive(seed, "part", name), context, True, legality)
        for name, part in mixing.parts_of(found).items()
    }
    return mixing.MixedBatches(parts, mixture, seed, whole)


def _batches_of(
    found: Split,
    dataset: Dataset,
    seed: int,
    context: int | None,
    mixed: bool = False,
    legality: Legality | None = None,
) -> Batches:
    """mixed: the rows stand among those of other parts, which may hold several documents."""
    if dataset.card["inputs"]["kind"] == "features":
        return FeatureBatches(found, seed)
    if dataset.card["inputs"]["kind"] == "images":
        return ImageBatches(found, dataset.card, seed)
    if is_labelled(found):
        chunk = chunk_of(dataset.card)
        if mixed and chunk is not None:
            raise ConfigError(
                "train.mixture: texts in chunks (data.encode.long: chunks) are not mixed; cut them"
            )
        return TextBatches(found, seed, chunk)
    assert context is not None, "a tokens dataset needs a context"
    if dataset.card["encoding"] in ("chat", "moves"):
        return ChatBatches(found, context, seed, dataset.card["encoder"].get("packing", False), legality)
    return TokenBatches(found, context, seed, packed=mixed)


def chunk_of(card: Mapping[str, Any]) -> int | None:
    """Tokens of a chunk, where texts longer than that are several (data.labelled, long: chunks)."""
    rows = card["encoder"].get("rows", {})
    return int(rows["length"]) if rows.get("long") == "chunks" else None


def is_labelled(split: Split) -> bool:
    """Whether the rows of this split are texts that have a target each."""
    return "documents" in split.arrays and "targets" in split.arrays


def is_stream(split: Split) -> bool:
    """Whether it is a text without targets, in which the evidence of a batch says where it belongs."""
    return "documents" in split.arrays and not is_labelled(split)


def gather(batches: Batches, rows: np.ndarray) -> Batch:
    """These rows of a split whose rows have targets each, by their numbers in it."""
    found: Batch = batches._gather(rows)  # type: ignore[attr-defined]
    return found


def unit_edges(split: Split) -> np.ndarray:
    """(u + 1,) int64 positions in the token stream; unit i is the tokens edges[i] to edges[i + 1].

    What is drawn to say how sure a text's figures are: its documents (of chats: conversations), or, where
    they are fewer than 20 (and have no targets), about a hundred stretches of equal length that never cross a
    document's end.
    Neighbouring tokens depend on each other, which longer stretches contain (the block bootstrap,
    https://doi.org/10.1214/aos/1176347265).
    """
    ends = np.asarray(split.arrays["documents"], np.int64)
    if not in_stretches(split):
        return np.concatenate([[0], ends])
    length = max(SHORTEST, -(-int(ends[-1]) // STRETCHES)) if len(ends) else SHORTEST
    edges = [np.zeros(1, np.int64)]
    begin = 0
    for end in map(int, ends):
        parts = max(1, round((end - begin) / length))
        edges.append(np.linspace(begin, end, parts + 1)[1:].round().astype(np.int64))
        begin = end
    return np.concatenate(edges)


def part_of_units(split: Split) -> tuple[list[str], np.ndarray]:
    """The names of the split's parts, and (units,) int64 which of them each unit is of: each row, or of a
    text each stretch between two `unit_edges`. No names where the data is no mixture."""
    counts = mixing.counts_of(split)
    part = np.repeat(np.arange(len(counts)), list(counts.values()))
    if counts and is_stream(split):
        starts = unit_edges(split)[:-1]
        part = part[np.searchsorted(split.arrays["documents"], starts, side="right")]
    return list(counts), part


def in_stretches(split: Split) -> bool:
    """Whether its units are stretches of one length, of a text that has few documents."""
    whole = "trained" in split.arrays or split.meta.get("whole")
    return len(split.arrays["documents"]) < FEW and not is_labelled(split) and not whole


class FeatureBatches:
    """Rows of a table: inputs (B, F) float32, targets (B,) int64 or (B, n) float32.

    Small rows are fetched ahead, many batches at once: what a fetch costs is mostly its beginning.
    """

    tokens_per_row = 1
    scored: np.ndarray | None = None

    def __init__(self, split: Split, seed: int) -> None:
        self.rows = split.rows
        self._split, self._order = split, Order(split.rows, seed)
        self._inputs = np.asarray(split.arrays["inputs"])
        self._targets = np.asarray(split.arrays["targets"])
        self._ahead = min(split.rows, AHEAD // max(1, self._inputs[:1].nbytes))  # rows
        self._fetched: tuple[int, Batch] = (0, self._gather(np.arange(0)))  # from where on, and the rows

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order."""
        first, rows = self._fetched
        if not first <= start <= start + count <= first + len(rows):
            first, rows = start, self._gather(self.chosen(start, max(count, self._ahead)))
            self._fetched = first, rows
        part = slice(start - first, start - first + count)
        return Batch(rows.inputs[part], rows.targets[part])

    def where(self, start: int, count: int) -> list[str]:
        """`adult.csv:1234 (row 17 of train)`, rows counted from 1."""
        return named_rows(self._split, self.chosen(start, count))

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """The rows as they stand; the last batch holds what is left."""
        for start in range(first * size, self.rows, every * size):
            yield self._gather(np.arange(start, min(start + size, self.rows)))

    def chosen(self, start: int, count: int) -> np.ndarray:
        """(count,) numbers of those rows in the split."""
        if self.rows == 0:
            raise DataError(f"{self._split.name} has no rows to train on")
        parts = [chosen for _, chosen in self._order.rows(start, count)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _gather(self, rows: np.ndarray) -> Batch:
        return Batch(torch.from_numpy(self._inputs[rows]), torch.from_numpy(self._targets[rows]))


class TokenBatches:
    """Windows of a token stream: inputs (B, T) int64, targets (B, T) int64 the tokens one further.

    A target never crosses the end of a document. Segments (B, T) number the documents of a row where the
    split has more than one, or `packed` says so. Each epoch shifts the grid by a seeded offset, so that
    borders fall elsewhere.
    """

    scored: np.ndarray | None = None

    def __init__(self, split: Split, context: int, seed: int, packed: bool = False) -> None:
        self._split, self._context, self._seed = split, context, seed
        self.tokens_per_row = context
        self._tokens = np.asarray(split.arrays["tokens"])
        self._ends = np.asarray(split.arrays["documents"])
        pairs = len(self._tokens) - 1  # tokens that have a next one
        # One window fewer than would fit leaves room to shift the grid by up to a whole window.
        self.rows = 0 if pairs < context else max(1, pairs // context - 1)
        self._room = pairs - self.rows * context
        self._order = Order(self.rows, seed)
        self._offsets: Recent[int] = Recent(4)
        self.packed = packed or len(self._ends) > 1
        if self.rows:
            self._windows = np.lib.stride_tricks.sliding_window_view(
                self._tokens, context + 1
            )  # (n - T, T + 1)

    def batch(self, start: int, count: int) -> Batch:
        """Windows start to start + count of the training order."""
        starts = self._starts(start, count)  # (B,)
        window = self._windows[starts]  # (B, T + 1), in the two or four bytes of the store
        inputs, targets = window[:, :-1].astype(np.int64), window[:, 1:].astype(np.int64)
        if not self.packed:
            return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
        borders = self._borders(starts)  # (B, T + 1)
        targets[borders[:, 1:]] = IGNORE
        segments = 1 + np.cumsum(borders[:, :-1], axis=1, dtype=np.int32)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(segments))

    def where(self, start: int, count: int) -> list[str]:
        """`tokens 1024..1088 of train (document 3, which begins at play.txt:1)`, from 0, end excluded."""
        names = []
        for first in self._starts(start, count):
            document = int(np.searchsorted(self._ends, first, side="right"))
            begins = place_of(self._split, document)
            where = f"document {document + 1}" + (f", which begins at {begins}" if begins else "")
            names.append(f"tokens {first}..{first + self._context} of {self._split.name} ({where})")
        return names

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every token but the first of each document is a target exactly once.

        Windows never cross documents; short ones share a row, kept apart by their segments. What is left of a
        row is padding: token 0, segment 0, target IGNORE.
        """
        for rows in dealt(self._packed_rows(), size, first, every):
            yield self._lay_out(rows)

    @cached_property
    def _edges(self) -> np.ndarray:
        return unit_edges(self._split)

    def _starts(self, start: int, count: int) -> np.ndarray:
        """(count,) where these windows start in the stream."""
        if self.rows == 0:
            raise DataError(
                f"{self._split.name} has {len(self._tokens):,} tokens; a window of context {self._context:,} "
                f"needs {self._context + 1:,}: lower model.context or give more text"
            )
        parts = [
            self._offsets.of(epoch, self._offset) + chosen * self._context
            for epoch, chosen in self._order.rows(start, count)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _offset(self, epoch: int) -> int:
        return int(seeds.generator(self._seed, "offset", epoch).integers(self._room + 1))

    def _borders(self, starts: np.ndarray) -> np.ndarray:
        """(B, T + 1) bool: this token of the window begins another document than the one before it."""
        borders = np.zeros((len(starts), self._context + 1), dtype=bool)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + self._context, side="right")
        counts = last - first  # ends that lie in each window
        total = int(counts.sum())
        if total:
            rows = np.repeat(np.arange(len(starts)), counts)
            within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
            borders[rows, self._ends[np.repeat(first, counts) + within] - starts[rows]] = True
        return borders

    def _packed_rows(self) -> Iterator[Windows]:
        """Rows of windows (start, length in targets), in the stream's order, filled while the next fits."""
        row: Windows = []
        free = self._context
        begin = 0
        for end in map(int, self._ends):
            for start in range(begin, end - 1, self._context):
                length = min(self._context, end - 1 - start)
                if length > free:
                    yield row
                    row, free = [], self._context
                row.append((start, length))
                free -= length
            begin = end
        if row:
            yield row

    def _lay_out(self, rows: list[Windows]) -> Batch:
        return lay_out(self._tokens, rows, self._context, self._edges, packed=self.packed)


class TextBatches:
    """Labelled texts, a row each: inputs (B, T) int64, T the longest of the batch, targets as of a table.

    Segments (B, T) are 1, and 0 where a shorter text is padded with token 0; None where none is. Rows of like
    length stand together, so that little is padding: each epoch's permutation is sorted by length within
    stretches of ALIKE * AMONG rows and cut into runs of ALIKE, which are put into a random order.

    chunk: where given, a batch with a text of more tokens is (B, K, chunk), texts in up to K chunks, and its
    segments say which tokens of which chunks are there.
    """

    def __init__(self, split: Split, seed: int, chunk: int | None = None) -> None:
        self.rows = split.rows
        self._split, self._chunk = split, chunk
        self._features = np.asarray(split.arrays["features"]) if "features" in split.arrays else None
        self._tokens, self._targets = split.arrays["tokens"], np.asarray(split.arrays["targets"])
        self._ends = np.asarray(split.arrays["documents"], np.int64)
        self._lengths = np.diff(self._ends, prepend=0)
        self.tokens_per_row = max(2, -(-int(self._lengths.sum()) // max(1, self.rows)))
        self.scored: np.ndarray | None = np.argsort(self._lengths, kind="stable")
        self._order = _AlikeOrder(self._lengths, seed)

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order."""
        return self._gather(self.chosen(start, count))

    def where(self, start: int, count: int) -> list[str]:
        """`news.csv:1234 (row 17 of train)`, rows counted from 1."""
        return named_rows(self._split, self.chosen(start, count))

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every row once, shorter ones first (`scored` says which); the last batch holds what is left."""
        assert self.scored is not None
        for start in range(first * size, self.rows, every * size):
            yield self._gather(self.scored[start : start + size])

    def chosen(self, start: int, count: int) -> np.ndarray:
        """(count,) numbers of those rows in the split."""
        if self.rows == 0:
            raise DataError(f"{self._split.name} has no rows to train on")
        return np.concatenate([chosen for _, chosen in self._order.rows(start, count)])

    def _gather(self, rows: np.ndarray) -> Batch:
        lengths = self._lengths[rows]
        longest = int(lengths.max())
        chunks = None if self._chunk is None or longest <= self._chunk else -(-longest // self._chunk)
        if chunks is not None:
            assert self._chunk is not None
            longest = chunks * self._chunk
        inputs = np.zeros((len(rows), longest), dtype=np.int64)
        for at, (end, length) in enumerate(zip(self._ends[rows].tolist(), lengths.tolist(), strict=True)):
            inputs[at, :length] = self._tokens[end - length : end]
        segments = None
        if int(lengths.min()) < longest:
            segments = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int32))
        features = None if self._features is None else torch.from_numpy(self._features[rows])
        targets = torch.from_numpy(self._targets[rows])
        batch = Batch(torch.from_numpy(inputs), targets, segments, features=features)
        return batch if chunks is None else _in_chunks(batch, chunks)


def _in_chunks(batch: Batch, chunks: int) -> Batch:
    """Rows (B, K * T) as (B, K, T)."""
    shape = (len(batch), chunks, -1)
    segments = torch.ones_like(batch.inputs, dtype=torch.int32) if batch.segments is None else batch.segments
    return replace(batch, inputs=batch.inputs.reshape(shape), segments=segments.reshape(shape))


class _AlikeOrder(Order):
    """The same with rows of like length together."""

    def __init__(self, lengths: np.ndarray, seed: int) -> None:
        super().__init__(len(lengths), seed)
        self._lengths = lengths

    def _permutation(self, epoch: int) -> np.ndarray:
        order = super()._permutation(epoch)
        among = ALIKE * AMONG
        stretches = [order[start : start + among] for start in range(0, len(order), among)]
        order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in stretches])
        runs = [order[start : start + ALIKE] for start in range(0, len(order), ALIKE)]
        chance = seeds.generator(self._seed, "runs", epoch).permutation(len(runs))
        return np.concatenate([runs[number] for number in chance])
