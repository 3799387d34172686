"""Figures of each part of a mixture, out of the evidence of a whole split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmtool.core.contracts import Tally
from llmtool.data.batches import Batches, is_stream, part_of_units
from llmtool.data.store import Dataset, Split


def parts_of(card: Mapping[str, Any] | None) -> list[str]:
    """The names of the parts, in the order of the source; none where the data is no mixture."""
    splits = (card or {}).get("splits", {}).values()
    return list(dict.fromkeys(name for meta in splits for name in meta.get("parts", {})))


def by_part(split: Split, tally: Tally, scored: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """Part -> its units and figures; those that the split has nothing of are left out.

    scored: (rows,) the rows of the split in the order in which they went into the tally; None: as they stand.
    """
    names, part = part_of_units(split)
    part = (part if scored is None else part[scored])[: tally.units]
    found = {}
    for number, name in enumerate(names):
        mine = part == number
        if mine.any():
            found[name] = {"units": int(mine.sum()), "metrics": tally.take(np.flatnonzero(mine)).metrics()}
    return found


def order(batches: Batches, size: int, ranks: int) -> np.ndarray:
    """(rows,) the rows of a split as they stand in the evidence of so many ranks, each of which had every
    n-th batch of `size` rows."""
    starts = range(0, batches.rows, size)
    mine = [range(at, min(at + size, batches.rows)) for rank in range(ranks) for at in starts[rank::ranks]]
    rows = np.array([row for part in mine for row in part], np.int64)
    return rows if batches.scored is None else batches.scored[rows]


def flat(
    dataset: Dataset,
    split: str,
    tally: Tally,
    batches: Batches,
    size: int,
    ranks: int,
    figures: Iterable[str],
) -> dict[str, float]:
    """Some figures of each part as `code.loss`: the part, and the figure. size, ranks: as of `order`."""
    found: dict[str, dict[str, Any]] = {}
    if parts_of(dataset.card):
        seen = dataset.split(split)
        found = by_part(seen, tally, None if is_stream(seen) else order(batches, size, ranks))
    return {
        f"{name}.{figure}": about["metrics"][figure]
        for name, about in found.items()
        for figure in dict.fromkeys(figures)
        if figure in about["metrics"]
    }


def with_parts(dataset: Dataset, figures: Iterable[str]) -> list[str]:
    """Names of figures, and those of each part."""
    names = list(figures)
    return [*names, *(f"{part}.{name}" for part in parts_of(dataset.card) for name in names)]


def columns(split: Split) -> dict[str, np.ndarray]:
    """The column `part`, (units,) words, by which figures can be sliced; none where there are no parts."""
    names, part = part_of_units(split)
    return {"part": np.array(names, dtype=object)[part]} if names else {}
