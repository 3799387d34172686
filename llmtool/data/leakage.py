"""What of validation and test could be known from train: near copies, groups, columns that tell the target.

Looked for in a sample of the rows that are kept, as they stand in the source. What is found is said, not
mended: only the user knows whether a column is known before the target is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmtool.core import seeds
from llmtool.data.cells import MISSING, Cells
from llmtool.data.duplicates import near_documents
from llmtool.data.sources import SPLITS, Chunk
from llmtool.data.text_columns import texts_of

SAMPLE_ROWS, SAMPLE_CELLS = 50_000, 2_000_000  # of a table
SAMPLE_CHARACTERS = 20_000_000  # of a text
CLOSE = 1e-3  # of a column's spread: numbers that are as good as equal
GIVEN_AWAY = 0.97  # score from which a column alone is said to give the target away
MANY = 0.002  # share of a split's rows: fewer near copies happen by chance in large tables
AWAY = (-9, -8, -7, -6, -5, -4, 4, 5, 6, 7, 8, 9)  # steps of CLOSE at which cells are near by chance only
BINS = 256  # of a number, to see what it says of the target
FEW = 50  # rows below which there is nothing to tell
GROUP = re.compile(
    r"(^|[_\W])(id|uuid|user|customer|client|patient|session|group|household|account|device|subject|author"
    r"|person|member|family|store|shop|sensor|machine)([_\W]|id$|$)",
    re.IGNORECASE,
)
ID = re.compile(r"(^|[_\W])(id|uuid|key|index|row|number|nr|no)$|^unnamed", re.IGNORECASE)
_LETTERS = re.compile(r"[\W_]+")


@dataclass
class Finding:
    """One thing found. warning: `leakage: refuse` refuses it. score: from 0 to 1, where it has one."""

    kind: str
    says: str
    advice: str = ""
    warning: bool = True
    columns: list[str] = field(default_factory=list)
    count: int = 0
    score: float | None = None
    examples: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """Rows looked at: collected while they are written. wanted: (parsed rows,) bool by ordinal."""

    wanted: np.ndarray
    paths: list[str]
    text: str | list[str] | None  # the columns whose characters count against the limit
    parts: list[tuple[Any, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    characters: int = 0

    @classmethod
    def of(
        cls,
        code: np.ndarray,
        columns: int,
        paths: list[str],
        seed: int,
        text: str | list[str] | None = None,
    ) -> Sample:
        """code: (parsed rows,) split of each row, negative for those that left."""
        kept = np.flatnonzero(code >= 0)
        most = min(SAMPLE_ROWS, SAMPLE_CELLS // max(1, columns))
        wanted = np.zeros(len(code), bool)
        if len(kept) > most:
            kept = seeds.generator(seed, "leakage").choice(kept, most, replace=False)
        wanted[kept] = True
        return cls(wanted, paths, text)

    def add(self, chunk: Chunk, codes: np.ndarray) -> None:
        """Take the wanted rows of a chunk; codes: (rows,) their splits."""
        mask = self.wanted[chunk.frame.index.to_numpy()]
        if mask.any() and self.characters < SAMPLE_CHARACTERS:
            self.parts.append((chunk.frame.loc[mask], codes[mask], chunk.file[mask], chunk.line[mask]))
            if self.text is not None:
                self.characters += sum(map(len, texts(self.parts[-1][0], self.text)))

    @property
    def rows(self) -> int:
        """How many were looked at."""
        return sum(len(codes) for _, codes, _, _ in self.parts)

    def table(self) -> Table:
        """The rows in one piece."""
        import pandas as pd

        frames, codes, file, line = zip(*self.parts, strict=True)
        whole = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0].reset_index(drop=True)
        columns = {str(name): Column.of(whole[name]) for name in whole.columns}
        places = zip(np.concatenate(file).tolist(), np.concatenate(line).tolist(), strict=True)
        shown = [f"{self.paths[f]}:{at}" for f, at in places]
        return Table(columns, np.concatenate(codes), shown)


@dataclass
class Column:
    """codes: (n,) place of each cell in `words`, -1 missing. numbers: (n,) float64, or None for words."""

    words: list[str]
    codes: np.ndarray
    numbers: np.ndarray | None
    dates: bool = False

    @classmethod
    def of(cls, series: Any) -> Column:
        """Read a column's cells: numbers where all of them are, or dates, else words."""
        cells = Cells(series)
        codes = np.where(cells.missing(MISSING), -1, cells.codes)
        for read, dates in ((cells.numbers, False), (cells.dates, True)):
            if (codes < 0).all() or (dates and not cells.looks_like_dates(MISSING)):
                break
            found = read(MISSING)
            if not found.wrong.any():
                return cls(cells.words, codes, np.where(codes < 0, np.nan, found.values), dates)
        return cls(cells.words, codes, None)

    @property
    def distinct(self) -> int:
        """How many different cells there are, missing ones apart."""
        return int((np.bincount(self.codes + 1)[1:] > 0).sum())


@dataclass
class Table:
    """Sampled rows. code: (n,) split of each. places: where each stands, `file:line`."""

    columns: dict[str, Column]
    code: np.ndarray
    places: list[str]

    def __len__(self) -> int:
        return len(self.code)


def of_table(
    table: Table, inputs: Sequence[str], targets: Sequence[str], kind: str, by: str
) -> list[Finding]:
    """Everything found in a table. inputs, targets: encoded columns. kind: of target. by: of the split."""
    if len(table) < FEW:
        return []
    found = near_rows(table, [*inputs, *targets])
    if by != "grouped":
        found += straddling(table, [name for name in table.columns if name not in targets])
    for target in targets:
        found += giving_away(table, inputs, target, kind)
    found += ids(table, inputs)
    if by in ("random", "stratified", "hash", "grouped"):
        found += backwards(table)
    return found


def of_text(sample: Sample, read: Callable[[Any], list[str]]) -> list[Finding]:
    """Documents of validation and test that nearly stand in train. read: the texts of a frame's rows."""
    found = [text for frame, *_ in sample.parts for text in read(frame)]
    code = np.concatenate([codes for _, codes, _, _ in sample.parts])
    places = [f"{sample.paths[f]}:{line}" for _, _, files, lines in sample.parts
              for f, line in zip(files.tolist(), lines.tolist(), strict=True)]  # fmt: skip
    return _pairs(
        "document", near_documents(found, code), code, places, "are nearly the same as one of train"
    )


def texts(frame: Any, columns: str | list[str]) -> list[str]:
    """The text of each row; "" where it is none, which the encoder refuses."""
    return [text if isinstance(text, str) else "" for text in texts_of(frame, columns)]


# --- copies ---


def near_rows(table: Table, names: Sequence[str]) -> list[Finding]:
    """Rows of validation and test that stand in train but for one cell, which hardly differs.

    Hardly: a number by at most a thousandth of its column's spread, a word in case, blanks or punctuation.
    """
    hashes = {name: _salted(table.columns[name], name) for name in names}
    whole = np.sum(list(hashes.values()), axis=0, dtype=np.uint64)
    train, other = np.flatnonzero(table.code == 0), np.flatnonzero(table.code > 0)
    if not len(train) or not len(other):
        return []
    partner = np.full(len(table), -1)
    chance = np.zeros(3)
    for name in names:
        rest = whole - hashes[name]
        exact, steps, further = _loose(table.columns[name])
        keys = rest[train] + exact[train]
        order = np.argsort(keys)
        for step in [*steps, *further]:
            wanted = rest[other] + step[other]
            at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
            hit = keys[order][at] == wanted
            if any(step is one for one in steps):
                partner[other[hit]] = train[order[at[hit]]]
            else:
                chance += np.bincount(table.code[other[hit]], minlength=3) * len(steps) / len(further)
    pairs = [(int(row), int(partner[row])) for row in np.flatnonzero(partner >= 0)]
    return _pairs("row", pairs, table.code, table.places, "hardly differ from a row of train", chance)


def _pairs(
    what: str,
    pairs: Sequence[tuple[int, int]],
    code: np.ndarray,
    places: Sequence[str],
    verb: str,
    chance: np.ndarray | None = None,
) -> list[Finding]:
    """A finding for each split that has such rows. chance: (3,) how many are to be expected anyway."""
    found = []
    for split in (1, 2):
        mine = [(row, other) for row, other in pairs if code[row] == split]
        total = int((code == split).sum())
        if mine:
            usual = 0.0 if chance is None else float(chance[split])
            says = f"{len(mine):,} of {total:,} {what}s of {SPLITS[split]} looked at {verb}"
            by_chance = f"; about {usual:.0f} by chance" if usual >= 1 else ""
            shown = [f"{places[row]} and {places[other]}" for row, other in mine[:5]]
            advice = "clean them up, or keep them together with split: {by: grouped}"
            warning = len(mine) - usual >= max(MANY * total, 3 * (usual + 1) ** 0.5)
            says = f"{says} ({shown[0]}{by_chance})"
            share = len(mine) / total
            found.append(Finding("near_duplicates", says, advice, warning, [], len(mine), share, shown))
    return found


def _salted(column: Column, name: str) -> np.ndarray:
    """(n,) uint64: a random number for each distinct cell."""
    random = seeds.generator(0, "leakage", name)
    return random.integers(2**63, size=int(column.codes.max(initial=-1)) + 2, dtype=np.uint64)[column.codes]


def _loose(column: Column) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Keys under which near cells meet: those of train, those under which others look, and those a little
    further off, under which only chance finds any."""
    if column.numbers is not None and not column.dates:
        values = column.numbers
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        grid = np.floor(np.nan_to_num(values) / (CLOSE * spread or 1.0))
        grid = np.clip(grid, -(2.0**62), 2.0**62).astype(np.int64)
        near, far = ([_mixed(grid + step) for step in steps] for steps in ((0, -1, 1), AWAY))
        return near[0], near, far
    plain: dict[str, int] = {}
    short = [_LETTERS.sub("", word.casefold()) or word for word in column.words]
    numbers = [plain.setdefault(word, len(plain)) for word in short]
    keys = _mixed(np.array([*numbers, -1], np.int64)[column.codes])
    return keys, [keys], []


def _mixed(values: np.ndarray) -> np.ndarray:
    mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


# --- groups, ids, time ---


def straddling(table: Table, names: Sequence[str]) -> list[Finding]:
    """Columns that look like the name of a group, and whose groups stand in train and elsewhere."""
    found = []
    train = table.code == 0
    for name in names:
        column = table.columns[name]
        known = column.codes >= 0
        if column.dates or not known.any():
            continue
        sizes = np.bincount(column.codes[known])
        distinct, several = int((sizes > 0).sum()), int((sizes > 1).sum())
        words = column.numbers is None
        many = distinct >= max(20, int(known.sum()) / 50)
        named = bool(GROUP.search(name)) and distinct >= 20
        if not (several >= distinct / 2 and distinct < known.sum() / 1.5 and (named or (words and many))):
            continue
        inside = np.unique(column.codes[known & train])
        both = np.isin(column.codes, inside) & known & ~train
        share = float(both.sum() / max(1, (known & ~train).sum()))
        if share > 0.05:
            says = (
                f"{100 * share:.0f} % of the validation and test rows share their {name!r} with train rows "
                f"({distinct:,} values, {known.sum() / distinct:.3g} rows of each)"
            )
            advice = f"if rows of one {name} are alike: split: {{by: grouped, on: {name}}}"
            found.append(Finding("straddling_group", says, advice, named, [name], int(both.sum()), share))
    return found


def ids(table: Table, inputs: Sequence[str]) -> list[Finding]:
    """Inputs that are different in every row and mean nothing: ids, row numbers."""
    found = []
    for name in inputs:
        column = table.columns[name]
        if column.dates or column.distinct < len(table):
            continue
        values = column.numbers
        whole = values is not None and bool((values == np.floor(values)).all())
        ordered = whole and values is not None and bool((np.diff(values) > 0).all())
        if values is None or (whole and (ordered or ID.search(name) or GROUP.search(name))):
            says = f"{name!r} is different in every row: an id, from which nothing can be learned"
            found.append(
                Finding("id_column", says, f"encode: {{ignore: [{name}]}}", False, [name], len(table))
            )
    return found


def backwards(table: Table) -> list[Finding]:
    """Dates, in a split by chance: train knows the future of the test."""
    found = []
    train = table.code == 0
    for name, column in table.columns.items():
        if not column.dates or column.numbers is None:
            continue
        mine, others = column.numbers[train], column.numbers[~train]
        mine, others = mine[np.isfinite(mine)], others[np.isfinite(others)]
        if len(mine) and len(others) and mine.max() > others.min():
            share = float((others < mine.max()).mean())
            says = f"{100 * share:.0f} % of the other rows are older, by {name!r}, than the newest of train"
            advice = f"if the model will be asked about the future: split: {{by: time, on: {name}}}"
            found.append(Finding("time_backwards", says, advice, False, [name], score=share))
    return found


# --- columns that give the target away ---


def giving_away(table: Table, inputs: Sequence[str], target: str, kind: str) -> list[Finding]:
    """Columns from which alone the target can be told, measured on other rows than it was learned from."""
    truth = table.columns[target]
    if kind == "labels":  # a column of 0 and 1 each; lists of labels are looked at no further
        return giving_away(table, inputs, target, "classes") if truth.distinct == 2 else []
    known = truth.codes >= 0 if kind == "classes" else np.isfinite(_numbers(truth))
    learn = known & (table.code == 0)
    judge = known & (table.code > 0)
    if judge.sum() < FEW // 2:  # no other rows: every fifth of train
        fifth = np.arange(len(table)) % 5 == 0
        learn, judge = learn & ~fifth, (learn & fifth) | judge
    if learn.sum() < FEW // 2 or judge.sum() < 5:
        return []
    found = []
    for name in inputs:
        bins = _bins(table.columns[name], learn)
        if kind == "classes":
            score, how = _tells_class(bins, truth.codes, learn, judge)
        else:
            score, how = _tells_number(bins, _numbers(truth), learn, judge)
        if score >= GIVEN_AWAY:
            says = f"{name!r} alone gives {target!r} away ({how})"
            advice = f"if it is not known before {target} is: encode: {{ignore: [{name}]}}"
            found.append(Finding("gives_target_away", says, advice, True, [name], score=round(score, 4)))
    return found


def _numbers(column: Column) -> np.ndarray:
    return np.full(len(column.codes), np.nan) if column.numbers is None else column.numbers


def _bins(column: Column, learn: np.ndarray) -> np.ndarray:
    """(n,) number of the cell's bin, from 0: each word its own, numbers by quantiles of the rows learned."""
    if column.numbers is None or column.distinct <= BINS:
        return column.codes + 1
    values = column.numbers
    inside = values[learn & np.isfinite(values)]
    edges = np.unique(np.quantile(inside, np.linspace(0, 1, BINS + 1)[1:-1])) if len(inside) else np.zeros(0)
    return np.where(np.isfinite(values), 1 + np.searchsorted(edges, np.nan_to_num(values), side="right"), 0)


def _tells_class(
    bins: np.ndarray, codes: np.ndarray, learn: np.ndarray, judge: np.ndarray
) -> tuple[float, str]:
    """The share of what the commonest class gets wrong that the column gets right, or 2 AUC - 1."""
    classes, count = int(codes.max()) + 1, int(bins.max()) + 1
    if classes > 1000:
        return 0.0, ""
    seen = np.bincount(bins[learn] * classes + codes[learn], minlength=count * classes).reshape(
        count, classes
    )
    total = seen.sum(axis=0)
    guess = np.where(seen.sum(axis=1) > 0, seen.argmax(axis=1), total.argmax())
    truth = codes[judge]
    majority = float((truth == total.argmax()).mean())
    accuracy = float((guess[bins[judge]] == truth).mean())
    score = (accuracy - majority) / (1 - majority) if majority < 1 else 0.0
    how = f"right in {100 * accuracy:.4g} % of other rows; the commonest class in {100 * majority:.3g} %"
    if (total > 0).sum() == 2:
        rare = int(total.argmin() if total.min() else np.flatnonzero(total)[0])
        rate = (seen[:, rare] + total[rare] / total.sum()) / (seen.sum(axis=1) + 1)
        area = _area(rate[bins[judge]], truth == rare)
        if 2 * area - 1 > score:
            score, how = 2 * area - 1, f"ROC-AUC {area:.4g} on other rows"
    return score, how


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties a half; 0 where there is one class only."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return 0.0
    _, rank, ties = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(ties) - (ties - 1) / 2  # mean rank of each stretch of equals
    return float((middle[rank[positive]].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _tells_number(
    bins: np.ndarray, values: np.ndarray, learn: np.ndarray, judge: np.ndarray
) -> tuple[float, str]:
    """R2 of the mean rank of the target in each bin: ranks, so that a few large values do not decide."""
    order = np.sort(values[learn])
    ranks = np.searchsorted(order, np.nan_to_num(values), side="left") / len(order)
    count = int(bins.max()) + 1
    rows = np.bincount(bins[learn], minlength=count)
    sums = np.bincount(bins[learn], ranks[learn], minlength=count)
    means = np.where(rows > 0, sums / np.maximum(rows, 1), ranks[learn].mean())
    truth = ranks[judge]
    spread = float(np.square(truth - truth.mean()).sum())
    score = 1 - float(np.square(truth - means[bins[judge]]).sum()) / spread if spread else 0.0
    return score, f"R2 {score:.4g} of its rank on other rows"
