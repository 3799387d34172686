"""Writes pictures into the store: decoded in threads, as arrays of one size or as the files they were."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from llmtool.core.errors import DataError
from llmtool.data import pictures
from llmtool.data.cells import MISSING
from llmtool.data.pictures import BadPicture
from llmtool.data.store import NAME_ENDS, ArrayWriter
from llmtool.data.targets import ClassTarget

if TYPE_CHECKING:
    from llmtool.data.images import ImagesEncoder
    from llmtool.data.sources import Chunk

BLOCK = 1 << 26  # bytes of decoded pictures held at once


@dataclass
class _Made:
    """One picture: its pixels, its file, a hash of its pixels, how often each value occurs; or why not."""

    reason: str = ""
    values: np.ndarray | None = None  # (c, h, w) uint8
    file: bytes = b""
    key: int = 0
    histogram: np.ndarray | None = None  # (c, 256) int64
    said: tuple[str, ...] = ()


class ImagesWriter:
    """images (rows, c, h, w) uint8, or encoded (n,) uint8 with encoded_ends (rows,) int64; targets (rows,) or
    (rows, n); origin (rows, 2) of places; names (n,) uint8 with name_ends (rows,) int64."""

    def __init__(self, encoder: ImagesEncoder, directory: Path, split: str) -> None:
        assert encoder.recipe is not None
        assert encoder.target is not None
        self._encoder, self._split, self._target = encoder, split, encoder.target
        recipe = encoder.recipe
        shape = (recipe.channels, recipe.height, recipe.width)
        self._block = max(2 * pictures.workers(), min(4096, BLOCK // int(np.prod(shape))))
        types: dict[str, tuple[str, tuple[int, ...]]] = {
            "targets": (self._target.dtype, self._target.shape), "origin": ("<i8", (2,)),
            "names": ("|u1", ()), NAME_ENDS: ("<i8", ()),
        }  # fmt: skip
        if encoder.config.store == "arrays":
            types = {"images": ("|u1", shape), **types}
        else:
            types = {"encoded": ("|u1", ()), "encoded_ends": ("<i8", ()), **types}
        self._arrays = {
            name: ArrayWriter(directory / f"{split}.{name}.bin", *about) for name, about in types.items()
        }
        self._histogram = np.zeros((recipe.channels, 256), np.int64)
        classes = self._target.names if isinstance(self._target, ClassTarget) else []
        self._counts = np.zeros(len(classes), np.int64)  # rows of each class
        self._said: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        encoder.seen[split] = []

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Write the rows whose picture and target can be read; the ordinals of the others come back with
        reasons."""
        cells = chunk.frame[self._encoder.config.image].tolist()
        targets, refused = self._target.encode(chunk.frame, MISSING)
        places = np.stack([chunk.file, chunk.line], axis=1).astype(np.int64)
        rows = [at for at in range(len(cells)) if at not in refused]
        with ThreadPoolExecutor(pictures.workers()) as pool:
            for start in range(0, len(rows), self._block):
                part = rows[start : start + self._block]
                made = list(pool.map(self._make, [cells[at] for at in part]))
                refused |= {at: one.reason for at, one in zip(part, made, strict=True) if one.reason}
                good = [(at, one) for at, one in zip(part, made, strict=True) if not one.reason]
                if good:
                    kept = np.array([at for at, _ in good])
                    self._write([one for _, one in good], [str(cells[at]) for at, _ in good])
                    self._arrays["targets"].append(targets[kept])
                    self._arrays["origin"].append(places[kept])
                    if self._target.kind == "classes":
                        self._counts += np.bincount(targets[kept], minlength=len(self._counts))
        self._reasons.update(refused.values())
        ordinals = chunk.frame.index.to_numpy()
        return {int(ordinals[row]): reason for row, reason in sorted(refused.items())}

    def _make(self, cell: Any) -> _Made:
        try:
            found, file = self._encoder.pixels(cell)
        except BadPicture as error:
            return _Made(str(error))
        made = _Made(
            values=found.values, said=found.said, key=xxhash.xxh3_64_intdigest(found.values.tobytes())
        )
        if self._split == "train":
            flat = found.values.reshape(len(found.values), -1)  # (c, h * w)
            made.histogram = np.stack([np.bincount(channel, minlength=256) for channel in flat])
        if self._encoder.config.store == "encoded":
            made.file = pictures.as_png(found.values) if file is None else file
            made.values = None
        return made

    def _write(self, made: list[_Made], names: list[str]) -> None:
        if "images" in self._arrays:
            self._arrays["images"].append(np.stack([one.values for one in made if one.values is not None]))
        else:
            self._stream("encoded", "encoded_ends", [one.file for one in made])
        self._stream("names", NAME_ENDS, [name.encode("utf-8", "surrogateescape") for name in names])
        self._encoder.seen[self._split].append(np.array([one.key for one in made], np.uint64))
        for one in made:
            self._said.update(one.said)
            if one.histogram is not None:
                self._histogram += one.histogram

    def _stream(self, name: str, ends: str, parts: list[bytes]) -> None:
        before = self._arrays[name].rows
        self._arrays[ends].append(before + np.cumsum([len(part) for part in parts], dtype=np.int64))
        self._arrays[name].append(np.frombuffer(b"".join(parts), np.uint8))

    def close(self) -> dict[str, Any]:
        """Rows written, and the arrays. DataError where train lost every picture, or every one of a class."""
        rows = self._arrays["targets"].rows
        if self._split == "train":
            self._refuse_lost(rows)
        counts = self._counts if isinstance(self._target, ClassTarget) else None
        self._encoder.settle(self._split, counts, self._histogram, self._said)
        return {"rows": rows, "arrays": {name: array.close() for name, array in self._arrays.items()}}

    def _refuse_lost(self, rows: int) -> None:
        why = "; ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common(3))
        if not rows:
            raise DataError(f"no picture of train can be read: {why}")
        if isinstance(self._target, ClassTarget) and not self._counts.all():
            lost = ", ".join(repr(self._target.names[at]) for at in np.flatnonzero(self._counts == 0)[:5])
            raise DataError(f"no picture of class {lost} can be read in train: {why}")
