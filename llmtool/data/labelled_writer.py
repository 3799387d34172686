"""Encodes labelled texts, and writes those of one split: ids, ends, targets, columns beside them, places."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.data.cells import MISSING
from llmtool.data.encoding import Encoded
from llmtool.data.store import ArrayWriter
from llmtool.data.text_columns import columns_of, names_of, texts_of
from llmtool.data.tokens import problem_of

if TYPE_CHECKING:
    from llmtool.data.labelled import TextEncoder
    from llmtool.data.sources import Chunk

TEXTS = 4096  # encoded at once
_KEPT = {"head": "their beginning was kept", "tail": "their end was kept", "head_tail": "their beginning and "
         "end were kept", "chunks": "chunks evenly taken from all of each were kept"}  # fmt: skip


def encoded(encoder: TextEncoder, chunk: Chunk) -> Encoded:
    """tokens, the ids of all rows, of which each has `sizes`, and had `lengths` before it was cut; targets,
    origin, features."""
    parts = [
        _part(encoder, chunk.take(np.arange(len(chunk)) // TEXTS == at))
        for at in range(-(-len(chunk) // TEXTS))
    ]
    refused = {ordinal: reason for part in parts for ordinal, reason in part.refused.items()}
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return Encoded(arrays, refused)


def _part(encoder: TextEncoder, chunk: Chunk) -> Encoded:
    assert encoder.target is not None, "fit() comes first"
    frame, columns = chunk.frame, encoder.config.text
    targets, refused = encoder.target.encode(frame, MISSING)
    name, blank = " + ".join(names_of(columns)), [""] * len(names_of(columns))
    texts = texts_of(frame, columns)
    reasons = {at: f"{name} {reason}" for at, text in enumerate(texts) if (reason := problem_of(text))}
    cells = columns_of(frame, columns)
    rows, lengths = encoder.encode([blank if at in reasons else row for at, row in enumerate(cells)])
    for at in np.flatnonzero(lengths == 0).tolist():
        reasons.setdefault(at, f"{name} gives no token")
    arrays: dict[str, np.ndarray] = {}
    if encoder.features is not None:
        arrays["features"], more = encoder.features.encode(frame)
        refused = {**more, **refused}
    refused = {**refused, **reasons}
    keep = np.ones(len(frame), dtype=bool)
    keep[list(refused)] = False
    kept = [rows[at] for at in np.flatnonzero(keep)]
    arrays |= {
        "targets": targets,
        "lengths": lengths,
        "origin": np.stack([chunk.file, chunk.line], axis=1).astype(np.int64),
        "sizes": np.array([len(row) for row in rows], dtype=np.int64),
    }
    arrays = {name: array[keep] for name, array in arrays.items()}
    arrays["tokens"] = np.concatenate([np.empty(0, encoder.dtype), *kept]).astype(encoder.dtype)
    ordinals = frame.index.to_numpy()
    return Encoded(arrays, {int(ordinals[row]): reason for row, reason in sorted(refused.items())})


class TextWriter:
    """tokens (n,), documents (rows,) int64 ends, targets (rows,) or (rows, n), origin (rows, 2) of places."""

    def __init__(self, encoder: TextEncoder, directory: Path, split: str) -> None:
        assert encoder.target is not None
        self._encoder, self._split = encoder, split
        target, name = encoder.target, f"{directory / split}"
        self._tokens = ArrayWriter(Path(f"{name}.tokens.bin"), encoder.dtype)
        self._documents = ArrayWriter(Path(f"{name}.documents.bin"), "<i8")
        self._beside = {
            "targets": ArrayWriter(Path(f"{name}.targets.bin"), target.dtype, target.shape),
            "origin": ArrayWriter(Path(f"{name}.origin.bin"), "<i8", (2,)),
        }
        if encoder.features is not None:
            width = len(encoder.features.features)
            self._beside["features"] = ArrayWriter(Path(f"{name}.features.bin"), "<f4", (width,))
        self._long = self._lost = self._unknown = self._longest = self._seen = self._chunks = 0

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Write the rows that can be encoded; the ordinals of the others come back with reasons."""
        return self.write(self._encoder.encoded(chunk)) if len(chunk) else {}

    def write(self, encoded: Encoded) -> dict[int, str]:
        """The same of rows that are encoded."""
        ids, sizes, lengths = (encoded.arrays[name] for name in ("tokens", "sizes", "lengths"))
        if len(sizes):
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
            for name, array in self._beside.items():
                array.append(encoded.arrays[name])
        return encoded.refused

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
            **self._beside,
        }
        return {
            "rows": rows,
            "tokens": tokens,
            "longest": self._longest,
            "cut": self._long,
            **({"chunks": self._chunks} if config.long == "chunks" else {}),
            "arrays": {name: array.close() for name, array in arrays.items()},
        }
