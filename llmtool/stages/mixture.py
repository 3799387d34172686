"""What prepare knows of a mixture: the part of each row, what became of it, where parts lie on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.core.errors import DataError
from llmtool.data.mixture import MixtureSource
from llmtool.data.sources import SPLITS, Chunk
from llmtool.data.splitting import DROPPED
from llmtool.data.store import mapped


@dataclass
class Parts:
    """The part of every row read, as they come: runs of (part, rows), and rows that no reader understood."""

    names: list[str]
    runs: list[tuple[int, int]] = field(default_factory=list)
    unread: Counter[tuple[int, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, source: Any) -> Parts | None:
        """Of a mixture, nothing read yet; None for a source of another kind."""
        return cls(list(source.parts)) if isinstance(source, MixtureSource) else None

    def note(self, chunk: Chunk) -> None:
        """The rows of this chunk are read."""
        assert chunk.part is not None
        self.runs.append((chunk.part, len(chunk)))
        self.unread.update((chunk.part, row.reason) for row in chunk.bad)

    def of_rows(self) -> np.ndarray:
        """(parsed rows,) the part of each."""
        parts, counts = zip(*self.runs, strict=True) if self.runs else ((), ())
        return np.repeat(np.array(parts, np.int64), np.array(counts, np.int64))

    def absent(self, part: np.ndarray, split: np.ndarray) -> list[str]:
        """Sentences on parts that a split has nothing of; part, split: of each row that was split."""
        said = []
        for number, name in enumerate(self.names):
            there = set(split[part == number].tolist())
            if lacking := [SPLITS[code] for code in sorted({*split.tolist()} - {DROPPED, *there})]:
                hint = (
                    " (split: {by: order} cuts within a document)" if DROPPED not in there and there else ""
                )
                said.append(f"the part {name} has nothing in {' and '.join(lacking)}{hint}")
        return said


def account(
    parts: Parts,
    code: np.ndarray,
    fates: np.ndarray,
    reasons: list[tuple[str, str]],
    dropped: Mapping[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """The ledger of each part: read = kept + dropped + quarantined.

    code: (rows,) the split of every parsed row, DROPPED for none. fates: (rows,) 0 where nothing refused a
    row, else the number of its reason, from 1. dropped: what splitting dropped, among the rows it was given.
    """
    part = parts.of_rows()
    given = np.flatnonzero((fates == 0) | (code >= 0))  # what an encoder refused later was given to the split
    result = {}
    for number, name in enumerate(parts.names):
        mine = part == number
        counts = np.bincount(fates[mine], minlength=len(reasons) + 1)[1:]
        found: dict[str, Counter[str]] = {"dropped": Counter(), "quarantined": Counter()}
        for (kind, reason), count in zip(reasons, counts.tolist(), strict=True):
            found[kind][reason] += count
        for reason, mask in dropped.items():
            found["dropped"][reason] += int((mask & mine[given]).sum())
        found["quarantined"].update({why: n for (at, why), n in parts.unread.items() if at == number})
        kept = np.bincount(code[mine & (fates == 0) & (code >= 0)], minlength=len(SPLITS)).tolist()
        told = {kind: {why: n for why, n in counts.most_common() if n} for kind, counts in found.items()}
        read = int(mine.sum()) + sum(n for (at, _), n in parts.unread.items() if at == number)
        total = sum(kept) + sum(sum(counts.values()) for counts in told.values())
        assert total == read, f"the ledger of {name} does not balance: {read} read, {total} accounted for"
        result[name] = {"read": read, "kept": dict(zip(SPLITS, kept, strict=True)), **told}
    return result


def mark(splits: Mapping[str, dict[str, Any]], directory: Path, source: MixtureSource) -> None:
    """Write into each split's entry of the card what it has of each part: rows (of a stream of tokens: its
    documents), tokens, and the share of the split that these are.

    Parts stand one after the other in every array, in the order of the source.
    """
    of_file = source.part_of_files()
    for split, meta in splits.items():
        arrays = mapped(directory, meta)
        part = of_file[np.asarray(arrays["origin"])[:, 0]]
        if (np.diff(part) < 0).any():
            raise DataError(f"{split}: rows of different parts are mixed up")
        rows = np.bincount(part, minlength=len(source.parts))
        about: list[dict[str, Any]] = [{"rows": count} for count in rows.tolist()]
        sizes = rows
        if "documents" in arrays:
            ends = np.concatenate([[0], np.asarray(arrays["documents"], np.int64)])[np.cumsum([0, *rows])]
            sizes = np.diff(ends)
            for one, tokens in zip(about, sizes.tolist(), strict=True):
                one["tokens"] = tokens
        for one, size in zip(about, sizes.tolist(), strict=True):
            one["share"] = size / max(1, int(sizes.sum()))
        meta["parts"] = dict(zip(source.parts, about, strict=True))
