"""The `features` encoding: table rows become float32 numbers and a target, as the train rows teach it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core.config import Section, suggest
from llmtool.core.contracts import Features
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import decimals
from llmtool.data.cells import MARKERS, Cells
from llmtool.data.columns import (
    Categories,
    Column,
    Dates,
    Ignored,
    Missing,
    Numbers,
    Scale,
    column_from_state,
    column_state,
    fit_category,
    fit_date,
    fit_number,
)
from llmtool.data.dates import advice, is_local
from llmtool.data.encoding import Chunks, Encoded, Refusals
from llmtool.data.statistics import ColumnStatistics, Survey
from llmtool.data.store import CARD, ArrayWriter, Dataset
from llmtool.data.targets import SEPARATOR as LABEL_SEPARATOR
from llmtool.data.targets import (
    TARGET_KIND,
    Kind,
    Target,
    fit_target,
    refuse_target,
    target_from_state,
    target_stratum,
    without_target,
)
from llmtool.data.targets import Scale as TargetScaleName

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

BINS = 64  # bins of the piecewise encoding
LIMIT = 3.0  # deviations that numbers stay below beside their bins
LONG_TEXT = 100  # characters in a cell, on average, from which a column is text and no category
_ROW_NUMBER = re.compile(r"|.*id|index|row|order|no|nr|number|unnamed.*|#", re.IGNORECASE)


class FeaturesEncode(Section):
    """Rows of numbers for tables: what to learn, which columns to use, how each kind of column is encoded."""

    gives: ClassVar[type] = Features
    as_: Literal["features"] = Field(
        default="features", alias="as", description="Numbers in a row, for tables."
    )
    target: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="The column to predict; a list of number columns predicts several at once."
    )
    target_kind: Kind = Field(default="auto", description=TARGET_KIND)
    label_separator: str = Field(default=",", min_length=1, description=LABEL_SEPARATOR)
    target_scale: TargetScaleName = Field(
        default="standard",
        description="the scale on which values are learned: standard: mean 0, deviation 1; log: their "
        "logarithm, for prices and counts; quantile: a normal distribution. Figures and predictions are in "
        "the target's own units.",
    )
    columns: list[str] | None = Field(
        default=None, description="The input columns; default all but the target."
    )
    ignore: Ignored = Field(default=[])
    numbers: Numbers = Field(default=[])
    categories: Categories = Field(default=[])
    dates: Dates = Field(default=[])
    missing: Missing = "median"
    indicator: bool | Literal["auto"] = Field(
        default="auto",
        description="Add a feature that says a number was missing; auto: where a train row lacks it.",
    )
    scale: Scale = "standard"
    bins: int = Field(
        default=BINS, ge=2, le=256, description="How many bins scale: piecewise cuts a number into."
    )
    limit: Annotated[float, Field(gt=0)] | Literal["auto", "none"] = Field(
        default="auto",
        description="what standardised numbers are bent to stay below, so that none that is far out weighs "
        "more; auto: 3 with scale: piecewise, else none.",
    )
    calendar: Literal["auto", "circle", "each"] = Field(
        default="auto",
        description="month, weekday and hour of a date: circle: a point on a circle; each: beside it a "
        "feature for each; auto: each with scale: piecewise, else circle.",
    )
    rare: int = Field(
        default=2, ge=1, description="Categories seen in fewer train rows than this are one, '(rare)'."
    )
    max_categories: int = Field(
        default=256, ge=1, le=100_000, description="Keep this many categories of a column, the most frequent."
    )
    markers: list[str] = Field(
        default=list(MARKERS),
        description="Words that mean missing in number and date columns (empty cells always do); the usual "
        "ones but None in a target of classes too.",
    )
    like: str | None = Field(
        default=None,
        description="A prepared directory whose fitted encoder is used again, with a target fitted anew.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        mine = {"as_", "like", "target", "target_kind", "target_scale", "label_separator"}
        given = self.model_fields_set - mine
        if self.like is not None and given:
            raise ValueError(
                f"like takes the encoder as it is; {', '.join(sorted(given))} cannot stand beside it"
            )
        if self.like is None and self.target is None:
            raise ValueError("needs a target: the column to predict")
        targets = [self.target] if isinstance(self.target, str) else self.target or []
        refuse_target(targets, self.target_kind, "label_separator" in self.model_fields_set)
        if "bins" in self.model_fields_set and self.scale != "piecewise":
            raise ValueError("bins is read only with scale: piecewise")
        if isinstance(self.limit, float | int) and self.scale not in ("standard", "piecewise"):
            raise ValueError("limit is read only with scale: standard or piecewise")
        _check_lists(self, targets)
        return self

    def files(self) -> list[Path]:
        """What preparing reads besides the source."""
        return [] if self.like is None else [Path(self.like) / CARD]

    def build(self, seed: int = 0) -> FeatureEncoder:
        """An encoder that has learned nothing yet; with `like`, one that lacks only its target."""
        return FeatureEncoder(self, seed) if self.like is None else _taken(self, self.like, seed)


def _check_lists(config: FeaturesEncode, targets: list[str]) -> None:
    places: dict[str, str] = dict.fromkeys(targets, "target")
    if len(places) < len(targets):
        raise ValueError("a target stands twice")
    for place in ("ignore", "numbers", "categories", "dates"):
        for name in getattr(config, place):
            if name in places:
                raise ValueError(f"column {name!r} stands in both {places[name]} and {place}")
            places[name] = place
    for name in config.columns or []:
        if places.get(name) in ("target", "ignore"):
            raise ValueError(f"column {name!r} stands in both {places[name]} and columns")
    if config.columns is not None:
        beyond = [n for n, place in places.items() if place in ("numbers", "categories", "dates")]
        if unread := [name for name in beyond if name not in config.columns]:
            raise ValueError(f"column {unread[0]!r} stands in {places[unread[0]]} but not in columns")


def _taken(config: FeaturesEncode, like: str, seed: int) -> FeatureEncoder:
    """The encoder of the dataset prepared at `like`, without its target."""
    try:
        card = Dataset.open(like).card
    except DataError as error:
        raise ConfigError(f"data.encode.like: {error}") from None
    if card["encoder"].get("as") != "features":
        raise ConfigError(f"data.encode.like: {like} holds {card['encoding']}, not features")
    taken = FeatureEncoder.from_state(card["encoder"], Path(like))
    taken.config = config.model_copy(update={"target": config.target or taken.config.target})
    taken.target, taken.seed = None, seed
    return taken


class FeatureEncoder:
    """Learns columns and target from the train rows; encodes any rows the same way."""

    def __init__(self, config: FeaturesEncode, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.names: list[str] | None = None  # the input columns; known when the source's are
        self.fitted: list[Column] | None = None
        self.target: Target | None = None
        self.notes: list[str] = []

    @property
    def _markers(self) -> frozenset[str]:
        return frozenset(self.config.markers) | {""}

    @property
    def target_names(self) -> list[str]:
        """The columns to be predicted."""
        target = self.config.target
        assert target is not None
        return [target] if isinstance(target, str) else target

    # --- before fitting

    def columns(self, available: list[str]) -> list[str]:
        """The input columns and the target; ConfigError names one that the data lacks."""
        for name in self.target_names:
            find_column(name, available, "target")
        if self.fitted is not None:
            for column in self.fitted:
                find_column(column.name, available, f"like: {self.config.like}")
            self.names = [column.name for column in self.fitted]
            if shared := set(self.names) & set(self.target_names):
                raise ConfigError(f"data.encode.target: {min(shared)!r} is an input of {self.config.like}")
            return [*self.names, *self.target_names]
        for place in ("columns", "ignore", "numbers", "categories", "dates"):
            for name in getattr(self.config, place) or []:
                find_column(name, available, place)
        chosen = available if self.config.columns is None else self.config.columns
        self.names = [name for name in chosen if name not in {*self.target_names, *self.config.ignore}]
        return [*self.names, *self.target_names]

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows without a target."""
        kind = self.config.target_kind
        return Refusals(without_target(frame, self.target_names, kind, self.notes, self._markers))

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """The class of each row as text."""
        return target_stratum(frame, self.target_names)

    # --- fitting

    def fit(self, chunks: Chunks) -> None:
        """Read the train rows once; decide each column's kind, then its encoder."""
        names = [] if self.fitted is not None else self.names
        assert names is not None, "columns() comes before fit()"
        survey = Survey([*names, *self.target_names], self._markers, self.seed)
        found = {one.name: one for one in survey.over(chunks)}
        self.target = fit_target(
            [found[name] for name in self.target_names],
            self.config.target_kind,
            self.notes,
            self.config.target_scale,
            self.config.label_separator,
            self._markers,
        )
        if self.fitted is None:
            self.fitted = [column for name in names if (column := self._fit_column(found[name])) is not None]
            if not self.fitted:
                reasons = "; ".join(self.notes)
                raise DataError(f"no input column is left{': ' if reasons else ''}{reasons}")

    def _fit_column(self, found: ColumnStatistics) -> Column | None:
        config, name = self.config, found.name
        forced = {"number": config.numbers, "category": config.categories, "date": config.dates}
        kind = next((kind for kind, listed in forced.items() if name in listed), None) or found.kind()
        moments = found.numbers if kind == "number" else found.days
        if found.decimal_commas:
            self.notes.append(f"column {name!r} {decimals.HINT}")
        reason = self._useless(found, kind)
        if reason:
            self.notes.append(f"column {name!r} is left out: {reason}")
            return None
        if kind == "category":
            return self._fit_category(found)
        sample = found.number_sample if kind == "number" else found.day_sample
        if not sample.exact and (config.missing == "median" or config.scale in ("quantile", "piecewise")):
            kept = len(sample.values())
            self.notes.append(
                f"column {name!r}: median and quantiles are of {kept:,} sampled values of {moments.count:,}"
            )
        refused = (
            found.wrong + found.infinite if kind == "number" else found.rows - found.missing - moments.count
        )
        if refused:
            example = (
                f", such as {found.first_wrong[:40]!r}" if found.first_wrong and kind == "number" else ""
            )
            self.notes.append(
                f"column {name!r} is read as {kind}s: {refused} train rows hold none{example} and are refused"
            )
        flag = config.indicator is True or (config.indicator == "auto" and found.missing > 0)
        if kind == "date":
            each = config.calendar == "each" or (config.calendar == "auto" and config.scale == "piecewise")
            return fit_date(found, config.missing, flag, each)
        limit = LIMIT if config.limit == "auto" and config.scale == "piecewise" else config.limit
        given = None if isinstance(limit, str) else limit
        return fit_number(found, config.scale, config.missing, flag, config.bins, given)

    def _useless(self, found: ColumnStatistics, kind: str) -> str:
        """Why a column says nothing, or "" when it may."""
        config, present = self.config, found.rows - found.blank
        flagged = config.indicator is not False and found.missing > 0
        if kind == "nothing" or present == 0:
            return "every train row lacks it"
        if kind in ("number", "date"):
            moments = found.numbers if kind == "number" else found.days
            if moments.count == 0:
                return f"no train row holds a {kind}{_dates_in(found)}"
            if moments.minimum >= moments.maximum and not flagged:
                return "it has the same value in every train row"
            named = found.name in config.numbers or found.name in (config.columns or [])
            if (
                kind == "number"
                and found.counts_rows
                and not named
                and _ROW_NUMBER.fullmatch(found.name.strip())
            ):
                return "it is the number of the row (name it in `numbers` to keep it)"
            return ""
        if found.distinct <= 1 and found.blank == 0:
            return "it has the same value in every train row"
        if found.name in config.categories:
            return ""
        keep = "(name it in `categories` to keep it)"
        if found.overflow or (found.distinct >= 20 and found.distinct > present / 2):
            numbers = found.numbers.count
            also = f"; {numbers:,} of its cells are numbers" if numbers > present / 2 else _dates_in(found)
            return (
                f"{found.distinct:,}{' or more' * found.overflow} different values in {present:,} rows "
                f"look like an identifier or free text {keep}{also}"
            )
        if found.length > LONG_TEXT * present:
            return f"it holds text of {found.length // present} characters on average {keep}"
        return ""

    def _fit_category(self, found: ColumnStatistics) -> Column | None:
        column = fit_category(found, self.config.rare, self.config.max_categories)
        if len(column.features) < 2:
            self.notes.append(
                f"column {found.name!r} is left out: no category stands in {self.config.rare} train rows"
            )
            return None
        frequent = sum(count >= self.config.rare for count in found.words.values())
        if frequent > len(column.categories):
            kept = len(column.categories)
            self.notes.append(
                f"column {found.name!r}: {kept:,} of {frequent:,} categories kept, the most frequent"
            )
        return column

    # --- after fitting

    @property
    def _fitted(self) -> list[Column]:
        assert self.fitted is not None, "fit() comes first"
        return self.fitted

    @property
    def features(self) -> list[str]:
        """A name for each number of a row."""
        return [feature for column in self._fitted for feature in column.features]

    @property
    def inputs(self) -> dict[str, Any]:
        """{"kind": "features", "width": F, "names": [...], "columns": how many each column became}."""
        sizes = [size for column in self._fitted for size in column.groups]
        return {"kind": "features", "width": len(self.features), "names": self.features, "columns": sizes}

    @property
    def targets(self) -> dict[str, Any]:
        """Classes with names and counts, or values with names, mean and scale."""
        assert self.target is not None, "fit() comes first"
        return self.target.spec()

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray, dict[int, str]]:
        """(rows, F) float32, and row position -> reason for the rows that cannot be encoded."""
        block = np.zeros((len(frame), len(self.features)), dtype=np.float32)
        refused: dict[int, str] = {}
        at = 0
        with np.errstate(all="ignore"):  # what overflows is refused below
            for column in self._fitted:
                out = block[:, at : at + len(column.features)]
                for reason, mask in column.encode(Cells(frame[column.name]), self._markers, out).items():
                    for row in np.flatnonzero(mask):
                        refused.setdefault(int(row), reason)
                for row in np.flatnonzero(~np.isfinite(out).all(axis=1)):
                    refused.setdefault(int(row), f"{column.name} is too large for a 32-bit number")
                at += len(column.features)
        return block, refused

    def encoded(self, chunk: Chunk) -> Encoded:
        """Rows with a target, as a writer appends them."""
        assert self.target is not None, "fit() comes first"
        targets, refused = self.target.encode(chunk.frame, self._markers)
        block, more = self.encode(chunk.frame)
        refused = {**more, **refused}
        keep = np.ones(len(chunk.frame), dtype=bool)
        keep[list(refused)] = False
        origin = np.stack([chunk.file, chunk.line], axis=1)[keep].astype(np.int64)
        ordinals = chunk.frame.index.to_numpy()
        return Encoded(
            {"inputs": block[keep], "targets": targets[keep], "origin": origin},
            {int(ordinals[row]): reason for row, reason in sorted(refused.items())},
        )

    def writer(self, directory: Path, split: str) -> FeatureWriter:
        """Writes `{split}.inputs.bin`, `.targets.bin` and `.origin.bin`."""
        return FeatureWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """Columns, target and the words for missing."""
        assert self.target is not None, "fit() comes first"
        return {
            "as": "features",
            "target": self.config.target,
            "markers": list(self.config.markers),
            "columns": [column_state(column) for column in self._fitted],
            "fitted_target": self.target.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> FeatureEncoder:
        """The encoder whose `state()` this is; DataError when the card is not one of features."""
        try:
            target, markers, columns = state["target"], state["markers"], state["columns"]
            encoder = cls(FeaturesEncode(target=target, markers=markers))
            encoder.fitted = [column_from_state(column) for column in columns]
            encoder.target = target_from_state(state["fitted_target"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        encoder.names = [column.name for column in encoder.fitted]
        return encoder


def _dates_in(found: ColumnStatistics) -> str:
    """What to do where the texts of a column are dates in the order of a country."""
    return f"; {advice(found.name, next(iter(found.words)))}" if is_local(found.words) else ""


class FeatureWriter:
    """inputs (rows, F) float32, targets (rows,) int64 or (rows, n) float32, origin (rows, 2) file, line."""

    def __init__(self, encoder: FeatureEncoder, directory: Path, split: str) -> None:
        assert encoder.target is not None
        self._encoder, target = encoder, encoder.target
        self._arrays = {
            "inputs": ArrayWriter(directory / f"{split}.inputs.bin", "<f4", (len(encoder.features),)),
            "targets": ArrayWriter(directory / f"{split}.targets.bin", target.dtype, target.shape),
            "origin": ArrayWriter(directory / f"{split}.origin.bin", "<i8", (2,)),
        }

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Write the rows that can be encoded; the ordinals of the others come back with reasons."""
        return self.write(self._encoder.encoded(chunk))

    def write(self, encoded: Encoded) -> dict[int, str]:
        """The same of rows that are encoded."""
        for name, array in self._arrays.items():
            array.append(encoded.arrays[name])
        return encoded.refused

    def close(self) -> dict[str, Any]:
        """Rows written, and the arrays."""
        arrays = {name: array.close() for name, array in self._arrays.items()}
        return {"rows": self._arrays["inputs"].rows, "arrays": arrays}


def find_column(name: str, available: Sequence[str], key: str) -> None:
    """ConfigError, which begins with `data.encode.<key>`, unless the data has this column."""
    if name not in available:
        known = ", ".join(map(str, available[:30])) + (", ..." if len(available) > 30 else "")
        near = suggest(name, list(available))
        raise ConfigError(f"data.encode.{key}: the data has no column {name!r}{near} (columns: {known})")
