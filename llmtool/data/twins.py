"""Pictures that are the same to the last pixel: across splits, and in train with different targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.data.layout import name_of
from llmtool.data.leakage import Finding
from llmtool.data.store import Split, mapped

SHOWN = 5  # pairs


def of_pictures(
    seen: Mapping[str, list[np.ndarray]], splits: Mapping[str, Mapping[str, Any]], directory: Path
) -> list[Finding]:
    """A finding for each split that shares pictures with train, and one for those of train whose targets
    differ.

    seen: split -> (n,) uint64 hashes of the pictures' pixels, in the order of the split's rows. splits: their
    entries in the card. Pictures were fitted to one size: what differs only outside of it is the same here.
    """
    keys = {name: np.concatenate([*parts, np.zeros(0, np.uint64)]) for name, parts in seen.items()}
    read = {name: Split(name, meta["rows"], mapped(directory, meta), {}, []) for name, meta in splits.items()}
    if "train" not in keys:
        return []
    order = np.argsort(keys["train"], kind="stable")
    known = keys["train"][order]
    found = []
    for name in ("validation", "test"):
        if name not in keys:
            continue
        at = np.minimum(np.searchsorted(known, keys[name]), len(known) - 1)
        rows = np.flatnonzero(known[at] == keys[name])
        if not len(rows):
            continue
        pairs = [(name_of(read[name], int(row)), name_of(read["train"], int(order[at[row]])))
                 for row in rows[:SHOWN]]  # fmt: skip
        verb = "is" if len(rows) == 1 else "are"
        says = (
            f"{len(rows):,} of {len(keys[name]):,} pictures of {name} {verb} the same, pixel for pixel, as "
            f"one of train ({pairs[0][0]} and {pairs[0][1]})"
        )
        advice = "take them out of one of the two: the model has seen them"
        shown = [f"{mine} and {its}" for mine, its in pairs]
        share = len(rows) / len(keys[name])
        found.append(Finding("same_pictures", says, advice, True, [], len(rows), share, shown))
    return found + _contradictions(known, order, read["train"])


def _contradictions(known: np.ndarray, order: np.ndarray, train: Split) -> list[Finding]:
    """Neighbours in the order of hashes that are the same picture with another target."""
    targets = np.asarray(train.arrays["targets"])[order].reshape(len(order), -1)
    differ = (known[1:] == known[:-1]) & (targets[1:] != targets[:-1]).any(axis=1)
    rows = np.flatnonzero(differ)
    if not len(rows):
        return []
    shown = [
        f"{name_of(train, int(order[row]))} and {name_of(train, int(order[row + 1]))}" for row in rows[:SHOWN]
    ]
    times = "a picture of train stands" if len(rows) == 1 else f"{len(rows):,} pictures of train stand"
    says = f"{times} there again with another target ({shown[0]})"
    advice = "one of the two is wrong"
    return [Finding("contradictions", says, advice, False, [], len(rows), None, shown)]
