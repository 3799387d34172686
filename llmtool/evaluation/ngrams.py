"""A back-off n-gram model of a token stream: the baseline that a small language model has to beat.

Interpolated Kneser-Ney with three discounts (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128):
a true probability over the whole vocabulary, by sorting and searching alone. An n-gram is known by a hash of
64 bits of its tokens; that any two of a million share one has a chance of one in thirty million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtool.core import seeds
from llmtool.data.batches import unit_edges
from llmtool.data.store import Split

Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

MOST_TOKENS = 5_000_000  # of the training text; sorting them is what learning takes
HIGHEST = 8  # order tried
HELD_OUT = 10  # a tenth of the training text chooses the order
EMPTY = np.uint64(0)  # the hash of no token at all


@dataclass(frozen=True)
class Stream:
    """Tokens of documents one after another. tokens: (n,). place: (n,) position of each in its document."""

    tokens: Integers
    place: Integers

    @classmethod
    def of(cls, tokens: np.ndarray, ends: np.ndarray) -> Stream:
        """ends: (d,) where each document ends in the stream."""
        starts = np.concatenate([[0], np.asarray(ends[:-1], np.int64)])
        lengths = np.diff(np.concatenate([[0], np.asarray(ends, np.int64)]))
        return cls(np.asarray(tokens, np.int64), np.arange(len(tokens)) - np.repeat(starts, lengths))

    def part(self, start: int, end: int) -> Stream:
        """Tokens start to end."""
        return Stream(self.tokens[start:end], self.place[start:end])


@dataclass(frozen=True)
class _Order:
    """What is known of the n-grams of one length: keys sorted, each with its count; contexts likewise."""

    keys: Hashes
    counts: Floats
    contexts: Hashes
    sums: Floats  # of the counts that follow each context
    back: Floats  # (c,) weight of the shorter context
    best: Integers  # (c,) the token that follows most often
    discounts: NDArray[Any]  # of counts 1, 2, 3 and more


class NGrams:
    """n-grams of every order up to `highest`, of which any may be asked for.

    The order asked for counts how often; those below it, after how many different tokens (continuations).
    """

    def __init__(self, stream: Stream, vocabulary: int, highest: int) -> None:
        self.vocabulary = vocabulary
        self._plain: list[_Order] = []
        self._continued: list[_Order] = []
        hashes = _hashes(stream, highest)
        for order in range(1, highest + 1):
            there = np.flatnonzero(stream.place >= order - 1)
            if not len(there):
                break
            keys, first, counts = np.unique(hashes[order][there], return_index=True, return_counts=True)
            at = there[first]  # where in the text each n-gram stands for the first time
            if order > 1:  # of the n-grams one shorter: how many different tokens come before each
                shorter = hashes[order - 1][at]
                below, index, different = np.unique(shorter, return_index=True, return_counts=True)
                self._continued.append(_order(below, different, at[index], stream, hashes[order - 2]))
            self._plain.append(_order(keys, counts, at, stream, hashes[order - 1]))

    @property
    def highest(self) -> int:
        """The highest order there is."""
        return len(self._plain)

    def score(self, stream: Stream, orders: list[int]) -> dict[int, tuple[Floats, Integers]]:
        """Order -> the nats of each token of the stream, and which one was foreseen.

        Foreseen is what most often followed the longest context that was seen in training.
        """
        n = len(stream.tokens)
        hashes = _hashes(stream, max(orders))
        lower = np.full(n, 1 / self.vocabulary)
        guess = np.zeros(n, np.int64)
        found = {}
        for order in range(1, max(orders) + 1):
            there = np.flatnonzero(stream.place >= order - 1)
            asked = (hashes[order][there], hashes[order - 1][there - 1])
            if order in orders:
                probability, seen = lower.copy(), guess.copy()
                probability[there], seen[there] = _mix(
                    self._plain[order - 1], *asked, lower[there], guess[there]
                )
                found[order] = -np.log(probability), seen
            if order < max(orders):
                lower[there], guess[there] = _mix(
                    self._continued[order - 1], *asked, lower[there], guess[there]
                )
        return found


def best_order(stream: Stream, vocabulary: int) -> int:
    """The order that does best on the last tenth of the training text, learned from the rest."""
    cut = len(stream.tokens) - len(stream.tokens) // HELD_OUT
    model = NGrams(stream.part(0, cut), vocabulary, HIGHEST)
    held_out = stream.part(cut, len(stream.tokens))
    held_out = Stream(held_out.tokens, np.minimum(held_out.place, np.arange(len(held_out.tokens))))
    scored = model.score(held_out, list(range(1, model.highest + 1)))
    return min(scored, key=lambda order: float(scored[order][0].sum()))


def _hashes(stream: Stream, highest: int) -> list[Hashes]:
    """By order, the hash of the n-gram that ends at each position; order 0 is empty."""
    result = [np.full(len(stream.tokens), EMPTY)]
    tokens = (stream.tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for _ in range(highest):
        before = np.concatenate([[EMPTY], result[-1][:-1]])
        result.append(seeds.scrambled(before ^ tokens))
    return result


def _order(keys: Hashes, counts: Integers, at: Integers, stream: Stream, contexts: Hashes) -> _Order:
    """keys: (m,) sorted. counts: of each. at: where each ends in the stream. contexts: one shorter."""
    discounts = _discounts(counts)
    known, index = np.unique(contexts[at - 1], return_inverse=True)  # of order 0 all are the same
    sums = np.bincount(index, counts).astype(np.float64)
    taken = np.bincount(index, discounts[np.minimum(counts, 3) - 1])
    # The most frequent token first; of equals, the lowest.
    rank = np.lexsort((stream.tokens[at], -counts, index))
    first = rank[np.unique(index[rank], return_index=True)[1]]
    return _Order(
        keys, counts.astype(np.float64), known, sums, taken / sums, stream.tokens[at[first]], discounts
    )


def _discounts(counts: Integers) -> NDArray[Any]:
    """What is taken from counts of 1, 2, and 3 or more; three quarters where too few are there to tell."""
    one, two, three, four = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (one and two and three and four):
        return np.array([0.75, 0.75, 0.75])
    share = one / (one + 2 * two)
    found = [1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three]
    return np.clip(found, 0.05, [0.95, 1.95, 2.95])


def _mix(
    order: _Order, keys: Hashes, contexts: Hashes, lower: Floats, guess: Integers
) -> tuple[Floats, Integers]:
    """Probabilities and guesses of one order from those of the order below."""
    at, seen = _find(order.contexts, contexts)
    place, there = _find(order.keys, keys)
    count = np.where(there, order.counts[place], 0.0)
    discount = np.where(there, order.discounts[np.minimum(count, 3).astype(np.int64) - 1], 0.0)
    mixed = (count - discount) / order.sums[at] + order.back[at] * lower
    return np.where(seen, mixed, lower), np.where(seen, order.best[at], guess)


def _find(keys: Hashes, wanted: Hashes) -> tuple[Integers, NDArray[np.bool_]]:
    """Where each wanted key stands among the sorted ones, and whether it is there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def stream_of(split: Split) -> Stream:
    """The text of a split."""
    return Stream.of(np.asarray(split.arrays["tokens"]), np.asarray(split.arrays["documents"]))


def by_unit(split: Split, nats: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(3, u) sums over the units that a model's evidence has; a document's first token is never scored, nor
    what nobody learns of a conversation."""
    scored = np.ones(len(nats))
    if "trained" in split.arrays:
        scored *= np.asarray(split.arrays["trained"]) > 0
    scored[np.concatenate([[0], np.asarray(split.arrays["documents"][:-1], np.int64)])] = 0
    starts = unit_edges(split)[:-1]
    return np.stack([np.add.reduceat(part * scored, starts) for part in (nats, np.ones(len(nats)), right)])
