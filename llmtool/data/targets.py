"""The target of a table: classes with their names, labels, or values with their mean and scale."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import decimals, normal
from llmtool.data.cells import BLANK, MISSING, Cells
from llmtool.data.statistics import ColumnStatistics

if TYPE_CHECKING:
    import pandas as pd

Scale = Literal["standard", "log", "quantile"]
QUANTILES = 1000  # points of a distribution, at most
NOT_IN_TRAIN = "target class not in train"
LACKING = "(target) is missing"  # how the reason ends for a row that is dropped, not bad
OUTCOME = "None"  # a mark of nothing among numbers; among words mostly a class: no award, no illness
MAX_CLASSES = 10_000
FEW = 50  # whole numbers with at most this many different values are classes ...
FEW_SHARE = 0.05  # ... when they are also at most this share of the rows


def without_target(
    frame: pd.DataFrame,
    names: Sequence[str],
    kind: Kind,
    notes: list[str],
    markers: frozenset[str] = MISSING,
) -> dict[str, np.ndarray]:
    """Reason -> (rows,) bool: rows in which one of the target columns is empty, or a word that means missing;
    of labels in one column, an empty cell says that there are none.

    markers: such words of number columns; of a target, which may hold classes, only the usual ones mean it
    before it is known to be numbers. notes: get one of each word.
    """
    if kind == "labels" and len(names) == 1:
        return {}
    reasons = {}
    for name in names:
        cells = Cells(frame[name])
        mask = cells.missing(_of_classes(markers) | BLANK)
        if mask.any():
            reasons[f"{name} {LACKING}"] = mask
            _note_words(name, set(cells.words) & _of_classes(markers), notes)
    return reasons


def _of_classes(markers: frozenset[str]) -> frozenset[str]:
    """Those of the markers that mean missing among classes too."""
    return (markers & MISSING) - {OUTCOME}


def _note_words(name: str, words: set[str], notes: list[str]) -> None:
    """Say that these words in a target mean that it is missing."""
    for word in sorted(words - BLANK):
        note = (
            f"target {name!r}: a row with {word!r} is left out, as one without a target (where it is a "
            "class, `data.clean` can `replace` it by another word)"
        )
        notes += [note] if note not in notes else []


def target_stratum(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The class of each row as text. ConfigError where there are several targets."""
    if len(names) > 1:
        raise ConfigError("data.split.by: stratified needs one target; name a column with `on`")
    import pandas as pd

    return pd.Series(Cells(frame[names[0]]).text, index=frame.index, dtype=object)


@dataclass(frozen=True)
class ClassTarget:
    """One of the classes that the train rows hold, sorted (as numbers where all are)."""

    column: str
    names: list[str]
    counts: list[int]
    kind: str = "classes"
    dtype = "<i8"
    shape = ()

    def spec(self) -> dict[str, Any]:
        """The card's entry."""
        return {
            "kind": "classes",
            "column": self.column,
            "names": list(self.names),
            "counts": list(self.counts),
        }

    def counted(self, counts: list[int]) -> ClassTarget:
        """The same with other counts."""
        return replace(self, counts=counts)

    def state(self) -> dict[str, Any]:
        """The target as JSON."""
        return asdict(self)

    def encode(self, frame: pd.DataFrame, markers: frozenset[str]) -> tuple[np.ndarray, dict[int, str]]:
        """(rows,) int64 class numbers, and row position -> reason where there is none."""
        numbers = {name: i for i, name in enumerate(self.names)}
        words = Cells(frame[self.column]).text
        classes = np.fromiter((numbers.get(word, -1) for word in words), dtype=np.int64, count=len(words))
        refused = {
            int(row): f"{self.column} {LACKING}" if words[row] in BLANK | markers else NOT_IN_TRAIN
            for row in np.flatnonzero(classes < 0)
        }
        return classes, refused


@dataclass(frozen=True)
class ValueTarget:
    """Numbers, stored as they are; mean and scale of the train rows stand beside them for the task.

    transform: another scale to learn them on (metrics.target_scale), as the task reads it; None: these.
    """

    columns: list[str]
    mean: list[float]
    scale: list[float]
    kind: str = "values"
    transform: dict[str, Any] | None = None
    dtype = "<f4"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row's target."""
        return (len(self.columns),)

    def spec(self) -> dict[str, Any]:
        """The card's entry."""
        said: dict[str, Any] = {"kind": "values", "names": list(self.columns)}
        said |= {"mean": list(self.mean), "scale": list(self.scale)}
        return said if self.transform is None else said | {"transform": self.transform}

    def state(self) -> dict[str, Any]:
        """The target as JSON."""
        state = asdict(self)
        if self.transform is None:
            del state["transform"]
        return state

    def encode(self, frame: pd.DataFrame, markers: frozenset[str]) -> tuple[np.ndarray, dict[int, str]]:
        """(rows, n) float32 values, and row position -> reason where one is missing or none."""
        block = np.zeros((len(frame), len(self.columns)), dtype=np.float32)
        refused: dict[int, str] = {}
        for at, column in enumerate(self.columns):
            found = Cells(frame[column]).numbers(markers)
            with np.errstate(over="ignore"):
                block[:, at] = found.values
            reasons = {
                f"{column} {LACKING}": found.missing,
                f"{column} (target) is not a number": found.wrong,
                f"{column} (target) is infinite or beyond 3.4e38": ~np.isfinite(block[:, at]),
            }
            for reason, mask in reasons.items():
                for row in np.flatnonzero(mask):
                    refused.setdefault(int(row), reason)
        return block, refused


@dataclass(frozen=True)
class LabelTarget:
    """Any of the labels that the train rows have: columns of 0 and 1, or one column of lists.

    counts: train rows that have each; rows: train rows. separator: between labels of the one column, in
    which a JSON list may stand too; None: columns.
    """

    columns: list[str]
    names: list[str]
    counts: list[int]
    rows: int
    separator: str | None = None
    kind: str = "labels"
    dtype = "|u1"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row's target."""
        return (len(self.names),)

    def spec(self) -> dict[str, Any]:
        """The card's entry."""
        said = {"kind": "labels", "names": list(self.names), "counts": list(self.counts), "rows": self.rows}
        return said if self.separator is None else said | {"column": self.columns[0]}

    def state(self) -> dict[str, Any]:
        """The target as JSON."""
        return asdict(self)

    def encode(self, frame: pd.DataFrame, markers: frozenset[str]) -> tuple[np.ndarray, dict[int, str]]:
        """(rows, n) uint8, 1 where a row has the label, and row position -> reason where one is unknown."""
        block = np.zeros((len(frame), len(self.names)), dtype=np.uint8)
        refused: dict[int, str] = {}
        if self.separator is None:
            for at, column in enumerate(self.columns):
                for row, word in enumerate(Cells(frame[column]).text):
                    if word in BLANK | markers:
                        refused.setdefault(row, f"{column} {LACKING}")
                    elif word.lower() in _YES_OR_NO:
                        block[row, at] = _YES_OR_NO[word.lower()]
                    else:
                        refused.setdefault(row, f"{column} (target) is neither 0 nor 1")
            return block, refused
        places = {name: at for at, name in enumerate(self.names)}
        for row, word in enumerate(Cells(frame[self.columns[0]]).text):
            found = labels_in(word, self.separator)
            if found is None:
                refused[row] = f"{self.columns[0]} (target) is no JSON list of labels"
            elif any(label not in places for label in found):
                refused[row] = NOT_IN_TRAIN
            else:
                block[row, [places[label] for label in found]] = 1
        return block, refused


_YES_OR_NO = {"1": 1, "true": 1, "yes": 1, "1.0": 1, "0": 0, "false": 0, "no": 0, "0.0": 0}
MAX_LABELS = 1000


def labels_in(cell: str, separator: str) -> list[str] | None:
    """The labels in a cell, each once: a JSON list of words and numbers, or parts between separators; None:
    it begins as a list and is none."""
    if not cell.startswith("["):
        return list(dict.fromkeys(part.strip() for part in cell.split(separator) if part.strip()))
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(one, str | int | float) for one in found):
        return None
    return list(dict.fromkeys(word for one in found if (word := str(one).strip())))


Target = ClassTarget | LabelTarget | ValueTarget
Kind = Literal["auto", "classes", "labels", "values"]
TARGET_KIND = (
    "classes to classify; labels where a row has any number of them (columns of 0 and 1, or one column of "
    "labels); values for regression; auto decides between classes and values by the train rows."
)
SEPARATOR = (
    "What stands between the labels in the one column of target_kind: labels; a cell may be a JSON list "
    "instead, in which a label can hold the separator; an empty cell has none."
)


def refuse_target(targets: Sequence[str], kind: Kind, separator_given: bool) -> None:
    """ValueError for keys of a target that do not go together."""
    if len(targets) > 1 and kind == "classes":
        raise ValueError(
            "several targets are values, or labels (target_kind: labels); target_kind: classes needs a "
            "single one"
        )
    if separator_given and (kind != "labels" or len(targets) > 1):
        raise ValueError("label_separator is read only with target_kind: labels and one target column")


def stand_in(targets: Mapping[str, Any]) -> dict[str, str]:
    """Column -> a cell that stands for the target of a row whose target nobody knows yet.

    targets: as an encoder says them. Encoders write targets beside inputs; these are not looked at.
    """
    if targets["kind"] == "labels":
        one = {str(targets["column"]): "[]"} if "column" in targets else None
        return one or dict.fromkeys(map(str, targets["names"]), "0")
    if targets["kind"] == "classes":
        known = list(map(str, targets["names"]))  # of an older version one may be a mark of nothing
        return {str(targets["column"]): next((name for name in known if name not in MISSING), known[0])}
    return dict.fromkeys(map(str, targets["names"]), "0") if targets["kind"] == "values" else {}


def target_from_state(state: dict[str, Any]) -> Target:
    """The target that `state()` described."""
    kinds: dict[str, type[Target]] = {"classes": ClassTarget, "labels": LabelTarget, "values": ValueTarget}
    return kinds[state["kind"]](**state)


def fit_target(
    found: list[ColumnStatistics],
    kind: Kind,
    notes: list[str],
    scale: Scale = "standard",
    separator: str = ",",
    markers: frozenset[str] = MISSING,
) -> Target:
    """The target as the train rows have it; DataError when there is nothing to learn. markers: as above."""
    first = found[0]
    if kind == "labels" and scale == "standard":
        return _fit_labels(found, separator, notes)
    if kind == "auto":
        kind = "values" if len(found) > 1 else _guess(first)
        if kind == "classes" and first.kind() == "number" and first.distinct > 2:
            notes.append(
                f"target {first.name!r}: {first.distinct} different whole numbers are taken as classes "
                "(target_kind: values for regression)"
            )
    if kind == "values":
        return _fit_values(found, scale)
    if scale != "standard":
        raise ConfigError(
            f"data.encode.target_scale: {scale} is for numbers; {first.name!r} is taken as "
            f"{kind} (target_kind: values for regression)"
        )
    return _fit_classes(first, notes, markers)


def _guess(found: ColumnStatistics) -> Literal["classes", "values"]:
    if found.kind() != "number":
        return "classes"
    few = found.distinct <= 2 or found.distinct <= min(FEW, max(10, FEW_SHARE * found.rows))
    return "classes" if found.whole and few and not found.overflow else "values"


def _fit_classes(found: ColumnStatistics, notes: list[str], markers: frozenset[str]) -> ClassTarget:
    name = found.name
    marks = markers if found.kind() == "number" else _of_classes(markers)
    counts = {word: count for word, count in found.words.items() if word not in marks}
    present = found.rows - found.blank - sum(found.words[word] for word in found.words.keys() & marks)
    _note_words(name, found.words.keys() & marks, notes)
    if present == 0:
        raise DataError(f"target {name!r}: every train row lacks it")
    if len(counts) == 1:
        said = "".join(f"; {note}" for note in notes)
        raise DataError(
            f"target {name!r}: every train row is of one class, {next(iter(counts))!r}; there is nothing to "
            f"learn{said}"
        )
    if (
        found.overflow
        or found.distinct > MAX_CLASSES
        or (found.distinct > 20 and found.distinct > present / 2)
    ):
        count = f"{found.distinct:,}{' or more' * found.overflow}"
        hint = "; target_kind: values makes it a regression" if found.wrong == 0 else _comma_hint(found)
        raise DataError(
            f"target {name!r}: {count} different values in {present:,} train rows are no classes{hint}"
        )
    names = _sorted(list(counts))
    if OUTCOME in names:
        notes.append(
            f"target {name!r}: {OUTCOME!r} is a class (where it means missing, `data.clean` can `filter` it)"
        )
    single = [word for word in names if counts[word] == 1]
    if single:
        shown = ", ".join(map(repr, single[:5])) + (", ..." if len(single) > 5 else "")
        notes.append(f"target {name!r}: {len(single)} of {len(names)} classes have one train row ({shown})")
    if found.decimal_commas:
        notes.append(f"target {name!r} {decimals.HINT}")
    return ClassTarget(name, names, [counts[word] for word in names])


def _comma_hint(found: ColumnStatistics) -> str:
    return f"; it {decimals.HINT}" if found.decimal_commas else ""


def _fit_labels(found: list[ColumnStatistics], separator: str, notes: list[str]) -> LabelTarget:
    first, rows = found[0], found[0].rows
    if len(found) > 1:
        counts = {column.name: _count_of_ones(column) for column in found}
        names = list(counts)
    else:
        if first.overflow:
            raise DataError(
                f"target {first.name!r}: more than {first.distinct:,} different cells are no lists of labels"
            )
        gathered: Counter[str] = Counter()
        for word, count in first.words.items():
            gathered.update(dict.fromkeys(labels_in(word, separator) or [], count))
        counts, names = dict(gathered), _sorted(list(gathered))
    if not any(0 < count < rows for count in counts.values()):
        hint = f" (label_separator is {separator!r})" if len(found) == 1 else ""
        raise DataError(
            f"target {', '.join(column.name for column in found)[:200]}: each of {len(names)} labels is in "
            f"all train rows or in none; there is nothing to learn{hint}"
        )
    if len(names) > MAX_LABELS:
        raise DataError(
            f"target {first.name!r}: {len(names):,} different labels; at most {MAX_LABELS:,} are learned "
            f"(label_separator is {separator!r})"
        )
    if idle := [name for name in names if counts[name] in (0, rows)]:
        shown = ", ".join(map(repr, idle[:5])) + (", ..." if len(idle) > 5 else "")
        notes.append(f"labels that all train rows have, or none: {shown}")
    columns = [column.name for column in found]
    return LabelTarget(
        columns, names, [counts[name] for name in names], rows, separator if len(found) == 1 else None
    )


def _count_of_ones(column: ColumnStatistics) -> int:
    """Train rows of a column of 0 and 1 that have a 1; DataError where most are neither."""
    known = {word: _YES_OR_NO[word.lower()] for word in column.words if word.lower() in _YES_OR_NO}
    other = next((word for word in column.words if word not in known), None)
    if column.overflow or 2 * sum(column.words[word] for word in known) < column.rows - column.blank:
        raise DataError(
            f"target {column.name!r}: a column of labels holds 0 and 1 (or yes and no), "
            f"not {str(other)[:40]!r}"
        )
    return sum(column.words[word] for word, one in known.items() if one)


def _sorted(words: list[str]) -> list[str]:
    try:
        numbers = {word: float(word) for word in words}
    except ValueError:
        return sorted(words)
    return sorted(words, key=lambda word: (numbers[word], word))


def _fit_values(found: list[ColumnStatistics], scale: Scale) -> ValueTarget:
    for column in found:
        moments = column.numbers
        if moments.count == 0 or column.wrong > moments.count:
            example = f", such as {column.first_wrong[:40]!r}" if column.first_wrong else ""
            raise DataError(
                f"target {column.name!r}: {column.wrong:,} train rows hold no number{example}"
                f"{_comma_hint(column)}"
            )
        if moments.minimum >= moments.maximum:
            raise DataError(f"target {column.name!r}: every train row has the value {moments.mean:g}")
        if not (math.isfinite(moments.deviation) and max(-moments.minimum, moments.maximum) < 3e38):
            raise DataError(
                f"target {column.name!r}: values up to {moments.maximum:.3g} are too large to learn"
            )
    return ValueTarget(
        [column.name for column in found],
        [column.numbers.mean for column in found],
        [1.0 if column.numbers.constant else column.numbers.deviation for column in found],
        transform={"log": _logarithms, "quantile": _quantiles}[scale](found) if scale != "standard" else None,
    )


def _logarithms(found: list[ColumnStatistics]) -> dict[str, Any]:
    """Logarithms of the numbers, or of 1 + the number where some are 0, standardised."""
    said: dict[str, Any] = {"kind": "log", "offset": [], "mean": [], "scale": []}
    for column in found:
        least = column.numbers.minimum
        if least < 0:
            raise DataError(
                f"target {column.name!r}: target_scale: log needs numbers of 0 and above, and one is "
                f"{least:g}; quantile takes any"
            )
        offset = 1.0 if least == 0 else 0.0
        logarithms = np.log(column.number_sample.values() + offset)
        said["offset"].append(offset)
        said["mean"].append(float(logarithms.mean()))
        said["scale"].append(float(logarithms.std()) or 1.0)
    return said


def _quantiles(found: list[ColumnStatistics]) -> dict[str, Any]:
    """Points of each distribution, and where they lie in a normal one; equal numbers share their middle."""
    said: dict[str, Any] = {"kind": "quantile", "values": [], "normal": []}
    for column in found:
        values = np.sort(column.number_sample.values())
        share = (np.arange(len(values)) + 0.5) / len(values)
        points = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES), method="nearest"))
        first, last = (np.searchsorted(values, points, side=side) for side in ("left", "right"))
        middle = 0.5 * (share[first] + share[last - 1])
        said["values"].append(points.tolist())
        said["normal"].append(normal.quantile(middle).tolist())
    return said
