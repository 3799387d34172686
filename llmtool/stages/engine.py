"""Which engine prepare works with, and the cleaning of its chunks by it: a large source is cleaned once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.core import files
from llmtool.core.engine import Packed, one_thread
from llmtool.core.environment import environment
from llmtool.core.kept import Kept, unpacked
from llmtool.data import DataConfig, data_files
from llmtool.data.cleaning import Cleaned, clean
from llmtool.data.sampling import length_of
from llmtool.data.sources import SPLITS, Chunk, table
from llmtool.stages.rows import complete

if TYPE_CHECKING:
    import pandas as pd

LARGE = 1 << 25  # bytes of a source, unpacked: seconds of work, which starting processes pays for
FORMAT = 2  # of what is kept
PARTS = ".parts"  # beside the stage's directory: what is done of a prepare that is not finished


@contextmanager
def opened(
    data: DataConfig, seed: int, directory: Path, hashes: Mapping[str, str] | None
) -> Iterator[Kept | None]:
    """The engine of a large source, which remembers what it has done; None of a small one.

    hashes: of every file that is read; without them, their size and time of change stand for them. Raises
    ConfigError where the engine cannot be had.
    """
    data.engine.check()
    with ExitStack() as stack:
        if data.engine.count() == 1:
            stack.enter_context(one_thread())
        if size_of(data) < LARGE:
            yield None
            return
        depends = {
            "data": data.model_dump(mode="json", by_alias=True, exclude={"engine"}),
            "seed": seed,
            "inputs": dict(hashes) if hashes else _stamps(data),
            "environment": {key: environment()[key] for key in ("llmtool", "packages")},
            "format": FORMAT,
        }
        key = files.hash_bytes(json.dumps(depends, sort_keys=True).encode()).removeprefix("xxh3:")
        engine = stack.enter_context(data.engine.open(__name__))
        yield stack.enter_context(Kept(engine, directory.parent / PARTS, key))


def _stamps(data: DataConfig) -> list[tuple[str, int, int]]:
    stats = [(str(path), path.stat()) for path in data_files(data)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def size_of(data: DataConfig) -> int:
    """Bytes of the source's files, unpacked, about; 0 of one of which a part is read, or that is made up."""
    if data.source._sample is not None:
        return 0
    return sum(map(length_of, data.source.files()))


class Cleaner:
    """Runs the cleaning steps over chunks, with every column of the source."""

    def __init__(self, steps: Sequence[Any], columns: list[str], kept: Kept | None) -> None:
        self._work = _Clean(steps, columns)
        self._kept = kept if steps else None
        self._of = files.hash_bytes(json.dumps(columns).encode())[-8:]
        self.chunks = 0  # of the source, as it was read first

    def first(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Cleaned]]:
        """Every chunk, and what is left of it. Raises ConfigError for a column that is not there."""
        if self._kept is None:
            for chunk in chunks:
                self.chunks += 1
                yield chunk, self._work.clean(chunk)
            return
        for chunk, packed in self._kept.map(self._work, chunks, self._name):
            chunk.frame = complete(chunk.frame, self._work.columns)
            self.chunks += 1
            yield chunk, _unpacked(packed)

    def held(self) -> Iterator[bytes]:
        """What is kept of each chunk, for `chunk_of`, in the order of the source; ends at one that is not
        there, or not whole."""
        for number in range(self.chunks):
            data = self._kept.raw(self._name(number)) if self._kept is not None else None
            if data is None:
                return
            yield data

    def again(self, chunk: Chunk) -> pd.DataFrame:
        """The cleaned rows of `chunk`, which are some of those that stayed of one."""
        return self._work.clean(chunk, again=True).frame

    def _name(self, number: int) -> str:
        return f"clean-{self._of}-{number:06d}"


@dataclass(frozen=True)
class _Clean:
    """The steps over one chunk."""

    steps: Sequence[Any]
    columns: list[str]

    def clean(self, chunk: Chunk, again: bool = False) -> Cleaned:
        chunk.frame = complete(chunk.frame, self.columns)
        return clean(self.steps, chunk.frame, again)

    def __call__(self, chunk: Chunk) -> Packed:
        first = int(chunk.frame.index[0]) if len(chunk) else 0
        return _packed(self.clean(chunk), chunk, first)


def _packed(cleaned: Cleaned, chunk: Chunk, first: int) -> Packed:
    """What `_unpacked` makes the same of, and `chunk_of` the rows that are left. first: the ordinal of the
    chunk's first row."""
    ordinals = cleaned.frame.index.to_numpy()
    rows = ordinals - first
    document: dict[str, Any] = {"columns": {name: cleaned.frame[name].tolist() for name in cleaned.frame}}
    arrays = {"ordinals": ordinals, "unit": chunk.unit[rows], "file": chunk.file[rows]}
    arrays["line"] = chunk.line[rows]
    if chunk.split is not None:
        arrays["split"] = np.array([SPLITS.index(name) for name in chunk.split[rows]], np.int8)
    document["part"] = chunk.part
    for kind, found in (("dropped", cleaned.dropped), ("bad", cleaned.bad)):
        document[kind] = list(found)
        arrays |= {f"{kind}.{at}": rows for at, rows in enumerate(found.values())}
    document["changed"] = dict(cleaned.changed)
    document["keys"] = list(cleaned.keys)
    for position, (ordinals, keys) in cleaned.keys.items():
        arrays |= {f"key.{position}": ordinals, f"keys.{position}": keys}
    return document, arrays


def _unpacked(packed: Packed) -> Cleaned:
    document, arrays = packed
    cleaned = Cleaned(_frame(packed))
    for kind, found in (("dropped", cleaned.dropped), ("bad", cleaned.bad)):
        found |= {reason: arrays[f"{kind}.{at}"] for at, reason in enumerate(document[kind])}
    cleaned.changed.update(document["changed"])
    for position in document["keys"]:
        cleaned.keys[position] = (arrays[f"key.{position}"], arrays[f"keys.{position}"])
    return cleaned


def _frame(packed: Packed) -> pd.DataFrame:
    document, arrays = packed
    return table(document["columns"], arrays["ordinals"])


def chunk_of(data: bytes) -> Chunk:
    """The rows that are left of a chunk, of what is kept of it."""
    packed = document, arrays = unpacked(data)
    split = arrays.get("split")
    names = None if split is None else np.array(SPLITS, dtype=object)[split]
    places = (arrays["unit"], arrays["file"], arrays["line"])
    return Chunk(_frame(packed), *places, names, part=document["part"])
