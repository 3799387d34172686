"""Documents that are nearly the same, found through MinHash sketches without comparing all pairs.

A document is the set of its runs of three words (of Chinese: of three characters). Its sketch is the smallest
hash in each of 126 bins (one permutation hashing, https://arxiv.org/abs/1208.1259, empty bins filled from
their neighbours as in https://arxiv.org/abs/1406.4784); the share of equal bins estimates the share of common
runs (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900). Pairs are compared that agree in one of 42
bands of three bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from llmtool.data.shingles import mixed
from llmtool.data.writing_systems import WORD

BINS, BAND = 126, 3
RUN = 3  # words
ALIKE = 0.4  # share of equal bins; one word in ten changed leaves 0.57 of the runs
SHORTEST = 8  # words; shorter ones are compared as they are, but for case and punctuation
MOST_PAIRS = 20_000_000  # compared
_EMPTY = np.uint64(2**64 - 1)


def near_documents(texts: Sequence[str], code: np.ndarray) -> list[tuple[int, int]]:
    """(document of validation or test, document of train) for each of the former that has such a partner.

    code: (n,) split of each, 0 for train. The partner is the most alike of those compared.
    """
    words: dict[str, int] = {}
    sketches = np.full((len(texts), BINS), _EMPTY)
    same: dict[bytes, list[int]] = {}
    for row, text in enumerate(texts):
        found = WORD.findall(text.casefold())
        numbers = np.array([words.setdefault(word, len(words)) for word in found], np.uint64)
        if len(numbers) >= SHORTEST:
            sketches[row] = sketch(numbers)
        elif len(numbers):
            same.setdefault(xxhash.xxh3_128_digest(numbers.tobytes()), []).append(row)
    best: dict[int, tuple[float, int]] = {}
    for rows in same.values():
        train = [row for row in rows if code[row] == 0]
        best |= {row: (1.0, train[0]) for row in rows if train and code[row] > 0}
    for row, partner, share in _alike(sketches, code):
        if share > best.get(row, (0.0, 0))[0]:
            best[row] = (share, partner)
    return sorted((row, partner) for row, (_, partner) in best.items())


def sketch(words: np.ndarray) -> np.ndarray:
    """(BINS,) uint64 of a document's words, at least RUN of them; words: (n,) uint64."""
    runs = words[: len(words) - RUN + 1].copy()
    for step in range(1, RUN):
        runs = mixed(runs) + words[step : len(words) - RUN + 1 + step]
    runs = mixed(runs)
    bins = (runs % np.uint64(BINS)).astype(np.int64)
    smallest = np.full(BINS, _EMPTY)
    np.minimum.at(smallest, bins, runs)
    filled = np.flatnonzero(smallest != _EMPTY)
    at = np.searchsorted(filled, np.arange(BINS)) % len(
        filled
    )  # the next bin to the right that holds something
    distance = (filled[at] - np.arange(BINS)) % BINS
    return smallest[filled[at]] + distance.astype(np.uint64)


def _alike(sketches: np.ndarray, code: np.ndarray) -> list[tuple[int, int, float]]:
    """(row, row of train, share of equal bins) of the pairs compared that are alike."""
    train = np.flatnonzero((code == 0) & (sketches[:, 0] != _EMPTY))
    other = np.flatnonzero((code > 0) & (sketches[:, 0] != _EMPTY))
    found: list[tuple[int, int, float]] = []
    if not len(train) or not len(other):
        return found
    left = MOST_PAIRS
    for band in range(0, BINS, BAND):
        keys = sketches[:, band].copy()
        for bin_ in range(band + 1, band + BAND):
            keys = mixed(keys) + sketches[:, bin_]
        order = train[np.argsort(keys[train], kind="stable")]
        low = np.searchsorted(keys[order], keys[other], side="left")
        count = np.minimum(np.searchsorted(keys[order], keys[other], side="right") - low, 50)
        rows = np.repeat(other, count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        partners = order[np.repeat(low, count) + within]
        for start in range(0, min(len(rows), left), 50_000):
            part = slice(start, start + 50_000)
            share = (sketches[rows[part]] == sketches[partners[part]]).mean(axis=1)
            for at in np.flatnonzero(share >= ALIKE):
                found.append((int(rows[part][at]), int(partners[part][at]), float(share[at])))
        left -= len(rows)
        if left <= 0:
            break
    return found
