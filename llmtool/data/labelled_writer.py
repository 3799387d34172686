"""Writes the labelled texts of one split: ids, ends, targets, columns beside them, where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.data.cells import MISSING
from llmtool.data.store import ArrayWriter
from llmtool.data.text_columns import columns_of, names_of, texts_of
from llmtool.data.tokens import problem_of

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.labelled import TextEncoder
    from llmtool.data.sources import Chunk

TEXTS = 4096  # encoded at once
_KEPT = {"head": "their beginning was kept", "tail": "their end was kept", "head_tail": "their beginning and "
         "end were kept", "chunks": "chunks evenly taken from all of each were kept"}  # fmt: skip


class TextWriter:
    """tokens (n,), documents (rows,) int64 ends, targets (rows,) or (rows, n), origin (rows, 2) of places."""

    def __init__(self, encoder: TextEncoder, directory: Path, split: str) -> None:
        self._encoder, self._split = encoder, split
        assert encoder.target is not None
        self._target = encoder.target
        dtype = "<u2" if encoder.fitted.vocabulary < 1 << 16 else "<u4"
        self._tokens = ArrayWriter(directory / f"{split}.tokens.bin", dtype)
        self._documents = ArrayWriter(directory / f"{split}.documents.bin", "<i8")
        self._targets = ArrayWriter(
            directory / f"{split}.targets.bin", self._target.dtype, self._target.shape
        )
        self._origin = ArrayWriter(directory / f"{split}.origin.bin", "<i8", (2,))
        self._features: ArrayWriter | None = None
        if encoder.features is not None:
            width = len(encoder.features.features)
            self._features = ArrayWriter(directory / f"{split}.features.bin", "<f4", (width,))
        self._long = self._lost = self._unknown = self._longest = self._seen = self._chunks = 0

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Write the rows that can be encoded; the ordinals of the others come back with reasons."""
        refused: dict[int, str] = {}
        for start in range(0, len(chunk.frame), TEXTS):
            part = slice(start, start + TEXTS)
            places = np.stack([chunk.file[part], chunk.line[part]], axis=1).astype(np.int64)
            refused |= self._add(chunk.frame.iloc[part], places)
        return refused

    def _add(self, frame: pd.DataFrame, places: np.ndarray) -> dict[int, str]:
        targets, refused = self._target.encode(frame, MISSING)
        texts = texts_of(frame, self._encoder.config.text)
        name = " + ".join(names_of(self._encoder.config.text))
        reasons = {at: f"{name} {reason}" for at, text in enumerate(texts) if (reason := problem_of(text))}
        cells = columns_of(frame, self._encoder.config.text)
        blank = [""] * len(names_of(self._encoder.config.text))
        rows, lengths = self._encoder.encode(
            [blank if at in reasons else row for at, row in enumerate(cells)]
        )
        for at in np.flatnonzero(lengths == 0).tolist():
            reasons.setdefault(at, f"{name} gives no token")
        block = None
        if self._encoder.features is not None:
            block, more = self._encoder.features.encode(frame)
            refused = {**more, **refused}
        refused = {**refused, **reasons}
        keep = np.ones(len(frame), dtype=bool)
        keep[list(refused)] = False
        kept = [rows[at] for at in np.flatnonzero(keep)]
        if kept:
            self._write(kept, lengths[keep])
            self._targets.append(targets[keep])
            if self._features is not None and block is not None:
                self._features.append(block[keep])
            self._origin.append(places[keep])
        ordinals = frame.index.to_numpy()
        return {int(ordinals[row]): reason for row, reason in sorted(refused.items())}

    def _write(self, rows: list[np.ndarray], lengths: np.ndarray) -> None:
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.concatenate(rows)
        if self._encoder.fitted.unknown is not None:
            self._unknown += int((ids == self._encoder.fitted.unknown).sum())
        lost = self._encoder.left_out(lengths)
        self._long += int((lost > 0).sum())
        self._lost += int(lost.sum())
        self._seen += int(lengths.sum())
        self._chunks += int(-(-sizes // self._encoder.config.length).sum())
        self._longest = max(self._longest, int(sizes.max()))
        self._documents.append(np.cumsum(sizes) + self._tokens.rows)
        self._tokens.append(ids)

    def close(self) -> dict[str, Any]:
        """Rows written, what was cut, and the arrays."""
        rows, tokens, config = self._documents.rows, self._tokens.rows, self._encoder.config
        most = config.length * (config.chunks if config.long == "chunks" else 1)
        if self._long:
            self._encoder.notes.append(
                f"{self._split}: {self._long:,} of {rows:,} texts have more than {most:,} tokens; "
                f"{_KEPT[config.long]}, {self._lost:,} of {self._seen:,} tokens were left out"
            )
        if self._chunks > rows:
            self._encoder.notes.append(
                f"{self._split}: {rows:,} texts are {self._chunks:,} chunks of up to {config.length:,} tokens"
            )
        if self._unknown:
            self._encoder.notes.append(
                f"{self._split}: {self._unknown:,} of {tokens:,} tokens are unknown ones"
            )
        arrays = {
            "tokens": self._tokens,
            "documents": self._documents,
            "targets": self._targets,
            "origin": self._origin,
            **({} if self._features is None else {"features": self._features}),
        }
        return {
            "rows": rows,
            "tokens": tokens,
            "longest": self._longest,
            "cut": self._long,
            **({"chunks": self._chunks} if config.long == "chunks" else {}),
            "arrays": {name: array.close() for name, array in arrays.items()},
        }
