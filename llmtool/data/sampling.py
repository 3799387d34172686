"""A part of a large source that stands for all of it: its beginning, and stretches spread over the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from llmtool.data.sources import RowSource

SLICE = 1 << 14  # characters that are kept or skipped together
STRETCHES = 32  # spread over what comes after the beginning, the last one at the end
UNPACKED = 4  # characters for each byte of a packed file, about
PACKED = (".gz", ".zst", ".parquet", ".pq")

SourceType = TypeVar("SourceType", bound="RowSource")


@dataclass
class Thin:
    """Which stretches of one file are read, and, after reading, how much of it that was.

    wanted: (begin, end) in characters from the file's start. quote: a line end inside a pair ends no row.
    """

    wanted: list[tuple[int, int]]
    quote: str | None
    size: int  # bytes of the file
    at: int = 0  # characters passed
    kept: int = 0  # of these, given out

    def lines(self, blocks: Iterator[str]) -> Iterator[str]:
        """Whole rows of the stretches; of the text between them only its line ends, which number the rows."""
        keeping, inside = True, False
        for block in blocks:
            for start in range(0, len(block), SLICE):
                text = block[start : start + SLICE]
                want = self._wants(len(text))
                cut = 0 if want == keeping else self._row_end(text, inside)
                if cut is None:  # no row ends here: it goes on as before
                    cut, want = 0, keeping
                head, tail = text[:cut], text[cut:]
                yield (head if keeping else "\n" * head.count("\n")) + (
                    tail if want else "\n" * tail.count("\n")
                )
                self.kept += (len(head) if keeping else 0) + (len(tail) if want else 0)
                self.at += len(text)
                keeping = want
                inside ^= bool(self.quote) and text.count(str(self.quote)) % 2 == 1

    def keeps(self, size: int) -> bool:
        """Whether the next record, of `size` characters, is read."""
        want = self._wants(size)
        self.at += size
        self.kept += size if want else 0
        return want

    def _wants(self, size: int) -> bool:
        return any(begin < self.at + size and self.at < end for begin, end in self.wanted)

    def _row_end(self, text: str, inside: bool) -> int | None:
        """Where the first row that begins in `text` begins; None where no row ends in it."""
        at = 0
        while (end := text.find("\n", at) + 1) > 0:
            inside ^= bool(self.quote) and text.count(str(self.quote), at, end) % 2 == 1
            if not inside:
                return end
            at = end
        return None


class Sample:
    """What is read of each file of a source; a source that is not larger is read whole."""

    def __init__(self, placed: list[tuple[Path, str | None]], characters: int, quote: str | None) -> None:
        self.files: dict[Path, Thin] = {}
        self._split = dict(placed)
        for split in {split for _, split in placed}:
            paths = [path for path, other in placed if other == split]
            limit = characters if split in (None, "train") else characters // 4
            lengths = {path: length_of(path) for path in paths}
            wanted = _stretches(sum(lengths.values()), limit)
            begin = 0
            for path, length in lengths.items():
                inside = [
                    (max(a - begin, 0), b - begin) for a, b in wanted if a < begin + length and b > begin
                ]
                if inside and inside[0][0]:
                    inside.insert(0, (0, 1))  # a table's first line names its columns
                self.files[path] = Thin(inside, quote, path.stat().st_size)
                begin += length
        whole = [thin.wanted == [(0, length_of(path))] for path, thin in self.files.items()]
        self.whole = all(whole)

    def of(self, path: Path) -> Thin | None:
        """What to read of this file, from its start; None for all of it."""
        if self.whole:
            return None
        thin = self.files[path]
        thin.at = thin.kept = 0
        return thin

    def share(self, split: str | None = None) -> float:
        """Which part of the bytes of a split's files (None: of all files) the last reading gave out."""
        if self.whole:
            return 1.0
        thin = [
            thin for path, thin in self.files.items() if split is None or self._split[path] in (None, split)
        ]
        size = sum(part.size for part in thin)
        return sum(part.size * part.kept / max(part.at, 1) for part in thin) / size if size else 1.0

    @property
    def bytes(self) -> int:
        """Of the whole source."""
        return sum(thin.size for thin in self.files.values())


@dataclass
class First:
    """The first rows of a source that makes them up: `part` of all of them."""

    part: float
    bytes: int = 0

    @property
    def whole(self) -> bool:
        """Whether these are all."""
        return self.part == 1

    def share(self, split: str | None = None) -> float:
        """The same of every split."""
        return self.part


class PictureSample:
    """Which pictures of class folders are read: so many of each split's, at equal distances."""

    bytes = 0  # nobody has asked the files for their size

    def __init__(self, counts: dict[str | None, int], pictures: int) -> None:
        self._counts = counts
        self._most = {split: pictures if split in (None, "train") else pictures // 4 for split in counts}
        self.whole = all(count <= self._most[split] for split, count in counts.items())

    def takes(self, split: str | None, number: int) -> bool:
        """Whether the picture of this number, from 1, is read."""
        count, most = self._counts[split], self._most[split]
        return count <= most or number * most // count != (number - 1) * most // count

    def share(self, split: str | None = None) -> float:
        """Which part of a split's pictures (None: of all) is read."""
        named = [name for name in self._counts if split is None or name in (None, split)]
        named = named or ["train"]  # a validation that is taken out of it
        read = sum(min(self._counts[name], self._most[name]) for name in named)
        return read / max(1, sum(self._counts[name] for name in named))


def sampled(source: SourceType, characters: int) -> SourceType:
    """The same source, of which about `characters` characters are read. DataError for a missing file."""
    given: Any = source
    if hasattr(given, "shortened"):
        shorter = given.shortened(characters)
        shorter._sample = First(shorter.games / given.games)
        return shorter
    copy: Any = given.model_copy()
    copy._sample = given.sample(characters)
    return copy


def length_of(path: Path) -> int:
    """Characters of a file, about."""
    return path.stat().st_size * (UNPACKED if path.suffix.lower() in PACKED else 1)


def _stretches(total: int, limit: int) -> list[tuple[int, int]]:
    """Half of the limit from the beginning on, the other half in stretches that end at equal distances."""
    if total <= limit:
        return [(0, total)]
    head, length = limit // 2, limit // 2 // STRETCHES
    gap = (total - head) / STRETCHES
    ends = [head + round((number + 1) * gap) for number in range(STRETCHES)]
    return [(0, head), *((end - length, end) for end in ends)]
