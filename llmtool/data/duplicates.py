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

from llmtool.data.shingles import mixed, numbered, runs

BINS, BAND = 126, 3
RUN = 3  # words
ALIKE = 0.4  # share of equal bins; one word in ten changed leaves 0.57 of the runs
SURE = 0.9  # and from here on a document is compared no further
SHORTEST = 8  # words; shorter ones are compared as they are, but for case and punctuation
MOST_PAIRS = 20_000_000  # compared
TOGETHER = 1000  # documents that are sketched at once: what lies in memory for it
_EMPTY = np.uint64(2**64 - 1)


def near_documents(texts: Sequence[str], code: np.ndarray) -> list[tuple[int, int]]:
    """(document of validation or test, document of train) for each of the former that has such a partner.

    code: (n,) split of each, 0 for train. The partner is the most alike of those compared.
    """
    found = [sketches(texts[at : at + TOGETHER]) for at in range(0, len(texts), TOGETHER)]
    table = np.concatenate([np.zeros((0, BINS), np.uint64), *(part for part, _ in found)])
    same: dict[bytes, list[int]] = {}
    for number, (_, short) in enumerate(found):
        for row, words in short.items():
            same.setdefault(words, []).append(TOGETHER * number + row)
    best: dict[int, tuple[float, int]] = {}
    for rows in same.values():
        train = [row for row in rows if code[row] == 0]
        best |= {row: (1.0, train[0]) for row in rows if train and code[row] > 0}
    share, partner = _alike(table, code)
    for row in np.flatnonzero(share >= ALIKE).tolist():
        best[row] = (float(share[row]), int(partner[row]))
    return sorted((row, partner) for row, (_, partner) in best.items())


def sketches(texts: Sequence[str]) -> tuple[np.ndarray, dict[int, bytes]]:
    """(texts, BINS) uint64, all _EMPTY for a text of fewer than SHORTEST words; and of these, the words."""
    words, counts = numbered(texts)
    ends = np.cumsum(counts)
    few = np.flatnonzero((counts > 0) & (counts < SHORTEST)).tolist()
    short = {row: words[ends[row] - counts[row] : ends[row]].tobytes() for row in few}
    values, many = runs(words, counts, RUN)
    smallest = np.full((len(texts), BINS), _EMPTY)
    row = np.repeat(np.arange(len(texts)), many)
    long = counts[row] >= SHORTEST
    np.minimum.at(smallest, (row[long], (values[long] % np.uint64(BINS)).astype(np.int64)), values[long])
    # an empty bin takes the next to its right that holds something, and how far off that is
    place = np.where(smallest != _EMPTY, np.arange(BINS), 2 * BINS)
    around = np.hstack([place, place + BINS])
    at = np.minimum.accumulate(around[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    held = at < 2 * BINS
    filled = np.take_along_axis(smallest, at % BINS, axis=1) + (at - np.arange(BINS)).astype(np.uint64)
    return np.where(held, filled, _EMPTY), short


def _alike(sketches: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of each document the largest share of equal bins that one of train has with it, of the pairs
    compared, and (n,) which one that is."""
    best, partner = np.zeros(len(code)), np.zeros(len(code), np.int64)
    train = np.flatnonzero((code == 0) & (sketches[:, 0] != _EMPTY))
    left = MOST_PAIRS if len(train) else 0
    for band in range(0, BINS, BAND):
        other = np.flatnonzero((code > 0) & (sketches[:, 0] != _EMPTY) & (best < SURE))
        keys = sketches[:, band].copy()
        for bin_ in range(band + 1, band + BAND):
            keys = mixed(keys) + sketches[:, bin_]
        order = train[np.argsort(keys[train], kind="stable")]
        low = np.searchsorted(keys[order], keys[other], side="left")
        count = np.minimum(np.searchsorted(keys[order], keys[other], side="right") - low, 50)
        rows = np.repeat(other, count)[: max(0, left)]
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)[: len(rows)]
        partners = order[np.repeat(low, count)[: len(rows)] + within]
        for start in range(0, len(rows), 50_000):
            part = slice(start, start + 50_000)
            share = (sketches[rows[part]] == sketches[partners[part]]).mean(axis=1)
            more = np.flatnonzero(share > best[rows[part]])
            more = more[np.argsort(-share[more], kind="stable")[::-1]]  # of several the most alike comes last
            best[rows[part][more]] = share[more]
            partner[rows[part][more]] = partners[part][more]
        left -= len(rows)
    return best, partner
