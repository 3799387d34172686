"""Cleaning steps: each looks at one row at a time and learns nothing, so it may run before the split."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import xxhash
from pydantic import Field, field_validator, model_validator

from llmtool.core.config import Section, suggest
from llmtool.core.errors import ConfigError
from llmtool.data.cells import BLANK, Cells
from llmtool.data.dates import Order

if TYPE_CHECKING:
    import pandas as pd

MISSING = sorted(BLANK)


@dataclass
class Cleaned:
    """What the steps left of a frame.

    dropped, bad: reason -> ordinals of the rows that left for it; bad ones hold a wrong value: they are
    quarantined. keys: position of each step over the whole source -> (ordinals, what is compared) of the rows
    that reached it; which of them leave is for the caller to find, who sees them all.
    changed: what a step wrote anew -> in how many rows, those that left later too.
    """

    frame: pd.DataFrame
    dropped: dict[str, np.ndarray] = field(default_factory=dict)
    bad: dict[str, np.ndarray] = field(default_factory=dict)
    keys: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)


def clean(steps: Sequence[Any], frame: pd.DataFrame, again: bool = False) -> Cleaned:
    """Run the steps over a frame, in order. Raises ConfigError for a column that is not there.

    again: these rows stayed, so nothing is compared any more.
    """
    result = Cleaned(frame)
    for position, step in enumerate(steps):
        try:
            if isinstance(step, WholeSource):
                if not again:
                    result.keys[position] = step.keys(result.frame)
                continue
            frame, dropped, bad, *changed = step.apply(result.frame)
        except ConfigError as error:
            raise ConfigError(f"data.clean.{position}: {error}") from None
        for masks in changed:
            result.changed.update({what: int(mask.sum()) for what, mask in masks.items() if mask.any()})
        away = np.zeros(len(frame), bool)
        for found, masks in ((result.dropped, dropped), (result.bad, bad)):
            for reason, mask in masks.items():
                mask = mask & ~away  # a row leaves once, for the first reason
                away |= mask
                if mask.any():
                    rows = frame.index.to_numpy()[mask]
                    found[reason] = np.concatenate([found[reason], rows]) if reason in found else rows
        result.frame = frame.loc[~away] if away.any() else frame
    return result


def on_new_rows(
    steps: Sequence[Any], inputs: Sequence[str], targets: Sequence[str], available: Sequence[str]
) -> tuple[list[Any], list[str]]:
    """The steps as they run over rows whose target is not known yet, and a note for each that cannot.

    Nothing looks at the target, rows that are like others are no fault, and `drop_missing` of all columns
    looks at the inputs, as there may be others now.
    """
    kept: list[Any] = []
    notes: list[str] = []
    for position, step in enumerate(steps):
        if isinstance(step, WholeSource):
            continue
        named = _columns_of(step)
        read = list(inputs) if named is None else [name for name in named if name not in targets]
        if missing := [name for name in read if name not in available]:
            notes.append(f"data.clean.{position} ({step.step}) is left out: no column {missing[0]!r} here")
        elif (
            read and hasattr(step, "columns") and not (named is None and getattr(step, "of_all_texts", False))
        ):
            whole = step.columns
            part = {name: whole[name] for name in read} if isinstance(whole, dict) else read
            kept.append(step.model_copy(update={"columns": part}))
        elif read:
            kept.append(step)
    return kept, notes


def _columns_of(step: Any) -> list[str] | None:
    """The columns that a step names; None: every one."""
    if hasattr(step, "column"):
        return [step.column]
    return None if step.columns is None else list(step.columns)


Masks = dict[str, np.ndarray]  # reason -> (rows,) bool
# The frame, rows to drop, rows that are bad; of steps that count what they write anew, rows changed.
Applied = tuple["pd.DataFrame", Masks, Masks] | tuple["pd.DataFrame", Masks, Masks, Masks]


def need(frame: pd.DataFrame, columns: Sequence[str], place: str) -> None:
    """ConfigError unless every one of the columns is there."""
    names = list(frame.columns)
    for column in columns:
        if column not in names:
            known = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
            raise ConfigError(f"{place}: no column {column!r}{suggest(column, names)} (columns: {known})")


def contents(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """(rows, 2) uint64: a 128-bit hash of each row's cells, the same for rows that hold the same."""
    cells, form = [], ""
    for name in columns:
        values = frame[name].tolist()
        plain = set(map(type, values)) <= {str}
        cells.append(values if plain else list(map(_spelled, values)))
        form += "\0s%s" if plain else "%s"  # as `_spelled` writes a text
    texts = (form % row for row in zip(*cells, strict=True))
    digests = b"".join([xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts])
    return np.frombuffer(digests, np.uint64).reshape(len(frame), 2)


def _spelled(
    value: Any,
) -> str:  # no text holds a NUL (the sources refuse them), so rows are spelled unambiguously
    return f"\0s{value}" if isinstance(value, str) else f"\0v{value!r}"


def with_columns(frame: pd.DataFrame, columns: dict[str, Sequence[Any]]) -> pd.DataFrame:
    """The frame with these columns, of dtype object, in place of its own; what came in is not changed."""
    import pandas as pd

    frame = frame.copy(deep=False)
    for name, values in columns.items():
        data = np.empty(len(frame), object)
        data[:] = values
        frame[name] = pd.Series(data, index=frame.index, dtype=object)
    return frame


def _map_text(frame: pd.DataFrame, names: Sequence[str], change: Callable[[str], Any]) -> pd.DataFrame:
    return with_columns(
        frame,
        {name: [change(v) if isinstance(v, str) else v for v in frame[name].tolist()] for name in names},
    )


# --- rows that lack something -----------------------------------------------------------------------------


class Require(Section):
    """Drop rows in which one of these columns is missing."""

    step: Literal["require"]
    columns: list[str] = Field(min_length=1, description="columns that must hold something")
    missing: list[str] = Field(default=MISSING, description="words that mean missing, besides nothing at all")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason per column."""
        need(frame, self.columns, "require")
        markers = frozenset(self.missing) | {""}
        return frame, {f"{name} is missing": Cells(frame[name]).missing(markers) for name in self.columns}, {}


class DropMissing(Section):
    """Drop rows in which any column is missing, as pandas' dropna does."""

    step: Literal["drop_missing"]
    columns: list[str] | None = Field(default=None, description="only look at these; default: every column")
    missing: list[str] = Field(default=MISSING, description="words that mean missing, besides nothing at all")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for all columns."""
        columns = list(frame.columns) if self.columns is None else self.columns
        need(frame, columns, "drop_missing")
        markers = frozenset(self.missing) | {""}
        away = np.zeros(len(frame), bool)
        for name in columns:
            away |= Cells(frame[name]).missing(markers)
        return frame, {"a value is missing": away}, {}


class WholeSource(Section):
    """A step that compares rows with others, near or far: it is over once all of them were read."""

    def keys(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ordinals of the rows that are compared, (n, k) what each is compared by."""
        raise NotImplementedError


class DropDuplicates(WholeSource):
    """Keep the first of rows that are the same; this looks over the whole source, not only within a chunk."""

    step: Literal["drop_duplicates"]
    columns: list[str] | None = Field(default=None, description="compare only these; default: every column")

    def keys(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) ordinals, (rows, 2) uint64: what makes each row the same as another."""
        columns = list(frame.columns) if self.columns is None else self.columns
        need(frame, columns, "drop_duplicates")
        return frame.index.to_numpy(), contents(frame, columns)


# --- values that are wrong --------------------------------------------------------------------------------


class Types(Section):
    """Quarantine rows whose cells are not what their column holds; the others become numbers, dates, ..."""

    step: Literal["types"]
    columns: dict[str, Literal["number", "integer", "date", "text", "boolean"]] = Field(
        min_length=1, description="column: what it holds; a date becomes ISO text (2024-05-31T10:00:00)"
    )
    dates: Order = Field(
        default="iso",
        description="iso: dates are written 2021-03-17; or the order of others, 17/3/2021 or 3/17/2021 (with "
        "any of / . - between; with full stops the day is first); ISO dates are read beside them",
    )
    missing: list[str] = Field(default=MISSING, description="words that mean missing; missing is never wrong")

    @model_validator(mode="after")
    def _reads_dates(self) -> Self:
        if self.dates != "iso" and "date" not in self.columns.values():
            raise ValueError("types: dates is read only with a column of dates")
        return self

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason per column."""
        need(frame, list(self.columns), "types")
        changed: dict[str, Sequence[Any]] = {}
        bad: Masks = {}
        for name, kind in self.columns.items():
            values, wrong = _typed(frame[name], kind, frozenset(self.missing) | {""}, self.dates)
            changed[name] = values
            bad[f"{name} is not {'an' if kind == 'integer' else 'a'} {kind}".replace("a text", "text")] = (
                wrong
            )
        return with_columns(frame, changed), {}, bad


_TRUTH = {
    **dict.fromkeys(("true", "yes", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "0", "f", "n"), False),
}


def _typed(
    column: pd.Series, kind: str, markers: frozenset[str], order: Order
) -> tuple[list[Any], np.ndarray]:
    """The values as `kind`, None where missing, and where they are wrong."""
    cells = Cells(column)
    missing = cells.missing(markers)
    if kind == "text":
        return [None if m else t for t, m in zip(cells.text, missing, strict=True)], np.zeros(
            len(cells), bool
        )
    if kind == "boolean":
        truths = [_TRUTH.get(text.lower()) for text in cells.text]
        return truths, np.array([truth is None for truth in truths], bool) & ~missing
    numbers = cells.dates(markers, order) if kind == "date" else cells.numbers(markers)
    wrong = (numbers.wrong | numbers.infinite) & ~missing
    good = ~(wrong | missing)
    values = numbers.values
    if kind == "integer":
        with np.errstate(invalid="ignore"):
            whole = good & (np.floor(values) == values) & (np.abs(values) < 2**53)
        return [int(v) if g else None for v, g in zip(values, whole, strict=True)], good & ~whole | wrong
    if kind == "date":
        stamps = np.datetime_as_string(np.where(good, values, 0).astype("datetime64[s]"))
        return [str(s) if g else None for s, g in zip(stamps, good, strict=True)], wrong
    return [float(v) if g else None for v, g in zip(values, good, strict=True)], wrong


class Range(Section):
    """Drop rows whose number lies outside; a missing one stays, a cell that is no number is quarantined."""

    step: Literal["range"]
    column: str = Field(description="a column of numbers")
    min: float | int | None = Field(default=None, description="the smallest value kept")
    max: float | int | None = Field(default=None, description="the largest value kept")
    missing: list[str] = Field(default=MISSING, description="words that mean missing")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("range needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"range: min {self.min} is above max {self.max}")
        return self

    def apply(self, frame: pd.DataFrame) -> Applied:
        """Rows outside are dropped, rows without a number are bad."""
        need(frame, [self.column], "range")
        found = Cells(frame[self.column]).numbers(frozenset(self.missing) | {""})
        wrong = (found.wrong | found.infinite) & ~found.missing
        low = -np.inf if self.min is None else self.min
        high = np.inf if self.max is None else self.max
        with np.errstate(invalid="ignore"):
            outside = (found.values < low) | (found.values > high)
        return frame, {f"{self.column} out of range": outside}, {f"{self.column} is not a number": wrong}


class Filter(Section):
    """Keep, or drop, rows by what their column holds."""

    step: Literal["filter"]
    column: str = Field(description="compared as text, without blanks around it")
    keep: list[str] | None = Field(default=None, description="rows with one of these values stay")
    drop: list[str] | None = Field(default=None, description="rows with one of these values go")
    matches: str | None = Field(
        default=None, description="rows in which this regular expression is found stay"
    )

    @field_validator("matches")
    @classmethod
    def _is_a_pattern(cls, matches: str | None) -> str | None:
        try:
            re.compile(matches or "")
        except re.error as error:
            raise ValueError(f"{matches!r} is no regular expression: {error}") from None
        return matches

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if [self.keep, self.drop, self.matches].count(None) != 2:
            raise ValueError("filter needs one of keep, drop and matches")
        return self

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason."""
        need(frame, [self.column], "filter")
        found = Cells(frame[self.column]).text
        if self.matches is not None:
            pattern = re.compile(self.matches)
            inside = np.array([text is not None and bool(pattern.search(text)) for text in found], bool)
        else:
            values = set(self.keep or self.drop or [])
            inside = np.array([text in values for text in found], bool)
        return frame, {f"{self.column} filtered": ~inside if self.drop is None else inside}, {}


# --- changing text ----------------------------------------------------------------------------------------

TAG = re.compile(r"</?[A-Za-z][^<>]{0,1000}>")
_SPACE = re.compile(r"\s+")


class Normalize(Section):
    """Write text uniformly; every flag is off unless it is set."""

    step: Literal["normalize"]
    columns: list[str] = Field(min_length=1, description="columns of text; what is no text stays")
    unicode: Literal["NFC", "NFKC"] | None = Field(default=None, description="Unicode normal form")
    strip_tags: bool = Field(default=False, description="HTML tags such as <br /> become a blank")
    lower: bool = Field(default=False, description="to lower case")
    collapse_space: bool = Field(
        default=False, description="any run of blanks and line ends becomes one blank"
    )
    strip: bool = Field(default=False, description="drop blanks at both ends")

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.unicode or self.strip_tags or self.lower or self.collapse_space or self.strip):
            raise ValueError(
                "normalize: set at least one of unicode, strip_tags, lower, collapse_space, strip"
            )
        return self

    def apply(self, frame: pd.DataFrame) -> Applied:
        """No row leaves."""
        need(frame, self.columns, "normalize")
        return _map_text(frame, self.columns, self._change), {}, {}

    def _change(self, text: str) -> str:
        if self.unicode:
            text = unicodedata.normalize(self.unicode, text)
        if self.strip_tags:
            text = TAG.sub(" ", text)
        if self.lower:
            text = text.lower()
        if self.collapse_space:
            text = _SPACE.sub(" ", text)
        return text.strip() if self.strip else text


class Replace(Section):
    """Write other values for these; a whole cell is compared, and null means missing."""

    step: Literal["replace"]
    column: str = Field(description="a column of text")
    mapping: dict[str, str | None] = Field(min_length=1, description="value: what stands there afterwards")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """No row leaves."""
        need(frame, [self.column], "replace")
        return _map_text(frame, [self.column], lambda text: self.mapping.get(text, text)), {}, {}


class Join(Section):
    """Make one text of several: of a list of texts, as JSON files have them (the lines of a poem)."""

    step: Literal["join"]
    columns: list[str] = Field(min_length=1, description="columns of lists; what is no list of texts stays")
    by: str = Field(default="\n", description="what stands between two texts")

    def apply(self, frame: pd.DataFrame) -> Applied:
        """No row leaves."""
        need(frame, self.columns, "join")
        return _map_text(frame, self.columns, self._change), {}, {}

    def _change(self, text: str) -> str:
        if not text.startswith("["):  # a list is read as its JSON
            return text
        try:
            parts = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return self.by.join(parts) if all(isinstance(part, str) for part in parts) else text


class Length(Section):
    """Drop, or cut, texts by their number of characters."""

    step: Literal["length"]
    column: str = Field(description="a column of text; a missing one has length 0")
    min: int | None = Field(default=None, ge=0, description="fewest characters kept")
    max: int | None = Field(default=None, ge=1, description="most characters kept")
    action: Literal["drop", "cut"] = Field(default="drop", description="what becomes of text beyond max")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("length needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"length: min {self.min} is above max {self.max}")
        if self.action == "cut" and self.max is None:
            raise ValueError("length: action cut needs max")
        return self

    def apply(self, frame: pd.DataFrame) -> Applied:
        """One reason for each bound."""
        need(frame, [self.column], "length")
        sizes = np.array([len(v) if isinstance(v, str) else len(str(v)) if v is not None else 0
                          for v in frame[self.column].tolist()], np.int64)  # fmt: skip
        dropped: Masks = {}
        if self.min is not None:
            dropped[f"{self.column} too short"] = sizes < self.min
        if self.max is not None and self.action == "cut":
            frame = _map_text(frame, [self.column], lambda text: text[: self.max])
        elif self.max is not None:
            dropped[f"{self.column} too long"] = sizes > self.max
        return frame, dropped, {}
