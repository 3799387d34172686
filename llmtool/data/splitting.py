"""Which rows are for training, validation and the test; the same content never stands in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core import seeds
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import dealing
from llmtool.data.cells import BLANK, Cells
from llmtool.data.cleaning import Masks, need
from llmtool.data.dates import advice, is_local
from llmtool.data.encoding import Encoder
from llmtool.data.sources import SPLITS, SplitName

if TYPE_CHECKING:
    import pandas as pd

DROPPED = -1


@dataclass
class RowTable:
    """What splitting needs to know of the rows that are left, about 40 bytes a row.

    content: (rows, 2) uint64 hash of what the encoder reads.
    unit: (rows,) int64, shared within one document; None: every row is its own.
    size: (rows,) what counts for a split by order: 1, or the bytes of a text.
    given: (rows,) int8 split code of the file a row comes from, or None.
    value: (rows,) what the split's `observe` saw, or None; names: the words that its codes stand for, if so.
    part: (rows,) number of the part of a mixture that a row is from, or None; parts: their names.
    """

    content: np.ndarray
    unit: np.ndarray | None
    size: np.ndarray
    given: np.ndarray | None = None
    value: np.ndarray | None = None
    names: list[str] = field(default_factory=list)
    part: np.ndarray | None = None
    parts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.content)

    def by_part(self) -> list[np.ndarray]:
        """The numbers of the rows of each part; of all rows where there are no parts."""
        if self.part is None:
            return [np.arange(len(self))]
        return [np.flatnonzero(self.part == number) for number in range(len(self.parts))]


@dataclass
class Assigned:
    """split: (rows,) int8, a position in SPLITS, or DROPPED, in which case `dropped` says why."""

    split: np.ndarray
    dropped: Masks = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Observed:
    """What a split saw of a frame: a value for each row (None: it needs none), and rows it cannot place."""

    value: np.ndarray | None = None
    dropped: Masks = field(default_factory=dict)
    bad: Masks = field(default_factory=dict)


class _Split(Section):
    """A split that looks at nothing but the content of rows."""

    def observe(self, frame: pd.DataFrame, encoder: Encoder, names: dict[str, int]) -> Observed:
        """What the split has to know of these rows; `names` numbers words, for all frames."""
        return Observed()


class _Fractions(_Split):
    train: float = Field(default=0.8, gt=0, le=1, description="share of the rows to learn from")
    validation: float = Field(default=0.1, ge=0, lt=1, description="share to choose the best checkpoint by")
    test: float = Field(default=0.1, ge=0, lt=1, description="share that only `evaluate` looks at")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Once a share is given, those of validation and test that are not are 0, and train is the rest."""
        if not isinstance(data, dict) or not any(name in data for name in SPLITS):
            return data
        shares = {name: data.get(name, 0.0) for name in ("validation", "test")}
        if "train" not in data and all(isinstance(share, int | float) for share in shares.values()):
            shares["train"] = round(1 - sum(shares.values()), 9)
        return {**shares, **data}

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test add up to {total:g}; they must add up to 1")
        return self

    @property
    def shares(self) -> np.ndarray:
        """(3,) float64, in the order of SPLITS."""
        return np.array([self.train, self.validation, self.test])

    def _by_chance(self, unit: np.ndarray, seed: int) -> Assigned:
        """Whole units dealt out in these shares; unit: (rows,) the number of the unit each row belongs to."""
        sizes = np.bincount(unit)
        chosen = dealing.deal(sizes, dealing.counts(len(unit), self.shares), seeds.generator(seed, "split"))
        dealing.fill_empty(chosen, sizes, self.shares)
        return _checked(Assigned(chosen[unit]), self.shares, len(sizes))

    def _in_strata(
        self, sizes: np.ndarray, stratum: np.ndarray, members: np.ndarray, seed: int
    ) -> np.ndarray:
        """(units,) int8 split of each unit, strata in these shares each; members: (strata,) rows of each."""
        chosen = np.zeros(len(sizes), np.int8)
        counts = dealing.class_counts(members, self.shares)
        order = np.argsort(stratum, kind="stable")
        edges = np.searchsorted(stratum[order], np.arange(len(members) + 1))
        random = seeds.generator(seed, "split")
        for which in range(len(members)):
            inside = order[edges[which] : edges[which + 1]]
            if len(inside):
                chosen[inside] = dealing.deal(sizes[inside], counts[which], random)
        dealing.fill_empty(chosen, sizes, self.shares)
        return chosen


# --- by chance ---


class RandomSplit(_Fractions):
    """By chance, in exact shares as far as duplicates allow. Each part of a mixture by itself."""

    by: Literal["random"]

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """Rows with the same content, or of the same document, stay together."""
        unit = together(labels(rows.content), rows.unit)
        if rows.part is None:
            return self._by_chance(unit, seed)
        sizes, stratum = np.bincount(unit), rows.part[_first_of(unit)]
        members = np.bincount(stratum, weights=sizes, minlength=len(rows.parts)).astype(np.int64)
        chosen = self._in_strata(sizes, stratum, members, seed)
        return _checked(Assigned(chosen[unit]), self.shares, len(chosen))


class StratifiedSplit(_Fractions):
    """By chance, with every class in the same shares."""

    by: Literal["stratified"]
    on: str | None = Field(default=None, description="the column of classes; default: the target")

    def observe(self, frame: pd.DataFrame, encoder: Encoder, names: dict[str, int]) -> Observed:
        """Numbers the classes."""
        if self.on is None:
            column = encoder.stratum(frame)
        else:
            need(frame, [self.on], "data.split.on")
            column = frame[self.on]
        return Observed(_numbered(Cells(column).text, names))

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """Each class keeps its shares within one row, as far as copies allow; a lone row goes to train."""
        assert rows.value is not None
        unit = together(labels(rows.content), rows.unit)
        sizes, first = np.bincount(unit), _first_of(unit)
        stratum, names = rows.value[first], rows.names
        if rows.part is not None:  # classes of each part
            stratum = rows.part[first] * len(names) + stratum
            names = [f"{name} of {part}" for part in rows.parts for name in names]
        members = np.bincount(stratum, weights=sizes, minlength=len(names)).astype(np.int64)
        lone = np.flatnonzero(members == 1)
        if len(lone) > 100 and len(lone) * 2 > len(sizes):
            name = repr(self.on) if self.on else "the target"
            raise DataError(
                f"data.split: {len(lone):,} of {len(members):,} values of {name} stand in one row only; "
                "a stratified split needs classes (use by: random)"
            )
        chosen = self._in_strata(sizes, stratum, members, seed)
        shown = ", ".join(repr(names[which]) for which in lone[:5]) + (", ..." if len(lone) > 5 else "")
        notes = [f"classes with a single row, which went to train: {shown}"] if len(lone) else []
        return _checked(Assigned(chosen[unit], notes=notes), self.shares, len(sizes))


class GroupedSplit(_Fractions):
    """By chance, rows with the same value in a column always together (a user, a patient, a source)."""

    by: Literal["grouped"]
    on: str = Field(description="the column that names the group")

    def observe(self, frame: pd.DataFrame, encoder: Encoder, names: dict[str, int]) -> Observed:
        """Hashes the group's name."""
        need(frame, [self.on], "data.split.on")
        cells = Cells(frame[self.on])
        values = [seeds.derive(0, text) for text in cells.text]
        return Observed(np.array(values, np.int64), {f"{self.on} is missing": cells.missing(BLANK)})

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """Groups that share a row's content stay together too."""
        assert rows.value is not None
        unit = together(labels(rows.content), rows.unit, rows.value)
        return self._by_chance(unit, seed)


class HashSplit(_Fractions):
    """By a hash of the content: a row keeps its split when the data grows; shares are met only roughly."""

    by: Literal["hash"]

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """The hash of a document is that of its first piece."""
        unit = together(labels(rows.content), rows.unit)
        first = _first_of(unit)
        mixed = seeds.scrambled(rows.content[first, 0] ^ np.uint64(seeds.derive(seed, "split")))
        part = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
        chosen = np.searchsorted(np.cumsum(self.shares)[:2], part, side="right").astype(np.int8)
        return _checked(Assigned(chosen[unit]), self.shares, len(first))


# --- by place or time -------------------------------------------------------------------------------------


class OrderSplit(_Fractions):
    """By position: the first rows train, the last ones test; text is measured in bytes and may be cut.

    Each part of a mixture by itself.
    """

    by: Literal["order"]

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """A copy of a row in an earlier split joins it there."""
        split = np.zeros(len(rows), np.int8)
        for inside in rows.by_part():
            size = rows.size[inside]
            ends = np.cumsum(size, dtype=np.int64)
            edges = dealing.edges(int(ends[-1]) if len(ends) else 0, self.shares)
            split[inside] = np.searchsorted(edges[:2], ends - size, side="right")
        distinct = len(np.unique(labels(rows.content)))
        return _checked(_earlier_copies(split, rows), self.shares, distinct)


class TimeSplit(_Fractions):
    """By a column of dates or numbers: the earliest rows train, the latest ones test."""

    by: Literal["time"]
    on: str = Field(description="the column of dates (ISO, 2024-05-31) or numbers")

    def observe(self, frame: pd.DataFrame, encoder: Encoder, names: dict[str, int]) -> Observed:
        """Reads the moments: all rows as numbers, or all as dates."""
        need(frame, [self.on], "data.split.on")
        cells = Cells(frame[self.on])
        numbers = cells.numbers(BLANK)
        kind = "dates" if cells.looks_like_dates(BLANK) else "numbers"
        found = cells.dates(BLANK) if kind == "dates" else numbers
        words = [word for word in cells.words if word not in BLANK]
        if is_local(words):
            raise DataError(f"data.split.on: {self.on} holds no ISO dates: {advice(self.on, words[0])}")
        if not found.missing.all() and next(iter(names), kind) != kind:
            raise DataError(f"data.split.on: {self.on} holds dates in some rows and numbers in others")
        names.setdefault(kind, 0)
        wrong = (found.wrong | found.infinite) & ~found.missing
        return Observed(
            found.values,
            {f"{self.on} is missing": found.missing},
            {f"{self.on} is not a {'date' if kind == 'dates' else 'number or an ISO date'}": wrong},
        )

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """Rows of one moment go to the earlier split, and so does a copy of a row there."""
        assert rows.value is not None
        ordered = np.sort(rows.value)
        last = [ordered[edge - 1] if edge else -np.inf for edge in dealing.edges(len(rows), self.shares)[:2]]
        split = (rows.value > last[0]).astype(np.int8) + (rows.value > last[1])
        return _checked(_earlier_copies(split, rows), self.shares, len(rows))


# --- given ------------------------------------------------------------------------------------------------


class _Given(_Split):
    validation: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the train rows set aside where there are none for validation",
    )

    def _assign(self, split: np.ndarray, rows: RowTable, seed: int) -> Assigned:
        """A copy of a row that stands in a later split is dropped from the earlier one."""
        label = labels(rows.content)
        latest = np.full(label.max(initial=-1) + 1, DROPPED, np.int8)
        np.maximum.at(latest, label, split)
        latest = latest[label]
        result = Assigned(np.where(latest > split, DROPPED, split).astype(np.int8))
        for code in (1, 2):
            mask = (latest == code) & (split < code)
            result.dropped[f"duplicate of a row in {SPLITS[code]}"] = mask
        shares = np.array([1.0, 0.0, 0.0])
        if self.validation:
            if (split == 1).any():
                raise ConfigError(
                    "data.split.validation: there are validation rows already; leave the share out"
                )
            shares[1] = self.validation
            inside = np.flatnonzero(result.split == 0)
            unit = together(label[inside], None if rows.unit is None else rows.unit[inside])
            sizes = np.bincount(unit)
            wanted = np.array([1 - self.validation, self.validation, 0.0])
            chosen = dealing.deal(sizes, dealing.counts(len(inside), wanted), seeds.generator(seed, "split"))
            dealing.fill_empty(chosen, sizes, wanted)
            result.split[inside] = chosen[unit]
        return _checked(result, shares, len(rows))


class ColumnSplit(_Given):
    """By a column that names the split."""

    by: Literal["column"]
    on: str = Field(description="the column")
    values: dict[str, SplitName] = Field(
        default={"train": "train", "validation": "validation", "test": "test"},
        description="value of the column: the split it stands for",
    )

    def observe(self, frame: pd.DataFrame, encoder: Encoder, names: dict[str, int]) -> Observed:
        """The code of each row's split; a row without one is dropped."""
        need(frame, [self.on], "data.split.on")
        code = {value: SPLITS.index(split) for value, split in self.values.items()}
        value = np.array([code.get(text, DROPPED) for text in Cells(frame[self.on]).text], np.int8)
        return Observed(value, {f"{self.on} names no split": value == DROPPED})

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """As the column says."""
        assert rows.value is not None
        return self._assign(rows.value, rows, seed)


class FilesSplit(_Given):
    """By the files: `data.source.path` names them for train and validation or test."""

    by: Literal["files"]

    def assign(self, rows: RowTable, seed: int) -> Assigned:
        """As `path` says."""
        if rows.given is None:
            raise ConfigError(
                "data.split: by: files needs data.source.path to name files for train, test, ..."
            )
        return self._assign(rows.given, rows, seed)


# --- pieces -----------------------------------------------------------------------------------------------


def labels(content: np.ndarray) -> np.ndarray:
    """(rows,) int64: equal numbers for equal rows of the (rows, 2) hashes, by first appearance."""
    first = np.sort(content[:, 0])
    if not (first[1:] == first[:-1]).any():
        return np.arange(len(content))
    del first
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: the first of equals appears first
    new = np.ones(len(content), bool)
    new[1:] = (content[order[1:]] != content[order[:-1]]).any(axis=1)
    result = np.empty(len(content), np.int64)
    result[order] = _ranks(order[new])[np.cumsum(new) - 1]
    return result


def together(*parts: np.ndarray | None) -> np.ndarray:
    """(rows,) int64 unit of each row, by first appearance; rows that share a label in any part share it."""
    codes = [_by_appearance(part) for part in parts if part is not None]
    codes = [code for code in codes if code.max(initial=-1) + 1 < len(code)] or codes[:1]
    unit = codes[0]
    for code in codes[1:]:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left = int(unit.max()) + 1
        count = left + int(code.max()) + 1
        links = coo_array((np.ones(len(unit), np.int8), (unit, left + code)), shape=(count, count))
        unit = _by_appearance(connected_components(links, directed=False)[1][unit])
    return unit


def _by_appearance(values: np.ndarray) -> np.ndarray:
    # so that changing one row's content does not renumber, and reshuffle, all others
    if len(values) and values[0] == 0 and (np.diff(values) == 1).all():
        return values
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return _ranks(first)[inverse]


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values)] = np.arange(len(values))
    return ranks


def _first_of(unit: np.ndarray) -> np.ndarray:
    return np.unique(unit, return_index=True)[1]


def _numbered(words: Sequence[str], names: dict[str, int]) -> np.ndarray:
    return np.array([names.setdefault(word, len(names)) for word in words], np.int64)


def _earlier_copies(split: np.ndarray, rows: RowTable) -> Assigned:
    label = labels(rows.content)
    earliest = np.full(label.max(initial=-1) + 1, len(SPLITS), np.int8)
    np.minimum.at(earliest, label, split)
    moved = int((earliest[label] < split).sum())
    what = "row stands" if moved == 1 else "rows stand"
    notes = [f"{moved:,} {what} in an earlier split too and went there"] if moved else []
    return Assigned(earliest[label], notes=notes)


def _checked(result: Assigned, shares: np.ndarray, distinct: int) -> Assigned:
    counts = np.bincount(result.split[result.split >= 0], minlength=3)
    for code in np.flatnonzero((shares > 0) & (counts == 0)):
        hint = "; by: order can split within a document" if distinct == 1 and len(result.split) > 1 else ""
        raise DataError(
            f"data.split: nothing is left for {SPLITS[code]}: {len(result.split):,} usable rows, "
            f"{distinct:,} that can be told apart{hint}"
        )
    return result
