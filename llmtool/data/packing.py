"""Conversations as batches: each whole, several in a row by best fit, and a mask of what is learned."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtool.core.contracts import Batch
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.games.legality import Legality
from llmtool.data.layout import Order, Windows, dealt, lay_out, place_of
from llmtool.data.store import Split


def best_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Bins of documents, whose lengths together are at most `room`; every document stands in one.

    lengths: (d,), none above room. The longest first, each into the fullest bin that still takes it (D. S.
    Johnson 1973, https://hdl.handle.net/1721.1/57819): at most 11/9 of the fewest bins, and a little. Bins
    and what is in them are in the documents' order.
    """
    bins: list[list[int]] = []
    free: list[int] = []  # sorted: how much room some bin has left
    with_room: dict[int, list[int]] = defaultdict(list)  # the bins that have just so much
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        at = bisect_left(free, length)
        if at == len(free):
            number, left = len(bins), room
            bins.append([])
        else:
            left = free[at]
            number = with_room[left].pop()
            if not with_room[left]:
                del free[at]
        bins[number].append(document)
        left -= length
        if left:
            if not with_room[left]:
                insort(free, left)
            with_room[left].append(number)
    return sorted(sorted(bin_) for bin_ in bins)


def is_packed(card: Mapping[str, Any], split: str, room: int) -> bool:
    """Whether training rows of `room` tokens hold several conversations, or games, of which any two fit."""
    meta = card["splits"].get(split, {})
    if not card["encoder"].get("packing") or not meta.get("documents"):
        return False
    return not meta.get("whole") or (meta["documents"] > 1 and meta["two_shortest"] <= room)


class ChatBatches:
    """Conversations (or games), each whole: inputs, targets and segments (B, T).

    A target that is not learned is IGNORE.

    packing: conversations share a row, put together once by `best_fit` and kept apart by their segments; the
    rows are permuted each epoch. Without it, where no two fit together, and for scoring games a row is one
    conversation, and T is the length of the longest. What is left of a row is padding: token 0, segment 0,
    target IGNORE.
    legality: of games whose rules are taught: rows to train on say which tokens may follow.
    """

    def __init__(
        self, split: Split, context: int, seed: int, packing: bool, legality: Legality | None = None
    ) -> None:
        self._split, self._games, self._legality = split, bool(split.meta.get("whole")), legality
        self._what = "game" if self._games else "conversation"
        self._tokens = np.asarray(split.arrays["tokens"])
        trained = split.arrays.get("trained")
        self._trained = None if trained is None else np.asarray(trained)
        ends = np.asarray(split.arrays["documents"], np.int64)
        self._edges = np.concatenate([np.zeros(1, np.int64), ends])
        self._pairs = np.diff(self._edges) - 1  # (d,) tokens of each conversation that have a next one
        self._longest = int(self._pairs.max(initial=1))
        if self._longest > context:
            self._refuse(int(self._pairs.argmax()), context)
        self._bins = best_fit(self._pairs, context) if packing else [[row] for row in range(len(ends))]
        self.packed = packing and not (self._games and len(self._bins) == len(ends))
        self.tokens_per_row = context if self.packed else self._longest
        self.rows = len(self._bins)
        self.scored: np.ndarray | None = None
        self._order = Order(self.rows, seed)

    def _refuse(self, document: int, context: int) -> None:
        place, length = place_of(self._split, document), int(self._pairs[document]) + 1
        if self._games:
            raise ConfigError(
                f"model.context: a game of {self._split.name} has {length - 1:,} moves"
                f"{f' ({place})' if place else ''}, and the model's context takes {context:,}: raise it, or "
                f"keep only the beginning of longer games (data.encode.length: {context})"
            )
        raise ConfigError(
            f"data.encode.length: a conversation of {self._split.name} has {length:,} tokens"
            f"{f' ({place})' if place else ''}, and the model's context takes {context:,}: set "
            f"data.encode.length: {context} (with long: cut or split), or a model with a longer context"
        )

    def batch(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order."""
        rows = [self._windows(self._bins[row]) for row in self._chosen(start, count)]
        batch = self._lay_out(rows, self.packed)
        return batch if self._legality is None else replace(batch, allowed=self._allowed(rows, batch))

    def lengths(self, start: int, count: int) -> list[int]:
        """How many tokens of each of those rows are no padding."""
        return [
            sum(int(self._pairs[document]) for document in self._bins[row])
            for row in self._chosen(start, count)
        ]

    def where(self, start: int, count: int) -> list[str]:
        """`chats.json:12, chats.json:90 (row 3 of train)`, rows counted from 1."""
        names = []
        for row in self._chosen(start, count):
            places = [
                place_of(self._split, document) or f"{self._what} {document + 1}"
                for document in self._bins[row]
            ]
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            names.append(f"{', '.join(places[:3])}{more} (row {row + 1} of {self._split.name})")
        return names

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """Every conversation once, as they stand; with packing a row is filled while the next one fits.

        Games are judged one by one, and stand so.
        """
        packed = self.packed and not self._games
        filled = self._filled() if packed else ([one] for one in range(len(self._pairs)))
        for rows in dealt(filled, size, first, every):
            yield self._lay_out([self._windows(documents) for documents in rows], packed)

    def _filled(self) -> Iterator[list[int]]:
        row: list[int] = []
        free = self.tokens_per_row
        for document, length in enumerate(self._pairs.tolist()):
            if length > free:
                yield row
                row, free = [], self.tokens_per_row
            row.append(document)
            free -= length
        if row:
            yield row

    def _chosen(self, start: int, count: int) -> list[int]:
        if self.rows == 0:
            raise DataError(f"{self._split.name} has no {self._what}s to train on")
        return [int(row) for _, rows in self._order.rows(start, count) for row in rows]

    def _windows(self, documents: list[int]) -> Windows:
        return [(int(self._edges[document]), int(self._pairs[document])) for document in documents]

    def _allowed(self, rows: list[Windows], batch: Batch) -> Tensor:
        assert self._legality is not None
        games = [window for row in rows for window in row]
        played = np.zeros((len(games), max(length for _, length in games)), np.int64)
        for game, (start, length) in enumerate(games):
            played[game, :length] = self._tokens[start : start + length]
        legal = iter(self._legality.after(played))
        found = np.zeros((*batch.inputs.shape, self._legality.vocabulary), dtype=bool)
        for i, row in enumerate(rows):
            at = 0
            for _, length in row:
                found[i, at : at + length] = next(legal)[:length]
                at += length
        return torch.from_numpy(found)

    def _lay_out(self, rows: list[Windows], packed: bool) -> Batch:
        width = self.tokens_per_row if packed else self._longest
        return lay_out(self._tokens, rows, width, self._edges, packed=packed, trained=self._trained)
