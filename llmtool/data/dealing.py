"""Units of rows dealt out to train, validation and test: how many of each, and which."""

from __future__ import annotations

import numpy as np


def edges(total: int, shares: np.ndarray) -> np.ndarray:
    """(3,) where each split ends among so many rows in order."""
    return np.floor(np.cumsum(shares) * total + 1e-6).astype(np.int64)


def counts(total: int, shares: np.ndarray) -> np.ndarray:
    """(3,) whole rows that add up to `total`; no wanted share gets nothing where there are enough rows."""
    found = np.diff(edges(total, shares), prepend=0)
    found[0] += total - found.sum()
    for code in np.flatnonzero((shares > 0) & (found == 0)):
        if found.max() > 1:
            found[found.argmax()] -= 1
            found[code] += 1
    return found


def class_counts(members: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(classes, 3) rows of each class for each split, within one of its share; sums as exact as can be."""
    ideal = members[:, None] * shares
    found = np.floor(ideal + 1e-9).astype(np.int64)
    lack = counts(int(members.sum()), shares) - found.sum(axis=0)
    for which in np.argsort(members, kind="stable"):
        for code in np.argsort(found[which] - ideal[which], kind="stable")[
            : members[which] - found[which].sum()
        ]:
            found[which, code] += 1
            lack[code] -= 1
    _exchange(found, ideal, lack)
    nobody = (members > 0) & (found[:, 0] == 0)
    for which in np.flatnonzero(nobody):  # a class that train lacks can be neither learned nor scored
        found[which, found[which].argmax()] -= 1
        found[which, 0] += 1
    return found


def _exchange(counts: np.ndarray, ideal: np.ndarray, lack: np.ndarray) -> None:
    """Move rounded-up rows to splits that lack rows, where both stay within one row of the class's share."""
    for which in np.argsort(-ideal.sum(axis=1), kind="stable"):
        while lack.any():
            giver, taker = int(lack.argmin()), int(lack.argmax())
            up, down = counts[which, giver] - ideal[which, giver], ideal[which, taker] - counts[which, taker]
            if up <= 1e-9 or down <= 1e-9:
                break
            counts[which, giver] -= 1
            counts[which, taker] += 1
            lack[giver] += 1
            lack[taker] -= 1


def deal(sizes: np.ndarray, wanted: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(units,) int8 split of each unit: big ones by chance, then single rows to make up the counts."""
    chosen = np.zeros(len(sizes), np.int8)
    order = random.permutation(len(sizes))
    many, single = order[sizes[order] > 1], order[sizes[order] == 1]
    left = wanted.astype(np.float64)
    if len(many):
        ends = np.cumsum(sizes[many])
        bounds = np.cumsum(wanted)[:2] * (ends[-1] / wanted.sum())
        chosen[many] = np.searchsorted(bounds, ends - sizes[many] / 2, side="right")
        left -= np.bincount(chosen[many], weights=sizes[many], minlength=3)
    if len(single):
        left = np.maximum(left, 0)
        bounds = np.round(np.cumsum(left)[:2] * (len(single) / left.sum()))
        chosen[single] = np.searchsorted(bounds, np.arange(len(single)), side="right")
    return chosen


def fill_empty(chosen: np.ndarray, sizes: np.ndarray, shares: np.ndarray) -> None:
    """Give a split that is wanted but got nothing the smallest unit of the split with the most units."""
    for code in np.flatnonzero(shares > 0):
        units = np.bincount(chosen, minlength=3)
        if len(chosen) and units[code] == 0 and units.max() > 1:
            inside = np.flatnonzero(chosen == units.argmax())
            chosen[inside[sizes[inside].argmin()]] = code
