"""What an encoding is: it learns from the train rows, then turns rows of every split into arrays on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmtool.core.errors import DataError
from llmtool.data.cleaning import Masks

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

TOO_LONG = "longer than data.encode.length"  # the reason of a writer for a row that is dropped, not bad


class RowError(DataError):
    """Data that is refused for one row; file: its number in the source, which the stage turns into a name."""

    def __init__(self, file: int, line: int, message: str) -> None:
        super().__init__(message)
        self.file, self.line = file, line

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.file, self.line, *self.args)


class Chunks(Protocol):
    """Rows in the order of the source; whoever iterates reads them again from the start."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def map(self, work: Callable[[Chunk], Any]) -> Iterator[Any]:
        """What `work` makes of each chunk, in their order. Other processes may do it: `work` and what it
        makes can be sent."""


@dataclass(frozen=True)
class Given:
    """Chunks that are at hand."""

    chunks: Sequence[Chunk]

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def map(self, work: Callable[[Chunk], Any]) -> Iterator[Any]:
        """The same, here."""
        return map(work, self.chunks)


@dataclass
class Encoded:
    """Rows as a writer appends them. arrays: by name. refused: ordinals of the rows that cannot be encoded,
    each with its reason. about: what the writer counts of the others."""

    arrays: dict[str, np.ndarray]
    refused: dict[int, str]
    about: Any = None


class SplitWriter(Protocol):
    """Writes the rows of one split; rows come in the order of the source."""

    def add(self, chunk: Chunk) -> dict[int, str]:
        """Encode and write these rows; gives back the ordinals it refused, each with its reason."""

    def close(self) -> dict[str, Any]:
        """Finish the files; gives back the split's entry in the card: rows, arrays, what else was counted."""


class EncodedWriter(SplitWriter, Protocol):
    """One of an encoder that has `encoded`."""

    def write(self, encoded: Encoded) -> dict[int, str]:
        """Write what that made of some rows; gives back the same as `add`."""


@dataclass
class Refusals:
    """What an encoding says of raw rows before any split: those that no split can use, by reason.

    dropped: they are counted (no target). bad: they are written down as faulty too; details: of such rows, by
    ordinal, what their reasons leave out. alike: the frame with equal rows written alike, so that copies are
    known as such; None: as it is.
    """

    dropped: Masks = field(default_factory=dict)
    bad: Masks = field(default_factory=dict)
    details: Mapping[int, str] = field(default_factory=dict)
    alike: pd.DataFrame | None = None


class Encoder(Protocol):
    """The order of calls: columns, refuse and stratum on raw rows; fit; writer for each split; state."""

    notes: list[str]  # what a person should know: columns left out and why, what was sampled

    def columns(self, available: list[str]) -> list[str]:
        """The columns it reads, the target's too: the content of a row. ConfigError when one is missing."""

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows that no split can use, for example those without a target."""

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """The target of each row, for stratified splits; ConfigError where the encoding has no target."""

    def fit(self, chunks: Chunks) -> None:
        """Learn from the train rows, in memory that does not grow with them."""

    @property
    def encoded(self) -> Callable[[Chunk], Encoded] | None:
        """After fit: encodes rows of one split, in any process; None: only a writer can, in order."""

    def writer(self, directory: Path, split: str) -> SplitWriter:
        """Writes `split` below `directory`, where card.json will lie too."""

    @property
    def inputs(self) -> dict[str, Any]:
        """After fit: {"kind": "features", "width": F} or {"kind": "tokens", "vocabulary": V}."""

    @property
    def targets(self) -> dict[str, Any]:
        """After fit: kind "classes" (names, counts), "values" (names, mean, scale) or "next_token"."""

    def state(self) -> dict[str, Any]:
        """All that was learned, as JSON; the class's `from_state(state, directory)` restores it exactly."""
