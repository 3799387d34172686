"""The rows that are kept, read again: to learn from those of train, then to encode those of every split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtool.core.engine import Engine
from llmtool.core.errors import DataError
from llmtool.core.kept import arrays_of
from llmtool.data.encoding import Encoded
from llmtool.data.sources import Chunk
from llmtool.stages.engine import Cleaner, chunk_of
from llmtool.stages.rows import Rows

Progress = Callable[[str, int], None]  # what is being done, and how many rows so far


@dataclass(frozen=True)
class Stretch:
    """Some of a chunk's cleaned rows, in a form that is cheap to send.

    held: the chunk, or what is kept of it. keep: (its rows,) bool. codes: (kept rows,) the split of each.
    looked: (kept rows,) bool, those that are looked at for leaks.
    """

    held: Chunk | bytes
    keep: np.ndarray
    codes: np.ndarray
    looked: np.ndarray

    def chunk(self) -> Chunk:
        """The rows."""
        chunk = chunk_of(self.held) if isinstance(self.held, bytes) else self.held
        return chunk if self.keep.all() else chunk.take(self.keep)


@dataclass
class Part:
    """The rows of one split in a stretch, or, where they are encoded, those that could not be."""

    code: int
    rows: int
    chunk: Chunk
    encoded: Encoded | None


@dataclass
class Encoding:
    """A stretch, encoded where that can be done anywhere. looked: its rows that are looked at for leaks;
    codes: (those rows,) their splits."""

    looked: Chunk
    codes: np.ndarray
    parts: list[Part]


@dataclass(frozen=True)
class Rereading:
    """Reads the cleaned rows again, and makes sure that the source is still the same.

    code: (parsed rows,) the split of each, negative for those that left. stamps: of the source's files, as
    they were before the first reading. engine: does what other processes can.
    """

    rows: Rows
    cleaner: Cleaner
    code: np.ndarray
    stamps: list[tuple[str, int, int]]
    progress: Progress
    engine: Engine | None

    def encodings(self, encoded: Callable[[Chunk], Encoded] | None, looked: np.ndarray) -> Iterator[Encoding]:
        """All rows that are kept. encoded: what the encoder has under that name. looked: (parsed rows,)."""
        stretches = self.stretches("encoding", self.code >= 0, looked)
        return self.map(_Encode(encoded), stretches, here=encoded is None)

    def map(
        self, work: Callable[[Stretch], Any], stretches: Iterator[Stretch], here: bool = False
    ) -> Iterator[Any]:
        """What `work` makes of each stretch, in their order. here: in this process."""
        if here or self.engine is None or not self.engine.apart:
            yield from map(work, stretches)
        else:
            for _, made in self.engine.map(work, stretches, name=lambda number: ""):  # none of it is kept
                yield made

    def stretches(self, step: str, which: np.ndarray, looked: np.ndarray | None = None) -> Iterator[Stretch]:
        """The rows where `which` (parsed rows,) holds, in the order of the source."""
        self._unchanged()
        self.progress(step, 0)
        chunks = count = 0
        for data in self.cleaner.held():
            ordinals = arrays_of(data)["ordinals"]
            if which[ordinals].any():
                yield self._stretch(data, ordinals, which[ordinals], looked)
            chunks, count = chunks + 1, int(ordinals[-1]) + 1 if len(ordinals) else count
            self.progress(step, count)
        if chunks < self.cleaner.chunks:
            for part in self._read(step, which, chunks):
                ordinals = part.frame.index.to_numpy()
                yield self._stretch(part, ordinals, np.ones(len(ordinals), bool), looked)
        self._unchanged()

    def _stretch(
        self, held: Chunk | bytes, ordinals: np.ndarray, keep: np.ndarray, looked: np.ndarray | None
    ) -> Stretch:
        kept = ordinals[keep]
        return Stretch(
            held, keep, self.code[kept], np.zeros(len(kept), bool) if looked is None else looked[kept]
        )

    def _read(self, step: str, which: np.ndarray, skip: int) -> Iterator[Chunk]:
        """The same rows from the source, without those of the first `skip` chunks."""
        count = 0
        for number, chunk in enumerate(self.rows):
            ordinals = chunk.frame.index.to_numpy()
            count += len(ordinals)
            if count > len(which):
                self._changed("more rows")
            part = chunk.take(which[ordinals])
            if len(part) and number >= skip:
                part.frame = self.cleaner.again(part)
                if len(part.frame) != len(part.unit):
                    self._changed("other rows")
                yield part
            self.progress(step, count)
        if count < len(which):
            self._changed("fewer rows")

    def _unchanged(self) -> None:
        now = self.rows.source.stamps()
        for then, found in zip(self.stamps, now, strict=False):
            if then != found:
                self._changed("another size or time of change", then[0])
        if len(now) != len(self.stamps):
            self._changed("another number of files")

    def _changed(self, what: str, file: str = "the source") -> None:
        raise DataError(f"{file} changed while it was being prepared ({what}); prepare it again")


@dataclass(frozen=True)
class Train:
    """The rows that are learned from, as encoders take them."""

    reading: Rereading

    def __iter__(self) -> Iterator[Chunk]:
        return (stretch.chunk() for stretch in self._stretches())

    def map(self, work: Callable[[Chunk], Any]) -> Iterator[Any]:
        """What `work` makes of each chunk, in their order, by the engine."""
        return self.reading.map(_OfChunk(work), self._stretches())

    def _stretches(self) -> Iterator[Stretch]:
        return self.reading.stretches("fitting", self.reading.code == 0)


@dataclass(frozen=True)
class _OfChunk:
    work: Callable[[Chunk], Any]

    def __call__(self, stretch: Stretch) -> Any:
        return self.work(stretch.chunk())


@dataclass(frozen=True)
class _Encode:
    encoded: Callable[[Chunk], Encoded] | None

    def __call__(self, stretch: Stretch) -> Encoding:
        chunk = stretch.chunk()
        parts = [self._part(code, chunk.take(stretch.codes == code)) for code in np.unique(stretch.codes)]
        return Encoding(chunk.take(stretch.looked), stretch.codes[stretch.looked], parts)

    def _part(self, code: int, chunk: Chunk) -> Part:
        if self.encoded is None:
            return Part(int(code), len(chunk), chunk, None)
        encoded = self.encoded(chunk)
        bad = chunk.frame.index.isin(list(encoded.refused))
        return Part(int(code), len(chunk), chunk.take(bad), encoded)
