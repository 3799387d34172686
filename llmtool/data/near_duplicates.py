"""The cleaning step that keeps the first of texts which are nearly the same, in a source of any size.

Two texts are nearly the same where the sets of their runs of words have a Jaccard index of `threshold` or
more. It is counted exactly, for pairs that MinHash brings together: in one band all smallest hashes agree
(Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900; Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, chapter 3, http://www.mmds.org). The method is that of Lee et al. 2021
(https://arxiv.org/abs/2107.06499), but for one thing: they keep one text of all that a chain of neighbours
connects; here a text leaves only if it is itself like an earlier one that stays.

Memory of a row: 16 bytes and 4 for each band (100 in all at the threshold of 0.8), twice that while it
is decided who leaves; 128 more for a row that met another. Their sets lie on disk, in a file that has no
name.
"""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import xxhash
from pydantic import Field

from llmtool.core import files
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.cleaning import WholeSource, need
from llmtool.data.shingles import mixed, numbered, padded, runs, spoken
from llmtool.data.sources import Chunk

if TYPE_CHECKING:
    import pandas as pd

HASHES, SEED = 128, 1
FOUND = 0.995  # chance that a pair meets whose index is just the threshold; more alike ones nearly always do
SURE = 3  # standard deviations by which an estimate must be below the threshold for a pair not to be counted
LARGEST, SHOWN, EXCERPT = 20, 5, 160  # clusters in the report, texts of each, characters of a text

Read = Callable[[np.ndarray], Iterator[Chunk]]  # ordinals, ascending -> these rows as the step met them


class DropNearDuplicates(WholeSource):
    """Keep the first of texts that are nearly the same; this looks over the whole source."""

    step: Literal["drop_near_duplicates"]
    column: str = Field(description="column of text; a row without text stays")
    threshold: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="texts are the same from this share of common runs on (by all runs of either: Jaccard)",
    )
    ngram: int = Field(
        default=5, ge=1, le=100, description="words of a run; in scripts without blanks, characters"
    )

    def keys(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ordinals of rows with words, (n, 2 + bands) uint32: the text's own hash, one for each band."""
        need(frame, [self.column], "drop_near_duplicates")
        words, counts = numbered(map(spoken, frame[self.column].tolist()))
        counts, taken = counts[counts > 0], frame.index.to_numpy()[counts > 0]
        ends = np.cumsum(counts).tolist()
        whole = [xxhash.xxh3_64_intdigest(words[a:b].data) for a, b in zip([0, *ends], ends, strict=False)]
        sketches = _sketches(*runs(*padded(words, counts, self.ngram), self.ngram))
        count, size = bands(self.threshold)
        grid = sketches[:, : count * size].reshape(len(taken), count, size).astype(np.uint64)
        band = grid[:, :, 0]
        for step in range(1, size):
            band = mixed(band) + grid[:, :, step]
        own = np.array(whole, np.uint64).view(np.uint32).reshape(len(taken), 2)
        return taken, np.hstack([own, (mixed(band) >> np.uint64(32)).astype(np.uint32)])


def bands(threshold: float) -> tuple[int, int]:
    """How many bands, and the hashes of each: as many as still let a pair at the threshold meet (FOUND)."""
    sizes = range(HASHES, 1, -1)
    enough = (n for n in sizes if 1 - (1 - threshold**n) ** (HASHES // n) >= FOUND)
    size = next(enough, 1)
    return HASHES // size, size


def _sketches(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(texts, HASHES) uint32: the smallest value of each hash function over a text's runs."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise ConfigError(
            "drop_near_duplicates: rensa is not installed; it comes with the extra `corpus`: "
            "pip install 'llmtool[corpus]'"
        ) from None
    if not len(counts):
        return np.zeros((0, HASHES), np.uint32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    return np.array(
        RMinHash.digest_matrix_from_flat_token_hashes(values, starts, HASHES, SEED).to_rows(), np.uint32
    )


# --- which rows leave ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaving:
    """The rows that leave, ascending. rows, of: (n,) ordinals, `of` those that stay; index: (n,) Jaccard.

    seen: where all of them stand. compared: pairs whose index was counted. texts: rows with text.
    """

    rows: np.ndarray
    of: np.ndarray
    index: np.ndarray
    seen: _Seen
    compared: int
    texts: int


Parts = Sequence[tuple[np.ndarray, np.ndarray]]  # of each chunk, what `keys` gave


@contextmanager
def leaving(
    step: DropNearDuplicates, parts: Parts, read: Read, directory: Path, hide: Callable[[str], str] = str
) -> Iterator[Leaving]:
    """Decide which rows leave. directory: where their texts lie for as long as the block lasts. hide: takes
    out of a text what nobody should read."""
    ordinals = np.concatenate([part[0] for part in parts])
    own = _column(parts, 0).astype(np.uint64) << np.uint64(32) | _column(parts, 1)
    _, first, group = np.unique(own, return_index=True, return_inverse=True)
    original = first[group]  # (texts,) the first text of the same words
    del own, first, group
    single = original == np.arange(len(original))
    met = _meeting(parts, np.flatnonzero(single), step)
    wanted = np.union1d(np.union1d(met, np.flatnonzero(~single)), original[~single])
    with _Spill(directory) as sets, _Spill(directory) as excerpts:
        seen = _Seen(ordinals[wanted], sets, excerpts, hide)
        if len(wanted):
            seen.read(step, np.isin(wanted, met), read(seen.ordinals))
        groups = _groups(parts, met, step)
        like, index, compared = _compare(groups, np.searchsorted(wanted, met), seen, step)
        away = np.union1d(met[like >= 0], np.flatnonzero(~single))
        stays, shares = original[away], np.ones(len(away))
        if len(met):  # a text that stays for its copies may itself leave for another
            at = np.minimum(np.searchsorted(met, stays), len(met) - 1)
            other = (met[at] == stays) & (like[at] >= 0)
            stays, shares = np.where(other, met[like[at]], stays), np.where(other, index[at], 1.0)
        yield Leaving(ordinals[away], ordinals[stays], shares, seen, compared, len(ordinals))


def _column(parts: Parts, number: int) -> np.ndarray:
    """One column of all keys: all columns at once would take their memory again."""
    return np.concatenate([part[1][:, number] for part in parts])


def _meeting(parts: Parts, texts: np.ndarray, step: DropNearDuplicates) -> np.ndarray:
    """The texts that meet another in some band."""
    met = np.zeros(len(texts), bool)
    for band in range(bands(step.threshold)[0]):
        values = _column(parts, 2 + band)[texts]
        order = np.argsort(values)
        values = values[order]
        same = values[1:] == values[:-1]
        met[order[1:][same]] = True
        met[order[:-1][same]] = True
    return texts[met]


def _groups(parts: Parts, texts: np.ndarray, step: DropNearDuplicates) -> np.ndarray:
    """(texts, bands) int64: a number for those that meet in a band, -1 for who meets none there."""
    count = bands(step.threshold)[0]
    groups = np.full((len(texts), count), -1)
    numbers = 0
    for band in range(count):
        _, group, size = np.unique(_column(parts, 2 + band)[texts], return_inverse=True, return_counts=True)
        several = size[group] > 1
        groups[several, band] = numbers + group[several]
        numbers += len(size)
    return groups


def _compare(
    groups: np.ndarray, at: np.ndarray, seen: _Seen, step: DropNearDuplicates
) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each text that met others, in the source's order: the earlier one that it leaves for (the most
    alike; -1: it stays), the Jaccard index of the two, and how many pairs were counted.

    at: (texts,) where each stands in `seen`.
    """
    like, index = np.full(len(at), -1), np.zeros(len(at))
    staying: dict[int, list[int]] = {}
    sizes = seen.sets.sizes()[at] if len(at) else at
    least = step.threshold - SURE * math.sqrt(step.threshold * (1 - step.threshold) / HASHES)
    compared = 0
    for text in range(len(at)):
        mine = [group for group in groups[text].tolist() if group >= 0]
        others = np.array(sorted({other for group in mine for other in staying.get(group, ())}), np.int64)
        small, large = np.minimum(sizes[others], sizes[text]), np.maximum(sizes[others], sizes[text])
        others = others[small / large >= step.threshold]  # no more than the smaller set is common
        others = others[seen.estimate(at[text], at[others]) >= least]
        if len(others):
            compared += len(others)
            shares = jaccard(seen.set(at[text]), [seen.set(row) for row in at[others].tolist()])
            best = int(np.argmax(shares))
            if shares[best] >= step.threshold:
                like[text], index[text] = others[best], shares[best]
                continue
        for group in mine:
            staying.setdefault(group, []).append(text)
    return like, index, compared


def jaccard(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """(others,) shares: what a set has in common with each other one, by what either has. Each set: sorted,
    not empty, nothing twice."""
    sizes = np.array([len(other) for other in others])
    every = np.concatenate(others)
    place = np.searchsorted(one, every)
    place[place == len(one)] = 0
    starts = np.cumsum(sizes) - sizes
    common = np.add.reduceat((one[place] == every).astype(np.int64), starts)
    return common / (len(one) + sizes - common)


# --- the rows in question, read once more -------------------------------------------------------------------


class _Spill:
    """Bytes of many rows, in a file without a name: it is gone with the process, however that ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with files.disk_errors(directory):
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by __exit__)
        self._ends = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> None:
        """The next row's."""
        with files.disk_errors(self._directory, len(data)):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def sizes(self) -> np.ndarray:
        """(rows,) bytes."""
        return np.diff(np.array(self._ends))

    def get(self, row: int) -> bytes:
        """One row's."""
        begin, end = self._ends[row], self._ends[row + 1]
        with files.disk_errors(self._directory):
            self._file.flush()
            return os.pread(self._file.fileno(), end - begin, begin)


@dataclass
class _Seen:
    """The rows in question. ordinals: ascending; file, line: where each stands."""

    ordinals: np.ndarray
    sets: _Spill  # of the runs of those that are compared: sorted uint64, nothing twice
    excerpts: _Spill
    hide: Callable[[str], str]
    file: array[int] = field(default_factory=lambda: array("i"))
    line: array[int] = field(default_factory=lambda: array("q"))
    sketches: bytearray = field(default_factory=bytearray)  # the low byte of each hash

    def read(self, step: DropNearDuplicates, compared: np.ndarray, chunks: Iterable[Chunk]) -> None:
        """Take them in. compared: (rows,) bool. Raises DataError where the source has them no more."""
        for chunk in chunks:
            begin = len(self.file)
            if not np.array_equal(self.ordinals[begin : begin + len(chunk)], chunk.frame.index.to_numpy()):
                break
            self.file.extend(chunk.file.tolist())
            self.line.extend(chunk.line.tolist())
            texts = [spoken(cell) for cell in chunk.frame[step.column].tolist()]
            values, counts = runs(*padded(*numbered(texts), step.ngram), step.ngram)
            self.sketches += _sketches(values, counts).astype(np.uint8).tobytes()
            ends = np.cumsum(counts).tolist()
            for row, (text, start, end) in enumerate(zip(texts, [0, *ends], ends, strict=False)):
                self.sets.add(np.unique(values[start:end]).tobytes() if compared[begin + row] else b"")
                self.excerpts.add(self.hide(text)[:EXCERPT].encode("utf-8", "replace"))
        if len(self.file) != len(self.ordinals):
            raise DataError("the source changed while it was being prepared; prepare it again")

    def estimate(self, row: int, others: np.ndarray) -> np.ndarray:
        """(others,) about the Jaccard index of a row with others, not below it but by chance.

        By one byte of each hash (https://arxiv.org/abs/0910.3349).
        """
        every = np.frombuffer(self.sketches, np.uint8).reshape(-1, HASHES)
        shares: np.ndarray = (every[others] == every[row]).mean(axis=1)
        return shares

    def set(self, row: int) -> np.ndarray:
        """(n,) uint64."""
        return np.frombuffer(self.sets.get(row), np.uint64)

    def place(self, ordinal: int) -> tuple[int, int]:
        """Number of the file, and line."""
        row = int(np.searchsorted(self.ordinals, ordinal))
        return self.file[row], self.line[row]

    def excerpt(self, ordinal: int) -> str:
        """The beginning of its text."""
        return self.excerpts.get(int(np.searchsorted(self.ordinals, ordinal))).decode("utf-8", "replace")


# --- what a person sees of it -------------------------------------------------------------------------------


def report(step: DropNearDuplicates, found: Leaving, names: Sequence[str]) -> dict[str, Any]:
    """The clusters: how many of each size, and texts of the largest. names: of the source's files."""

    def shown(ordinal: int) -> dict[str, Any]:
        file, line = found.seen.place(ordinal)
        return {"file": names[file], "line": line, "text": found.seen.excerpt(ordinal)}

    first, count = np.unique(found.of, return_counts=True)
    largest = np.lexsort((first, -count))[:LARGEST]
    clusters = []
    for cluster in largest.tolist():
        rows = np.flatnonzero(found.of == first[cluster])
        like = [
            {**shown(int(found.rows[row])), "jaccard": round(float(found.index[row]), 4)}
            for row in rows[:SHOWN].tolist()
        ]
        clusters.append({"rows": int(count[cluster]) + 1, "first": shown(int(first[cluster])), "like": like})
    sizes = Counter((count + 1).tolist())
    return {
        **step.model_dump(mode="json", exclude={"step"}),
        "texts": found.texts,
        "compared": found.compared,
        "removed": len(found.rows),
        "clusters": len(first),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "largest": clusters,
    }
